//! FTP: control connections announce the connections that data go by, and name addresses (IPVS: `ip_vs_ftp`).
//!
//! A client that announces a port (`PORT`, `EPRT`) is connected to by its backend, from the port below that of the
//! control connection: the flow is opened right away, in state LISTEN. A backend that announces a port (227, 229) is
//! connected to by the client: since the client's port is not known, a template of a kind of its own waits for it. In a
//! 227 reply the backend's address becomes the VIP's. Nobody can announce an address other than his own.

use std::net::IpAddr;

use super::Core;
use super::persist::{Choice, Keeps};
use crate::flow::call;
use crate::flow::entry::{Tuple, Way};
use crate::flow::key::{FlowKey, TCP};
use crate::flow::state::State;
use crate::flow::table::Slot;
use crate::flow::templates::{self, NewTemplate};
use crate::frame::Frame;
use crate::packet::Packet;
use crate::rewrite::segment;
use crate::snapshot::{Mode, Snapshot};
use crate::time::Tick;
use crate::trace::{Silent, Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ftp::{self, Place};
use crate::wire::tcp::{ACK, SYN, Tcp};
use crate::wire::view;

impl Core {
    /// A segment of a control connection: takes note of what it announces, and changes it where it has to be. Returns
    /// the packet as it is then. What would not fit `largest` bytes stays as it is.
    #[cold]
    #[inline(never)]
    pub(super) fn control(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        (largest, unfinished): (u16, bool),
        tables: &Snapshot,
    ) -> Result<Packet, DropReason> {
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        let (tuple, established) = (self.flows.tuple(entry), entry.state == State::Established);
        let mut packet = *packet;
        let start = usize::from(packet.l4) + segment::header_len(frame.bytes(), &packet)?;
        let payload = frame.bytes().get(start..packet.end.into()).ok_or(DropReason::Truncated)?;
        let sequence = view::<Tcp>(frame.bytes(), packet.l4.into())?.sequence.get();
        match way {
            _ if !established || payload.is_empty() => {}
            Way::Forward => {
                if let Some(place) = ftp::active(payload) {
                    self.listen_for_backend(&packet, slot, &tuple, &place, tables);
                }
            }
            Way::Reply => {
                let place = ftp::passive(payload).filter(|place| {
                    place.addr.is_none_or(|addr| {
                        addr == tuple.reply.source() || addr == tuple.forward.destination()
                    })
                });
                if let Some(place) = place
                    && self.listen_for_client(slot, &tuple, &place, tables)
                    && let (Some(_), IpAddr::V4(vip)) = (place.addr, tuple.forward.destination())
                {
                    let text = ftp::spelled(vip, place.port);
                    let longer =
                        i16::try_from(text.len()).unwrap_or(0) - i16::try_from(place.text.len()).unwrap_or(0);
                    if (packet.end - packet.l3).saturating_add_signed(longer) <= largest {
                        segment::replace(frame, &mut packet, place.text, &text, unfinished)?;
                        self.shift(slot, sequence, longer);
                    }
                }
            }
        }
        self.renumber(frame, &packet, slot, way, unfinished)?;
        Ok(packet)
    }

    /// Notes that a backend's segment became so much longer.
    fn shift(&mut self, slot: Slot, sequence: u32, longer: i16) {
        if longer != 0
            && let Some(extra) = self.flows.extra_mut(slot)
        {
            extra.shift.add(sequence, longer);
        }
    }

    /// Gives a segment the numbers that its receiver counts by.
    fn renumber(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        unfinished: bool,
    ) -> Result<(), DropReason> {
        let Some(shift) = self.flows.extra(slot).map(|extra| extra.shift).filter(|shift| !shift.is_none())
        else {
            return Ok(());
        };
        segment::edit(frame.bytes_mut(), packet, unfinished, |tcp, options| match way {
            Way::Reply => tcp.sequence = shift.to_client(tcp.sequence.get()).into(),
            Way::Forward if tcp.flags & ACK != 0 => {
                tcp.acknowledgement = shift.to_backend(tcp.acknowledgement.get()).into();
                segment::renumber_options(options, |number| shift.to_backend(number), 0, 0);
            }
            Way::Forward => {}
        })
    }

    /// Opens the flow of an active data connection, which the backend starts. Only where the client's address is kept:
    /// with another one the backend would not connect to what the client says.
    fn listen_for_backend(
        &mut self,
        packet: &Packet,
        slot: Slot,
        tuple: &Tuple,
        place: &Place,
        tables: &Snapshot,
    ) -> Option<()> {
        let entry = self.flows.entry(slot)?;
        let (service, backend) = tables.services.backend_of(entry.service, entry.backend)?;
        if place.addr != Some(tuple.forward.source()) || entry.mode() != Mode::Nat {
            return None;
        }
        let key = FlowKey { sport: place.port, dport: tuple.forward.dport.checked_sub(1)?, ..tuple.forward };
        if let Some(hit) = self.flows.lookup(self.flows.hash(&key), &key) {
            let over = [State::Listen, State::TimeWait, State::Close];
            if !self.flows.entry(hit.slot()).is_some_and(|entry| over.contains(&entry.state)) {
                return None;
            }
            self.close(hit.slot());
        }
        let port = tuple.reply.sport.checked_sub(1)?;
        let choice = Choice { backend, port, template: templates::NONE, keeps: Keeps::Announced };
        let first = Packet { key, tcp_flags: 0, ..*packet };
        self.open(&first, service, &choice, self.sweep.now(), tables, &mut Silent).ok().map(|_| ())
    }

    /// Has a template wait for a passive data connection, which the client starts. Returns whether there is one.
    fn listen_for_client(&mut self, slot: Slot, tuple: &Tuple, place: &Place, tables: &Snapshot) -> bool {
        let Some(entry) = self.flows.entry(slot) else { return false };
        let (now, vip) = (self.sweep.now(), tuple.forward);
        let new = NewTemplate {
            key: awaited(&FlowKey { dport: place.port, ..vip }),
            call: None,
            service: entry.service,
            backend: entry.backend,
            to: (tuple.reply.source(), place.port),
            mode: entry.mode(),
            timeout_s: tables.timeouts.of(State::Listen),
            announced: true,
        };
        if let Some(before) = self.templates.find(&new.key, call::NONE, now) {
            self.close_template(before);
        }
        self.open_template(&new, now) != templates::NONE
    }

    /// The first packet of a passive data connection goes where its backend announced it. `None` for any other packet.
    #[cold]
    #[inline(never)]
    pub(super) fn announced(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Option<Result<Verdict, DropReason>> {
        if packet.key.proto != TCP || packet.tcp_flags & (SYN | ACK) != SYN {
            return None;
        }
        let key = awaited(&packet.key);
        let Some(index) = self.templates.find(&key, call::NONE, now) else {
            let owner = self.elsewhere(frame, self.flows.hash(&key))?;
            trace.step(Step::FlowElsewhere(owner));
            return Some(Ok(Verdict::Handoff(owner)));
        };
        let template = *self.templates.get(index)?;
        let (service, backend) = tables.services.backend_of(template.service, template.backend)?;
        trace.step(Step::ServiceMatched(service.id));
        trace.step(Step::Scheduled(backend.id));
        self.close_template(index);
        let choice = Choice { backend, port: template.to.1, template: templates::NONE, keeps: Keeps::Flow };
        Some(self.let_through(frame, packet, service, &choice, now, tables, trace))
    }
}

/// What a data connection is awaited by whose first packet will have `key`: from any port. The protocol is none that
/// packets have, so nothing else is found by it.
fn awaited(key: &FlowKey) -> FlowKey {
    FlowKey { sport: 0, proto: ANNOUNCED, ..*key }
}

/// An IP protocol number that is reserved (RFC 1700).
const ANNOUNCED: u8 = 255;
