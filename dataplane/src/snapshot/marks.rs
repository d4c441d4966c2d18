//! Which packets bear a firewall mark.
//!
//! IPVS takes the mark from netfilter. A frame from AF_XDP bears none, so rules of the configuration say who has which:
//! the first one that a packet matches gives it its mark. Port ranges and whole networks become services this way.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use prefix_trie::PrefixMap;

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

/// Words of a set of rules.
const WORDS: usize = MARK_RULES_MAX / 64;

/// A set of rules, by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Set([u64; WORDS]);

impl Set {
    fn of(places: impl IntoIterator<Item = usize>) -> Self {
        let mut set = Self::default();
        for place in places {
            if let Some(word) = set.0.get_mut(place / 64) {
                *word |= 1 << (place % 64);
            }
        }
        set
    }
}

/// The rules, prepared so that one packet costs the same whatever they are: for each of its fields the set of rules
/// that its value matches is looked up, and the first rule that is in all sets gives the mark (Lakshman, Stiliadis:
/// High-Speed Policy-based Packet Forwarding Using Efficient Multi-dimensional Range Matching, 1998). Less than 2 MB at
/// [`MARK_RULES_MAX`] rules.
#[derive(Debug, Default)]
pub(super) struct Marks {
    rules: Box<[MarkRule]>,
    dst: Addresses,
    src: Addresses,
    dports: Ports,
    sports: Ports,
    /// TCP, UDP, SCTP.
    protocols: [Set; 3],
    /// By interface, as far as rules name some; the others'.
    ports: (Vec<Set>, Set),
}

impl Marks {
    /// At most [`MARK_RULES_MAX`] rules; control refuses more before.
    pub(super) fn new(mut rules: Vec<MarkRule>) -> Self {
        rules.truncate(MARK_RULES_MAX);
        let those = |wanted: &dyn Fn(&MarkRule) -> bool| {
            Set::of(rules.iter().enumerate().filter(|(_, rule)| wanted(rule)).map(|(place, _)| place))
        };
        let last = rules.iter().filter_map(|rule| rule.port).map(|port| port.0).max();
        let named = (0..=last.unwrap_or(0)).map(PortId);
        Self {
            dst: Addresses::over(&rules, |rule| rule.dst),
            src: Addresses::over(&rules, |rule| rule.src),
            dports: Ports::over(&rules, |rule| &rule.dports),
            sports: Ports::over(&rules, |rule| &rule.sports),
            protocols: [key::TCP, key::UDP, key::SCTP]
                .map(|proto| those(&|rule| rule.protocols.contains(proto))),
            ports: (
                named.map(|port| those(&|rule| rule.port.is_none_or(|of| of == port))).collect(),
                those(&|rule| rule.port.is_none()),
            ),
            rules: rules.into(),
        }
    }

    pub(super) fn rules(&self) -> &[MarkRule] {
        &self.rules
    }

    /// The mark of a packet with `key` that came in by `port`.
    #[inline]
    pub(super) fn mark(&self, key: &FlowKey, port: PortId) -> Option<Mark> {
        if self.rules.is_empty() {
            return None;
        }
        let value = self.first(key, port)?.mark;
        Some(Mark { value, v6: key.v6 })
    }

    /// The first rule that matches.
    fn first(&self, key: &FlowKey, port: PortId) -> Option<&MarkRule> {
        let [tcp, udp, sctp] = &self.protocols;
        let protocol = match key.proto {
            key::TCP => tcp,
            key::UDP => udp,
            key::SCTP => sctp,
            _ => return None,
        };
        let (named, others) = &self.ports;
        let sets = [
            self.dst.get(key.dst, key.v6)?,
            self.src.get(key.src, key.v6)?,
            self.dports.get(key.dport)?,
            self.sports.get(key.sport)?,
            protocol,
            named.get(port.index()).unwrap_or(others),
        ];
        let words = self.rules.len().div_ceil(64);
        let place = (0..words).find_map(|word| {
            let all = sets.iter().filter_map(|set| set.0.get(word)).fold(u64::MAX, |all, bits| all & bits);
            (all != 0).then(|| word * 64 + all.trailing_zeros() as usize)
        })?;
        self.rules.get(place)
    }
}

/// Which rules an address matches: the set lies at the longest prefix of any rule that holds the address, and has the
/// rules of all prefixes around that one.
#[derive(Debug, Default)]
struct Addresses {
    v4: PrefixMap<(u32, u8), Set>,
    v6: PrefixMap<(u128, u8), Set>,
}

impl Addresses {
    fn over(rules: &[MarkRule], prefix: impl Fn(&MarkRule) -> Option<Prefix>) -> Self {
        let mut sets = Self::default();
        for v6 in [false, true] {
            let everything = Prefix { addr: 0, len: 0, v6 };
            let of = |rule| prefix(rule).unwrap_or(everything);
            for inner in rules.iter().map(of).filter(|prefix| prefix.v6 == v6) {
                let around =
                    |outer: Prefix| outer.v6 == v6 && outer.len <= inner.len && outer.contains(inner.addr);
                let places = rules.iter().enumerate().filter(|(_, rule)| around(of(rule)));
                let set = Set::of(places.map(|(place, _)| place));
                match u32::try_from(inner.addr) {
                    Ok(v4) if !v6 => sets.v4.insert((v4, inner.len), set),
                    _ => sets.v6.insert((inner.addr, inner.len), set),
                };
            }
        }
        sets
    }

