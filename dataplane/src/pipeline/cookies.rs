//! SYN proxy: a SYN is answered by a cookie and leaves nothing behind; the flow is opened when the client has shown that it
//! got the answer.

use super::Core;
use super::persist::By;
use crate::flow::cookie;
use crate::flow::entry::Way;
use crate::flow::sequence::Sequence;
use crate::flow::state::State;
use crate::flow::table::Slot;
use crate::frame::Frame;
use crate::packet::Packet;
use crate::rewrite::handshake;
use crate::rewrite::identity::header_len;
use crate::snapshot::{Service, Snapshot, SynProxy};
use crate::time::{TICKS_PER_SECOND, Tick};
use crate::trace::{Answer, Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::tcp::{ACK, RST, SYN, Tcp};
use crate::wire::tcp_options::Offer;
use crate::wire::view;

/// By how many bits Weir says that windows are shifted, to a client that shifts its own: enough for 8 MiB.
pub(super) const SCALE: u8 = 7;
/// Segments that the client may send before the backend has answered.
const EARLY_SEGMENTS: u16 = 4;
/// Bytes that it may: as far as [`cookie::Secret::follows`] reaches.
#[expect(clippy::cast_possible_truncation, reason = "2^14")]
const EARLY_BYTES: u16 = cookie::REACH as u16;

impl Core {
    /// Whether a SYN to this service is answered by a cookie at present.
    pub(super) fn uses_cookies(&self, service: &Service) -> bool {
        match service.options.syn_proxy {
            SynProxy::Off => false,
            SynProxy::Above(flows) => self.half_open.count() > usize::try_from(flows).unwrap_or(usize::MAX),
            SynProxy::Always => true,
        }
    }

    /// Answers a SYN.
    #[cold]
    #[inline(never)]
    pub(super) fn welcome(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let port = tables.net.port(frame.port).ok_or(DropReason::NoPort)?;
        let (syn, asked) = handshake::read(frame, packet)?;
        let mss = largest_segment(service, packet, port.mtu);
        let offer = Offer {
            mss: Some(mss),
            scale: asked.scale.map(|_| SCALE),
            sack: asked.sack,
            timestamps: asked.timestamps.map(|(clients, _)| (clock(now), clients)),
        };
        let cookie = self.secret.cookie(&packet.key, syn.sequence.get(), &asked, now);
        let window = mss.saturating_mul(EARLY_SEGMENTS).min(EARLY_BYTES);
        handshake::welcome(frame, packet, port.mac, &syn, (cookie, window), &offer)?;
        self.setup.stats.cookies_sent.add(1);
        trace.step(Step::Answered(Answer::Cookie));
        Ok(Verdict::Reply(None))
    }

    /// What a segment of no flow says of the handshake that it completes, if it repeats a cookie.
    #[cold]
    pub(super) fn claim(&self, frame: &mut Frame<'_>, packet: &Packet, now: Tick) -> Option<Sequence> {
        if packet.tcp_flags & (SYN | ACK | RST) != ACK {
            return None;
        }
        let (tcp, offer) = handshake::read(frame, packet).ok()?;
        let (first, cookie) = (tcp.sequence.get(), tcp.acknowledgement.get().wrapping_sub(1));
        self.secret.open(&packet.key, first.wrapping_sub(1), cookie, now)?;
        let mut sequence = Sequence::awaiting(first, cookie);
        sequence.window = tcp.window.get();
        if let Some((clients, own)) = offer.timestamps {
            sequence.set_clocks(clients, own);
        }
        Some(sequence)
    }

    /// Whether a segment of no flow follows one that has not arrived, which would have opened the flow.
    #[cold]
    pub(super) fn follows_claim(&self, frame: &Frame<'_>, packet: &Packet, now: Tick) -> bool {
        view::<Tcp>(frame.bytes(), packet.l4.into()).is_ok_and(|tcp| {
            let (number, cookie) = (tcp.sequence.get(), tcp.acknowledgement.get().wrapping_sub(1));
            tcp.flags & (SYN | ACK | RST) == ACK
                && self.secret.follows(&packet.key, number.wrapping_sub(1), cookie, now)
        })
    }

    /// Opens the flow of a client that has repeated its cookie: its segment becomes a SYN to the backend.
    #[cold]
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    pub(super) fn open_claimed(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        claim: Sequence,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        if let Some(keeper) = self.keeper(frame, packet, service, tables) {
            trace.step(Step::FlowElsewhere(keeper));
            return Ok(Verdict::Handoff(keeper));
        }
        self.setup.stats.cookies_accepted.add(1);
        if !self.defence.lets_open(now, &tables.settings) {
            return Err(DropReason::NewFlowLimit);
        }
        let choice = self.choose(frame, packet, service, By::Scheduler, now, tables);
        let Some(choice) = choice.filter(|choice| choice.backend.mode.has_replies()) else {
            return self.without_backend(frame, packet, service, Answer::Reset, tables, trace);
        };
        trace.step(Step::Scheduled(choice.backend.id));
        let syn = Packet { tcp_flags: SYN, ..*packet };
        let slot = self.open(&syn, service, &choice, now, tables, trace)?;
        self.enter(slot, State::SynSent, now, tables)?;
        let extra = self.flows.extra_mut(slot).ok_or(DropReason::FlowTableFull)?;
        let Sequence { header, told, .. } = extra.sequence;
        extra.sequence = claim.telling(header, told);
        self.flows.entry_mut(slot).ok_or(DropReason::NoFlow)?.leave_plain_path();
        let _ = self.find_hop(slot, Way::Reply, tables);
        self.send(frame, packet, slot, Way::Forward, tables, trace)
    }

    /// Moves the flow in `slot` to another state, for something that no segment says by itself.
    pub(super) fn enter(
        &mut self,
        slot: Slot,
        next: State,
        now: Tick,
        tables: &Snapshot,
    ) -> Result<(), DropReason> {
        let entry = self.flows.entry_mut(slot).ok_or(DropReason::NoFlow)?;
        super::established::enter(entry, slot, next, &self.setup, &mut self.half_open);
        entry.expires = now.after_seconds(tables.timeouts.of(next));
        Ok(())
    }
}

/// The largest segment that Weir speaks of: what fits the port, less what Weir puts in front of the data.
fn largest_segment(service: &Service, packet: &Packet, mtu: u16) -> u16 {
    let headers = Tcp::LEN + if packet.key.v6 { Ipv6::LEN } else { Ipv4::LEN };
    let fits = mtu.saturating_sub(u16::try_from(headers).unwrap_or_default());
    let told = service.options.mss.filter(|mss| *mss != 0).map_or(fits, |mss| mss.min(fits));
    let header = if service.options.proxy_protocol { header_len(packet.key.v6) } else { 0 };
    told.saturating_sub(header.into()).max(1)
}

/// Weir's own timestamp, in milliseconds; never 0, which stands for none.
fn clock(now: Tick) -> u32 {
    now.0.wrapping_mul(1000 / TICKS_PER_SECOND) | 1
}
