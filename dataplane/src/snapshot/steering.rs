//! Which SNAT ports bring replies to the worker that owns them: what the ports' cards say of how they spread frames, and
//! the pools sorted by it.
//!
//! A port of a worker's own slice is taken in any case ([`snat`](crate::flow::snat)), so the owner of a reply follows from
//! its destination port whatever the card does. What is said here only decides which ports of the slice are tried first.
//! Where it is wrong, or not true any more, replies are handed over as they are without it.

use std::sync::Arc;

use crate::flow::key::{FlowKey, TCP, UDP};
use crate::flow::suited::{Sorted, Spread, Suited};
use crate::ids::{PoolId, PortId, WorkerId};
use crate::snapshot::SnatPool;

/// Packets that a card hashes alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// TCP over IPv4.
    Tcp4,
    /// UDP over IPv4.
    Udp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv6.
    Udp6,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp4, Self::Udp4, Self::Tcp6, Self::Udp6];

    /// The class of packets of a protocol; `None` where cards are not counted on to hash its ports.
    #[inline]
    pub fn of(proto: u8, v6: bool) -> Option<Self> {
        match (proto, v6) {
            (TCP, false) => Some(Self::Tcp4),
            (UDP, false) => Some(Self::Udp4),
            (TCP, true) => Some(Self::Tcp6),
            (UDP, true) => Some(Self::Udp6),
            _ => None,
        }
    }

    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp4 => "TCP over IPv4",
            Self::Udp4 => "UDP over IPv4",
            Self::Tcp6 => "TCP over IPv6",
            Self::Udp6 => "UDP over IPv6",
        }
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Classes(u8);

impl Classes {
    /// Whether it has this class.
    #[inline]
    pub fn has(self, class: Class) -> bool {
        self.0 >> class as u8 & 1 == 1
    }

    /// Those that both have.
    fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Class> for Classes {
    fn from_iter<I: IntoIterator<Item = Class>>(classes: I) -> Self {
        Self(classes.into_iter().fold(0, |set, class| set | 1 << class as u8))
    }
}

/// What a port's card says of how it spreads frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The key of the Toeplitz hash.
    pub key: Vec<u8>,
    /// The RX queue of each place in the indirection table.
    pub table: Vec<u32>,
    /// Of which packets it hashes addresses and ports.
    pub classes: Classes,
}

/// What is made of the claims of all ports and of all pools.
#[derive(Clone, Debug, Default)]
pub struct Steering {
    /// By [`PortId`].
    ports: Vec<Option<(Classes, Arc<Plan>)>>,
    /// What holds for all ports of which something is known, if they are alike.
    common: Option<(Classes, Arc<Plan>)>,
}

/// The pools, sorted for one card.
#[derive(Debug)]
struct Plan {
    spread: Spread,
    /// By [`PoolId`], with the pool that it was made of: IPv4, IPv6.
    pools: Vec<(SnatPool, Arc<[Sorted; 2]>)>,
}

impl Steering {
    /// For so many workers. `claims` are by [`PortId`], `pools` by [`PoolId`]. What `before` was made of the same is kept.
    pub fn new(claims: &[Option<Claim>], pools: &[SnatPool], workers: u8, before: Option<&Self>) -> Self {
        let mut plans: Vec<Arc<Plan>> = Vec::new();
        let mut plan = |claim: &Claim| {
            let is_same = |plan: &&Arc<Plan>| plan.spread.is_of(&claim.key, &claim.table);
            if let Some(plan) = plans.iter().find(is_same) {
                return Some(Arc::clone(plan));
            }
            let old = before.and_then(|before| before.plans().find(is_same));
            let spread = match old {
                Some(old) => old.spread.clone(),
                None => Spread::new(&claim.key, &claim.table)?,
            };
            let sorted = |pool: &SnatPool| {
                let kept = old.and_then(|old| old.pools.iter().find(|(of, _)| of == pool));
                let new = || Arc::new([false, true].map(|v6| Sorted::new(pool, v6, workers, &spread)));
                (pool.clone(), kept.map_or_else(new, |(_, sorted)| Arc::clone(sorted)))
            };
            let pools = pools.iter().map(sorted).collect();
            let plan = Arc::new(Plan { spread, pools });
            plans.push(Arc::clone(&plan));
            Some(plan)
        };
        let port = |claim: &Option<Claim>| {
            let claim = claim.as_ref().filter(|claim| !claim.classes.is_empty())?;
            Some((claim.classes, plan(claim)?))
        };
        let ports: Vec<_> = claims.iter().map(port).collect();
        let common = match plans.as_slice() {
            [plan] => {
                let claimed = ports.iter().flatten().map(|(classes, _)| *classes);
                Some((claimed.reduce(Classes::both).unwrap_or_default(), Arc::clone(plan)))
            }
            _ => None,
        };
        Self { ports, common }
    }

