//! From what is desired and what the kernel says to what the workers and the XDP program have.
//!
//! A change of services reaches three places in an order that loses no packet: the XDP program stops handing over
//! what will go, the workers get the new tables, and once all of them use these the XDP program hands over what is
//! new. In between, what is neither here nor there goes to the kernel. A desired state that does not fit is refused
//! before anything is touched.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::ids::{BackendId, ServiceId, WorkerId};
use dataplane::snapshot::net::Neighbour;
use dataplane::snapshot::publish::{Publisher, Reader, Watch};
use dataplane::snapshot::{Net, Service, Services, Snapshot};
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::time::Tick;
use dataplane::worker::monotonic_ns;
use xdp_prog::{Delta, Ours, SyncError, Xdp};

use crate::admin::protocol::{Count, Traffic};
use crate::compile::{self, CompileError, Compiled, Fresh, IdTable};
use crate::ipvs::estimator::Estimator;
use crate::model::{self, Change, Conflict, DesiredState};
use crate::netlink::compile::{gateways, next_neighbours};

/// What decides in the kernel whether a frame is Weir's.
pub trait Gate {
    /// Begins a change: what goes is not handed over any more, and what is new not yet. Where it is refused, nothing has
    /// changed, or [`Gate::finish`] puts it back.
    fn begin(&mut self, delta: &Delta) -> Result<(), SyncError>;

    /// Completes all changes that were begun.
    fn finish(&mut self) -> Result<(), SyncError>;

    /// How many frames met which fate.
    fn counts(&self) -> Vec<Count>;

    /// How it is attached to a port: read back from the kernel.
    fn mode(&self, port: u8) -> String;
}

impl Gate for Xdp {
    fn begin(&mut self, delta: &Delta) -> Result<(), SyncError> {
        self.begin(delta).map(drop)
    }

    fn finish(&mut self) -> Result<(), SyncError> {
        self.finish().map(drop)
    }

    fn counts(&self) -> Vec<Count> {
        let counts = self.counters().read().unwrap_or_else(|error| {
            tracing::warn!(%error, "the XDP program's counters cannot be read");
            Vec::new()
        });
        let count = |(counter, count): (xdp_prog::Counter, u64)| Count { name: counter.name().into(), count };
        counts.into_iter().map(count).collect()
    }

    fn mode(&self, port: u8) -> String {
        self.mode(port).map_or_else(|error| error.to_string(), |mode| mode.name().into())
    }
}

/// Why a desired state was refused. The one before it holds.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// What changes does not go together with the rest: all that stands against it, by places in the change.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Conflicts(Vec<Conflict>),
    /// It does not fit the slabs, or asks for what this version has not.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It does not fit the XDP program's maps, or these cannot be changed.
    #[error(transparent)]
    Kernel(#[from] SyncError),
}

/// The tables in force, and how to change them.
#[derive(Debug)]
pub struct Reconciler {
    desired: DesiredState,
    ids: IdTable,
    ours: Ours,
    /// What of it the XDP program was told.
    told: Ours,
    /// The generation that every worker has to use before the XDP program may hand over all of `ours`.
    awaited: Option<u64>,
    /// Removed backends that still have a slot, as last counted; `None` where that may be any number.
    removed: Option<usize>,
    publisher: Publisher,
    state: Arc<State>,
    stats: Vec<Arc<WorkerStats>>,
    baseline: Baseline,
    estimator: Estimator,
}

/// What counters showed when their slots got their present owners. Counters only ever grow; their slots are reused.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    backends: HashMap<BackendId, Traffic, ahash::RandomState>,
    services: HashMap<ServiceId, u64, ahash::RandomState>,
}

impl Reconciler {
    /// The first tables, for as many workers as there are `stats`.
    pub fn new(
        desired: DesiredState,
        net: Net,
        state: Arc<State>,
        stats: Vec<Arc<WorkerStats>>,
    ) -> Result<Self, CompileError> {
        let compiled = compile::compile(&desired, &IdTable::new(&state))?;
        compiled.prepare(&Services::default(), &state, Tick::from_ns(monotonic_ns()));
        let Compiled { services, ours, timeouts, settings, mut ids, .. } = compiled;
        let first =
            Snapshot { generation: 1, services: Arc::new(services), net: Arc::new(net), timeouts, settings };
        ids.published(first.generation);
        let mut estimator = Estimator::default();
        estimator.follow(&first.services, &Fresh::default(), |id| total(&stats, id));
        let publisher = Publisher::new(first, stats.len());
        Ok(Self {
            desired,
            ids,
            ours,
            told: Ours::default(),
            awaited: Some(1),
            removed: Some(0),
            publisher,
            state,
            stats,
            baseline: Baseline::default(),
            estimator,
        })
    }

