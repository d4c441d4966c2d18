//! A gateway in memory: an engine with its tables, and the traffic of its clients.
//!
//! Every address is `10.x.y.z` or, in an IPv6 world, `fd00::10.x.y.z`: clients come from 10.64/10, services are in
//! 10.1/16, SNAT addresses in 10.2/16, backends in 10.3/16, on the link of port 1.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dataplane::flow::directory::Directory;
use dataplane::flow::key::{self, FlowKey, VipKey};
use dataplane::frame::{BATCH, Frame};
use dataplane::ids::{BackendId, HopId, PoolId, PortId, ServiceId, WorkerId};
use dataplane::pipeline::{Engine, Setup};
use dataplane::schedule::{Flags, Kind, Scheduler};
use dataplane::snapshot::net::{Hop, Link, Neighbour, Net, Path, Port, Route};
use dataplane::snapshot::steering::{Claim, Class};
use dataplane::snapshot::{
    Access, Backend, Masquerade, Mode, Networks, Service, Services, Settings, Snapshot, SnatPool, Steering,
    Timeouts,
};
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::time::Tick;
use dataplane::verdict::Verdict;
use dataplane::wanted::Wanted;

use crate::bare::Bare;
use crate::frames::{ACK, Chunks, SECTION, SYN, SYN_ACK, read};
use crate::measure::Meter;
use crate::memory::HugePages;
use crate::random::Random;

/// The port that clients are behind.
const UPLINK: PortId = PortId(0);
/// The port that backends are behind.
const LAN: PortId = PortId(1);

/// Backends of the first service, and hosts that the backends of all services share, where nothing else is said.
const HOSTS: u32 = 256;
/// Backends of each other service, where nothing else is said.
const BACKENDS: u32 = 4;

/// More than a bench opens to one backend.
const MANY_CONNECTIONS: u32 = 1 << 20;

const CLIENTS: u32 = 0x0a40_0000;
const GATEWAY: u32 = 0x0a00_0001;
const VIPS: u32 = 0x0a01_0000;
const SNAT: u32 = 0x0a02_0001;
const HOST: u32 = 0x0a03_0001;

const SERVICE_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// What kind of gateway it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Forwarding mode of all services.
    pub(crate) mode: Mode,
    /// IPv6 rather than IPv4.
    pub(crate) v6: bool,
    /// Flows that there is room for.
    pub(crate) limit: u32,
    /// Services, 65,536 at most.
    pub(crate) services: u32,
    /// Whether flows are spread over all services. Otherwise all are the first one's.
    pub(crate) spread: bool,
    /// Backends of the first service, and of each other one.
    pub(crate) backends: [u32; 2],
    /// Hosts that the backends are on, 65,534 at most.
    pub(crate) hosts: u32,
    /// Whether each flow is another client's. Otherwise a client has thousands.
    pub(crate) strangers: bool,
    /// The scheduler of all services.
    pub(crate) scheduler: Kind,
    /// Whether services ask where their clients are: who may come, and whose address backends do not see.
    pub(crate) asks_clients: bool,
    /// Packets that come of one flow before the next one's.
    pub(crate) run: u32,
    /// Whether cards say how they spread frames, so that SNAT ports are chosen by it.
    pub(crate) steered: bool,
    /// Whether senders may leave checksums to the interfaces, as local ones do on a veth. These have not.
    pub(crate) leaves_checksums: bool,
}

/// What the engines of several workers have in common.
pub(crate) struct Shared {
    tables: Snapshot,
    state: Arc<State>,
    directory: Arc<Directory>,
    workers: u8,
}

impl Shared {
    /// For so many workers of this shape each.
    pub(crate) fn new(shape: &Shape, workers: u8) -> Self {
        let mut tables = Snapshot {
            generation: 1,
            services: Arc::new(services(shape, shape.services)),
            net: Arc::new(net(shape)),
            timeouts: Timeouts::default(),
            // All flows are half open for a while; by default no more than a quarter may be.
            settings: Settings { half_open: shape.limit, ..Settings::default() },
            steering: None,
        };
        if shape.steered {
            let steering = Steering::new(&claims(workers), tables.services.pools(), workers, None);
            tables.steering = Some(Arc::new(steering));
        }
        let backends = tables.services.iter().map(|service| service.backends.len()).sum();
        let state = Arc::new(State::new(shape.services as usize, backends));
        let directory = Arc::new(Directory::new(shape.limit as usize * usize::from(workers), workers));
        Self { tables, state, directory, workers }
    }
}