    fn plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.ports.iter().flatten().map(|(_, plan)| plan)
    }

    /// Whether it says nothing of any port.
    pub fn is_empty(&self) -> bool {
        self.plans().next().is_none()
    }

    #[inline]
    fn plan(&self, port: Option<PortId>, class: Class) -> Option<&Plan> {
        let known = match port {
            Some(port) => self.ports.get(port.index())?,
            None => &self.common,
        };
        let (classes, plan) = known.as_ref()?;
        classes.has(class).then_some(plan)
    }

    /// The addresses and ports of a pool of `worker`'s to which replies of `class` from this source come on its queue of
    /// `port`, or of whichever port they come by; `None` where nothing is known.
    #[inline]
    pub fn suited(
        &self,
        port: Option<PortId>,
        pool: PoolId,
        worker: WorkerId,
        class: Class,
        (addr, v6, sport): (u128, bool, u16),
    ) -> Option<Suited<'_>> {
        let plan = self.plan(port, class)?;
        let (_, [of_v4, of_v6]) = plan.pools.get(pool.index()).map(|(pool, sorted)| (pool, &**sorted))?;
        let from = plan.spread.toeplitz().of_source(addr, v6, sport);
        if v6 { of_v6 } else { of_v4 }.suited(worker, from)
    }

    /// The class and the queue of a packet that arrives on `port`; `None` where nothing is known.
    pub fn queue(&self, port: PortId, key: &FlowKey) -> Option<(Class, u16)> {
        let class = Class::of(key.proto, key.v6)?;
        let spread = &self.plan(Some(port), class)?.spread;
        Some((class, spread.queue(spread.toeplitz().hash(key))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::toeplitz::tests::KEY;

    fn claim(table: &[u32], classes: &[Class]) -> Claim {
        Claim { key: KEY.into(), table: table.into(), classes: classes.iter().copied().collect() }
    }

    fn pool(high: u16) -> SnatPool {
        SnatPool { name: "pool".into(), v4: vec![0x0a00_0001], v6: vec![7], low: 1024, high }
    }

    #[test]
    fn a_port_is_known_by_what_its_card_claims() {
        let claims = [
            Some(claim(&[0, 1], &[Class::Tcp4, Class::Udp6])),
            None,
            Some(claim(&[1, 1], &Class::ALL)),
            Some(claim(&[0, 1, 0], &Class::ALL)),
            Some(claim(&[0, 1], &[])),
        ];
        let steering = Steering::new(&claims, &[pool(2000)], 2, None);
        let known =
            |port, class, source| steering.suited(port, PoolId(0), WorkerId(1), class, source).is_some();
        for (port, classes) in
            [(0, &[Class::Tcp4, Class::Udp6][..]), (1, &[]), (2, &Class::ALL), (3, &[]), (4, &[]), (5, &[])]
        {
            for class in Class::ALL {
                let is_v6 = matches!(class, Class::Tcp6 | Class::Udp6);
                let proto = if matches!(class, Class::Tcp4 | Class::Tcp6) { TCP } else { UDP };
                let is_known = known(Some(PortId(port)), class, (5, is_v6, 80));
                assert_eq!(is_known, classes.contains(&class), "{port} {class:?}");
                assert!(!known(None, class, (5, is_v6, 80)), "the cards differ");
                let packet = FlowKey { src: 5, dst: 7, sport: 1, dport: 2, proto, v6: is_v6 };
                let queue = steering.queue(PortId(port), &packet);
                assert_eq!(queue.map(|(of, _)| of), classes.contains(&class).then_some(class));
                assert!(port != 2 || queue.is_some_and(|(_, queue)| queue == 1));
            }
        }
        assert!(
            steering.suited(Some(PortId(0)), PoolId(1), WorkerId(1), Class::Tcp4, (5, false, 80)).is_none()
        );
        assert_eq!(steering.queue(PortId(0), &FlowKey { proto: 132, ..FlowKey::default() }), None);
        assert!(!steering.is_empty() && Steering::new(&claims[3..], &[pool(2000)], 2, None).is_empty());
    }

    #[test]
    fn where_all_cards_are_alike_the_port_need_not_be_known() {
        let claims = [
            Some(claim(&[0, 1], &[Class::Tcp4, Class::Udp4])),
            None,
            Some(claim(&[0, 1], &[Class::Tcp4, Class::Tcp6])),
        ];
        let steering = Steering::new(&claims, &[pool(2000)], 2, None);
        for class in Class::ALL {
            let suited = steering.suited(None, PoolId(0), WorkerId(0), class, (5, false, 80));
            assert_eq!(suited.is_some(), class == Class::Tcp4, "{class:?}");
        }
    }

    #[test]
    fn what_is_the_same_as_before_is_made_once() {
        let claims = [(); 2].map(|()| Some(claim(&[0, 1], &Class::ALL)));
        let before = Steering::new(&claims, &[pool(2000), pool(3000)], 2, None);
        let plan = |steering: &Steering, port: usize| Arc::clone(&steering.ports[port].as_ref().unwrap().1);
        assert!(Arc::ptr_eq(&plan(&before, 0), &plan(&before, 1)));
        let claims = [claims[0].clone(), Some(claim(&[1, 0], &Class::ALL))];
        let after = Steering::new(&claims, &[pool(4000), pool(3000)], 2, Some(&before));
        let sorted = |steering: &Steering, port, pool: usize| Arc::clone(&plan(steering, port).pools[pool].1);
        assert!(!Arc::ptr_eq(&sorted(&before, 0, 0), &sorted(&after, 0, 0)), "another pool");
        assert!(Arc::ptr_eq(&sorted(&before, 0, 1), &sorted(&after, 0, 1)), "the same pool and card");
        assert!(!Arc::ptr_eq(&sorted(&before, 0, 1), &sorted(&after, 1, 1)), "another card");
    }
}
