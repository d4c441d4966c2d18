//! What the kernel's maps should hold, as a value. Pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::abi::{Address, NODE_PORT_WORDS, PROTOS, Place, Prefix, RuleLines, Use, flag};
use crate::ours::{Ours, Proto};
use crate::rules;

/// The maps' content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) vips: HashSet<Place>,
    pub(crate) backends: HashSet<Place>,
    pub(crate) addresses: HashMap<Address, Use>,
    /// [`NODE_PORT_WORDS`] a protocol.
    pub(crate) node_ports: Vec<u64>,
    pub(crate) rules: HashMap<Prefix, Arc<RuleLines>>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            vips: HashSet::new(),
            backends: HashSet::new(),
            addresses: HashMap::new(),
            node_ports: vec![0; (PROTOS * NODE_PORT_WORDS) as usize],
            rules: HashMap::new(),
        }
    }
}

impl Image {
    /// The content that makes the program hand over what `ours` says.
    pub(crate) fn of(ours: &Ours) -> Self {
        let mut image = Self::default();
        for vip in &ours.vips {
            let purpose = image.use_of(vip.addr);
            purpose.vip_protos |= vip.proto.bit();
            if vip.port == 0 {
                purpose.vip_every |= vip.proto.bit();
            } else {
                image.vips.insert(vip.into());
            }
        }
        for backend in &ours.nat_backends {
            let purpose = image.use_of(backend.addr);
            purpose.backend_protos |= backend.proto.bit();
            if backend.port == 0 {
                purpose.backend_every |= backend.proto.bit();
            } else {
                image.backends.insert(backend.into());
            }
        }
        for (addr, port) in &ours.tunnels {
            let purpose = image.use_of(*addr);
            purpose.flags |= flag::TUNNEL;
            if *port != 0 {
                let low = if purpose.tunnel_low == 0 { *port } else { purpose.tunnel_low.min(*port) };
                (purpose.tunnel_low, purpose.tunnel_high) = (low, purpose.tunnel_high.max(*port));
            }
        }
        for addr in &ours.node_addresses {
            image.use_of(*addr).flags |= flag::NODE;
        }
        for addr in &ours.owned {
            image.use_of(*addr).flags |= flag::ANSWERED;
        }
        for (addr, ports) in ours.snat.iter().filter(|(_, ports)| !ports.is_empty()) {
            let purpose = image.use_of(*addr);
            purpose.flags |= flag::TRANSLATED;
            (purpose.snat_low, purpose.snat_high) = (*ports.start(), *ports.end());
        }
        for (proto, port) in &ours.node_ports {
            image.set_node_port(*proto, *port);
        }
        image.rules = rules::lines(&ours.rules);
        image
    }

    /// What is in both. Of a prefix whose rules differ, those of `self`: what only these give a mark is handed over for a
    /// moment longer, which costs a detour, while without any established flows would miss their packets.
    pub(crate) fn common(&self, other: &Self) -> Self {
        let both = |(addr, mine): (&Address, &Use)| {
            let shared = mine.common(other.addresses.get(addr)?);
            (shared != Use::default()).then_some((*addr, shared))
        };
        let kept = |(prefix, lines): (&Prefix, &Arc<RuleLines>)| {
            other.rules.contains_key(prefix).then(|| (*prefix, Arc::clone(lines)))
        };
        Self {
            vips: self.vips.intersection(&other.vips).copied().collect(),
            backends: self.backends.intersection(&other.backends).copied().collect(),
            addresses: self.addresses.iter().filter_map(both).collect(),
            node_ports: self.node_ports.iter().zip(&other.node_ports).map(|(a, b)| a & b).collect(),
            rules: self.rules.iter().filter_map(kept).collect(),
        }
    }

    fn use_of(&mut self, addr: IpAddr) -> &mut Use {
        self.addresses.entry(addr.into()).or_default()
    }

    fn set_node_port(&mut self, proto: Proto, port: u16) {
        let word = u32::from(proto.number()) * NODE_PORT_WORDS + u32::from(port) / u64::BITS;
        if let Some(word) = self.node_ports.get_mut(word as usize) {
            *word |= 1 << (u32::from(port) % u64::BITS);
        }
    }
}

