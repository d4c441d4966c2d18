//! Two engines that share what workers share, a clock, and the tables of the moment.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};

use super::{Arrival, FLOW_LIMIT, Outcome, access, judge, kept};
use crate::flow::entry::Way;
use crate::flow::key::FlowKey;
use crate::frame::{Frame, MIN_HEADROOM};
use crate::ids::{BackendId, HopId, PoolId};
use crate::packet::{Kind, parse};
use crate::pipeline::Engine;
use crate::pipeline::fixture::{LAN, engines, net, tables, vip};
use crate::schedule::{Flags, Kind as Scheduling, Scheduler};
use crate::snapshot::net::{Hop, Net};
use crate::snapshot::{
    Defence, Mode, Options, Service, Services, Settings, Snapshot, SnatPool, SynProxy, Timeouts,
};
use crate::time::{TICKS_PER_SECOND, Tick};
use crate::verdict::Verdict;

/// Size of a chunk of memory with one frame in it, as AF_XDP has it.
const CHUNK: usize = 2048;
/// The longest frame that fits behind the headroom.
pub(super) const LONGEST: usize = CHUNK - MIN_HEADROOM;
/// Longer than every timeout, in seconds.
const FOREVER_S: u32 = 2000;

pub(super) struct World {
    engines: Vec<Engine>,
    tables: &'static Snapshot,
    now: Tick,
    /// What could be in the directory.
    keys: HashSet<FlowKey>,
}

impl World {
    pub(super) fn new(start: Tick) -> Self {
        let mut engines = engines(2, FLOW_LIMIT);
        for engine in &mut engines {
            engine.sweep(start, &TABLES[0]);
        }
        Self { engines, tables: &TABLES[0], now: start, keys: HashSet::new() }
    }

    /// Has one worker decide on a batch.
    pub(super) fn process(&mut self, worker: usize, arrivals: &[Arrival]) -> Vec<Outcome> {
        let mut chunks: Vec<_> = arrivals.iter().map(|arrival| chunk(&arrival.bytes)).collect();
        let mut frames: Vec<_> =
            arrivals.iter().zip(&mut chunks).map(|(from, chunk)| frame(from, chunk)).collect();
        let mut verdicts = vec![Verdict::Kernel; frames.len()];
        self.engines[worker].process(&mut frames, &mut verdicts, self.now, self.tables);
        assert!(self.engines[worker].flows() <= FLOW_LIMIT, "more flows than allowed");
        let outcome = |(frame, verdict): (Frame<'_>, Verdict)| Outcome {
            verdict,
            bytes: frame.bytes().to_vec(),
            checksum: frame.checksum,
            split: frame.split,
        };
        frames.into_iter().zip(verdicts).map(outcome).collect()
    }

    /// Has one worker decide on one frame, and judges it.
    pub(super) fn judged(&mut self, worker: usize, arrival: &Arrival) -> Outcome {
        let packet = parse(&arrival.bytes).ok().filter(|packet| has_ports(packet.kind));
        let find = |engine: &Engine| {
            let key = packet?.key;
            let flows = &engine.core.flows;
            flows.lookup(flows.hash(&key), &key)
        };
        let was_known = find(&self.engines[worker]).is_some();
        let outcome = self.process(worker, std::slice::from_ref(arrival)).remove(0);
        let engine = &self.engines[worker];
        judge::judge(engine, self.tables, arrival, &outcome);
        let flows = &engine.core.flows;
        if let Some((packet, hit)) = packet.zip(find(engine)) {
            let entry = flows.entry(hit.slot()).expect("a flow that was found");
            let tuple = flows.tuple(entry);
            self.keys.extend([tuple.forward, tuple.reply]);
            if let Verdict::Tx(_) = outcome.verdict {
                access::used(self.tables, entry, hit.way());
                if !was_known && hit.way() == Way::Forward {
                    access::opened(self.tables, arrival, &packet.key, entry);
                }
            }
        }
        outcome
    }