    /// A worker's end of the publication.
    pub fn reader(&self, worker: WorkerId) -> Reader {
        self.publisher.reader(worker)
    }

    /// Where the tables in force can be seen.
    pub fn watch(&self) -> Watch {
        self.publisher.watch()
    }

    /// The tables in force.
    pub fn current(&self) -> Arc<Snapshot> {
        self.publisher.current()
    }

    /// What the tables in force were compiled from.
    pub fn desired(&self) -> &DesiredState {
        &self.desired
    }

    /// The service of the given tables that was made of `service`.
    pub fn compiled<'t>(&self, tables: &'t Services, service: &model::Service) -> Option<&'t Service> {
        tables.service(self.ids.service(&service.identity()?)?)
    }

    /// Connection counts and scheduler positions.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// How many services and backends have a slot, removed ones whose flows go on included.
    pub fn in_use(&self) -> (usize, usize) {
        self.ids.in_use()
    }

    /// The workers' counters.
    pub fn stats(&self) -> &[Arc<WorkerStats>] {
        &self.stats
    }

    /// What to take off counters.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// Counts and rates as ipvsadm tells them.
    pub fn estimator(&self) -> &Estimator {
        &self.estimator
    }

    /// Sets those of a service to zero, of all without one.
    pub fn zero(&mut self, of: Option<ServiceId>) {
        self.estimator.zero(of);
    }

    /// Looks at the counters whose turn has come by `now_ms`, counted from anywhere.
    pub fn estimate(&mut self, now_ms: u64) {
        let (current, state) = (self.publisher.current(), &self.state);
        let is_over = |id| {
            current.services.backend(id).is_none()
                && state.backend(id).is_none_or(|counts| counts.counts() == (0, 0))
        };
        self.estimator.tick(now_ms, |id| total(&self.stats, id), is_over);
    }

    /// Publishes changed services, or refuses the change whole. [`Reconciler::advance`] completes it once the workers have
    /// it.
    pub fn change(&mut self, change: Change, gate: &mut impl Gate) -> Result<u64, Refusal> {
        let mut desired = self.desired.clone();
        desired.change(change).map_err(Refusal::Conflicts)?;
        self.set_desired(desired, gate)
    }

    /// Publishes new services. [`Reconciler::advance`] completes the change once the workers have it.
    pub fn set_desired(&mut self, desired: DesiredState, gate: &mut impl Gate) -> Result<u64, Refusal> {
        self.ids.reclaim(&self.state, |generation| self.publisher.is_seen(generation));
        let compiled = compile::compile(&desired, &self.ids)?;
        if let Err(fault) = gate.begin(&Delta::between(&self.told, &compiled.ours)) {
            // Part of it may be removed already: the next advance puts that back.
            self.awaited.get_or_insert(self.current().generation);
            return Err(fault.into());
        }
        self.told = compiled.ours.clone();
        if narrows(&self.ours.snat, &compiled.ours.snat) {
            tracing::warn!(
                "SNAT addresses or ports are gone: established fullnat flows that use them will end"
            );
        }
        let old = self.current();
        compiled.prepare(&old.services, &self.state, Tick::from_ns(monotonic_ns()));
        self.baseline.note(&compiled.fresh, &self.stats);
        let Compiled { services, ours, timeouts, settings, ids, fresh } = compiled;
        let next = Snapshot { services: Arc::new(services), timeouts, settings, ..Snapshot::clone(&old) };
        let generation = self.publisher.publish(next);
        self.estimator.follow(&self.publisher.current().services, &fresh, |id| total(&self.stats, id));
        self.ids = ids;
        self.ids.published(generation);
        self.desired = desired;
        self.ours = ours;
        self.awaited = Some(generation);
        self.removed = None;
        Ok(generation)
    }

    /// Publishes a new view of the network.
    pub fn set_net(&mut self, net: Net) -> u64 {
        let next = Snapshot { net: Arc::new(net), ..Snapshot::clone(&self.current()) };
        self.publisher.publish(next)
    }

    /// Whether the XDP program waits for workers to use the newest services.
    pub fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// Completes a change where every worker has it, or at once where `is_late`: a worker that does not turn gets no
    /// frames from the XDP program anyhow. Where the kernel refuses, the next call tries again.
    pub fn advance(&mut self, gate: &mut impl Gate, is_late: bool) -> Result<(), SyncError> {
        if let Some(generation) = self.awaited
            && (is_late || self.publisher.is_seen(generation))
        {
            if self.told != self.ours {
                gate.begin(&Delta::between(&self.told, &self.ours))?;
                self.told = self.ours.clone();
            }
            gate.finish()?;
            self.awaited = None;
        }
        Ok(())
    }

    /// Frees tables that no worker uses any more, and the slots of removed backends whose last flow has ended; the
    /// XDP program then no longer takes their packets for replies. Returns how many generations are kept.
    pub fn tidy(&mut self) -> usize {
        if self.removed != Some(0) {
            let removed = self.ids.reclaim(&self.state, |generation| self.publisher.is_seen(generation));
            if self.removed != Some(removed) {
                self.removed = Some(removed);
                self.ours = compile::ours(&self.desired, &self.ids);
                self.awaited.get_or_insert(self.publisher.current().generation);
            }
        }
        self.publisher.collect()
    }

    /// The neighbours by which backends and all gateways are reached.
    pub fn needed_neighbours(&self) -> HashSet<Neighbour> {
        let snapshot = self.current();
        let backends: HashSet<IpAddr> = snapshot
            .services
            .iter()
            .flat_map(|service| &*service.backends)
            .map(|backend| backend.addr)
            .collect();
        let towards = backends.into_iter().flat_map(|addr| next_neighbours(&snapshot.net, addr));
        towards.chain(gateways(&snapshot.net)).collect()
    }
}