impl Use {
    fn common(&self, other: &Self) -> Self {
        let mut shared = Self {
            snat_low: self.snat_low.max(other.snat_low),
            snat_high: self.snat_high.min(other.snat_high),
            flags: self.flags & other.flags,
            vip_protos: self.vip_protos & other.vip_protos,
            backend_protos: self.backend_protos & other.backend_protos,
            vip_every: self.vip_every & other.vip_every,
            backend_every: self.backend_every & other.backend_every,
            tunnel_low: self.tunnel_low.max(other.tunnel_low),
            tunnel_high: self.tunnel_high.min(other.tunnel_high),
        };
        if shared.flags & flag::TUNNEL == 0 || shared.tunnel_low > shared.tunnel_high {
            (shared.tunnel_low, shared.tunnel_high) = (0, 0);
        }
        if shared.snat_low > shared.snat_high {
            shared.flags &= !flag::TRANSLATED;
        }
        if shared.flags & flag::TRANSLATED == 0 {
            (shared.snat_low, shared.snat_high) = (0, 0);
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ours::{Endpoint, Rule};

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn snat(low: u16, high: u16) -> Ours {
        Ours { snat: [(VIP, low..=high)].into(), ..Ours::default() }
    }

    fn vip(port: u16, proto: Proto) -> Endpoint {
        Endpoint { addr: VIP, port, proto }
    }

    fn rule(port: u16) -> Rule {
        Rule {
            src: None,
            dst: None,
            protos: vec![Proto::Tcp],
            dports: port..=port,
            sports: 0..=u16::MAX,
            port: None,
            ours: [true; 2],
        }
    }

    #[test]
    fn rules_stay_as_they_were_until_their_prefix_goes() {
        let [old, new] = [80, 81].map(|port| Image::of(&Ours { rules: vec![rule(port)], ..Ours::default() }));
        assert_eq!(old.rules.len(), 2, "one block a family");
        assert_ne!(old, new);
        assert_eq!(old.common(&new), old);
        assert_eq!(old.common(&Image::default()), Image::default());
    }

    #[test]
    fn what_two_images_share_is_in_both() {
        let full = Ours {
            vips: [vip(80, Proto::Tcp), vip(53, Proto::Udp), vip(0, Proto::Sctp)].into(),
            nat_backends: [vip(8080, Proto::Sctp), vip(0, Proto::Tcp)].into(),
            node_addresses: [VIP].into(),
            node_ports: [(Proto::Tcp, 30000), (Proto::Udp, 30000)].into(),
            owned: [VIP].into(),
            snat: [(VIP, 1000..=2000)].into(),
            tunnels: [(VIP, 6080), (VIP, 0)].into(),
            rules: vec![rule(80), Rule { dst: Some((VIP, 32)), ..rule(81) }],
        };
        let less = Ours {
            vips: [vip(80, Proto::Tcp)].into(),
            nat_backends: HashSet::new(),
            tunnels: [(VIP, 0)].into(),
            rules: vec![rule(80)],
            node_ports: [(Proto::Udp, 30000)].into(),
            owned: HashSet::new(),
            ..full.clone()
        };
        let (full, less) = (Image::of(&full), Image::of(&less));
        assert_eq!(full.common(&less), less);
        assert_eq!(less.common(&full), less);
        assert_eq!(full.common(&full), full);
        assert_eq!(full.common(&Image::default()), Image::default());
    }

    #[test]
    fn snat_ranges_share_their_overlap() {
        for (name, a, b, want) in [
            ("overlap", snat(1000, 2000), snat(1500, 3000), snat(1500, 2000)),
            ("within", snat(1000, 2000), snat(1200, 1300), snat(1200, 1300)),
            ("one port", snat(1000, 2000), snat(2000, 3000), snat(2000, 2000)),
            ("apart", snat(1000, 2000), snat(2001, 3000), Ours::default()),
        ] {
            assert_eq!(Image::of(&a).common(&Image::of(&b)), Image::of(&want), "{name}");
        }
    }

    #[test]
    fn every_node_port_has_a_bit_of_its_own() {
        let all = [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter();
        let ports = all.flat_map(|proto| (0..=u16::MAX).map(move |port| (proto, port))).collect();
        let image = Image::of(&Ours { node_ports: ports, ..Ours::default() });
        assert!(image.node_ports.iter().all(|word| *word == u64::MAX));
        let one = Image::of(&Ours { node_ports: [(Proto::Udp, 65535)].into(), ..Ours::default() });
        assert_eq!(one.node_ports.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
    }
}
