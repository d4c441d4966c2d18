//! The rows of replies, read off tables and counters.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dataplane::flow::key::{self, VipKey};
use dataplane::ids::ServiceId;
use dataplane::io::xsk::PortSocket;
use dataplane::pipeline::FlowRecord;
use dataplane::snapshot::net::Port;
use dataplane::snapshot::{Clients, Mark, Mode, Service, Snapshot};
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::verdict::DropReason;
use dataplane::worker::{FlowDesk, WorkerHandle};

use super::protocol::{
    BackendRow, Count, FLOWS_LIMIT, FlowRow, Flows, FlowsCursor, InterfaceRow, QueueRow, ServiceRow, Traffic,
    WorkerRow,
};
use crate::netlink::mirror::Mirror;
use crate::reconcile::Reconciler;

/// Flows that a worker is asked for at once.
const PAGE: usize = 1024;
/// How long one worker may take for a page.
const PAGE_PATIENCE: Duration = Duration::from_secs(1);
/// How long all pages together may take.
const FLOWS_PATIENCE: Duration = Duration::from_secs(10);

/// All services.
pub fn services(reconciler: &Reconciler) -> Vec<ServiceRow> {
    let snapshot = reconciler.current();
    compiled(reconciler, &snapshot).map(|service| service_row(reconciler, service)).collect()
}

/// The services in the order of their source.
fn compiled<'s>(reconciler: &'s Reconciler, snapshot: &'s Snapshot) -> impl Iterator<Item = &'s Service> {
    let desired = reconciler.desired().services();
    desired.filter_map(|service| reconciler.compiled(&snapshot.services, service))
}

fn service_row(reconciler: &Reconciler, service: &Service) -> ServiceRow {
    let mut traffic = Traffic::default();
    let (mut active, mut inactive) = (0, 0);
    for backend in &*service.backends {
        traffic += reconciler.baseline().traffic(reconciler.stats(), backend.id);
        let counts = reconciler.state().backend(backend.id).map_or((0, 0), |state| state.counts());
        active += u64::from(counts.0);
        inactive += u64::from(counts.1);
    }
    let draining = service.backends.iter().filter(|backend| backend.weight == 0).count();
    ServiceRow {
        name: service.name.to_string(),
        vips: service.mark.iter().map(mark).chain(service.vips.iter().map(vip)).collect(),
        inside: service.clients == Clients::Inside,
        scheduler: service.scheduler.kind().name().to_owned(),
        backends: service.backends.len() - draining,
        draining,
        active,
        inactive,
        refused: reconciler.baseline().refused(reconciler.stats(), service),
        traffic,
    }
}

/// The backends of all services, or of the one with this name, in the order in which schedulers walk them.
pub fn backends(reconciler: &Reconciler, of: Option<&str>) -> Vec<BackendRow> {
    let snapshot = reconciler.current();
    let named = |service: &&Service| of.is_none_or(|name| *service.name == *name);
    let services = compiled(reconciler, &snapshot).filter(named);
    let rows = services.flat_map(|service| {
        service.backends.iter().map(|backend| {
            let (active, inactive) = counts(reconciler.state(), backend.id);
            BackendRow {
                service: service.name.to_string(),
                address: SocketAddr::new(backend.addr, backend.port).to_string(),
                weight: backend.weight,
                mode: backend.mode.name().to_owned(),
                active,
                inactive,
                traffic: reconciler.baseline().traffic(reconciler.stats(), backend.id),
            }
        })
    });
    rows.collect()
}

fn counts(state: &State, id: dataplane::ids::BackendId) -> (u64, u64) {
    let (active, inactive) = state.backend(id).map_or((0, 0), |state| state.counts());
    (active.into(), inactive.into())
}

/// A virtual address as `10.0.0.1:80/tcp`.
fn mark(mark: &Mark) -> String {
    format!("mark:{}/{}", mark.value, if mark.v6 { "ipv6" } else { "ipv4" })
}

fn vip(vip: &VipKey) -> String {
    format!("{}/{}", SocketAddr::new(key::address(vip.addr, vip.v6), vip.port), protocol(vip.proto))
}

fn protocol(number: u8) -> String {
    match number {
        key::TCP => "tcp".into(),
        key::UDP => "udp".into(),
        key::SCTP => "sctp".into(),
        other => other.to_string(),
    }
}

/// All workers. By what each interface has SNAT ports chosen is told in the given sentences, where there are several workers.
pub fn workers<'a>(
    handles: impl ExactSizeIterator<Item = &'a WorkerHandle>,
    snat_ports: &[String],
) -> Vec<WorkerRow> {
    let snat_ports = if handles.len() > 1 { snat_ports } else { &[] };
    let row = |handle: &WorkerHandle| {
        let (stats, view) = (&handle.stats, &handle.view);
        WorkerRow {
            worker: handle.id.0,
            core: handle.core.and_then(|core| u16::try_from(core).ok()),
            alive: !handle.is_finished(),
            turns: view.turns.get(),
            sleeps: view.sleeps.get(),
            frames: stats.frames.get(),
            forwarded: stats.forwarded.get(),
            answered: stats.answered.get(),
            kernel: stats.kernel.get(),
            dropped: DropReason::ALL.iter().map(|reason| stats.drops(*reason)).sum(),
            handed_over: stats.handed_over.get(),
            taken_over: stats.taken_over.get(),
            waited: stats.waited.get(),
            flows: view.flows.load(Ordering::Relaxed),
            flows_opened: stats.flows_opened.get(),
            flows_expired: stats.flows_expired.get(),
            half_open: stats.half_open.get(),
            flows_evicted: stats.flows_evicted.get(),
            flows_dropped: stats.flows_dropped.get(),
            cookies_sent: stats.cookies_sent.get(),
            cookies_accepted: stats.cookies_accepted.get(),
            flows_drained: stats.flows_drained.get(),
            stateless: stats.stateless.get(),
            fragments_followed: stats.fragments_followed.get(),
            fragments_early: stats.fragments_early.get(),
            split: stats.split.get(),
            templates_full: stats.templates_full.get(),
            directory_full: stats.directory_full.get(),
            snat_ports: snat_ports.to_vec(),
        }
    };
    handles.map(row).collect()
}