impl Baseline {
    fn note(&mut self, fresh: &Fresh, stats: &[Arc<WorkerStats>]) {
        for id in &fresh.backends {
            self.backends.insert(*id, total(stats, *id));
        }
        for id in &fresh.services {
            self.services.insert(*id, refused(stats, *id));
        }
    }

    /// Traffic of the backend that has this slot now.
    pub fn traffic(&self, stats: &[Arc<WorkerStats>], id: BackendId) -> Traffic {
        let now = total(stats, id);
        let before = self.backends.get(&id).copied().unwrap_or_default();
        Traffic {
            flows: now.flows.saturating_sub(before.flows),
            packets_in: now.packets_in.saturating_sub(before.packets_in),
            bytes_in: now.bytes_in.saturating_sub(before.bytes_in),
            packets_out: now.packets_out.saturating_sub(before.packets_out),
            bytes_out: now.bytes_out.saturating_sub(before.bytes_out),
        }
    }

    /// New flows of the service that were refused.
    pub fn refused(&self, stats: &[Arc<WorkerStats>], service: &Service) -> u64 {
        let before = self.services.get(&service.id).copied().unwrap_or_default();
        refused(stats, service.id).saturating_sub(before)
    }
}

fn total(stats: &[Arc<WorkerStats>], id: BackendId) -> Traffic {
    let mut total = Traffic::default();
    for counters in stats.iter().filter_map(|stats| stats.backend(id)) {
        total += Traffic {
            flows: counters.flows.get(),
            packets_in: counters.packets_in.get(),
            bytes_in: counters.bytes_in.get(),
            packets_out: counters.packets_out.get(),
            bytes_out: counters.bytes_out.get(),
        };
    }
    total
}

fn refused(stats: &[Arc<WorkerStats>], id: ServiceId) -> u64 {
    stats.iter().filter_map(|stats| stats.refused(id)).map(|counter| counter.get()).sum()
}

/// Whether an address, or a port of one, is in `before` and not in `after`.
fn narrows(
    before: &HashMap<IpAddr, RangeInclusive<u16>>,
    after: &HashMap<IpAddr, RangeInclusive<u16>>,
) -> bool {
    before.iter().any(|(addr, ports)| {
        let kept = after.get(addr);
        !kept.is_some_and(|kept| kept.contains(ports.start()) && kept.contains(ports.end()))
    })
}

#[cfg(test)]
mod tests {
    use dataplane::stats::Counter;
    use xdp_prog::Claim;