impl Shape {
    /// Full NAT over IPv4 of one service, for so many flows.
    pub(crate) fn plain(flows: u32) -> Self {
        // A table with no slot to spare would measure how it makes room.
        Self {
            mode: Mode::FullNat,
            v6: false,
            limit: flows + SECTION as u32,
            services: 1,
            spread: false,
            backends: [HOSTS, BACKENDS],
            hosts: HOSTS,
            strangers: false,
            scheduler: Kind::Rr,
            asks_clients: false,
            run: 1,
            steered: false,
            leaves_checksums: false,
        }
    }

    /// The same, with flows spread over so many services of so many backends, each on a host of its own.
    pub(crate) fn spread(flows: u32, services: u32, backends: u32) -> Self {
        Self {
            services,
            spread: true,
            backends: [backends; 2],
            hosts: services * backends,
            ..Self::plain(flows)
        }
    }
}

/// A tuple, of IPv6 addresses the last bits: what a flow's packets have behind the gateway, or come with.
#[derive(Clone, Copy, Default)]
struct Sent {
    src: u32,
    dst: u32,
    sport: u16,
    dport: u16,
}

impl Sent {
    fn of(key: &FlowKey) -> Self {
        Self { src: key.src as u32, dst: key.dst as u32, sport: key.sport, dport: key.dport }
    }
}

/// An engine, its tables, and what became of its flows.
pub(crate) struct World {
    shape: Shape,
    worker: u8,
    engine: Engine,
    tables: Snapshot,
    sent: Vec<Sent>,
    verdicts: Vec<Verdict>,
    /// Time as the engine sees it: it passes under the clock only.
    clock: Duration,
}

/// Which packets a section has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Client to backend, in the middle of a known flow.
    Established,
    /// Backend to client, in the middle of a known flow.
    Reply,
}

impl World {
    /// A gateway without flows.
    pub(crate) fn new(shape: Shape) -> Self {
        Self::of_worker(shape, &Shared::new(&shape, 1), 0)
    }

    /// One of several workers, without flows. Each has clients of its own.
    pub(crate) fn of_worker(shape: Shape, shared: &Shared, worker: u8) -> Self {
        let (services, backends) = shared.state.capacity();
        let setup = Setup {
            worker: WorkerId(worker),
            workers: shared.workers,
            flow_limit: shape.limit as usize,
            state: Arc::clone(&shared.state),
            stats: Arc::new(WorkerStats::new(services, backends)),
            wanted: Arc::new(Wanted::new(BATCH)),
            directory: Arc::clone(&shared.directory),
            seed: 0x1234_5678_9abc_def0,
        };
        Self {
            shape,
            worker,
            engine: Engine::with_memory(setup, &HugePages),
            tables: shared.tables.clone(),
            sent: vec![Sent::default(); shape.limit as usize],
            verdicts: vec![Verdict::Kernel; SECTION],
            clock: Duration::from_secs(1),
        }
    }

    /// Opens flows `from..to` by their first packets; each section is measured.
    pub(crate) fn open(&mut self, chunks: &mut Chunks, from: u32, to: u32, meter: &mut Meter) {
        self.in_sections(from, to, |world, first, count| {
            let mut flow = first;
            let mut frames = chunks.fill(UPLINK, count, || {
                flow += 1;
                (world.client_key(flow - 1), SYN)
            });
            if !world.measured(meter, &mut frames) {
                return;
            }
            world.expect_sent(&frames, LAN);
            for (flow, frame) in (first..).zip(&frames) {
                let key = read(frame.bytes()).expect("a whole frame");
                world.sent[flow as usize] = Sent::of(&key);
            }
        });
    }

    /// Has flows `from..to` answered and acknowledged.
    pub(crate) fn establish(&mut self, chunks: &mut Chunks, from: u32, to: u32) {
        self.in_sections(from, to, |world, first, count| {
            if world.shape.mode != Mode::Dr {
                let mut flow = first;
                let mut frames = chunks.fill(LAN, count, || {
                    flow += 1;
                    (world.backend_key(flow - 1), SYN_ACK)
                });
                world.process(&mut frames);
                world.expect_sent(&frames, UPLINK);
                for (flow, frame) in (first..).zip(&frames) {
                    assert_eq!(read(frame.bytes()), Some(world.client_key(flow).reversed()));
                }
            }
            let mut flow = first;
            let mut frames = chunks.fill(UPLINK, count, || {
                flow += 1;
                (world.client_key(flow - 1), ACK)
            });
            world.process(&mut frames);
            world.expect_sent(&frames, LAN);
        });
    }

