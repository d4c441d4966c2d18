//! Persistence: a client's flows, or a call's, go where the first one went (IPVS: persistent services).

use super::admit::mode_for;
use super::{Core, FlowRecord};
use crate::flow::call::{self, CallId};
use crate::flow::key::{FlowKey, TCP, UDP};
use crate::flow::table::Slot;
use crate::flow::templates::{self, Call, NewTemplate, Template};
use crate::frame::Frame;
use crate::ids::WorkerId;
use crate::packet::Packet;
use crate::schedule::schedule;
use crate::snapshot::{Backend, Engine, FTP, Group, Mode, Persistence, Service, Settings, Snapshot};
use crate::state::State;
use crate::time::Tick;
use crate::wire::sip;
use crate::wire::udp::Udp;

/// Protocol of a mark's templates (`IPPROTO_IP`): all protocols have them in common.
const ANY: u8 = 0;

/// Where a new flow goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'t> {
    pub(super) backend: &'t Backend,
    /// The backend's port, as packets of this flow carry it.
    pub(super) port: u16,
    /// The template that keeps the client there; [`templates::NONE`] without persistence.
    pub(super) template: templates::Index,
    pub(super) keeps: Keeps,
}

/// What is kept of a packet that is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// The flow that it starts.
    Flow,
    /// The flow that it is in the middle of.
    Middle,
    /// The flow that it announces, which others will start.
    Announced,
    /// Nothing: every packet is a flow of its own.
    Single,
    /// Nothing, and it counts for no flow.
    Nothing,
}

impl Keeps {
    /// Whether the packets that follow find a flow.
    pub(super) fn is_flow(self) -> bool {
        matches!(self, Self::Flow | Self::Middle | Self::Announced)
    }
}

/// Who says where a new flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The service's scheduler.
    Scheduler,
    /// Consistent hashing.
    Hash,
}

impl By {
    fn choose<'t>(
        self,
        service: &'t Service,
        settings: &Settings,
        state: &State,
        key: &FlowKey,
        now: Tick,
    ) -> Option<&'t Backend> {
        match self {
            Self::Scheduler => schedule(service, settings, state, key, now),
            Self::Hash => service.steady.as_ref()?.home(&service.backends, key),
        }
    }
}

impl Core {
    /// The worker that keeps the template which `packet` belongs to, if that is another one: all flows of a client of a
    /// persistent service, or of a call, are that worker's.
    pub(super) fn keeper(
        &self,
        frame: &Frame<'_>,
        packet: &Packet,
        service: &Service,
        tables: &Snapshot,
    ) -> Option<WorkerId> {
        let persistence = service.persistence?;
        if self.setup.workers < 2 || frame.handed_over {
            return None;
        }
        let key = template_key(&packet.key, service, persistence, tables);
        let call = self.call(frame, packet, service).map_or(call::NONE, |call| call.hash);
        let hash = templates::hash(&key, call, self.setup.seed);
        let keeper = (u128::from(hash) * u128::from(self.setup.workers)) >> 64;
        u8::try_from(keeper).ok().map(WorkerId).filter(|keeper| *keeper != self.setup.worker)
    }

    /// The call that a packet belongs to, where the service tells its clients' calls apart.
    fn call<'f>(&self, frame: &'f Frame<'_>, packet: &Packet, service: &Service) -> Option<Call<'f>> {
        if service.engine != Some(Engine::Sip) || packet.key.proto != UDP {
            return None;
        }
        let message = frame.bytes().get(usize::from(packet.l4) + Udp::LEN..packet.end.into())?;
        let id = sip::call_id(message)?;
        Some(Call { id, hash: call::hash(id, self.setup.seed) })
    }

