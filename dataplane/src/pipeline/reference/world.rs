//! The engine and the reference side by side, and what is done to both.

use std::sync::Arc;

use super::frames::frame;
use super::kernel::{Answer, Destination, Kernel, Key, Rules, SCTP, Seen, TCP, UDP};
use crate::flow::key::{FlowKey, VipKey, address, bits};
use crate::frame::Frame;
use crate::ids::{BackendId, PortId, ServiceId};
use crate::pipeline::fixture::{self, LAN, UPLINK};
use crate::pipeline::{Engine, FlowRecord};
use crate::schedule::{Flags, Kind, Scheduler};
use crate::snapshot::{Backend, Defence, Mode, Service, Services, Settings, Snapshot, Timeouts};
use crate::time::{TICKS_PER_SECOND, Tick};
use crate::verdict::{DropReason, Verdict};

pub(super) const CLIENTS: usize = 4;
/// Protocol, IP version and mode of each service.
const SHAPES: [(u8, bool, Mode); 8] = [
    (TCP, false, Mode::Nat),
    (TCP, true, Mode::Nat),
    (TCP, false, Mode::Dr),
    (UDP, false, Mode::Nat),
    (UDP, true, Mode::Dr),
    (SCTP, false, Mode::Nat),
    (SCTP, true, Mode::Nat),
    (SCTP, false, Mode::Dr),
];
pub(super) const SERVICES: usize = SHAPES.len();
const BACKENDS: usize = 2;
/// Seconds in which the engine's sweep comes by every flow.
const ROUND_S: u32 = 10;

/// The protocol of a service.
pub(super) fn protocol(service: usize) -> u8 {
    SHAPES[service].0
}

pub(super) struct World {
    engine: Engine,
    tables: Snapshot,
    kernel: Kernel,
    now: u32,
    records: Vec<FlowRecord>,
}

impl World {
    pub(super) fn new() -> Self {
        let engine = fixture::engines(1, 256).remove(0);
        let tables = Snapshot { net: Arc::new(fixture::net()), settings: settings(), ..Snapshot::default() };
        let mut kernel = Kernel::default();
        for id in 0..u32::try_from(SERVICES * BACKENDS).expect("few") {
            kernel.destinations.insert(id, Destination { available: true, weight: 1, ..Default::default() });
        }
        let mut world = Self { engine, tables, kernel, now: 0, records: Vec::with_capacity(256) };
        world.publish();
        world.pass(0);
        world
    }

    /// A packet of a client.
    pub(super) fn client_sends(&mut self, key: Key, seen: Seen) {
        let verdict = self.process(&forward_key(key), seen, UPLINK);
        let candidates = backends(key.1);
        let before = self.kernel.connections.get(&key).map(|connection| connection.backend);
        let answer = self.kernel.client_sends(key, seen, self.now.into(), &candidates);
        match answer {
            Answer::Sent => assert_eq!(verdict, Verdict::Tx(LAN), "{key:?} {seen:?} goes on to {before:?}"),
            Answer::Schedules => {
                assert_eq!(verdict, Verdict::Tx(LAN), "{key:?} {seen:?} opens");
                let wanted = forward_key(key);
                let record = self.dump().iter().find(|record| is_of(record, &wanted)).cloned();
                let backend = record.expect("a connection").backend_id.0;
                assert!(candidates.contains(&backend), "{key:?} went to another service's backend");
                let has_replies = SHAPES[key.1].2.has_replies();
                self.kernel.open(key, seen, backend, has_replies, self.now.into());
            }
            Answer::NoDestination => {
                assert_eq!(verdict, Verdict::Reply(Some(DropReason::NoBackend)), "{key:?} {seen:?}");
            }
            Answer::Dropped => {
                assert_eq!(verdict, Verdict::Drop(DropReason::BackendRemoved), "{key:?} {seen:?}");
            }
            Answer::NoConnection => {
                // A reset is not answered, and SCTP gets no answer at all.
                let silent = seen.proto == SCTP || seen.flags & 0x04 != 0;
                let refused = Some(DropReason::NoFlow);
                let want = if silent { Verdict::Drop(DropReason::NoFlow) } else { Verdict::Reply(refused) };
                assert_eq!(verdict, want, "{key:?} {seen:?}");
            }
        }
        self.compare();
    }

    /// A packet of the backend of a connection, or of one where there is none.
    pub(super) fn backend_sends(&mut self, key: Key, seen: Seen) {
        let backend = self.kernel.connections.get(&key).map(|connection| connection.backend);
        let backend = backend.unwrap_or(backends(key.1)[0]);
        let verdict = self.process(&reply_key(key, backend), seen, LAN);
        let is_known = SHAPES[key.1].2.has_replies() && self.kernel.backend_sends(key, seen, self.now.into());
        let want = if is_known { Verdict::Tx(UPLINK) } else { Verdict::Kernel };
        assert_eq!(verdict, want, "{key:?} {seen:?} from backend {backend}");
        // The engine ends a connection that it finds to be out of time.
        self.compare();
    }