    use super::*;
    use crate::config;
    use crate::model::Service;

    /// Notes what is asked of it: the call, the ports of VIPs that go, and of those that are new.
    #[derive(Default)]
    struct Book {
        calls: Vec<(&'static str, Vec<u16>, Vec<u16>)>,
        full: bool,
    }

    fn ports(claims: &[Claim]) -> Vec<u16> {
        let vips =
            claims.iter().filter_map(|claim| if let Claim::Vip(at) = claim { Some(at.port) } else { None });
        let mut ports: Vec<_> = vips.collect();
        ports.sort_unstable();
        ports
    }

    impl Gate for Book {
        fn begin(&mut self, delta: &Delta) -> Result<(), SyncError> {
            if self.full {
                return Err(SyncError::Full { map: "vips", limit: 1, wanted: 2 });
            }
            self.calls.push(("begin", ports(&delta.gone), ports(&delta.new)));
            Ok(())
        }

        fn finish(&mut self) -> Result<(), SyncError> {
            self.calls.push(("finish", vec![], vec![]));
            Ok(())
        }

        fn counts(&self) -> Vec<Count> {
            Vec::new()
        }

        fn mode(&self, _: u8) -> String {
            "none".into()
        }
    }

    /// Services on the given ports, each with these backends.
    fn desired(ports: &[u16], backends: &[&str]) -> DesiredState {
        let mut text = String::from("interfaces: [{name: eth1}]\nservices:\n");
        for port in ports {
            text += &format!("- {{name: s{port}, vip: 10.0.0.10, port: {port}, mode: nat, backends: [");
            for backend in backends {
                text += &format!("{{address: {backend}, port: 80}},");
            }
            text += "]}\n";
        }
        config::parse("test.yaml", &text).unwrap_or_else(|faults| panic!("{faults}\n{text}")).desired
    }

    fn reconciler(desired: DesiredState, workers: usize) -> Reconciler {
        let stats = (0..workers).map(|_| Arc::new(WorkerStats::new(4, 4))).collect();
        Reconciler::new(desired, Net::default(), Arc::new(State::new(4, 4)), stats).unwrap()
    }

    #[test]
    fn the_xdp_program_forgets_before_the_workers_do_and_learns_after_them() {
        let mut gate = Book::default();
        let mut reconciler = reconciler(desired(&[80, 81], &["10.1.0.1"]), 2);
        let mut readers = [0, 1].map(|worker| reconciler.reader(WorkerId(worker)));
        for reader in &mut readers {
            reader.read();
        }
        reconciler.advance(&mut gate, false).unwrap();
        let finish = || ("finish", vec![], vec![]);
        assert_eq!(gate.calls.drain(..).collect::<Vec<_>>(), [("begin", vec![], vec![80, 81]), finish()]);

        let generation = reconciler.set_desired(desired(&[81, 82], &["10.1.0.1"]), &mut gate).unwrap();
        assert_eq!(gate.calls.drain(..).collect::<Vec<_>>(), [("begin", vec![80], vec![82])]);
        assert_eq!(readers[0].read().generation, generation);
        reconciler.advance(&mut gate, false).unwrap();
        assert!(gate.calls.is_empty() && reconciler.is_waiting(), "one worker still uses the old tables");
        readers[1].read();
        reconciler.advance(&mut gate, false).unwrap();
        assert_eq!(gate.calls.drain(..).collect::<Vec<_>>(), [finish()]);
        assert!(!reconciler.is_waiting());

        reconciler.set_desired(desired(&[81], &["10.1.0.1"]), &mut gate).unwrap();
        gate.calls.clear();
        reconciler.advance(&mut gate, true).unwrap();
        assert_eq!(gate.calls, [finish()], "a worker that does not turn is not waited for");
    }