    /// Lets all flows run out. Returns how many did.
    pub(crate) fn forget(&mut self) -> u32 {
        let flows = self.engine.flows();
        self.clock += Duration::from_secs(24 * 3600);
        let mut now = Tick::from_ns(self.clock.as_nanos() as u64);
        while self.engine.flows() > 0 {
            // A round of the sweep is bounded; the next one begins a tick later.
            while self.engine.sweep(now, &self.tables) {}
            now = Tick(now.0 + 1);
        }
        flows as u32
    }

    /// Bytes of what the world itself notes of flows.
    pub(crate) fn own_bytes(&self) -> u64 {
        (self.sent.capacity() * size_of::<Sent>()) as u64
    }

    /// Processes one section of packets of known flows below `flows`, in random order.
    pub(crate) fn section(
        &mut self,
        chunks: &mut Chunks,
        direction: Direction,
        flows: u32,
        random: &mut Random,
        meter: &mut Meter,
    ) {
        let drawn = self.draw(direction, SECTION, flows, random);
        self.pass(chunks, direction, &drawn, meter);
    }

    /// The same for so many sections, after some that are not measured and have the caches forget what was before. All flows
    /// are drawn first: a table of what frames are to be is as large as the caches, too.
    pub(crate) fn turn(
        &mut self,
        chunks: &mut Chunks,
        direction: Direction,
        flows: u32,
        random: &mut Random,
        (before, sections): (usize, usize),
        meter: &mut Meter,
    ) {
        let drawn = self.draw(direction, (before + sections) * SECTION, flows, random);
        let (first, rest) = drawn.split_at(before * SECTION);
        first.chunks(SECTION).for_each(|drawn| self.pass(chunks, direction, drawn, &mut Meter::Done));
        rest.chunks(SECTION).for_each(|drawn| self.pass(chunks, direction, drawn, meter));
    }

    /// Has a section of these packets processed.
    fn pass(&mut self, chunks: &mut Chunks, direction: Direction, drawn: &[Sent], meter: &mut Meter) {
        let (from, to) = match direction {
            Direction::Established => (UPLINK, LAN),
            Direction::Reply => (LAN, UPLINK),
        };
        let mut frames = self.prepare(chunks, from, drawn);
        if self.measured(meter, &mut frames) {
            self.expect_sent(&frames, to);
        }
    }

    /// So many packets of known flows below `flows`, in random order.
    fn draw(&self, direction: Direction, count: usize, flows: u32, random: &mut Random) -> Vec<Sent> {
        let (mut flow, mut left) = (0, 0);
        let next = || {
            if left == 0 {
                (flow, left) = (random.below(flows), self.shape.run);
            }
            left -= 1;
            match direction {
                Direction::Established => Sent::of(&self.client_key(flow)),
                Direction::Reply => Sent::of(&self.backend_key(flow)),
            }
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn prepare<'a>(&self, chunks: &'a mut Chunks, port: PortId, drawn: &[Sent]) -> Vec<Frame<'a>> {
        let mut drawn = drawn.iter();
        chunks.fill(port, drawn.len(), || {
            (drawn.next().map_or_else(FlowKey::default, |sent| self.key(*sent)), ACK)
        })
    }

    /// The packets of a client of this flow.
    pub(crate) fn client_key(&self, flow: u32) -> FlowKey {
        // 16,384 ports a client, and 65,536 clients a worker; or one client a flow.
        let client = if self.shape.strangers {
            flow.wrapping_mul(0x9e37_79b1) & 0x003f_ffff
        } else {
            (u32::from(self.worker) << 16) + (flow >> 14)
        };
        let src = self.address(CLIENTS + client);
        let service =
            if self.shape.spread { flow.wrapping_mul(0x9e37_79b1) % self.shape.services } else { 0 };
        let dst = self.address(VIPS + service);
        FlowKey {
            src,
            dst,
            sport: 16_384 + (flow & 0x3fff) as u16,
            dport: SERVICE_PORT,
            proto: key::TCP,
            v6: self.shape.v6,
        }
    }