    /// Ticks pass.
    pub(super) fn pass(&mut self, ticks: u32) {
        self.now += ticks;
        while self.engine.sweep(Tick(self.now), &self.tables) {}
        self.compare();
    }

    pub(super) fn weigh(&mut self, which: u8, weight: u8) {
        let destination = self.destination(which);
        destination.weight = weight.into();
        self.publish();
    }

    /// New thresholds.
    pub(super) fn limit(&mut self, which: u8, upper: u8, lower: u8) {
        let id = chosen(which);
        let (upper, lower) = (u32::from(upper), u32::from(lower.min(upper)));
        self.destination(which).limit(upper, lower);
        self.engine.core.setup.state.backend(BackendId(id)).expect("a backend").set_thresholds(upper, lower);
        self.publish();
    }

    pub(super) fn remove(&mut self, which: u8) {
        self.destination(which).available = false;
        self.publish();
    }

    pub(super) fn bring_back(&mut self, which: u8) {
        self.destination(which).available = true;
        self.publish();
    }

    /// Other settings. `secure_tcp` takes a second.
    pub(super) fn set(&mut self, which: u8) {
        let (rules, settings) = (&mut self.kernel.rules, &mut self.tables.settings);
        let flip = |rule: &mut bool, setting: &mut bool| {
            *rule = !*rule;
            *setting = *rule;
        };
        match which % 8 {
            0 => {
                flip(&mut rules.expire_nodest_conn, &mut settings.expire_nodest_conn);
                self.end_removed();
            }
            1 => flip(&mut rules.sloppy_tcp, &mut settings.sloppy_tcp),
            2 => flip(&mut rules.sloppy_sctp, &mut settings.sloppy_sctp),
            3 => flip(&mut rules.drop_removed, &mut settings.drop_removed),
            4 | 5 => {
                rules.secure_tcp = !rules.secure_tcp;
                settings.secure_tcp = if rules.secure_tcp { Defence::Always } else { Defence::Off };
                self.pass(TICKS_PER_SECOND);
            }
            _ => {
                rules.reuse_mode = which / 8 % 3;
                settings.conn_reuse_mode = rules.reuse_mode;
            }
        }
    }

    /// Connections of removed backends end, where the settings say so, before the next packet comes.
    fn end_removed(&mut self) {
        while self.engine.sweep(Tick(self.now), &self.tables) {}
        self.kernel.end_removed();
        self.compare();
    }

    /// Another idle time for one state.
    pub(super) fn set_timeout(&mut self, which: u8, seconds: u8) {
        let (rules, timeouts) = (&mut self.kernel.rules, &mut self.tables.timeouts);
        let (place, seconds) = (usize::from(which), u32::from(seconds).max(1));
        match place % 26 {
            state @ 0..11 => (rules.tcp_s[state], timeouts.tcp_s[state]) = (seconds, seconds),
            state @ 11..25 => (rules.sctp_s[state - 11], timeouts.sctp_s[state - 11]) = (seconds, seconds),
            _ => (rules.udp_s, timeouts.udp_s) = (seconds, seconds),
        }
    }

    /// All backends take new connections, and all settings are as at the start.
    pub(super) fn restore(&mut self) {
        self.kernel.rules = Rules::default();
        (self.tables.settings, self.tables.timeouts) = (settings(), Timeouts::default());
        for (id, destination) in &mut self.kernel.destinations {
            (destination.available, destination.weight) = (true, 1);
            destination.limit(0, 0);
            self.engine.core.setup.state.backend(BackendId(*id)).expect("a backend").set_thresholds(0, 0);
        }
        self.publish();
        self.pass(TICKS_PER_SECOND);
    }

    /// In the end all connections run out, and nothing is left.
    pub(super) fn end(&mut self) {
        let last = self.kernel.connections.values().map(|connection| connection.expires).max();
        let left = last.map_or(0, |last| last.saturating_sub(self.now.into()));
        self.pass(u32::try_from(left).expect("a timeout"));
        for _ in 0..=2 * ROUND_S {
            self.pass(TICKS_PER_SECOND);
        }
        assert!(self.kernel.connections.is_empty(), "{:?}", self.kernel.connections);
        assert_eq!(self.engine.flows(), 0);
    }

    fn destination(&mut self, which: u8) -> &mut Destination {
        self.kernel.destinations.get_mut(&chosen(which)).expect("a backend")
    }

    fn process(&mut self, key: &FlowKey, seen: Seen, port: PortId) -> Verdict {
        const ROOM: usize = 128;
        let bytes = frame(key, seen);
        let mut chunk = [&[0; ROOM][..], &bytes, &[0; ROOM]].concat();
        let mut frames = [Frame::new(&mut chunk, ROOM, bytes.len(), port).expect("inside")];
        let mut verdicts = [Verdict::Kernel];
        self.engine.process(&mut frames, &mut verdicts, Tick(self.now), &self.tables);
        verdicts[0]
    }

