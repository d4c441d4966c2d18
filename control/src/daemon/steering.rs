//! Whether SNAT ports are chosen by the hashes of the interfaces: what these say, whether frames come where they say, and
//! the sentences on it.
//!
//! An interface is believed until frames come elsewhere than it says, class by class, and again when it says something else.

use std::sync::Arc;

use dataplane::ids::PortId;
use dataplane::snapshot::steering::{Claim, Class, Classes};
use dataplane::stats::WorkerStats;

use crate::nic::Rss;
use crate::nic::claim::{Unclaimed, claim};

/// Frames of a class that have to be looked at before it is judged.
const LEAST: u64 = 32;
/// A class is given up where one of so many frames came elsewhere, or more.
const ASTRAY: u64 = 8;

/// On which queue frames came, by port and class: elsewhere, and where the interface says.
pub(super) type Arrivals = Vec<[[u64; 2]; Class::ALL.len()]>;

/// What is held of each interface.
#[derive(Debug, Default)]
pub(super) struct Steering {
    ports: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    name: Arc<str>,
    says: Result<Claim, Unclaimed>,
    /// Classes of which frames came elsewhere, with how many of how many.
    refuted: Vec<(Class, u64, u64)>,
    /// What had arrived when it was judged last.
    judged: [[u64; 2]; Class::ALL.len()],
}

impl Held {
    /// What is believed.
    fn claim(&self) -> Option<Claim> {
        let said = self.says.as_ref().ok()?;
        let is_held = |class: &Class| said.classes.has(*class) && !self.is_refuted(*class);
        Some(Claim { classes: Class::ALL.into_iter().filter(is_held).collect(), ..said.clone() })
    }

    fn is_refuted(&self, class: Class) -> bool {
        self.refuted.iter().any(|(known, ..)| *known == class)
    }

    fn sentence(&self) -> String {
        let name = &self.name;
        let said = match &self.says {
            Err(why) => return format!("{name}: SNAT ports are each worker's slice: {why}"),
            Ok(said) => said,
        };
        let held = self.claim().map_or(Classes::default(), |claim| claim.classes);
        let is_held = |class: &Class| held.has(*class);
        let mut parts = Vec::new();
        if !held.is_empty() {
            let classes: Vec<_> = Class::ALL.into_iter().filter(is_held).map(Class::name).collect();
            parts.push(format!("by its hash for {}", classes.join(", ")));
        }
        for (class, elsewhere, of) in &self.refuted {
            parts.push(format!(
                "each worker's slice for {}, of which {elsewhere} of {of} frames came on another queue than its key and \
                 indirection table say",
                class.name()
            ));
        }
        let unhashed: Vec<_> =
            Class::ALL.into_iter().filter(|class| !said.classes.has(*class)).map(Class::name).collect();
        if !unhashed.is_empty() {
            parts.push(format!(
                "each worker's slice for {}, of which it hashes no ports",
                unhashed.join(", ")
            ));
        }
        format!("{name}: SNAT ports are {}", parts.join("; "))
    }
}

impl Steering {
    /// What interfaces of these names say, which is not judged yet.
    pub(super) fn new(says: Vec<(Arc<str>, Option<Rss>)>) -> Self {
        let held = |(name, rss): (Arc<str>, Option<Rss>)| Held {
            name,
            says: claim(rss.as_ref()),
            refuted: Vec::new(),
            judged: Default::default(),
        };
        Self { ports: says.into_iter().map(held).collect() }
    }

    /// What is believed, by port.
    pub(super) fn claims(&self) -> Vec<Option<Claim>> {
        self.ports.iter().map(Held::claim).collect()
    }

    /// One sentence an interface.
    pub(super) fn sentences(&self) -> Vec<String> {
        self.ports.iter().map(Held::sentence).collect()
    }

    /// Takes note of what the interfaces say now, and judges by the frames that had `arrived` when they were asked. What
    /// is new of it is told in sentences; there are none where nothing has changed.
    pub(super) fn follow(&mut self, says: &[Option<Rss>], arrived: &Arrivals) -> Vec<String> {
        let mut news = Vec::new();
        for ((held, rss), arrived) in self.ports.iter_mut().zip(says).zip(arrived) {
            let says = claim(rss.as_ref());
            if says != held.says {
                // What came until now came by what it said before.
                (held.says, held.judged) = (says, *arrived);
                held.refuted.clear();
                news.push(held.sentence());
                continue;
            }
            let before = held.refuted.len();
            for ((class, judged), [elsewhere, as_said]) in
                Class::ALL.into_iter().zip(&mut held.judged).zip(*arrived)
            {
                let [elsewhere_before, as_said_before] = *judged;
                let new = elsewhere.saturating_sub(elsewhere_before);
                let of = new + as_said.saturating_sub(as_said_before);
                if of < LEAST {
                    continue;
                }
                *judged = [elsewhere, as_said];
                if new * ASTRAY >= of && held.refuted.iter().all(|(known, ..)| *known != class) {
                    held.refuted.push((class, new, of));
                }
            }
            if held.refuted.len() > before {
                news.push(held.sentence());
            }
        }
        news
    }
}

