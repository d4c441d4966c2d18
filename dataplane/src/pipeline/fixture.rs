//! A small network and a few services: for the tests of the pipeline and its fuzzer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Engine, Setup};
use crate::flow::directory::Directory;
use crate::flow::key::{TCP, UDP, VipKey, bits};
use crate::ids::{BackendId, HopId, PoolId, PortId, ServiceId, WorkerId};
use crate::schedule::{Flags, Kind, Scheduler};
use crate::snapshot::net::{Hop, Link, Neighbour, Net, Path, Port, Route};
use crate::snapshot::{Backend, Mode, Service, Services, Snapshot, SnatPool, Tunnel, TunnelChecksum};
use crate::state::State;
use crate::stats::WorkerStats;
use crate::wanted::Wanted;

/// The port towards clients, whose gateway is resolved.
pub const UPLINK: PortId = PortId(0);
/// The port towards backends; its frames may carry partial checksums.
pub const LAN: PortId = PortId(1);
/// MAC addresses of the two ports.
pub const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// MAC address of the clients' gateway.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// MAC address of every backend.
pub const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
/// SNAT addresses.
pub const SNAT4: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 9);
/// SNAT addresses.
pub const SNAT6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 9, 9);
/// A VLAN behind the LAN port with one backend of its own.
pub const VLAN: (u16, u16) = (0x8100, 77);

/// The forwarding mode of the services on port 80, 81 and 82.
pub const MODES: [(u16, Mode); 3] = [(80, Mode::Nat), (81, Mode::FullNat), (82, Mode::Dr)];

/// A service whose packets get other headers than they came with.
#[derive(Clone, Copy, Debug)]
pub struct Special {
    /// Its port.
    pub port: u16,
    /// How its backends get their packets.
    pub mode: Mode,
    /// Whether its backends are of the other family than its VIP.
    pub across: bool,
    /// The checksum of the tunnel.
    pub checksum: TunnelChecksum,
    /// The largest segment that its peers are told of.
    pub mss: Option<u16>,
}

/// The services on ports 90 to 98: tunnels, backends of the other family, and smaller segments.
pub const SPECIAL: [Special; 9] = {
    const fn new(port: u16, mode: Mode, across: bool, checksum: TunnelChecksum, mss: Option<u16>) -> Special {
        Special { port, mode, across, checksum, mss }
    }
    use TunnelChecksum::{Full, None as Without, Remote};
    [
        new(90, Mode::Ipip, false, Without, Some(0)),
        new(91, Mode::Gue, false, Without, None),
        new(92, Mode::Gre, false, Without, None),
        new(93, Mode::Ipip, true, Without, None),
        new(94, Mode::Gue, true, Full, None),
        new(95, Mode::Gre, true, Full, None),
        new(96, Mode::FullNat, true, Without, Some(0)),
        new(97, Mode::Gue, false, Remote, None),
        new(98, Mode::FullNat, false, Without, Some(1200)),
    ]
};

/// Destination port of the GUE tunnels.
pub const GUE_PORT: u16 = 6080;

/// Weir's own address on a link of [`net`].
pub fn own(link: u32, v6: bool) -> IpAddr {
    match (v6, link) {
        (false, 1) => Ipv4Addr::new(10, 0, 0, 254).into(),
        (true, 1) => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xfe).into(),
        (false, _) => Ipv4Addr::new(10, 1, u8::from(link == 3), 254).into(),
        (true, _) => Ipv6Addr::new(0xfd01, 0, 0, u16::from(link == 3), 0, 0, 0, 0xfe).into(),
    }
}

/// The VIP of the given family.
pub fn vip(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 100).into() } else { Ipv4Addr::new(10, 0, 0, 100).into() }
}

/// Backend `number` (1 to 3) of the given family. The third lies behind a VLAN.
pub fn backend(number: u8, v6: bool) -> IpAddr {
    let subnet = u8::from(number == 3);
    if v6 {
        Ipv6Addr::new(0xfd01, 0, 0, subnet.into(), 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 1, subnet, number).into()
    }
}

/// Services on both VIPs: TCP and UDP ports 80 (nat), 81 (fullnat), 82 (dr), three backends each, rr; port 83 has
/// no backend; [`SPECIAL`].
pub fn tables() -> Snapshot {
    let mut list = Vec::new();
    for v6 in [false, true] {
        for proto in [TCP, UDP] {
            for (port, mode) in MODES {
                list.push(service(list.len(), v6, proto, port, mode, 3));
            }
            list.push(service(list.len(), v6, proto, 83, Mode::Nat, 0));
            for special in SPECIAL {
                list.push(changed(service(list.len(), v6, proto, special.port, special.mode, 3), &special));
            }
        }
    }
    let pool = SnatPool {
        name: "pool".into(),
        v4: vec![SNAT4.to_bits()],
        v6: vec![SNAT6.to_bits()],
        low: 1024,
        high: 65_535,
    };
    Snapshot {
        generation: 1,
        services: Arc::new(Services::new(list, vec![pool], [vip(false), vip(true)])),
        net: Arc::new(net()),
        ..Snapshot::default()
    }
}