    /// What the engine makes of [`Self::client_key`].
    pub(crate) fn sent_key(&self, flow: u32) -> FlowKey {
        self.key(self.sent[flow as usize])
    }

    fn key(&self, Sent { src, dst, sport, dport }: Sent) -> FlowKey {
        let [src, dst] = [src, dst].map(|low| self.address(low));
        FlowKey { src, dst, sport, dport, proto: key::TCP, v6: self.shape.v6 }
    }

    fn backend_key(&self, flow: u32) -> FlowKey {
        self.sent_key(flow).reversed()
    }

    /// These tables with the first `count` services only.
    pub(crate) fn tables_with(&self, count: u32) -> Snapshot {
        Snapshot { services: Arc::new(services(&self.shape, count)), ..self.tables.clone() }
    }

    /// Exchanges the tables, as a reload does.
    pub(crate) fn swap_tables(&mut self, tables: &mut Snapshot) {
        std::mem::swap(&mut self.tables, tables);
    }

    /// Processes frames by way of the meter. Returns whether that happened.
    fn measured(&mut self, meter: &mut Meter, frames: &mut [Frame<'_>]) -> bool {
        let elapsed = meter.run(frames.len(), || self.process(frames));
        self.clock += elapsed.unwrap_or_default();
        elapsed.is_some()
    }

    /// What a worker does with the frames that it received, batch by batch.
    #[inline(never)]
    fn process(&mut self, frames: &mut [Frame<'_>]) {
        let now = Tick::from_ns(self.clock.as_nanos() as u64);
        for (frames, verdicts) in frames.chunks_mut(BATCH).zip(self.verdicts.chunks_mut(BATCH)) {
            self.engine.sweep(now, &self.tables);
            self.engine.process(frames, &mut verdicts[..frames.len()], now, &self.tables);
        }
    }

    fn expect_sent(&self, frames: &[Frame<'_>], port: PortId) {
        for (frame, verdict) in frames.iter().zip(&self.verdicts) {
            assert_eq!(*verdict, Verdict::Tx(port), "{:?}", read(frame.bytes()));
        }
        // One is looked at whole; all would take longer than the measurement.
        if let [first, ..] = frames {
            assert!(read(first.bytes()).is_some(), "a damaged frame: {:?}", first.bytes());
        }
    }

    /// Calls `work` with the first flow and the size of each section of `from..to`.
    fn in_sections(&mut self, from: u32, to: u32, mut work: impl FnMut(&mut Self, u32, usize)) {
        for first in (from..to).step_by(SECTION) {
            work(self, first, SECTION.min((to - first) as usize));
        }
    }

    fn address(&self, low: u32) -> u128 {
        address(low, self.shape.v6)
    }
}

fn address(low: u32, v6: bool) -> u128 {
    const PREFIX: u128 = 0xfd00 << 112;
    if v6 { PREFIX | u128::from(low) } else { u128::from(low) }
}

fn services(shape: &Shape, count: u32) -> Services {
    let mut next = 0..;
    let list = (0..count).map(|index| service(shape, index, &mut next)).collect();
    let addresses = SNAT..SNAT + 4;
    let pool = SnatPool {
        name: "pool".into(),
        v4: addresses.clone().collect(),
        v6: addresses.map(|low| address(low, true)).collect(),
        low: 1024,
        high: 65_535,
    };
    let vips = (0..count).map(|index| key::address(address(VIPS + index, shape.v6), shape.v6));
    Services::new(list, vec![pool], vips)
}

fn service(shape: &Shape, index: u32, ids: &mut impl Iterator<Item = u32>) -> Service {
    let [first, other] = shape.backends;
    let count = if index == 0 { first } else { other };
    let backends: Arc<[Backend]> = ids
        .take(count as usize)
        .map(|id| {
            let addr = key::address(address(HOST + id % shape.hosts, shape.v6), shape.v6);
            let port = if shape.mode.has_replies() { BACKEND_PORT } else { SERVICE_PORT };
            // ovf takes the weight for the connections that there is room for.
            let weight = if shape.scheduler == Kind::Ovf { MANY_CONNECTIONS } else { 1 };
            Backend::new(BackendId(id), addr, port, weight, shape.mode)
        })
        .collect();
    let vip =
        VipKey { addr: address(VIPS + index, shape.v6), port: SERVICE_PORT, proto: key::TCP, v6: shape.v6 };
    Service {
        id: ServiceId(index),
        name: format!("service-{index}").into(),
        vips: vec![vip],
        scheduler: Scheduler::compile(shape.scheduler, Flags::default(), &backends),
        access: if shape.asks_clients { asking() } else { Access::default() },
        backends,
        pool: (shape.mode == Mode::FullNat).then_some(PoolId(0)),
        ..Service::default()
    }
}

/// What two cards of a kind say that spread frames evenly over the workers' queues.
fn claims(workers: u8) -> [Option<Claim>; 2] {
    let table = (0..128).map(|place| place % u32::from(workers)).collect();
    // Any key will do; a card's is random.
    let key = (0..40u8).map(|place| place.wrapping_mul(157).wrapping_add(73)).collect();
    let claim = Claim { key, table, classes: Class::ALL.into_iter().collect() };
    [Some(claim.clone()), Some(claim)]
}

/// Half of the networks that clients could come from, in pieces, and the address of none is shown.
fn asking() -> Access {
    let pieces = (0..64).map(|piece| (CLIENTS + (piece << 17), CLIENTS + (piece << 17) + 0xffff));
    Access { sources: Some(Networks::new(pieces, [])), masquerade: Masquerade::Always, ..Access::default() }
}

/// Two ports: clients behind a gateway, backends on the link.
fn net(shape: &Shape) -> Net {
    let v6 = shape.v6;
    let mut net = Net { epoch: 1, ..Net::default() };
    for (id, link) in [(UPLINK, 10), (LAN, 20)] {
        let mac = [2, 0, 0, 0, 1, id.0];
        net.ports.push(Port {
            name: format!("port{}", id.0).into(),
            ifindex: link,
            mac,
            mtu: 1500,
            partial_checksums: shape.leaves_checksums,
        });
        net.links.insert(link, Link { port: id, vlans: Default::default(), mtu: 1500 });
    }
    let direct = |link| Route::Via(vec![Path::new(link, None)]);
    let gateway = key::address(address(GATEWAY, v6), v6);
    let default = Route::Via(vec![Path::new(10, Some(gateway))]);
    if v6 {
        net.routes6.insert((0, 0), default);
        net.routes6.insert((address(HOST & 0xffff_0000, true), 112), direct(20));
    } else {
        net.routes4.insert((0, 0), default);
        net.routes4.insert((HOST & 0xffff_0000, 16), direct(20));
    }
    add_neighbour(&mut net, 10, gateway);
    for host in 0..shape.hosts {
        add_neighbour(&mut net, 20, key::address(address(HOST + host, v6), v6));
    }
    net
}

fn add_neighbour(net: &mut Net, link: u32, addr: IpAddr) {
    let id = net.hops.len() as u32;
    let carrier = &net.links[&link];
    let own = net.port(carrier.port).expect("the link's port").mac;
    let [_, _, high, low] = id.to_be_bytes();
    net.hops.push(Some(Hop::new(carrier, own, [2, 0, 0, 2, high, low])));
    net.neighbours.insert(Neighbour { link, addr }, HopId(id));
}

/// Has the bare loop process one section of packets of known flows below `flows`, in random order.
pub(crate) fn bare_section(
    bare: &Bare,
    world: &World,
    chunks: &mut Chunks,
    flows: u32,
    random: &mut Random,
    meter: &mut Meter,
) {
    bare_turn(bare, world, chunks, flows, random, (0, 1), meter);
}

/// What [`World::turn`] is for the engine.
pub(crate) fn bare_turn(
    bare: &Bare,
    world: &World,
    chunks: &mut Chunks,
    flows: u32,
    random: &mut Random,
    (before, sections): (usize, usize),
    meter: &mut Meter,
) {
    let drawn = world.draw(Direction::Established, (before + sections) * SECTION, flows, random);
    for (section, drawn) in drawn.chunks(SECTION).enumerate() {
        let meter = if section < before { &mut Meter::Done } else { &mut *meter };
        let mut frames = world.prepare(chunks, UPLINK, drawn);
        let mut known = 0;
        let done =
            meter.run(SECTION, || known = frames.chunks_mut(BATCH).map(|batch| bare.process(batch)).sum());
        if done.is_some() {
            assert_eq!(known, SECTION);
            assert!(read(frames[0].bytes()).is_some(), "a damaged frame: {:?}", frames[0].bytes());
        }
    }
}