/// What the workers have counted of so many ports.
pub(super) fn arrivals(stats: &[Arc<WorkerStats>], ports: usize) -> Arrivals {
    let of = |port: PortId, class: Class| {
        let each = stats.iter().map(|stats| stats.arrivals(port, class));
        each.fold([0, 0], |[a, b], [elsewhere, as_said]| [a + elsewhere, b + as_said])
    };
    (0..=u8::MAX).map(PortId).take(ports).map(|port| Class::ALL.map(|class| of(port, class))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::HashesPorts;

    fn rss(table: &[u32]) -> Rss {
        Rss {
            key: "6d5a56da255b0ec2".repeat(5),
            table: table.into(),
            function: Some("toeplitz".into()),
            symmetric: false,
            hashes_ports: None,
        }
    }

    fn steering(rss: &Rss) -> Steering {
        Steering::new(vec![("eth1".into(), Some(rss.clone())), ("eth2".into(), None)])
    }

    /// As much arrived of TCP over IPv4 by the first of two ports.
    fn arrived(elsewhere: u64, as_said: u64) -> Arrivals {
        let mut first: [[u64; 2]; 4] = Default::default();
        first[Class::Tcp4 as usize] = [elsewhere, as_said];
        vec![first, Default::default()]
    }

    fn held(steering: &Steering) -> Vec<Class> {
        let classes = steering.claims()[0].as_ref().map_or(Classes::default(), |claim| claim.classes);
        Class::ALL.into_iter().filter(|class| classes.has(*class)).collect()
    }

    #[test]
    fn an_interface_is_believed_until_frames_come_elsewhere() {
        for (name, steps, believed) in [
            ("few frames", &[(20, 0)][..], true),
            ("as it says", &[(0, 1_000), (0, 100_000)], true),
            ("strays among many", &[(12, 100)], true),
            ("every second one", &[(16, 16)], false),
            ("few, and then more", &[(20, 0), (40, 0)], false),
            ("right for long, and then not", &[(0, 1_000_000), (20, 1_000_020)], false),
        ] {
            let rss = rss(&[0, 1]);
            let mut steering = steering(&rss);
            let mut news = Vec::new();
            for (elsewhere, as_said) in steps {
                news.extend(steering.follow(&[Some(rss.clone()), None], &arrived(*elsewhere, *as_said)));
            }
            assert_eq!(held(&steering).contains(&Class::Tcp4), believed, "{name}");
            assert!(held(&steering).contains(&Class::Udp6), "{name}: other classes are judged by themselves");
            assert_eq!(news.len(), usize::from(!believed), "{name}: {news:?}");
            let again = steering.follow(&[Some(rss), None], &arrived(1_000, 2_000_000));
            assert!(again.is_empty(), "{name}: told once: {again:?}");
        }
    }

    #[test]
    fn what_came_before_an_interface_changed_says_nothing_of_it() {
        let (before, after) = (rss(&[0, 1]), rss(&[1, 0]));
        let mut steering = steering(&before);
        steering.follow(&[Some(before.clone()), None], &arrived(50, 50));
        assert!(!held(&steering).contains(&Class::Tcp4));
        let news = steering.follow(&[Some(after.clone()), None], &arrived(150, 50));
        assert_eq!(
            news,
            [
                "eth1: SNAT ports are by its hash for TCP over IPv4, UDP over IPv4, TCP over IPv6, UDP over IPv6"
            ]
        );
        assert!(steering.follow(&[Some(after), None], &arrived(150, 150)).is_empty());
        assert_eq!(held(&steering), Class::ALL);
        assert_eq!(steering.claims()[0].as_ref().unwrap().table, [1, 0]);
        let news = steering.follow(&[None, None], &arrived(150, 150));
        assert_eq!(news, ["eth1: SNAT ports are each worker's slice: its driver tells no indirection table"]);
        assert_eq!(steering.claims(), [None, None]);
    }

    #[test]
    fn sentences_say_by_what_ports_are_chosen_and_why() {
        let unhashed = HashesPorts { tcp4: true, tcp6: true, ..HashesPorts::default() };
        let rss = Rss { hashes_ports: Some(unhashed), ..rss(&[0, 1]) };
        let mut steering = steering(&rss);
        steering.follow(&[Some(rss), None], &arrived(33, 67));
        assert_eq!(
            steering.sentences(),
            [
                "eth1: SNAT ports are by its hash for TCP over IPv6; each worker's slice for TCP over IPv4, of which 33 of \
                 100 frames came on another queue than its key and indirection table say; each worker's slice for UDP over \
                 IPv4, UDP over IPv6, of which it hashes no ports",
                "eth2: SNAT ports are each worker's slice: its driver tells no indirection table",
            ]
        );
    }
}
