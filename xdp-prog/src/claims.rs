//! What is claimed for Weir, and how often: several services may have a backend in common, or a virtual address. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use crate::abi::{Address, NODE_PORT_WORDS, Place, Use, flag};
use crate::ours::{Claim, Endpoint, Proto};

/// A claim that is about an address, as small as it can be: in a large cluster there are a million. Those about one
/// address lie together, of these those of one kind, of these those of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Held {
    bits: [u8; 16],
    /// From the top: whether the address is IPv6 (1 bit), [`Kind`] (7), the protocol's number (8).
    what: u16,
    port: u16,
    /// The last port, of a range.
    last: u16,
}

/// What kind of claim is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Vip,
    Backend,
    Tunnel,
    Snat,
    Node,
    Owned,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Vip, Self::Backend, Self::Tunnel, Self::Snat, Self::Node, Self::Owned];
}

impl Held {
    fn new(addr: IpAddr, kind: Kind, proto: u16, ports: (u16, u16)) -> Self {
        let (first, _) = Self::about(addr.into());
        Self { what: first.what | u16::from(kind as u8) << 8 | proto, port: ports.0, last: ports.1, ..first }
    }

    fn place(kind: Kind, endpoint: &Endpoint) -> Self {
        Self::new(endpoint.addr, kind, endpoint.proto.number(), (endpoint.port, 0))
    }

    /// `None` for one that is not about an address.
    fn of(claim: &Claim) -> Option<Self> {
        match claim {
            Claim::Vip(endpoint) => Some(Self::place(Kind::Vip, endpoint)),
            Claim::NatBackend(endpoint) => Some(Self::place(Kind::Backend, endpoint)),
            Claim::NodeAddress(addr) => Some(Self::new(*addr, Kind::Node, 0, (0, 0))),
            Claim::Owned(addr) => Some(Self::new(*addr, Kind::Owned, 0, (0, 0))),
            Claim::Tunnel(addr, port) => Some(Self::new(*addr, Kind::Tunnel, 0, (*port, 0))),
            Claim::Snat(addr, low, high) => Some(Self::new(*addr, Kind::Snat, 0, (*low, *high))),
            Claim::NodePort(..) => None,
        }
    }

    pub(crate) fn kind(self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| u16::from(*kind as u8) == self.what >> 8 & 0x7f)
    }

    fn proto(self) -> u16 {
        self.what & 0xff
    }

    pub(crate) fn addr(self) -> Address {
        Address::of_bits(self.bits, self.what >> 15 != 0)
    }

    /// Its key in the map of VIPs, or of backends; `None` where it needs none.
    pub(crate) fn key(self) -> Option<Place> {
        let is_place = matches!(self.kind(), Some(Kind::Vip | Kind::Backend)) && self.port != 0;
        is_place.then(|| Place::new(self.addr(), self.port, self.proto()))
    }

    /// The service that it is, if it is one over IPv4 on one port: address, port and the protocol's number.
    pub(crate) fn front(self) -> Option<(u32, u16, u16)> {
        let [a, b, c, d, ..] = self.bits;
        let is_front = self.kind() == Some(Kind::Vip) && self.port != 0 && !self.addr().is_v6();
        is_front.then_some((u32::from_be_bytes([a, b, c, d]), self.port, self.proto()))
    }

    /// The bounds of all that is held about an address.
    fn about(addr: Address) -> (Self, Self) {
        let v6 = u16::from(addr.is_v6()) << 15;
        let first = Self { bits: addr.bits(), what: v6, port: 0, last: 0 };
        (first, Self { what: v6 | 0x7fff, port: u16::MAX, last: u16::MAX, ..first })
    }

    /// The last of those behind it that say nothing more of their address than it does.
    fn last_alike(self) -> Self {
        if self.key().is_some() { Self { port: u16::MAX, last: u16::MAX, ..self } } else { self }
    }
}