    /// Lets time pass; every worker sweeps once, as it does in each turn.
    pub(super) fn pass(&mut self, ticks: u32) {
        self.now = Tick(self.now.0.wrapping_add(ticks));
        for engine in &mut self.engines {
            engine.sweep(self.now, self.tables);
        }
        self.counts_hold();
    }

    pub(super) fn change(&mut self, tables: u8) {
        self.tables = &TABLES[usize::from(tables) % TABLES.len()];
    }

    /// The counts that workers share are those of the flows that are there.
    fn counts_hold(&self) {
        let state = &self.engines[0].core.setup.state;
        let mut counts = vec![(0, 0); state.capacity().1];
        for engine in &self.engines {
            let flows = &engine.core.flows;
            for entry in (0..flows.high_water()).filter_map(|slot| flows.entry(slot)) {
                let (active, inactive) = &mut counts[entry.backend.index()];
                *if entry.is_active() { active } else { inactive } += 1;
            }
        }
        for engine in &self.engines {
            let flows = &engine.core.flows;
            let entries = (0..flows.high_water()).filter_map(|slot| flows.entry(slot));
            let half_open = entries.filter(|entry| entry.is_half_open()).count();
            assert_eq!(engine.core.half_open.count(), half_open, "half-open flows");
        }
        for (id, counted) in (0u32..).map(BackendId).zip(counts) {
            let kept = state.backend(id).expect("within the slab").counts();
            assert_eq!(kept, counted, "{id:?}: active and inactive flows");
        }
        let templates = |engine: &Engine| {
            let templates = &engine.core.templates;
            let all = (0u32..).zip(0..templates.high_water()).filter_map(|(index, _)| templates.get(index));
            all.filter(|template| !template.announced).count()
        };
        let persistent =
            (0u32..).zip(0..state.capacity().1).filter_map(|(id, _)| state.backend(BackendId(id)));
        let persistent: u32 = persistent.map(|backend| backend.persistent.load(Relaxed)).sum();
        assert_eq!(self.engines.iter().map(templates).sum::<usize>(), persistent as usize, "templates");
    }

    /// After a time without frames nothing is left.
    pub(super) fn end(mut self) {
        self.counts_hold();
        self.pass(FOREVER_S * TICKS_PER_SECOND);
        for engine in &mut self.engines {
            while engine.sweep(self.now, self.tables) {}
            assert_eq!(engine.flows(), 0, "flows outlive their time");
            engine.sweep(self.now, self.tables);
            assert_eq!(engine.templates(), 0, "templates outlive their time");
            assert_eq!(engine.stats().directory_full.get(), 0);
        }
        self.counts_hold();
        let directory = &self.engines[0].core.setup.directory;
        for key in self.keys {
            let owner = directory.owner(self.engines[0].core.flows.hash(&key));
            assert_eq!(owner, None, "{key:?} outlives its flow in the directory");
        }
    }
}

fn has_ports(kind: Kind) -> bool {
    matches!(kind, Kind::Transport | Kind::FirstFragment)
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut chunk = vec![0xa5; CHUNK];
    chunk[MIN_HEADROOM..MIN_HEADROOM + bytes.len()].copy_from_slice(bytes);
    chunk
}

fn frame<'a>(arrival: &Arrival, chunk: &'a mut [u8]) -> Frame<'a> {
    let mut frame =
        Frame::new(chunk, MIN_HEADROOM, arrival.bytes.len(), arrival.port).expect("within the chunk");
    frame.handed_over = arrival.handed_over;
    frame
}

