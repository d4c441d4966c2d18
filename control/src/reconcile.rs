//! From what is desired and what the kernel says to what the workers and the XDP program have.
//!
//! A change of services reaches three places in an order that loses no packet: the XDP program stops handing over
//! what will go, the workers get the new tables, and once all of them use these the XDP program hands over what is
//! new. In between, what is neither here nor there goes to the kernel. A desired state that does not fit is refused
//! before anything is touched.

mod counters;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::flow::key;
use dataplane::ids::WorkerId;
use dataplane::snapshot::net::Neighbour;
use dataplane::snapshot::publish::{Publisher, Reader, Watch};
use dataplane::snapshot::steering::Claim;
use dataplane::snapshot::{Net, Service, Services, Snapshot, Steering};
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::time::Tick;
use dataplane::worker::monotonic_ns;
use xdp_prog::{Delta, SyncError, Xdp};

use crate::admin::protocol::Count;
use crate::compile::{Addresses, Built, CompileError, Compiler};
use crate::ipvs::estimator::Estimator;
use crate::model::{self, Applied, Change, Conflict, DesiredState};
use crate::netlink::standing::Standing;
pub use counters::Baseline;
use counters::Sight;

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
    compiler: Compiler,
    /// What the XDP program is still to be told: all that there was at the start, and what nobody claims any more.
    untold: Delta,
    /// The generation that every worker has to use before the XDP program may hand over all that is claimed.
    awaited: Option<u64>,
    publisher: Publisher,
    state: Arc<State>,
    stats: Vec<Arc<WorkerStats>>,
    /// What the ports' cards say of how they spread frames, as far as it is believed.
    claims: Vec<Option<Claim>>,
    baseline: Baseline,
    estimator: Estimator,
    standing: Standing,
    /// Addresses that Weir has come to answer for, or no longer does, in order.
    owned: Vec<(IpAddr, bool)>,
}