impl Use {
    /// Adds what is held about the address.
    pub(crate) fn add(&mut self, held: Held) {
        let (bit, every) = (1 << (held.proto() & 7), held.port == 0);
        match held.kind() {
            Some(Kind::Vip) => {
                self.vip_protos |= bit;
                self.vip_every |= if every { bit } else { 0 };
            }
            Some(Kind::Backend) => {
                self.backend_protos |= bit;
                self.backend_every |= if every { bit } else { 0 };
            }
            Some(Kind::Tunnel) => {
                self.flags |= flag::TUNNEL;
                if !every {
                    let low = if self.tunnel_low == 0 { held.port } else { self.tunnel_low.min(held.port) };
                    (self.tunnel_low, self.tunnel_high) = (low, self.tunnel_high.max(held.port));
                }
            }
            Some(Kind::Snat) if held.port <= held.last => {
                self.flags |= flag::TRANSLATED;
                (self.snat_low, self.snat_high) = (held.port, held.last);
            }
            Some(Kind::Node) => self.flags |= flag::NODE,
            Some(Kind::Owned) => self.flags |= flag::ANSWERED,
            Some(Kind::Snat) | None => {}
        }
    }

    /// What is in both uses.
    pub(crate) fn common(&self, other: &Self) -> Self {
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

/// All that is claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    held: BTreeMap<Held, u32>,
    node_ports: BTreeMap<(Proto, u16), u32>,
    /// How many entries it takes in the map of VIPs.
    pub(crate) vips: usize,
    /// How many it takes in the map of backends.
    pub(crate) backends: usize,
    /// How many it takes in the map of addresses.
    pub(crate) addresses: usize,
}

/// What a change was about.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Those that are new, and those that nobody claims any more.
    pub(crate) held: Vec<Held>,
    /// What addresses were used for before and are now, in order.
    pub(crate) addresses: Vec<(Address, (Use, Use))>,
    /// Words of the bitmap of NodePorts.
    pub(crate) words: BTreeSet<u32>,
}

impl Claims {
    /// Claims that are made where there are none yet.
    pub(crate) fn first(new: &[Claim]) -> Self {
        let mut claims = Self::default();
        let mut all: Vec<_> = new.iter().filter_map(Held::of).collect();
        all.sort_unstable();
        claims.held = counted(&all);
        let held: Vec<_> = claims.held.keys().copied().collect();
        held.iter().for_each(|held| claims.tally(*held, true));
        claims.addresses = held.chunk_by(|a, b| a.addr() == b.addr()).count();
        for claim in new {
            if let Claim::NodePort(proto, port) = claim {
                step(&mut claims.node_ports, (*proto, *port), true);
            }
        }
        claims
    }

    /// Carries a change out.
    pub(crate) fn change(&mut self, gone: &[Claim], new: &[Claim]) -> Touched {
        let mut touched = Touched::default();
        let held = [gone, new].map(|claims| {
            let mut held: Vec<_> = claims.iter().filter_map(Held::of).collect();
            held.sort_unstable();
            held
        });
        let mut about: Vec<_> = held.iter().flatten().map(|held| held.addr()).collect();
        about.sort_unstable();
        about.dedup();
        let before = self.used_for_each(&about);
        let [gone_held, new_held] = held;
        gone_held.into_iter().for_each(|held| self.count(held, false, &mut touched));
        if new_held.len() > self.held.len() {
            self.count_many(&new_held, &mut touched);
        } else {
            new_held.into_iter().for_each(|held| self.count(held, true, &mut touched));
        }
        for (claims, is_new) in [(gone, false), (new, true)] {
            for claim in claims {
                if let Claim::NodePort(proto, port) = claim
                    && step(&mut self.node_ports, (*proto, *port), is_new)
                {
                    touched.words.insert(word_of(*proto, *port));
                }
            }
        }
        let after = self.used_for_each(&about);
        touched.addresses = about.into_iter().zip(before.into_iter().zip(after)).collect();
        for (_, (before, after)) in &touched.addresses {
            let [was, is] = [before, after].map(|purpose| usize::from(*purpose != Use::default()));
            self.addresses = self.addresses + is - was;
        }
        touched
    }

    fn count(&mut self, held: Held, is_new: bool, touched: &mut Touched) {
        if step(&mut self.held, held, is_new) {
            touched.held.push(held);
            self.tally(held, is_new);
        }
    }

    /// Counts those that are new, in order, where they are more than there are: another map is made faster of them than
    /// each is put into this one, and is smaller.
    fn count_many(&mut self, new: &[Held], touched: &mut Touched) {
        let first = touched.held.len();
        let same = new.chunk_by(|a, b| a == b);
        let unknown = same.filter_map(|same| same.first()).filter(|held| !self.held.contains_key(held));
        touched.held.extend(unknown);
        for held in touched.held.iter().skip(first) {
            self.tally(*held, true);
        }
        let before = std::mem::replace(&mut self.held, counted(new));
        for (held, count) in before {
            *self.held.entry(held).or_default() += count;
        }
    }