    /// The backend for the flow of `packet`, which is not known: by the client's or the call's template, else as `by`
    /// says.
    pub(super) fn choose<'t>(
        &mut self,
        frame: &Frame<'_>,
        packet: &Packet,
        service: &'t Service,
        by: By,
        now: Tick,
        tables: &'t Snapshot,
    ) -> Option<Choice<'t>> {
        let key = &packet.key;
        let (backend, template) = match service.persistence {
            None => (by.choose(service, &tables.settings, &self.setup.state, key, now)?, templates::NONE),
            Some(persistence) => {
                let call = self.call(frame, packet, service);
                self.choose_again(service, persistence, (key, call), by, now, tables)?
            }
        };
        let keeps_port =
            backend.port == 0 || service.persistence.is_some() && !is_exact(service, key, tables);
        let port = if keeps_port { key.dport } else { backend.port };
        // Where the SNAT port is, the reply needs the flow.
        let is_single = service.one_packet
            && key.proto == UDP
            && mode_for(key, service, backend, tables) != Ok(Mode::FullNat);
        let keeps = match by {
            _ if is_single => Keeps::Single,
            By::Scheduler => Keeps::Flow,
            By::Hash => Keeps::Middle,
        };
        Some(Choice { backend, port, template, keeps })
    }

    fn choose_again<'t>(
        &mut self,
        service: &'t Service,
        persistence: Persistence,
        (key, call): (&FlowKey, Option<Call<'_>>),
        by: By,
        now: Tick,
        tables: &'t Snapshot,
    ) -> Option<(&'t Backend, templates::Index)> {
        let shared = template_key(key, service, persistence, tables);
        // Where that of the group leads is no place for this service, it has one of its own beside it.
        let apart = service.group.map(|group| FlowKey { sport: group.place.saturating_add(1), ..shared });
        let hash = call.map_or(call::NONE, |call| call.hash);
        let mut free = None;
        for template in [Some(shared), apart].into_iter().flatten() {
            if let Some(index) = self.templates.find(&template, hash, now) {
                if let Some(backend) = self.kept(index, service, tables) {
                    return Some((backend, index));
                }
                if apart.is_some_and(|apart| apart != template) && self.leads_others(index, tables) {
                    continue;
                }
                self.templates.retire(index);
            }
            free.get_or_insert(template);
        }
        let template = free?;
        let backend = by.choose(service, &tables.settings, &self.setup.state, key, now)?;
        let port = if template.dport == 0 { 0 } else { backend.port };
        let new = NewTemplate {
            key: template,
            call,
            service: service.id,
            backend: backend.id,
            to: (backend.addr, port),
            mode: backend.mode,
            timeout_s: persistence.timeout_s,
            announced: false,
        };
        Some((backend, self.open_template(&new, now)))
    }

    /// The backend of a template, if it still takes the client. It has to be in the tables; it may be overloaded, and
    /// drained but for `expire_quiescent_template`. In a group it has to be one of this service's, which does not drain
    /// it: there a weight of 0 says that new flows of no client are for it, not that it is about to go.
    fn kept<'t>(
        &self,
        index: templates::Index,
        service: &'t Service,
        tables: &'t Snapshot,
    ) -> Option<&'t Backend> {
        let id = self.templates.get(index)?.backend;
        match service.group {
            None => {
                let (_, backend) = tables.services.backend(id)?;
                let expired = tables.settings.expire_quiescent_template && backend.weight == 0;
                (!expired).then_some(backend)
            }
            Some(_) => tables.services.backend_in(service, id).filter(|backend| backend.weight > 0),
        }
    }

    /// Whether the backend of a group's template still takes clients of some other service of that.
    fn leads_others(&self, index: templates::Index, tables: &Snapshot) -> bool {
        let template = self.templates.get(index);
        let backend = template.and_then(|template| tables.services.backend(template.backend));
        backend.is_some_and(|(_, backend)| backend.weight > 0)
    }

    /// Makes a template and counts it. Without room the client's flow is served all the same.
    pub(super) fn open_template(&mut self, new: &NewTemplate<'_>, now: Tick) -> templates::Index {
        let opened = self.templates.open(new, now).or_else(|| {
            let unwanted = self.templates.evictable(now)?;
            self.close_template(unwanted);
            self.templates.open(new, now)
        });
        let Some(index) = opened else {
            self.setup.stats.templates_full.add(1);
            return templates::NONE;
        };
        if new.announced {
            self.publish_key(&new.key);
        } else if let Some(counts) = self.setup.state.backend(new.backend) {
            counts.remembered();
        }
        index
    }

    pub(super) fn close_template(&mut self, index: templates::Index) {
        let Some(template) = self.templates.close(index) else { return };
        if template.announced {
            self.withdraw_key(&template.key);
        } else if let Some(counts) = self.setup.state.backend(template.backend) {
            counts.forgotten();
        }
    }

    /// The template that the flow in `slot` holds.
    pub(super) fn template(&self, slot: Slot) -> templates::Index {
        self.flows.extra(slot).map_or(templates::NONE, |extra| extra.template)
    }

    /// Has the flow in `slot` hold its client's template.
    pub(super) fn hold_template(&mut self, slot: Slot, template: templates::Index, now: Tick) {
        if template == templates::NONE {
            return;
        }
        if let Some(extra) = self.flows.extra_mut(slot) {
            extra.template = template;
            self.templates.hold(template, now);
        }
    }

    /// The flow in `slot` is established, or answered: its template is worth keeping.
    #[cold]
    #[inline(never)]
    pub(super) fn assure_template(&mut self, slot: Slot) {
        self.templates.assure(self.template(slot));
    }

    /// Forgets templates whose time is up: a bounded number in one turn.
    pub(super) fn sweep_templates(&mut self, now: Tick) {
        for _ in 0..self.templates.owed(now) {
            if let Some(index) = self.templates.next_over(now) {
                self.close_template(index);
            }
        }
    }
}

