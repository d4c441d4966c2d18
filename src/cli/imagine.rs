//! The engine without a NIC: for `weir explain` and `weir replay`, which need no root and run on any machine.
//!
//! Both work on the tables that `weir run` compiles from the same file. Only the network is imagined, since the
//! machine that asks need not be the one that forwards: one port, and a gateway behind it for every destination.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use control::compile;
use control::config::Limits;
use control::model::DesiredState;
use dataplane::flow::directory::Directory;
use dataplane::flow::key;
use dataplane::ids::{BackendId, HopId, PortId, ServiceId, WorkerId};
use dataplane::pipeline::{Engine, Setup};
use dataplane::snapshot::net::{Hop, Link, Neighbour, Net, Path, Port, Route};
use dataplane::snapshot::{Backend, Service, Snapshot};
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::wanted::Wanted;

/// MAC address of the imagined port.
pub(crate) const OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// MAC address of the imagined gateway, and of every sender.
pub(crate) const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// Any link index will do.
const LINK: u32 = 1;
/// Largest packet that the imagined port sends: as on Ethernet.
const MTU: u16 = 1500;
/// Keys the hashes. Fixed, so that equal input gives equal output.
const SEED: u64 = 0x5eed;

/// An engine, the tables for it, and what they are called.
pub(crate) struct Imagined {
    pub(crate) engine: Engine,
    pub(crate) tables: Snapshot,
}

impl Imagined {
    /// The engine with what is desired within these limits, and room for `flows` flows.
    pub(crate) fn new(desired: &DesiredState, limits: Limits, flows: usize) -> anyhow::Result<Self> {
        let state = Arc::new(State::new(limits.services, limits.backends));
        let services = compile::tables(desired, &state)?;
        let tables = Snapshot {
            generation: 1,
            services: Arc::new(services),
            net: Arc::new(net()),
            timeouts: desired.timeouts(),
            settings: desired.settings(),
            steering: None,
        };
        let engine = Engine::new(Setup {
            worker: WorkerId(0),
            workers: 1,
            flow_limit: flows,
            state,
            directory: Arc::new(Directory::new(0, 1)),
            stats: Arc::new(WorkerStats::new(limits.services, limits.backends)),
            wanted: Arc::new(Wanted::new(1)),
            seed: SEED,
        });
        Ok(Self { engine, tables })
    }

    /// Has packets come from the machine's own kernel, where `from` is one of its addresses.
    pub(crate) fn sent_by(&mut self, from: IpAddr) {
        let (addr, v6) = key::bits(from);
        if self.tables.services.locality().node.contains(addr, v6) {
            Arc::make_mut(&mut self.tables.net).kernel = Some((PortId(0), PEER_MAC));
        }
    }

    /// The service with this id.
    pub(crate) fn service(&self, id: ServiceId) -> Option<&Service> {
        self.tables.services.service(id)
    }

    /// The backend with this id, of the service with that one.
    pub(crate) fn backend(&self, service: ServiceId, id: BackendId) -> Option<&Backend> {
        self.service(service)?.backends.iter().find(|backend| backend.id == id)
    }
}

/// One port, and by default everything through a resolved gateway on it.
fn net() -> Net {
    let link = Link { port: PortId(0), vlans: Default::default(), mtu: MTU };
    let mut net = Net {
        epoch: 1,
        ports: vec![Port {
            name: "imagined".into(),
            ifindex: LINK,
            mac: OWN_MAC,
            mtu: MTU,
            partial_checksums: false,
        }],
        hops: vec![Some(Hop::new(&link, OWN_MAC, PEER_MAC))],
        links: HashMap::from_iter([(LINK, link)]),
        ..Net::default()
    };
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    for gateway in [v4.into(), v6.into()] {
        net.neighbours.insert(Neighbour { link: LINK, addr: gateway }, HopId(0));
    }
    let via = |gateway| Route::Via(vec![Path::new(LINK, Some(gateway))]);
    net.routes4.insert((0, 0), via(v4.into()));
    net.routes6.insert((0, 0), via(v6.into()));
    net
}