    fn tally(&mut self, held: Held, is_new: bool) {
        let count = match held.kind() {
            Some(Kind::Vip) if held.port != 0 => &mut self.vips,
            Some(Kind::Backend) if held.port != 0 => &mut self.backends,
            _ => return,
        };
        *count = if is_new { *count + 1 } else { *count - 1 };
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.node_ports.is_empty()
    }

    /// All that is held about addresses, those about one together.
    pub(crate) fn held(&self) -> impl Iterator<Item = Held> {
        self.held.keys().copied()
    }

    /// What each address is used for.
    pub(crate) fn uses(&self) -> impl Iterator<Item = (Address, Use)> {
        let mut held = self.held().peekable();
        std::iter::from_fn(move || {
            let addr = held.peek()?.addr();
            let mut purpose = Use::default();
            while let Some(held) = held.next_if(|held| held.addr() == addr) {
                purpose.add(held);
            }
            Some((addr, purpose))
        })
    }

    /// The words of the bitmap of NodePorts that have some.
    pub(crate) fn words(&self) -> BTreeSet<u32> {
        self.node_ports.keys().map(|(proto, port)| word_of(*proto, *port)).collect()
    }

    /// Whether anybody claims it.
    pub(crate) fn has(&self, held: Held) -> bool {
        self.held.contains_key(&held)
    }

    /// What an address is used for.
    pub(crate) fn used_for(&self, addr: Address) -> Use {
        let mut purpose = Use::default();
        let (first, last) = Held::about(addr);
        let mut from = Bound::Included(first);
        while let Some((held, _)) = self.held.range((from, Bound::Included(last))).next() {
            purpose.add(*held);
            from = Bound::Excluded(held.last_alike());
        }
        purpose
    }

    /// [`Self::used_for`] each of them, in order: all that is claimed is passed over once where they are most of it.
    fn used_for_each(&self, addresses: &[Address]) -> Vec<Use> {
        if addresses.len() < self.held.len() / 8 {
            return addresses.iter().map(|addr| self.used_for(*addr)).collect();
        }
        let mut uses = self.uses().peekable();
        let used_for = |addr: &Address| {
            while uses.next_if(|(other, _)| other < addr).is_some() {}
            uses.next_if(|(other, _)| other == addr).map_or_else(Use::default, |(_, purpose)| purpose)
        };
        addresses.iter().map(used_for).collect()
    }

    /// A word of the bitmap of NodePorts.
    pub(crate) fn word(&self, index: u32) -> u64 {
        let first = (index % NODE_PORT_WORDS) * u64::BITS;
        let Ok(low) = u16::try_from(first) else { return 0 };
        let protos = [Proto::Tcp, Proto::Udp, Proto::Sctp];
        let proto = protos.into_iter().find(|proto| u32::from(proto.number()) == index / NODE_PORT_WORDS);
        let Some(proto) = proto else { return 0 };
        let taken = self.node_ports.range((proto, low)..=(proto, low | 63));
        taken.fold(0, |word, ((_, port), _)| word | 1 << (u32::from(*port) % u64::BITS))
    }
}

/// How often each is there, of some that are in order.
fn counted(held: &[Held]) -> BTreeMap<Held, u32> {
    let count = |same: &[Held]| Some((*same.first()?, u32::try_from(same.len()).unwrap_or(u32::MAX)));
    held.chunk_by(|a, b| a == b).filter_map(count).collect()
}

/// Which word of the bitmap has the NodePort.
fn word_of(proto: Proto, port: u16) -> u32 {
    u32::from(proto.number()) * NODE_PORT_WORDS + u32::from(port) / u64::BITS
}