impl Reconciler {
    /// The first tables, for as many workers as there are `stats`.
    pub fn new(
        desired: DesiredState,
        net: Net,
        state: Arc<State>,
        stats: Vec<Arc<WorkerStats>>,
    ) -> Result<Self, CompileError> {
        let first = Snapshot { generation: 1, net: Arc::new(net), ..Snapshot::default() };
        let nothing = Arc::clone(&first.services);
        let mut compiler = Compiler::new(&state);
        let mut plan = compiler.plan(&desired, &Applied::all(&desired), &nothing, first.generation)?;
        let untold = std::mem::take(&mut plan.delta);
        let (services, built) = compiler.build(&desired, plan, &untold, &nothing);
        built.prepare(&nothing, &services, &state, Tick::from_ns(monotonic_ns()));
        let mut standing = Standing::default();
        standing.recount(&first.net, built.addresses.new.iter().copied());
        let owned = services.owned().map(|addr| (addr, true)).collect();
        let (timeouts, settings) = (desired.timeouts(), desired.settings());
        let first = Snapshot { services: Arc::new(services), timeouts, settings, ..first };
        Ok(Self {
            desired,
            compiler,
            untold,
            awaited: Some(first.generation),
            publisher: Publisher::new(first, stats.len()),
            state,
            stats,
            claims: Vec::new(),
            baseline: Baseline::default(),
            estimator: Estimator::default(),
            standing,
            owned,
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
        tables.service(self.compiler.id(self.desired.named(&service.name)?)?)
    }

    /// Connection counts and scheduler positions.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// How many services and backends have a slot, removed ones whose flows go on included.
    pub fn in_use(&self) -> (usize, usize) {
        self.compiler.in_use()
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
    pub fn zero(&mut self, of: Option<&Service>) {
        self.estimator.zero(of);
    }

    /// Looks at the counters whose turn has come by `now_ms`, counted from anywhere.
    pub fn estimate(&mut self, now_ms: u64) {
        let current = self.publisher.current();
        let Self { stats, baseline, desired, compiler, estimator, .. } = self;
        let counters = Sight { stats, baseline, desired, compiler, tables: &current.services };
        estimator.tick(now_ms, &counters);
    }

    /// Publishes changed services, or refuses the change whole: one in which nothing changes is the present generation.
    /// [`Reconciler::advance`] completes it once the workers have it. Costs what changes, not what there is.
    pub fn change(&mut self, change: Change, gate: &mut impl Gate) -> Result<u64, Refusal> {
        let applied = self.desired.follow(change).map_err(Refusal::Conflicts)?;
        self.publish(applied, gate)
    }

    /// Publishes what a configuration desires in the place of what the one before did, beside what other sources desire.
    /// The rest is as with [`Reconciler::change`].
    pub fn configure(&mut self, configuration: &DesiredState, gate: &mut impl Gate) -> Result<u64, Refusal> {
        let applied = self.desired.configure(configuration).map_err(Refusal::Conflicts)?;
        self.publish(applied, gate)
    }

    fn publish(&mut self, applied: Applied, gate: &mut impl Gate) -> Result<u64, Refusal> {
        let old = self.current();
        if applied.is_empty() {
            return Ok(old.generation);
        }
        self.reclaim();
        let generation = old.generation + 1;
        let planned = self.compiler.plan(&self.desired, &applied, &old.services, generation);
        let begun = planned.map_err(Refusal::from).and_then(|mut plan| {
            let delta = std::mem::take(&mut plan.delta);
            self.begin(&delta, gate)?;
            Ok((plan, delta))
        });
        let (plan, delta) = match begun {
            Ok(begun) => begun,
            Err(refusal) => {
                self.desired.undo(applied);
                return Err(refusal);
            }
        };
        if narrows(&delta) {
            tracing::warn!(
                "SNAT addresses or ports are gone: established fullnat flows that use them will end"
            );
        }
        let (services, built) = self.compiler.build(&self.desired, plan, &delta, &old.services);
        built.prepare(&old.services, &services, &self.state, Tick::from_ns(monotonic_ns()));
        self.baseline.note(&built.reused, &self.stats);
        let Self { stats, baseline, desired, compiler, estimator, .. } = self;
        let counters = Sight { stats, baseline, desired, compiler, tables: &services };
        estimator.follow(&old.services, &services, &built, &counters);
        self.follow(&old, &services, &built);
        let (timeouts, settings) = (self.desired.timeouts(), self.desired.settings());
        let steering = if services.pools() == old.services.pools() {
            old.steering.clone()
        } else {
            self.steering(&services, old.steering.as_deref())
        };
        let services = Arc::new(services);
        let next = Snapshot { services, timeouts, settings, steering, ..Snapshot::clone(&old) };
        self.publisher.publish(next);
        self.awaited = Some(generation);
        Ok(generation)
    }

    /// Begins a change of what the XDP program hands over, and of what it is still to be told.
    fn begin(&mut self, delta: &Delta, gate: &mut impl Gate) -> Result<(), SyncError> {
        let Some(untold) = self.tell(gate).err() else {
            return gate.begin(delta).inspect_err(|_| {
                // Part of it may be removed already: the next advance puts that back.
                self.awaited.get_or_insert(self.publisher.current().generation);
            });
        };
        Err(untold)
    }

    /// Tells the XDP program what it was not told yet.
    fn tell(&mut self, gate: &mut impl Gate) -> Result<(), SyncError> {
        if !self.untold.is_empty() {
            gate.begin(&self.untold)?;
            self.untold = Delta::default();
        }
        Ok(())
    }

    /// Notes what a change means for the neighbourhood.
    fn follow(&mut self, old: &Snapshot, new: &Services, built: &Built) {
        let Addresses { gone, new: added } = &built.addresses;
        added.iter().for_each(|addr| self.standing.add(&old.net, *addr));
        gone.iter().for_each(|addr| self.standing.remove(&old.net, *addr));
        for addr in &built.owned {
            let (bits, v6) = key::bits(*addr);
            let is_owned = new.owns(bits, v6);
            if is_owned != old.services.owns(bits, v6) {
                self.owned.push((*addr, is_owned));
            }
        }
    }

    /// Publishes a new view of the network.
    pub fn set_net(&mut self, net: Net) -> u64 {
        let current = self.current();
        // Links or routes are others.
        if net.epoch != current.net.epoch {
            let tables = &current.services;
            let stands_for =
                |service: &Service, id| tables.backend(id).is_some_and(|(of, _)| of.id == service.id);
            let each = tables.iter().flat_map(|service| {
                service.backends.iter().filter(|backend| stands_for(service, backend.id))
            });
            self.standing.recount(&net, each.map(|backend| backend.addr));
        }
        let next = Snapshot { net: Arc::new(net), ..Snapshot::clone(&current) };
        self.publisher.publish(next)
    }

    /// Publishes what the ports' cards say of how they spread frames, by port.
    pub fn set_claims(&mut self, claims: Vec<Option<Claim>>) {
        if claims == self.claims {
            return;
        }
        self.claims = claims;
        let current = self.current();
        let steering = self.steering(&current.services, current.steering.as_deref());
        self.publisher.publish(Snapshot { steering, ..Snapshot::clone(&current) });
    }

    /// The pools of `services` by what the cards say. One worker has all frames anyhow.
    fn steering(&self, services: &Services, before: Option<&Steering>) -> Option<Arc<Steering>> {
        let workers = u8::try_from(self.stats.len()).ok().filter(|workers| *workers > 1)?;
        let steering = Steering::new(&self.claims, services.pools(), workers, before);
        (!steering.is_empty()).then(|| Arc::new(steering))
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
            self.tell(gate)?;
            gate.finish()?;
            self.awaited = None;
        }
        Ok(())
    }

    /// Frees tables that no worker uses any more, and the slots of removed backends whose last flow has ended; the
    /// XDP program then no longer takes their packets for replies. Returns how many generations are kept.
    pub fn tidy(&mut self) -> usize {
        self.reclaim();
        self.publisher.collect()
    }

    fn reclaim(&mut self) {
        let claims = self.compiler.reclaim(&self.state, |generation| self.publisher.is_seen(generation));
        if !claims.is_empty() {
            self.untold.gone.extend(claims);
            self.awaited.get_or_insert(self.publisher.current().generation);
        }
    }

    /// Which neighbours have come to be needed, or are no longer, since this was asked last, in order.
    pub fn neighbour_news(&mut self) -> Vec<(Neighbour, bool)> {
        self.standing.news()
    }

    /// Which addresses Weir has come to answer for, or no longer does, since this was asked last, in order.
    pub fn owned_news(&mut self) -> Vec<(IpAddr, bool)> {
        std::mem::take(&mut self.owned)
    }
}

/// Whether a SNAT address, or a port of one, goes.
fn narrows(delta: &Delta) -> bool {
    let snat = |claim: &xdp_prog::Claim| {
        if let xdp_prog::Claim::Snat(addr, low, high) = *claim { Some((addr, low, high)) } else { None }
    };
    let after: HashMap<IpAddr, (u16, u16)> =
        delta.new.iter().filter_map(snat).map(|(addr, low, high)| (addr, (low, high))).collect();
    let mut gone = delta.gone.iter().filter_map(snat);
    gone.any(|(addr, low, high)| !after.get(&addr).is_some_and(|(from, to)| *from <= low && high <= *to))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use dataplane::ids::{BackendId, ServiceId};
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
        claims: HashMap<Claim, usize>,
    }

    impl Book {
        /// How many backends' replies are taken.
        fn backends(&self) -> usize {
            let is_backend =
                |(claim, count): &(&Claim, &usize)| matches!(claim, Claim::NatBackend(_)) && **count > 0;
            self.claims.iter().filter(is_backend).count()
        }
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
            delta.new.iter().for_each(|claim| *self.claims.entry(*claim).or_default() += 1);
            delta.gone.iter().for_each(|claim| *self.claims.get_mut(claim).unwrap() -= 1);
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

        let generation = reconciler.configure(&desired(&[81, 82], &["10.1.0.1"]), &mut gate).unwrap();
        assert_eq!(gate.calls.drain(..).collect::<Vec<_>>(), [("begin", vec![80], vec![82])]);
        assert_eq!(readers[0].read().generation, generation);
        reconciler.advance(&mut gate, false).unwrap();
        assert!(gate.calls.is_empty() && reconciler.is_waiting(), "one worker still uses the old tables");
        readers[1].read();
        reconciler.advance(&mut gate, false).unwrap();
        assert_eq!(gate.calls.drain(..).collect::<Vec<_>>(), [finish()]);
        assert!(!reconciler.is_waiting());

        reconciler.configure(&desired(&[81], &["10.1.0.1"]), &mut gate).unwrap();
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
        let refused = reconciler.configure(&desired(&[80], &too_many), &mut gate);
        assert!(
            matches!(refused, Err(Refusal::Compile(CompileError::Backends { limit: 4, .. }))),
            "{refused:?}"
        );
        let refused = reconciler.configure(&desired(&[81], &["10.1.0.1"]), &mut gate);
        assert!(matches!(refused, Err(Refusal::Kernel(SyncError::Full { .. }))), "{refused:?}");
        let service = desired(&[80], &["10.1.0.1"]).services().next().unwrap().clone();
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
        reconciler.configure(&desired(&[80], &["10.1.0.1"]), &mut gate).unwrap();
        reader.read();
        reconciler.advance(&mut gate, false).unwrap();
        assert_eq!(reconciler.tidy(), 1, "the old tables are freed");
        reconciler.advance(&mut gate, false).unwrap();
        assert_eq!(reconciler.tidy(), 1);
        assert_eq!((gate.backends(), reconciler.is_waiting()), (2, false));
        reconciler.state.backend(removed).unwrap().closed(false);
        reconciler.tidy();
        assert!(reconciler.is_waiting());
        reconciler.advance(&mut gate, false).unwrap();
        assert_eq!((gate.backends(), reconciler.is_waiting()), (1, false));
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
            reconciler.configure(&desired(&[80], &[&backend]), &mut gate).unwrap();
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
        let mut reconciler = reconciler(desired(&[80], &["10.1.0.1", "192.0.2.1"]), 1);
        let mut net = Net { epoch: 1, ..Net::default() };
        net.links.insert(7, Link { port: PortId(0), vlans: Default::default(), mtu: 1500 });
        let via = |gateway| Route::Via(vec![Path::new(7, gateway)]);
        net.routes4.insert((0x0a01_0000, 16), via(None));
        net.routes4.insert((0, 0), via(Some([10, 1, 0, 254].into())));
        reconciler.set_net(net);
        let place = |host| Neighbour { link: 7, addr: [10, 1, 0, host].into() };
        let needed = |reconciler: &Reconciler| reconciler.standing.needed().copied().collect::<HashSet<_>>();
        assert_eq!(needed(&reconciler), HashSet::from([place(1), place(254)]));
        reconciler.neighbour_news();
        let next = desired(&[80], &["10.1.0.2", "192.0.2.1"]);
        reconciler.configure(&next, &mut Book::default()).unwrap();
        assert_eq!(needed(&reconciler), HashSet::from([place(2), place(254)]));
        let mut news = reconciler.neighbour_news();
        news.sort_unstable();
        assert_eq!(news, [(place(1), false), (place(2), true)]);
    }
}
