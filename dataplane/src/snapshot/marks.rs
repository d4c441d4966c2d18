//! Which packets bear a firewall mark.
//!
//! IPVS takes the mark from netfilter. A frame from AF_XDP bears none, so rules of the configuration say who has which:
//! the first one that a packet matches gives it its mark. Port ranges and whole networks become services this way.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use crate::flow::key::{self, FlowKey};
use crate::ids::PortId;

/// Rules at most, after lists in them were spread out.
pub const MARK_RULES_MAX: usize = 1024;

/// A firewall mark in one address family: what IPVS finds a service of `-f` by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The mark.
    pub value: NonZeroU32,
    /// Whether it is that of IPv6 packets.
    pub v6: bool,
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The first address; an IPv4 address in the low 32 bits.
    pub addr: u128,
    /// Bits that all addresses of it have in common; at most 32 of IPv4.
    pub len: u8,
    /// Whether the addresses are IPv6.
    pub v6: bool,
}

impl Prefix {
    /// Whether the address, of the prefix's family, is in it.
    #[inline]
    pub fn contains(&self, addr: u128) -> bool {
        let width: u8 = if self.v6 { 128 } else { 32 };
        let host = width.saturating_sub(self.len);
        (addr ^ self.addr).checked_shr(host.into()).unwrap_or(0) == 0
    }
}

/// The transport protocols that a rule is about: a set of TCP, UDP and SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocols {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
    /// SCTP.
    pub sctp: bool,
}

impl Protocols {
    /// All three.
    pub const ALL: Self = Self { tcp: true, udp: true, sctp: true };

    /// Whether the set has the protocol with this IP protocol number.
    #[inline]
    pub fn contains(self, proto: u8) -> bool {
        match proto {
            key::TCP => self.tcp,
            key::UDP => self.udp,
            key::SCTP => self.sctp,
            _ => false,
        }
    }
}

/// A rule: packets that match all of it bear the mark. What is `None` matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MarkRule {
    /// Where they come from.
    pub src: Option<Prefix>,
    /// Where they go, of the same family as `src`.
    pub dst: Option<Prefix>,
    /// Their transport protocol.
    pub protocols: Protocols,
    /// Destination ports.
    pub dports: RangeInclusive<u16>,
    /// Source ports.
    pub sports: RangeInclusive<u16>,
    /// The interface that they came in by.
    pub port: Option<PortId>,
    /// Their mark.
    pub mark: NonZeroU32,
}

impl MarkRule {
    /// Whether it is about packets of this family.
    pub fn has_family(&self, v6: bool) -> bool {
        [self.src, self.dst].iter().flatten().all(|prefix| prefix.v6 == v6)
    }

    /// Whether a packet with `key` matches that came in by `port`.
    #[inline]
    pub fn matches(&self, key: &FlowKey, port: PortId) -> bool {
        let within = |prefix: Option<Prefix>, addr| {
            prefix.is_none_or(|prefix| prefix.v6 == key.v6 && prefix.contains(addr))
        };
        self.protocols.contains(key.proto)
            && self.dports.contains(&key.dport)
            && self.sports.contains(&key.sport)
            && within(self.dst, key.dst)
            && within(self.src, key.src)
            && self.port.is_none_or(|of| of == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str, len: u8) -> Prefix {
        let (addr, v6) = key::bits(text.parse().unwrap());
        Prefix { addr, len, v6 }
    }

    #[test]
    fn prefixes_hold_their_addresses() {
        for (net, len, inside, outside) in [
            ("10.0.0.0", 8, "10.255.255.255", "11.0.0.0"),
            ("10.0.0.1", 32, "10.0.0.1", "10.0.0.0"),
            ("192.0.2.128", 25, "192.0.2.255", "192.0.2.127"),
            ("2001:db8::", 32, "2001:db8:ffff::1", "2001:db9::"),
            ("fd00::1", 128, "fd00::1", "fd00::"),
        ] {
            let prefix = prefix(net, len);
            let bits = |text: &str| key::bits(text.parse().unwrap()).0;
            assert!(prefix.contains(bits(inside)) && !prefix.contains(bits(outside)), "{net}/{len}");
        }
        assert!(prefix("0.0.0.0", 0).contains(u128::from(u32::MAX)));
        assert!(prefix("::", 0).contains(u128::MAX));
    }

    #[test]
    fn a_rule_matches_what_all_its_parts_match() {
        let rule = MarkRule {
            src: Some(prefix("198.51.100.0", 24)),
            dst: Some(prefix("10.0.0.0", 8)),
            protocols: Protocols { udp: false, ..Protocols::ALL },
            dports: 80..=443,
            sports: 1024..=u16::MAX,
            port: Some(PortId(1)),
            mark: NonZeroU32::MIN,
        };
        let (src, dst) = (key::bits([198, 51, 100, 7].into()).0, key::bits([10, 1, 2, 3].into()).0);
        let good = FlowKey { src, dst, sport: 1024, dport: 443, proto: key::TCP, v6: false };
        for (name, key, port, want) in [
            ("all of it", good, 1, true),
            ("another source", FlowKey { src: dst, ..good }, 1, false),
            ("another destination", FlowKey { dst: src, ..good }, 1, false),
            ("sctp", FlowKey { proto: key::SCTP, ..good }, 1, true),
            ("udp", FlowKey { proto: key::UDP, ..good }, 1, false),
            ("another protocol", FlowKey { proto: 47, ..good }, 1, false),
            ("destination port above", FlowKey { dport: 444, ..good }, 1, false),
            ("source port below", FlowKey { sport: 1023, ..good }, 1, false),
            ("another interface", good, 0, false),
            ("the other family", FlowKey { v6: true, ..good }, 1, false),
        ] {
            assert_eq!(rule.matches(&key, PortId(port)), want, "{name}");
        }
        assert!(rule.has_family(false) && !rule.has_family(true));
        let any = MarkRule { src: None, dst: None, ..rule };
        assert!(any.has_family(false) && any.has_family(true));
    }
}
