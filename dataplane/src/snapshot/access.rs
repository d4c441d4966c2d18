//! Who may use a service, what becomes of who does, and where who is.

use crate::flow::key;

/// Which clients reach a service by its virtual addresses and node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Clients {
    /// All; where another service has the same address for [`Self::Inside`], those that are not inside.
    #[default]
    All,
    /// Those inside: in the local networks, and the node itself ([`Locality::is_inside`]).
    Inside,
}

/// Which clients' flows to `nat` backends are translated by `fullnat` instead, from the service's SNAT pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Masquerade {
    /// Those of a backend that was chosen for itself: no other way would work.
    #[default]
    Hairpin,
    /// Those too that are not in the local networks.
    NotLocal,
    /// All.
    Always,
}

/// What a client of a service without usable backends is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum WhenEmpty {
    /// That the port is unreachable.
    #[default]
    Reject,
    /// Nothing: backends are elsewhere.
    Drop,
}

/// Who may use a service, and what becomes of who does.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Access {
    /// The addresses that may; the packets of others are dropped. `None`: all.
    pub sources: Option<Networks>,
    /// Whose address `nat` backends do not get to see.
    pub masquerade: Masquerade,
    /// What a client is told where there is no backend.
    pub when_empty: WhenEmpty,
}

impl Access {
    /// Whether packets with `key` may come to the service.
    #[inline]
    pub fn admits(&self, key: &key::FlowKey) -> bool {
        self.sources.as_ref().is_none_or(|sources| sources.contains(key.src, key.v6))
    }
}

/// The services that are parts of one: what they have in common, and which of them this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The first address of the group's first service: what clients that persistence keeps are known by in all of them.
    pub vip: key::VipKey,
    /// The service's place in the group.
    pub place: u16,
}

/// A set of addresses: what any number of networks hold, found in logarithmic time.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Networks {
    /// First and last addresses of what is in one piece, in order, without overlap.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    /// The addresses in any of these ranges, both ends inclusive; those of IPv4, then those of IPv6.
    pub fn new(v4: impl IntoIterator<Item = (u32, u32)>, v6: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let follows = |end: u32, next: u32| end.checked_add(1).is_none_or(|next_to| next <= next_to);
        let follows6 = |end: u128, next: u128| end.checked_add(1).is_none_or(|next_to| next <= next_to);
        Self { v4: united(v4, follows), v6: united(v6, follows6) }
    }

    /// Whether it has no address.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether the address is in it.
    #[inline]
    pub fn contains(&self, addr: u128, v6: bool) -> bool {
        match u32::try_from(addr) {
            Ok(v4) if !v6 => holds(&self.v4, v4),
            _ => v6 && holds(&self.v6, addr),
        }
    }
}

/// The ranges in order, those that touch made one.
fn united<T: Copy + Ord>(
    ranges: impl IntoIterator<Item = (T, T)>,
    follows: impl Fn(T, T) -> bool,
) -> Box<[(T, T)]> {
    let mut ranges: Vec<_> = ranges.into_iter().filter(|(first, last)| first <= last).collect();
    ranges.sort_unstable();
    let mut list: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match list.last_mut().filter(|before| follows(before.1, first)) {
            Some(before) => before.1 = before.1.max(last),
            None => list.push((first, last)),
        }
    }
    list.into()
}

#[inline]
fn holds<T: Copy + Ord>(ranges: &[(T, T)], addr: T) -> bool {
    let below = ranges.partition_point(|(first, _)| *first <= addr);
    below.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| addr <= *last)
}

/// Where clients and virtual addresses are, as far as it matters what services do with them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Locality {
    /// The networks of local clients: pods, to Kubernetes.
    pub local: Networks,
    /// The node's own addresses.
    pub node: Networks,
    /// Networks of virtual addresses: what is for one of them and no service is not the kernel's.
    pub virtual_networks: Networks,
}

impl Locality {
    /// Whether a client is local, or the node itself ([`Clients::Inside`]).
    #[inline]
    pub fn is_inside(&self, addr: u128, v6: bool) -> bool {
        self.local.contains(addr, v6) || self.node.contains(addr, v6)
    }

    /// Whether nobody but services can have the address. The node's own addresses are its kernel's, wherever they lie.
    #[inline]
    pub fn is_for_services(&self, addr: u128, v6: bool) -> bool {
        self.virtual_networks.contains(addr, v6) && !self.node.contains(addr, v6)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_holds_what_any_of_its_ranges_holds(
            ranges in proptest::collection::vec((0..40_u8, 0..6_u8), 0..12),
            top in any::<bool>(),
        ) {
            // At the very end of the address space as well as at its start.
            let (base4, base6) = if top { (u32::MAX - 47, u128::MAX - 47) } else { (0, 0) };
            let ends = || ranges.iter().map(|(first, more)| (*first, first + more));
            let set = Networks::new(
                ends().map(|(first, last)| (base4 + u32::from(first), base4 + u32::from(last))),
                ends().map(|(first, last)| (base6 + u128::from(first), base6 + u128::from(last))),
            );
            for addr in 0..48_u8 {
                let want = ends().any(|(first, last)| (first..=last).contains(&addr));
                prop_assert_eq!(set.contains((base4 + u32::from(addr)).into(), false), want);
                prop_assert_eq!(set.contains(base6 + u128::from(addr), true), want);
            }
            prop_assert!(set.v4.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "in order, and apart");
            prop_assert_eq!(set.is_empty(), ranges.is_empty());
        }
    }

    #[test]
    fn families_are_apart_and_backward_ranges_hold_nothing() {
        let v4 = Networks::new([(1, 9)], []);
        assert!(v4.contains(5, false) && !v4.contains(5, true));
        let v6 = Networks::new([], [(1, 9)]);
        assert!(v6.contains(5, true) && !v6.contains(5, false));
        assert!(Networks::new([(9, 1)], [(9, 1)]).is_empty());
        assert!(!Networks::new([(0, u32::MAX)], []).contains(1 << 32, false), "no address of IPv4");
    }

    #[test]
    fn the_nodes_own_addresses_are_inside_and_not_for_services() {
        let range = |first, last| Networks::new([(first, last)], []);
        let locality =
            Locality { local: range(10, 19), node: range(35, 35), virtual_networks: range(30, 39) };
        for (addr, inside, for_services) in
            [(10, true, false), (20, false, false), (30, false, true), (35, true, false)]
        {
            assert_eq!(locality.is_inside(addr, false), inside, "{addr}");
            assert_eq!(locality.is_for_services(addr, false), for_services, "{addr}");
        }
    }
}
