//! Which neighbours are to be kept resolved, and why: those that lead to backends, and gateways.

use std::collections::HashMap;
use std::net::IpAddr;

use dataplane::snapshot::Net;
use dataplane::snapshot::net::Neighbour;

use super::compile::{gateways, next_neighbours};

/// The neighbours, and how many backends and routes need each.
#[derive(Debug, Default)]
pub struct Standing {
    needed: HashMap<Neighbour, u32, ahash::RandomState>,
    news: Vec<(Neighbour, bool)>,
}

impl Standing {
    /// What `net` and backends at these addresses need, whatever there was before.
    pub fn recount(&mut self, net: &Net, backends: impl Iterator<Item = IpAddr>) {
        let before = std::mem::take(&mut self.needed);
        for place in backends.flat_map(|addr| next_neighbours(net, addr)).chain(gateways(net)) {
            *self.needed.entry(place).or_default() += 1;
        }
        let gone = before.keys().filter(|place| !self.needed.contains_key(place));
        self.news.extend(gone.map(|place| (*place, false)));
        let new = self.needed.keys().filter(|place| !before.contains_key(place));
        self.news.extend(new.map(|place| (*place, true)));
    }

    /// A backend has come to this address of `net`, which was counted.
    pub fn add(&mut self, net: &Net, backend: IpAddr) {
        for place in next_neighbours(net, backend) {
            let needed = self.needed.entry(place).or_default();
            *needed += 1;
            if *needed == 1 {
                self.news.push((place, true));
            }
        }
    }

    /// A backend has gone from this address.
    pub fn remove(&mut self, net: &Net, backend: IpAddr) {
        for place in next_neighbours(net, backend) {
            let Some(needed) = self.needed.get_mut(&place) else { continue };
            *needed -= 1;
            if *needed == 0 {
                self.needed.remove(&place);
                self.news.push((place, false));
            }
        }
    }

    /// The neighbours that have come to be needed, or are no longer, since this was asked last, in order.
    pub fn news(&mut self) -> Vec<(Neighbour, bool)> {
        std::mem::take(&mut self.news)
    }

    /// Those that are needed.
    #[cfg(test)]
    pub(crate) fn needed(&self) -> impl Iterator<Item = &Neighbour> {
        self.needed.keys()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use dataplane::ids::PortId;
    use dataplane::snapshot::net::{Link, Path, Route};

    use super::*;

    /// 10.1/16 on the link, and all else by these gateways.
    fn net(by: &[u8]) -> Net {
        let mut net = Net::default();
        net.links.insert(7, Link { port: PortId(0), vlans: Default::default(), mtu: 1500 });
        net.routes4.insert((0x0a01_0000, 16), Route::Via(vec![Path::new(7, None)]));
        let paths = by.iter().map(|host| Path::new(7, Some([10, 1, 0, *host].into())));
        net.routes4.insert((0, 0), Route::Via(paths.collect()));
        net
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The hosts whose place is needed now, or no longer.
    fn news(standing: &mut Standing) -> Vec<(u8, bool)> {
        let last = |addr| if let IpAddr::V4(v4) = addr { v4.octets()[3] } else { 0 };
        let mut news: Vec<_> =
            standing.news().into_iter().map(|(place, is)| (last(place.addr), is)).collect();
        news.sort_unstable();
        news
    }

    #[test]
    fn a_neighbour_is_needed_as_long_as_a_backend_or_a_route_needs_it() {
        let (one, two) = (net(&[254]), net(&[253, 254]));
        let mut standing = Standing::default();
        standing.recount(&one, [addr("10.1.0.1"), addr("192.0.2.1")].into_iter());
        assert_eq!(news(&mut standing), [(1, true), (254, true)]);
        for (name, is_added, at, want) in [
            ("a second one at the same place", true, "10.1.0.1", vec![]),
            ("the first one goes", false, "10.1.0.1", vec![]),
            ("the last one goes", false, "10.1.0.1", vec![(1, false)]),
            ("behind the gateway", false, "192.0.2.1", vec![]),
            ("another place", true, "10.1.0.2", vec![(2, true)]),
        ] {
            let change = if is_added { Standing::add } else { Standing::remove };
            change(&mut standing, &one, addr(at));
            assert_eq!(news(&mut standing), want, "{name}");
        }
        standing.recount(&two, [addr("198.51.100.1")].into_iter());
        assert_eq!(news(&mut standing), [(2, false), (253, true)], "the other gateway stays");
        assert_eq!(standing.needed().collect::<HashSet<_>>().len(), 2);
    }
}
