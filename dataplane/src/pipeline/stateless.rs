//! Packets that find no flow and no room for one, of services that have consistent hashing say where these go
//! ([`Options::stateless_fallback`](crate::snapshot::Options)).
//!
//! Every gateway with the same backends has the same table, so a second gateway carries on what a first one began,
//! if the scheduler is mh and so chose by that table, too.

use super::Core;
use super::admit::{check_source, mode_for};
use super::persist::{By, Choice, Keeps};
use crate::flow::entry::Way;
use crate::flow::key::{FlowKey, TCP, VipKey};
use crate::flow::templates;
use crate::frame::Frame;
use crate::packet::Packet;
use crate::schedule;
use crate::snapshot::{Mode, Service, Snapshot};
use crate::time::Tick;
use crate::trace::{Answer, Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::tcp::{RST, SYN};

impl Core {
    /// A TCP segment in the middle of a flow that nobody knows.
    #[cold]
    pub(super) fn resume(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        if let Some(keeper) = self.keeper(frame, packet, service, tables) {
            trace.step(Step::FlowElsewhere(keeper));
            return Ok(Verdict::Handoff(keeper));
        }
        let Some(choice) = self.home(frame, packet, service, now, tables) else {
            return self.refuse(frame, packet, DropReason::NoFlow, Answer::Reset, tables, trace);
        };
        if packet.tcp_flags & RST != 0 {
            return self.pass_once(frame, packet, service, choice, now, tables, trace);
        }
        if !self.defence.lets_open(now, &tables.settings) {
            return self.stateless(frame, packet, service, DropReason::NewFlowLimit, now, tables, trace);
        }
        trace.step(Step::Scheduled(choice.backend.id));
        match self.let_through(frame, packet, service, &choice, now, tables, trace) {
            Err(DropReason::FlowTableFull) => {
                self.stateless(frame, packet, service, DropReason::FlowTableFull, now, tables, trace)
            }
            outcome => {
                self.setup.stats.stateless.add(1);
                outcome
            }
        }
    }

    /// A packet that would open a flow, which for this `reason` is not opened. Where replies do not come back through
    /// Weir it goes where consistent hashing says, and all that follow it go there too.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    pub(super) fn stateless(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        reason: DropReason,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let choice = self.home(frame, packet, service, now, tables);
        let choice = choice.filter(|choice| !choice.backend.mode.has_replies()).ok_or(reason)?;
        let starts = packet.key.proto != TCP || packet.tcp_flags & SYN != 0;
        if starts && !schedule::eligible(choice.backend, &self.setup.state) {
            return Err(reason);
        }
        self.pass_once(frame, packet, service, choice, now, tables, trace)
    }

    /// A backend's segment in the middle of a flow that nobody knows: `None` unless it is clear which flow that is.
    pub(super) fn resume_reply(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Option<Result<Verdict, DropReason>> {
        let key = &packet.key;
        let (service, backend) = tables.services.behind(&VipKey {
            addr: key.src,
            port: key.sport,
            proto: key.proto,
            v6: key.v6,
        })?;
        let vip = service.vips.first()?;
        let forward = FlowKey { src: key.dst, dst: vip.addr, sport: key.dport, dport: vip.port, ..*key };
        let home = service.steady.as_ref()?.home(&service.backends, &forward)?;
        if home.id != backend.id
            || packet.tcp_flags & (SYN | RST) != 0
            || mode_for(&forward, service, backend, tables) != Ok(Mode::Nat)
            || check_source(&forward, service, frame.port, tables).is_err()
            || !self.defence.lets_open(now, &tables.settings)
        {
            return None;
        }
        trace.step(Step::ServiceMatched(service.id));
        trace.step(Step::FlowUnknown);
        trace.step(Step::Scheduled(home.id));
        self.setup.stats.stateless.add(1);
        let choice = Choice { backend, port: backend.port, template: templates::NONE, keeps: Keeps::Middle };
        let first = Packet { key: forward, ..*packet };
        let slot = match self.open(&first, service, &choice, now, tables, trace) {
            Ok(slot) => slot,
            Err(reason) => return Some(Err(reason)),
        };
        Some(self.send(frame, packet, slot, Way::Reply, tables, trace))
    }

    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    fn pass_once(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        choice: Choice<'_>,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        trace.step(Step::Scheduled(choice.backend.id));
        self.setup.stats.stateless.add(1);
        let choice = Choice { keeps: Keeps::Nothing, ..choice };
        self.let_through(frame, packet, service, &choice, now, tables, trace)
    }

    /// Where consistent hashing sends a packet. `None` where the service does not want that, or where the SNAT port of the
    /// flow would have to be known.
    fn home<'t>(
        &mut self,
        frame: &Frame<'_>,
        packet: &Packet,
        service: &'t Service,
        now: Tick,
        tables: &'t Snapshot,
    ) -> Option<Choice<'t>> {
        service.steady.as_ref()?;
        let choice = self.choose(frame, packet, service, By::Hash, now, tables)?;
        (mode_for(&packet.key, service, choice.backend, tables) != Ok(Mode::FullNat)).then_some(choice)
    }
}