/// What the workers did not deliver, by reason; the reasons that never happened only with `all`.
pub fn drops(stats: &[Arc<WorkerStats>], all: bool) -> Vec<Count> {
    let count = |reason: &DropReason| Count {
        name: reason.name().to_owned(),
        count: stats.iter().map(|stats| stats.drops(*reason)).sum(),
    };
    DropReason::ALL.iter().map(count).filter(|count| all || count.count > 0).collect()
}

/// An interface with the sockets that workers have on it. `xdp` says how the program is attached.
pub fn interface<'a>(
    port: &Port,
    xdp: String,
    mirror: &Mirror,
    sockets: impl Iterator<Item = &'a PortSocket>,
) -> InterfaceRow {
    let addresses = mirror.addresses.iter().filter(|(link, ..)| *link == port.ifindex);
    InterfaceRow {
        name: port.name.to_string(),
        ifindex: port.ifindex,
        mac: port.mac.map(|byte| format!("{byte:02x}")).join(":"),
        mtu: port.mtu,
        up: mirror.links.get(&port.ifindex).is_some_and(|link| link.up),
        gone: !mirror.links.contains_key(&port.ifindex),
        addresses: addresses.map(|(_, addr, len)| format!("{addr}/{len}")).collect(),
        xdp,
        queues: sockets.filter(|socket| socket.interface == port.name).map(queue).collect(),
    }
}

fn queue(socket: &PortSocket) -> QueueRow {
    let statistics = socket.statistics().and_then(Result::ok).unwrap_or_default();
    QueueRow {
        queue: socket.queue,
        mode: socket.mode.name().to_owned(),
        polled: socket.is_polled(),
        rx: socket.counters.rx.get(),
        tx: socket.counters.tx.get(),
        rx_dropped: statistics.rx_dropped,
        rx_ring_full: statistics.rx_ring_full,
        fill_ring_empty: statistics.fill_ring_empty,
        invalid_descriptors: statistics.rx_invalid + statistics.tx_invalid,
    }
}

/// Which flows are asked for.
#[derive(Clone, Debug, Default)]
pub struct FlowFilter {
    /// How many at most; [`FLOWS_LIMIT`] bounds it.
    pub limit: usize,
    /// Of the service with this name alone.
    pub service: Option<String>,
    /// From this client alone.
    pub client: Option<IpAddr>,
    /// Only those from here on.
    pub after: Option<FlowsCursor>,
}

/// Asks the workers for their flows, one after the other. Blocks, for some 10 s at most.
pub fn flows(desks: &[(u8, FlowDesk)], snapshot: &Snapshot, filter: &FlowFilter) -> Flows {
    let limit = filter.limit.min(FLOWS_LIMIT);
    let deadline = Instant::now() + FLOWS_PATIENCE;
    let names: HashMap<ServiceId, &str, ahash::RandomState> =
        snapshot.services.iter().map(|service| (service.id, &*service.name)).collect();
    let mut reply = Flows { flows: Vec::new(), more: false, next: None, silent: Vec::new() };
    let first = filter.after.unwrap_or(FlowsCursor { worker: 0, slot: 0 });
    // Where the flows begin that do not fit.
    let mut rest = None;
    for (worker, desk) in desks.iter().filter(|(worker, _)| *worker >= first.worker) {
        let mut cursor = Some(if *worker == first.worker { first.slot } else { 0 });
        while let Some(from) = cursor {
            let here = FlowsCursor { worker: *worker, slot: from };
            let room = limit - reply.flows.len();
            if room == 0 {
                rest.get_or_insert(here);
            }
            if Instant::now() > deadline {
                reply.more = true;
                reply.next = rest.or(Some(here));
                return reply;
            }
            // No more than fits, so that what does not fit begins with a page.
            let Ok(page) = desk.page(from, if room == 0 { PAGE } else { PAGE.min(room) }, PAGE_PATIENCE)
            else {
                reply.silent.push(*worker);
                break;
            };
            let rows = page.records.iter().map(|record| flow(*worker, record, &names));
            for row in rows.zip(&page.records).filter(|(row, record)| matches(filter, row, record)) {
                if room == 0 {
                    reply.more = true;
                    reply.next = rest;
                    return reply;
                }
                reply.flows.push(row.0);
            }
            cursor = page.next;
        }
    }
    reply
}

fn matches(filter: &FlowFilter, row: &FlowRow, record: &FlowRecord) -> bool {
    filter.service.as_ref().is_none_or(|name| *name == row.service)
        && filter.client.is_none_or(|client| client == record.client.0)
}

fn flow(worker: u8, record: &FlowRecord, names: &HashMap<ServiceId, &str, ahash::RandomState>) -> FlowRow {
    let text = |(addr, port): (IpAddr, u16)| SocketAddr::new(addr, port).to_string();
    FlowRow {
        worker,
        protocol: protocol(record.proto),
        client: text(record.client),
        vip: text(record.vip),
        snat: (record.mode == Mode::FullNat).then(|| text(record.snat)),
        backend: text(record.backend),
        service: names.get(&record.service_id).copied().unwrap_or_default().to_owned(),
        mode: record.mode.name().to_owned(),
        state: record.state.to_owned(),
        expires_s: record.expires_s,
        call_id: record.call_id.text().map(str::to_owned),
    }
}