fn service(index: usize, v6: bool, proto: u8, port: u16, mode: Mode, backends: u8) -> Service {
    let id = u32::try_from(index).unwrap_or_default();
    let backends: Vec<_> = (1..=backends)
        .map(|number| {
            let backend_id = BackendId(id * 3 + u32::from(number) - 1);
            let backend_port = if mode.has_replies() { 8000 + port } else { port };
            Backend::new(backend_id, backend(number, v6), backend_port, 1, mode)
        })
        .collect();
    let (addr, v6) = bits(vip(v6));
    Service {
        id: ServiceId(id),
        name: format!("service-{id}").into(),
        vips: vec![VipKey { addr, port, proto, v6 }],
        scheduler: Scheduler::compile(Kind::Rr, Flags::default(), &backends),
        backends: backends.into(),
        pool: Some(PoolId(0)),
        ..Service::default()
    }
}

/// The service with what makes it special.
fn changed(mut service: Service, special: &Special) -> Service {
    service.options.mss = special.mss;
    for (number, backend) in (1..).zip(Arc::make_mut(&mut service.backends)) {
        backend.addr = self::backend(number, backend.addr.is_ipv6() != special.across);
        backend.tunnel = Tunnel { port: GUE_PORT, checksum: special.checksum };
    }
    service
}

/// Clients behind a gateway on link 1, backends on link 2 and its VLAN, link 3.
pub fn net() -> Net {
    let port = |name: &str, ifindex, index: usize, partial_checksums| Port {
        name: name.into(),
        ifindex,
        mac: MACS[index],
        mtu: 1500,
        partial_checksums,
    };
    let link = |port, vlans: &[(u16, u16)]| Link { port, vlans: vlans.iter().copied().collect(), mtu: 1500 };
    let mut net = Net {
        epoch: 1,
        ports: vec![port("uplink", 1, 0, false), port("lan", 2, 1, true)],
        links: [(1, link(UPLINK, &[])), (2, link(LAN, &[])), (3, link(LAN, &[VLAN]))].into_iter().collect(),
        ..Net::default()
    };
    let gateways: [IpAddr; 2] =
        [Ipv4Addr::new(10, 0, 0, 1).into(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into()];
    for gateway in gateways {
        add(&mut net, 1, gateway, GATEWAY_MAC);
        let via = Route::Via(vec![path(1, Some(gateway), gateway.is_ipv6())]);
        match gateway {
            IpAddr::V4(_) => net.routes4.insert((0, 0), via),
            IpAddr::V6(_) => net.routes6.insert((0, 0), via),
        };
    }
    for (subnet, link) in [(0, 2), (1, 3)] {
        let on_link = |v6| Route::Via(vec![path(link, None, v6)]);
        net.routes4.insert((Ipv4Addr::new(10, 1, subnet, 0).to_bits(), 24), on_link(false));
        let prefix = Ipv6Addr::new(0xfd01, 0, 0, subnet.into(), 0, 0, 0, 0).to_bits();
        net.routes6.insert((prefix, 64), on_link(true));
    }
    for v6 in [false, true] {
        for (number, link) in [(1, 2), (2, 2), (3, 3)] {
            add(&mut net, link, backend(number, v6), BACKEND_MAC);
        }
    }
    net
}

/// A path that begins at Weir's own address. Behind the VLAN its MTU is smaller than the link's.
fn path(link: u32, gateway: Option<IpAddr>, v6: bool) -> Path {
    let mtu = (link == 3).then_some(1400);
    Path { source: Some(own(link, v6)), mtu, ..Path::new(link, gateway) }
}

fn add(net: &mut Net, link: u32, addr: IpAddr, mac: [u8; 6]) {
    let id = HopId(u32::try_from(net.hops.len()).unwrap_or_default());
    let over = &net.links[&link];
    let hop = Hop::new(over, MACS[over.port.index()], mac);
    net.hops.push(Some(hop));
    net.neighbours.insert(Neighbour { link, addr }, id);
}

/// Engines of `workers` workers that share what workers share.
pub fn engines(workers: u8, flow_limit: usize) -> Vec<Engine> {
    let state = Arc::new(State::new(80, 224));
    let directory = Arc::new(Directory::new(flow_limit * usize::from(workers), workers));
    let setup = |worker| Setup {
        worker: WorkerId(worker),
        workers,
        flow_limit,
        state: Arc::clone(&state),
        directory: Arc::clone(&directory),
        stats: Arc::new(WorkerStats::new(80, 224)),
        wanted: Arc::new(Wanted::new(16)),
        seed: 0x0123_4567_89ab_cdef,
    };
    (0..workers).map(|worker| Engine::new(setup(worker))).collect()
}