    #[test]
    fn what_does_not_fit_is_refused_before_anything_is_touched() {
        let mut gate = Book { full: true, ..Book::default() };
        let mut reconciler = reconciler(desired(&[80], &["10.1.0.1"]), 1);
        let before = reconciler.current();
        let too_many = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"];
        let refused = reconciler.set_desired(desired(&[80], &too_many), &mut gate);
        assert!(
            matches!(refused, Err(Refusal::Compile(CompileError::Backends { limit: 4, .. }))),
            "{refused:?}"
        );
        let refused = reconciler.set_desired(desired(&[81], &["10.1.0.1"]), &mut gate);
        assert!(matches!(refused, Err(Refusal::Kernel(SyncError::Full { .. }))), "{refused:?}");
        let service = desired(&[80], &["10.1.0.1"]).services()[0].clone();
        let change = Change { put: vec![Service { name: "other".into(), ..service }], ..Change::default() };
        let refused = reconciler.change(change, &mut gate);
        assert!(matches!(refused, Err(Refusal::Conflicts(_))), "{refused:?}");
        assert!(gate.calls.is_empty());
        assert!(Arc::ptr_eq(&before, &reconciler.current()));
        assert_eq!(reconciler.desired(), &desired(&[80], &["10.1.0.1"]));
    }

    #[test]
    fn a_removed_backend_is_ours_until_its_last_flow_ends() {
        let mut gate = Book::default();
        let mut reconciler = reconciler(desired(&[80], &["10.1.0.1", "10.1.0.2"]), 1);
        let mut reader = reconciler.reader(WorkerId(0));
        let current = reader.read().clone();
        let mut backends = current.services.iter().flat_map(|service| &*service.backends);
        let removed = backends.find(|backend| backend.addr == IpAddr::from([10, 1, 0, 2])).unwrap().id;
        reconciler.state.backend(removed).unwrap().opened();
        reconciler.set_desired(desired(&[80], &["10.1.0.1"]), &mut gate).unwrap();
        reader.read();
        reconciler.advance(&mut gate, false).unwrap();
        assert_eq!(reconciler.tidy(), 1, "the old tables are freed");
        reconciler.advance(&mut gate, false).unwrap();
        assert_eq!(reconciler.tidy(), 1);
        assert_eq!((reconciler.ours.nat_backends.len(), reconciler.is_waiting()), (2, false));
        reconciler.state.backend(removed).unwrap().closed(false);
        reconciler.tidy();
        assert_eq!((reconciler.ours.nat_backends.len(), reconciler.is_waiting()), (1, true));
    }

    #[test]
    fn a_new_owner_of_a_slot_starts_from_zero() {
        let mut gate = Book::default();
        let mut reconciler = reconciler(desired(&[80], &["10.1.0.1"]), 1);
        let mut reader = reconciler.reader(WorkerId(0));
        let stats = reconciler.stats.clone();
        let count = |counter: fn(&WorkerStats) -> Option<&Counter>| counter(&stats[0]).unwrap().add(5);
        count(|stats| Some(&stats.backend(BackendId(0))?.packets_in));
        count(|stats| stats.refused(ServiceId(0)));
        let traffic =
            |reconciler: &Reconciler, id| reconciler.baseline.traffic(&reconciler.stats, BackendId(id));
        assert_eq!(traffic(&reconciler, 0).packets_in, 5);
        // Four slots: the fifth backend gets the first one's.
        for host in 2..=5 {
            let backend = format!("10.1.0.{host}");
            reconciler.set_desired(desired(&[80], &[&backend]), &mut gate).unwrap();
            reader.read();
            reconciler.tidy();
        }
        let current = reconciler.current();
        let service = current.services.iter().next().unwrap();
        assert_eq!(service.backends[0].id, BackendId(0));
        assert_eq!(traffic(&reconciler, 0).packets_in, 0);
        assert_eq!(reconciler.baseline.refused(&reconciler.stats, service), 5, "the service is the same");
    }

    #[test]
    fn neighbours_of_backends_and_gateways_are_needed() {
        use dataplane::ids::PortId;
        use dataplane::snapshot::net::{Link, Path, Route};
        let mut reconciler = reconciler(desired(&[80, 81], &["10.1.0.1", "192.0.2.1"]), 1);
        let mut net = Net::default();
        net.links.insert(7, Link { port: PortId(0), vlans: Default::default(), mtu: 1500 });
        let via = |gateway| Route::Via(vec![Path::new(7, gateway)]);
        net.routes4.insert((0x0a01_0000, 16), via(None));
        net.routes4.insert((0, 0), via(Some([10, 1, 0, 254].into())));
        reconciler.set_net(net);
        let place = |host| Neighbour { link: 7, addr: [10, 1, 0, host].into() };
        assert_eq!(reconciler.needed_neighbours(), HashSet::from([place(1), place(254)]));
    }
}