    fn get(&self, addr: u128, v6: bool) -> Option<&Set> {
        match u32::try_from(addr) {
            Ok(v4) if !v6 => self.v4.get_lpm(&(v4, 32)).map(|(_, set)| set),
            _ => self.v6.get_lpm(&(addr, 128)).map(|(_, set)| set),
        }
    }
}

/// Which rules a port matches: a set for each interval in which that does not change, by its first port.
#[derive(Debug, Default)]
struct Ports(Vec<(u16, Set)>);

impl Ports {
    fn over(rules: &[MarkRule], range: impl Fn(&MarkRule) -> &RangeInclusive<u16>) -> Self {
        let ends = |rule| [Some(*range(rule).start()), range(rule).end().checked_add(1)];
        let mut starts: Vec<_> = rules.iter().flat_map(ends).flatten().chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let set = |port: u16| {
            let places = rules.iter().enumerate().filter(|(_, rule)| range(rule).contains(&port));
            (port, Set::of(places.map(|(place, _)| place)))
        };
        Self(starts.into_iter().map(set).collect())
    }

    fn get(&self, port: u16) -> Option<&Set> {
        let above = self.0.partition_point(|(start, _)| *start <= port);
        self.0.get(above.checked_sub(1)?).map(|(_, set)| set)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    fn any_prefix() -> impl Strategy<Value = Option<Prefix>> {
        let prefix = |(v6, bits, len): (bool, u8, u8)| {
            // Few bits differ, so that prefixes contain each other.
            let (width, len) = if v6 { (128u32, len * 16) } else { (32, len * 4) };
            let addr = u128::from(bits) << (width - 8);
            let host = width - u32::from(len);
            let addr = addr.checked_shr(host).and_then(|net| net.checked_shl(host)).unwrap_or(0);
            Prefix { addr, len, v6 }
        };
        proptest::option::of((any::<bool>(), 0..8u8, 0..=8u8).prop_map(prefix))
    }

    fn any_rule() -> impl Strategy<Value = MarkRule> {
        let range =
            || (0..12u16, 0..12u16).prop_map(|(a, b)| a.min(b)..=if b > 9 { u16::MAX } else { a.max(b) });
        let parts = (any_prefix(), any_prefix(), any::<[bool; 3]>(), range(), range());
        (parts, proptest::option::of(0..3u8), 1..9u32).prop_map(|(parts, port, mark)| {
            let (src, dst, [tcp, udp, sctp], dports, sports) = parts;
            let src = src.filter(|src| dst.is_none_or(|dst| dst.v6 == src.v6));
            let protocols = Protocols { tcp, udp, sctp };
            let mark = NonZeroU32::new(mark).unwrap();
            MarkRule { src, dst, protocols, dports, sports, port: port.map(PortId), mark }
        })
    }

    proptest! {
        #[test]
        fn the_prepared_rules_give_what_going_through_them_gives(
            rules in proptest::collection::vec(any_rule(), 0..80),
            packets in proptest::collection::vec(
                (any::<bool>(), [0..8u128, 0..8u128], [0..14u16, 0..14u16], 0..4usize, 0..4u8), 40,
            ),
        ) {
            let marks = Marks::new(rules.clone());
            for (v6, addresses, [sport, dport], proto, port) in packets {
                let [src, dst] = addresses.map(|bits| bits << if v6 { 120 } else { 24 });
                let proto = [key::TCP, key::UDP, key::SCTP, 1][proto];
                let key = FlowKey { src, dst, sport, dport, proto, v6 };
                let want = rules.iter().find(|rule| rule.matches(&key, PortId(port)));
                prop_assert_eq!(marks.mark(&key, PortId(port)), want.map(|rule| Mark { value: rule.mark, v6 }));
            }
        }
    }

    #[test]
    fn as_many_rules_as_there_may_be_are_told_apart() {
        let dst = prefix("10.0.0.0", 8);
        let rule = |n: u16| MarkRule {
            src: None,
            dst: Some(dst),
            protocols: Protocols::ALL,
            dports: n..=n,
            sports: 0..=u16::MAX,
            port: None,
            mark: NonZeroU32::new(u32::from(n) + 1).unwrap(),
        };
        let marks = Marks::new((0..1100).map(rule).collect());
        for (dport, want) in [(0, Some(1)), (63, Some(64)), (64, Some(65)), (1023, Some(1024)), (1024, None)]
        {
            let key = FlowKey { src: 1, dst: dst.addr | 7, sport: 9, dport, proto: key::TCP, v6: false };
            assert_eq!(marks.mark(&key, PortId(0)).map(|mark| mark.value.get()), want, "{dport}");
        }
    }
}