/// Counts one more or one less of `key`. Returns whether it was the first, or the last.
fn step<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K, is_more: bool) -> bool {
    use std::collections::btree_map::Entry;
    match (counts.entry(key), is_more) {
        (Entry::Vacant(free), true) => {
            free.insert(1);
            true
        }
        (Entry::Occupied(mut known), true) => {
            *known.get_mut() += 1;
            false
        }
        (Entry::Occupied(mut known), false) if *known.get() > 1 => {
            *known.get_mut() -= 1;
            false
        }
        (Entry::Occupied(known), false) => {
            known.remove();
            true
        }
        (Entry::Vacant(_), false) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn at(port: u16, proto: Proto) -> Endpoint {
        Endpoint { addr: ADDR, port, proto }
    }

    /// What is claimed of [`ADDR`] makes of it.
    fn used(claims: &[Claim]) -> Use {
        Claims::first(claims).used_for(ADDR.into())
    }

    #[test]
    fn an_address_is_used_for_all_that_is_claimed_of_it() {
        let [tcp, udp, sctp] = [Proto::Tcp, Proto::Udp, Proto::Sctp].map(Proto::bit);
        let none = Use::default();
        for (name, claims, want) in [
            ("nothing", vec![], none),
            (
                "VIPs",
                vec![
                    Claim::Vip(at(80, Proto::Tcp)),
                    Claim::Vip(at(81, Proto::Tcp)),
                    Claim::Vip(at(0, Proto::Udp)),
                ],
                Use { vip_protos: tcp | udp, vip_every: udp, ..none },
            ),
            (
                "a VIP on every port beside others",
                vec![
                    Claim::Vip(at(80, Proto::Tcp)),
                    Claim::Vip(at(0, Proto::Tcp)),
                    Claim::Vip(at(9, Proto::Sctp)),
                ],
                Use { vip_protos: tcp | sctp, vip_every: tcp, ..none },
            ),
            (
                "backends",
                vec![Claim::NatBackend(at(0, Proto::Sctp)), Claim::NatBackend(at(1, Proto::Udp))],
                Use { backend_protos: udp | sctp, backend_every: sctp, ..none },
            ),
            (
                "tunnels",
                vec![Claim::Tunnel(ADDR, 0), Claim::Tunnel(ADDR, 6080), Claim::Tunnel(ADDR, 600)],
                Use { flags: flag::TUNNEL, tunnel_low: 600, tunnel_high: 6080, ..none },
            ),
            ("a tunnel without a port", vec![Claim::Tunnel(ADDR, 0)], Use { flags: flag::TUNNEL, ..none }),
            (
                "the node's, and answered for",
                vec![Claim::NodeAddress(ADDR), Claim::Owned(ADDR)],
                Use { flags: flag::NODE | flag::ANSWERED, ..none },
            ),
            (
                "SNAT",
                vec![Claim::Snat(ADDR, 1000, 2000)],
                Use { flags: flag::TRANSLATED, snat_low: 1000, snat_high: 2000, ..none },
            ),
            ("SNAT without ports", vec![Claim::Snat(ADDR, 2, 1)], none),
            ("a NodePort", vec![Claim::NodePort(Proto::Tcp, 1)], none),
        ] {
            assert_eq!(used(&claims), want, "{name}");
        }
    }

    #[test]
    fn two_uses_share_what_is_in_both() {
        let snat = |low, high| used(&[Claim::Snat(ADDR, low, high)]);
        let full = [
            Claim::Vip(at(80, Proto::Tcp)),
            Claim::Vip(at(0, Proto::Sctp)),
            Claim::NatBackend(at(0, Proto::Tcp)),
            Claim::Owned(ADDR),
            Claim::Snat(ADDR, 1000, 2000),
            Claim::Tunnel(ADDR, 6080),
            Claim::Tunnel(ADDR, 0),
        ];
        let less = [Claim::Vip(at(81, Proto::Tcp)), Claim::Snat(ADDR, 1000, 2000), Claim::Tunnel(ADDR, 0)];
        for (name, a, b, want) in [
            ("less", used(&full), used(&less), used(&less)),
            ("the same", used(&full), used(&full), used(&full)),
            ("nothing", used(&full), Use::default(), Use::default()),
            ("overlap", snat(1000, 2000), snat(1500, 3000), snat(1500, 2000)),
            ("within", snat(1000, 2000), snat(1200, 1300), snat(1200, 1300)),
            ("one port", snat(1000, 2000), snat(2000, 3000), snat(2000, 2000)),
            ("apart", snat(1000, 2000), snat(2001, 3000), Use::default()),
        ] {
            assert_eq!((a.common(&b), b.common(&a)), (want, want), "{name}");
        }
    }

    #[test]
    fn every_node_port_has_a_bit_of_its_own() {
        let all = [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter();
        let all: Vec<_> =
            all.flat_map(|proto| (0..=u16::MAX).map(move |port| Claim::NodePort(proto, port))).collect();
        let claims = Claims::first(&all);
        assert_eq!(claims.words().len(), 3 * NODE_PORT_WORDS as usize);
        assert!(claims.words().iter().all(|word| claims.word(*word) == u64::MAX));
        let one = Claims::first(&[Claim::NodePort(Proto::Udp, 65535)]);
        assert_eq!(one.words().iter().map(|word| one.word(*word).count_ones()).sum::<u32>(), 1);
    }

    /// Claims of three addresses, so few that they meet.
    fn some_claims() -> Vec<Claim> {
        let addresses = ["10.0.0.1", "10.0.0.2", "a00:1::"].map(|addr| addr.parse().unwrap());
        let of = |addr| {
            let at = |port, proto| Endpoint { addr, port, proto };
            [
                Claim::Vip(at(80, Proto::Tcp)),
                Claim::Vip(at(0, Proto::Tcp)),
                Claim::Vip(at(80, Proto::Udp)),
                Claim::NatBackend(at(80, Proto::Tcp)),
                Claim::NatBackend(at(65535, Proto::Sctp)),
                Claim::NodeAddress(addr),
                Claim::Owned(addr),
                Claim::Tunnel(addr, 6080),
                Claim::Snat(addr, 1, u16::MAX),
                Claim::NodePort(Proto::Udp, 30000),
                Claim::NodePort(Proto::Udp, 30001),
            ]
        };
        addresses.into_iter().flat_map(of).collect()
    }

    #[test]
    fn many_claims_at_once_are_those_made_in_one_go() {
        let some = some_claims();
        let many: Vec<_> = some.iter().chain(&some[3..]).copied().collect();
        for few in 0..8 {
            let (known, gone) = some[..few].split_at(few / 2);
            let mut claims = Claims::first(&some[..few]);
            let before: BTreeMap<_, _> = claims.uses().collect();
            let touched = claims.change(gone, &many);
            assert_eq!(claims, Claims::first(&[known, &many].concat()), "{few} before");
            let new: BTreeSet<_> =
                some.iter().filter(|claim| !known.contains(claim)).filter_map(Held::of).collect();
            let met: BTreeSet<_> = touched.held.into_iter().collect();
            assert!(met.is_superset(&new), "{few} before");
            for (addr, (was, is)) in touched.addresses {
                assert_eq!(was, before.get(&addr).copied().unwrap_or_default());
                assert_eq!(is, claims.used_for(addr));
            }
        }
    }

    #[test]
    fn claims_after_any_changes_are_those_made_in_one_go() {
        let some = some_claims();
        let mut claims = Claims::default();
        let mut present: Vec<Claim> = Vec::new();
        // Multiplicative steps through all pairs of claims: each is made and given up many times over, in all orders.
        for round in 1..2000_usize {
            let (mut gone, mut new) = (Vec::new(), Vec::new());
            for step in 0..round % 5 {
                let claim = some[(round * 7 + step * round) % some.len()];
                if (round / 40 + step) % 2 == 0 {
                    new.push(claim);
                    present.push(claim);
                } else if let Some(at) = present.iter().position(|known| *known == claim) {
                    gone.push(present.swap_remove(at));
                }
            }
            // What is made in this change may be given up in it, too: removals are counted first.
            let both: Vec<_> = gone.iter().filter(|claim| new.contains(claim)).copied().collect();
            gone.retain(|claim| !both.contains(claim));
            present.extend(&both);
            let before: BTreeMap<_, _> = claims.uses().collect();
            let touched = claims.change(&gone, &new);
            assert_eq!(claims, Claims::first(&present), "round {round}");
            let uses: Vec<_> = claims.uses().collect();
            assert_eq!(claims.addresses, uses.len());
            assert!(uses.iter().all(|(addr, purpose)| claims.used_for(*addr) == *purpose));
            for (addr, (was, is)) in touched.addresses {
                assert_eq!(was, before.get(&addr).copied().unwrap_or_default());
                assert_eq!(is, claims.used_for(addr));
            }
        }
        assert!(claims.vips > 0 && claims.backends > 0, "the last claims are not of nothing");
    }
}