    /// All connections in the engine's table.
    fn dump(&mut self) -> &[FlowRecord] {
        self.records.clear();
        let next = self.engine.dump(0, usize::MAX, Tick(self.now), &mut self.records);
        assert_eq!(next, None);
        &self.records
    }

    /// Connections and counts. What has run out may still be in the engine's table, which finds out by and by, and counts
    /// until then.
    fn compare(&mut self) {
        self.dump();
        let now = u64::from(self.now);
        let gone: Vec<Key> = self
            .kernel
            .connections
            .iter()
            .filter(|(key, connection)| {
                let wanted = forward_key(**key);
                let record = self.records.iter().find(|record| is_of(record, &wanted));
                let Some(record) = record else {
                    assert!(connection.expires <= now, "{key:?} is lost: {connection:?}");
                    return true;
                };
                let left = connection.expires.saturating_sub(now) / u64::from(TICKS_PER_SECOND);
                assert_eq!(
                    (record.state, u64::from(record.expires_s), record.backend_id.0),
                    (connection.state_name(), left, connection.backend),
                    "{key:?}"
                );
                false
            })
            .map(|(key, _)| *key)
            .collect();
        gone.into_iter().for_each(|key| self.kernel.end(key));
        assert_eq!(self.records.len(), self.kernel.connections.len(), "{:?}", self.records);
        for (id, destination) in &self.kernel.destinations {
            let state = self.engine.core.setup.state.backend(BackendId(*id)).expect("a backend");
            let got = (state.counts(), state.is_overloaded());
            let want = ((destination.active, destination.inactive), destination.overloaded);
            assert_eq!(got, want, "backend {id}: {destination:?}");
        }
    }

    fn publish(&mut self) {
        let list = (0..SERVICES).map(|service| {
            let (proto, v6, mode) = SHAPES[service];
            let (addr, v6) = bits(fixture::vip(v6));
            let known = backends(service).into_iter().filter(|id| self.kernel.destinations[id].available);
            let backends = known.map(|id| {
                let (addr, port) = backend(id);
                let destination = &self.kernel.destinations[&id];
                let mut backend = Backend::new(BackendId(id), addr, port, destination.weight, mode);
                (backend.upper, backend.lower) = (destination.upper, destination.lower);
                backend
            });
            let backends: Vec<_> = backends.collect();
            Service {
                id: ServiceId(u32::try_from(service).expect("few")),
                vips: vec![VipKey { addr, port: service_port(service), proto, v6 }],
                scheduler: Scheduler::compile(Kind::Rr, Flags::default(), &backends),
                backends: backends.into(),
                ..Service::default()
            }
        });
        self.tables.services = Arc::new(Services::new(list.collect(), Vec::new(), []));
        self.tables.generation += 1;
        self.end_removed();
    }
}

/// The kernel's, without a bound on half-open flows.
fn settings() -> Settings {
    Settings { half_open: u32::MAX, drop_removed: true, ..Settings::default() }
}

/// The id of the backend that an operation means.
fn chosen(which: u8) -> u32 {
    u32::from(which) % u32::try_from(SERVICES * BACKENDS).expect("few")
}

/// The ids of a service's backends.
fn backends(service: usize) -> [u32; BACKENDS] {
    let first = u32::try_from(service * BACKENDS).expect("few");
    [first, first + 1]
}

/// Address and port of a backend.
fn backend(id: u32) -> (std::net::IpAddr, u16) {
    let service = id as usize / BACKENDS;
    let (_, v6, mode) = SHAPES[service];
    let number = u8::try_from(id as usize % BACKENDS + 1).expect("few");
    let port = service_port(service) + if mode.has_replies() { 8000 } else { 0 };
    (fixture::backend(number, v6), port)
}

fn service_port(service: usize) -> u16 {
    80 + u16::try_from(service).expect("few")
}

/// What a client sends.
fn forward_key((client, service): Key) -> FlowKey {
    let (proto, v6, _) = SHAPES[service];
    let number = u8::try_from(client).expect("few");
    let source: std::net::IpAddr = if v6 {
        std::net::Ipv6Addr::new(0xfd22, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        std::net::Ipv4Addr::new(172, 16, 0, number + 1).into()
    };
    let ((src, v6), (dst, _)) = (bits(source), bits(fixture::vip(v6)));
    FlowKey { src, dst, sport: 40_000 + u16::from(number), dport: service_port(service), proto, v6 }
}

/// What a backend answers it with.
fn reply_key(key: Key, id: u32) -> FlowKey {
    let forward = forward_key(key);
    let (addr, port) = backend(id);
    FlowKey { src: bits(addr).0, sport: port, ..forward.reversed() }
}

fn is_of(record: &FlowRecord, key: &FlowKey) -> bool {
    record.proto == key.proto
        && record.client == (address(key.src, key.v6), key.sport)
        && record.vip == (address(key.dst, key.v6), key.dport)
}