/// Tables that may follow each other in any order: hops with the same epoch have the same ids.
static TABLES: LazyLock<[Snapshot; 10]> = LazyLock::new(|| {
    let usual = usual();
    let with_net = |net: Net| Snapshot { net: Arc::new(net), ..usual.clone() };
    let mut unresolved = net();
    let in_lan = |hop: &&mut Option<Hop>| hop.as_ref().is_some_and(|hop| hop.port == LAN);
    unresolved.hops.iter_mut().filter(in_lan).take(4).for_each(|hop| *hop = None);
    let lost = Net { epoch: 3, routes4: Default::default(), links: Default::default(), ..net() };
    let short = Timeouts { tcp_s: [2, 5, 3, 3, 3, 3, 1, 3, 3, 3, 3], udp_s: 4, ..Timeouts::default() };
    [
        usual.clone(),
        with_net(unresolved),
        with_net(moved()),
        with_net(lost),
        Snapshot { services: Arc::new(reduced()), ..usual.clone() },
        Snapshot { timeouts: short, ..usual.clone() },
        with_options(&usual, SynProxy::Always),
        Snapshot { settings: defended(), ..with_options(&usual, SynProxy::Above(1)) },
        access::apart(&usual, false),
        access::apart(&usual, true),
    ]
});

/// All services tell their backends of the client, and answer SYNs themselves.
fn with_options(usual: &Snapshot, syn_proxy: SynProxy) -> Snapshot {
    let list = usual.services.iter().map(|service| {
        if service.one_packet || service.steady.is_some() {
            return service.clone();
        }
        let told = Options { proxy_protocol: true, toa: true, syn_proxy, ..service.options };
        Service { options: told, ..service.clone() }
    });
    let services = Services::new(list.collect(), usual.services.pools().to_vec(), [vip(false), vip(true)]);
    Snapshot { services: Arc::new(services), ..usual.clone() }
}

/// All defences are on.
fn defended() -> Settings {
    Settings {
        half_open: 2,
        new_flows_per_s: 3,
        drop_packet: Defence::Always,
        am_droprate: 4,
        drop_entry: Defence::Always,
        secure_tcp: Defence::Always,
        ..Settings::default()
    }
}

/// The fixture's tables, and services whose flows depend on more than the flow table.
fn usual() -> Snapshot {
    let tables = tables();
    let list = tables.services.iter().cloned().chain(kept::services()).collect();
    let services = Services::new(list, tables.services.pools().to_vec(), [vip(false), vip(true)]);
    Snapshot { services: Arc::new(services.with_rules(kept::rules())), ..tables }
}

/// Every neighbour has another hop id, and the backends moved behind a link with two tags and a small MTU.
fn moved() -> Net {
    let mut net = Net { epoch: 2, ..net() };
    let last = u32::try_from(net.hops.len()).expect("a few") - 1;
    for id in net.neighbours.values_mut() {
        *id = HopId(last - id.0);
    }
    net.hops.reverse();
    let link = net.links.get_mut(&2).expect("the link of the backends");
    (link.vlans, link.mtu) = ([(0x88a8, 5), (0x8100, 6)].into_iter().collect(), 1280);
    let link = link.clone();
    for hop in net.hops.iter_mut().flatten().filter(|hop| hop.port == LAN) {
        *hop = Hop::new(&link, [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 2, 2]);
    }
    net
}

/// The `nat` services are gone; of the others the second backend drains, the first takes most; of SNAT ports there are
/// two for each worker.
fn reduced() -> Services {
    let services = usual().services;
    let left =
        services.iter().filter(|service| service.backends.iter().all(|backend| backend.mode != Mode::Nat));
    let list = left.map(|service| {
        let mut service = service.clone();
        for (backend, weight) in Arc::make_mut(&mut service.backends).iter_mut().zip([3, 0, 1]) {
            backend.weight = weight;
        }
        service.scheduler = Scheduler::compile(Scheduling::Wlc, Flags::default(), &service.backends);
        service
    });
    let pool = services.pool(PoolId(0)).expect("the pool of the fixture");
    let pool = SnatPool { low: 40_000, high: 40_003, ..pool.clone() };
    Services::new(list.collect(), vec![pool], [vip(false), vip(true)])
}