/// Whether packets with `key` reach `service` by its own address and port: not by a mark, and neither as data of FTP
/// nor because it is on every port.
fn is_exact(service: &Service, key: &FlowKey, tables: &Snapshot) -> bool {
    service.mark.is_none() && tables.services.exact_for(key.src, &key.vip()).is_some()
}

/// What a client's template is found by (`ip_vs_sched_persist`): of a service on one port, that port is part of it; of
/// FTP, of a service on every port, and of a mark, all the client's flows to the VIP, or of the mark, have one. The
/// services of a group have it in common.
fn template_key(key: &FlowKey, service: &Service, persistence: Persistence, tables: &Snapshot) -> FlowKey {
    let client = FlowKey { src: key.src & persistence.mask, sport: 0, dport: 0, ..*key };
    if let Some(mark) = service.mark {
        // The mark stands where an IPv4 address would.
        let value = u128::from(mark.value.get());
        return FlowKey { dst: if key.v6 { value << 96 } else { value }, proto: ANY, ..client };
    }
    if let Some(Group { vip, .. }) = service.group {
        return FlowKey { dst: vip.addr, dport: vip.port, ..client };
    }
    let own_port = key.dport != FTP && is_exact(service, key, tables);
    FlowKey { dport: if own_port { key.dport } else { 0 }, ..client }
}

/// A template as output shows it: the client's port is 0. One that is retired leads nowhere (`ip_vs_check_template`).
pub(super) fn record(template: &Template, call_id: Option<&CallId>, now: Tick) -> FlowRecord {
    let (key, (addr, port)) = (&template.key, template.to);
    let (vport, port) = if template.is_retired() { (u16::MAX, u16::MAX) } else { (key.dport, port) };
    FlowRecord {
        proto: if template.announced { TCP } else { key.proto },
        client: (key.source(), 0),
        vip: (key.destination(), vport),
        snat: (key.source(), 0),
        backend: (addr, port),
        service_id: template.service,
        backend_id: template.backend,
        mode: template.mode,
        state: match template {
            Template { announced: true, .. } => "LISTEN",
            Template { assured: true, .. } => "ASSURED",
            _ => "NONE",
        },
        expires_s: template.expires.seconds_from(now),
        call_id: call_id.copied().unwrap_or_default(),
    }
}
