//! Packets of flows whose two ends do not count alike, or whose backend is told who the client is: changed before they are
//! translated like any other.

use super::Core;
use super::cookies::SCALE;
use crate::flow::cookie;
use crate::flow::entry::Way;
use crate::flow::key::TCP;
use crate::flow::sequence::{Placed, Sequence, scaled};
use crate::flow::state::State;
use crate::flow::table::Slot;
use crate::frame::{Checksum, Frame};
use crate::packet::{Kind, Packet};
use crate::rewrite::{handshake, identity, segment};
use crate::snapshot::{Service, Snapshot};
use crate::time::TICKS_PER_SECOND;
use crate::trace::{Answer, Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::tcp::{ACK, RST, SYN, Tcp};
use crate::wire::tcp_options::{self, Offer, Options};
use crate::wire::view;

/// Ticks after which a client's next segment becomes another SYN to a backend that has not answered.
const ASK_AGAIN: u32 = TICKS_PER_SECOND;
/// Segments behind the SYN that tell the backend of the client: the one that completes the handshake, the first data, and
/// one more, should one of them get lost.
const TELL: u8 = 3;

/// What has become of a packet.
pub(super) enum Shaped {
    /// It goes on, like this.
    Passes(Packet),
    /// It has come to its end here.
    Done(Verdict),
}

/// What decides on how a packet may be changed.
#[derive(Clone, Copy)]
struct Limits {
    /// Bytes of the largest IP packet.
    largest: u16,
    /// Whether the transport checksum is only the pseudo-header's sum.
    unfinished: bool,
}

/// What the service's options ask of a flow that `packet` opens; `None` where they ask nothing.
pub(super) fn asked(service: &Service, packet: &Packet) -> Option<Sequence> {
    let options = &service.options;
    let opens = packet.key.proto != TCP || packet.tcp_flags & (SYN | ACK) == SYN;
    let carries = matches!(packet.key.proto, TCP | crate::flow::key::UDP);
    let header = if options.proxy_protocol { identity::header_len(packet.key.v6) } else { 0 };
    let told = if options.toa && packet.key.proto == TCP { TELL } else { 0 };
    (opens && carries && (header, told) != (0, 0)).then(|| Sequence::default().telling(header, told))
}

impl Core {
    /// Changes a packet of the flow in `slot` as that flow needs it.
    #[cold]
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    pub(super) fn shape(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        (largest, unfinished): (u16, bool),
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Shaped, DropReason> {
        let limits = Limits { largest, unfinished };
        let Some(mut sequence) = self.flows.extra(slot).map(|extra| extra.sequence) else {
            return Ok(Shaped::Passes(*packet));
        };
        if sequence.is_over() {
            return Ok(Shaped::Passes(*packet));
        }
        if packet.key.proto == TCP && packet.kind != Kind::Transport {
            return Err(DropReason::Fragment); // its length and place in the stream are not told
        }
        let shaped = match (packet.key.proto, way) {
            (TCP, Way::Forward) if sequence.is_awaited() => {
                self.ask(frame, packet, slot, &mut sequence, limits, tables)?
            }
            (TCP, Way::Reply) if sequence.is_awaited() => {
                self.answered(frame, packet, slot, &mut sequence, tables, trace)?
            }
            (TCP, Way::Forward) => Shaped::Passes(to_backend(frame, packet, &mut sequence, limits)?),
            (TCP, Way::Reply) if sequence.is_proxied() && packet.tcp_flags & (SYN | RST) == SYN => {
                self.complete(frame, packet, slot, &mut sequence, tables, trace)?
            }
            (TCP, Way::Reply) => Shaped::Passes(to_client(frame, packet, &mut sequence, limits)?),
            (_, Way::Forward) if sequence.header > 0 => {
                if packet.kind != Kind::Transport {
                    return Err(DropReason::Fragment);
                }
                let fits = largest.saturating_sub(sequence.header.into());
                if packet.end - packet.l3 > fits && !self.may_split(slot, frame, packet) {
                    return Ok(Shaped::Done(self.too_big(frame, packet, fits, tables, trace)?));
                }
                let mut packet = *packet;
                let header = identity::header(&packet.key);
                segment::insert(frame, &mut packet, header.bytes(), unfinished)?;
                Shaped::Passes(packet)
            }
            _ => Shaped::Passes(*packet),
        };
        if let Some(extra) = self.flows.extra_mut(slot) {
            extra.sequence = sequence;
        }
        let keeps_link = self.flows.extra(slot).is_some_and(|extra| extra.mtu == [0; 2]);
        if sequence.is_over()
            && keeps_link
            && let Some(entry) = self.flows.entry_mut(slot)
        {
            entry.enter_plain_path();
        }
        Ok(shaped)
    }

    /// A segment of a client whose backend has not answered yet: it becomes the SYN to the backend if that is due, else it
    /// has come too early.
    fn ask(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        sequence: &mut Sequence,
        limits: Limits,
        tables: &Snapshot,
    ) -> Result<Shaped, DropReason> {
        let now = self.sweep.now();
        if packet.tcp_flags & SYN != 0 {
            // A client that opens anew has forgotten what this flow is about.
            let number = view::<Tcp>(frame.bytes(), packet.l4.into())?.sequence.get();
            if number.wrapping_add(1) == sequence.first {
                self.enter(slot, State::SynSent, now, tables)?;
            } else {
                self.close(slot);
            }
            return Err(DropReason::BackendSilent);
        }
        if packet.tcp_flags & RST != 0 || !sequence.may_ask(now, ASK_AGAIN) {
            if frame.overdue {
                return Err(DropReason::BackendSilent);
            }
            // Noted anew when it comes again.
            frame.checksum = Checksum::Complete;
            return Ok(Shaped::Done(Verdict::Unanswered));
        }
        let mut packet = *packet;
        let offer = offered(sequence, packet.key.v6);
        let window =
            scaled(sequence.window, offer.scale.and_then(|bits| i8::try_from(bits).ok()).unwrap_or(0));
        handshake::open(frame, &mut packet, sequence.first.wrapping_sub(1), window, &offer)?;
        sequence.set_asked(now);
        tell(frame, &mut packet, sequence, Limits { unfinished: false, ..limits })?;
        Ok(Shaped::Passes(packet))
    }

    /// What the backend says to the SYN that it was sent.
    fn answered(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        sequence: &mut Sequence,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Shaped, DropReason> {
        let now = self.sweep.now();
        let (tcp, offer) = handshake::read(frame, packet)?;
        let answers = tcp.flags & ACK != 0 && tcp.acknowledgement.get() == sequence.first;
        let state = self.flows.entry(slot).ok_or(DropReason::NoFlow)?.state;
        match tcp.flags & (SYN | RST) {
            RST if answers => {
                // The client expects the number behind the cookie, or would not believe it.
                let number = sequence.offset.wrapping_add(1);
                let unfinished = frame.checksum != Checksum::Complete;
                segment::edit(frame.bytes_mut(), packet, unfinished, |tcp, _| tcp.sequence = number.into())?;
                self.enter(slot, State::Close, now, tables)?;
                self.backends_answered = self.backends_answered.wrapping_add(1);
                Ok(Shaped::Passes(*packet))
            }
            RST => Err(DropReason::NoFlow),
            SYN if answers && state != State::Close => {
                let asked = offered(sequence, packet.key.v6);
                sequence.scale = [
                    asked.scale.filter(|_| offer.scale.is_none()).map_or(0, bits),
                    asked.scale.map_or(0, |_| offer.scale.map_or(0, bits) - bits(SCALE)),
                ];
                let clock = offer.timestamps.filter(|_| sequence.is_timed()).map(|(own, _)| own);
                sequence.answered(tcp.sequence.get(), clock);
                self.enter(slot, State::Established, now, tables)?;
                self.backends_answered = self.backends_answered.wrapping_add(1);
                self.complete(frame, packet, slot, sequence, tables, trace)
            }
            // The client has gone, or the backend still has another connection: without that it can be asked again at once.
            _ => {
                sequence.ask_again();
                self.backends_answered = self.backends_answered.wrapping_add(1);
                let verdict = self.refuse(frame, packet, DropReason::NoFlow, Answer::Reset, tables, trace)?;
                Ok(Shaped::Done(verdict))
            }
        }
    }

    /// Answers the backend's SYN-ACK, the first or a repeated one, in place of the client, which is long done.
    fn complete(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        sequence: &mut Sequence,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Shaped, DropReason> {
        let mac = tables.net.port(frame.port).ok_or(DropReason::NoPort)?.mac;
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        let client = self.flows.tuple(entry).forward;
        let (tcp, offer) = handshake::read(frame, packet)?;
        let mut options = Options::default();
        if let Some((theirs, _)) = offer.timestamps.filter(|_| sequence.is_timed()) {
            Offer { timestamps: Some((sequence.client_clock, theirs)), ..Offer::default() }
                .write(&mut options);
        }
        if sequence.told > 0 {
            options.add(identity::option(&client).bytes());
        }
        let header = identity::header(&client);
        let is_due = sequence.owes_header() && sequence.place(sequence.first, false) == Placed::BehindHeader;
        let data = if is_due { header.bytes() } else { &[] };
        let window = scaled(sequence.window, sequence.scale[0]);
        handshake::complete(frame, packet, mac, &tcp, window, &options, data)?;
        trace.step(Step::Answered(Answer::Handshake));
        Ok(Shaped::Done(Verdict::Reply(None)))
    }
}

/// Has an ICMP error about a segment or datagram of such a flow quote what its receiver sent. Returns by how many bytes
/// what the receiver sends grows on the way.
pub(super) fn requote(
    bytes: &mut [u8],
    packet: &Packet,
    way: Way,
    sequence: &Sequence,
) -> Result<u16, DropReason> {
    if packet.key.proto == TCP && !sequence.is_awaited() {
        segment::renumber_quote(bytes, packet, |number| match way {
            Way::Forward => sequence.to_backend(number),
            Way::Reply => sequence.acknowledged(number),
        })?;
    }
    Ok(if way == Way::Reply { sequence.header.into() } else { 0 })
}

/// A segment of the client, with the backend's numbers.
fn to_backend(
    frame: &mut Frame<'_>,
    packet: &Packet,
    sequence: &mut Sequence,
    limits: Limits,
) -> Result<Packet, DropReason> {
    let mut packet = *packet;
    let flags = packet.tcp_flags;
    let number = view::<Tcp>(frame.bytes(), packet.l4.into())?.sequence.get();
    if flags & SYN != 0 {
        if flags & ACK == 0 {
            sequence.open(number);
            tell(frame, &mut packet, sequence, limits)?;
        }
        return Ok(packet);
    }
    let (number, header) = match sequence.place(number, flags & RST != 0) {
        Placed::At(number) => (number, false),
        Placed::BehindHeader => (number, true),
    };
    let moves = *sequence;
    segment::edit(frame.bytes_mut(), &packet, limits.unfinished, |tcp, options| {
        tcp.sequence = number.into();
        if flags & ACK != 0 {
            tcp.acknowledgement = moves.to_backend(tcp.acknowledgement.get()).into();
        }
        tcp.window = scaled(tcp.window.get(), moves.scale[0]).into();
        segment::renumber_options(options, |edge| moves.to_backend(edge), 0, moves.clock.wrapping_neg());
    })?;
    if header {
        put_header(frame, &mut packet, limits)?;
    }
    if sequence.told > 0 && flags & RST == 0 {
        tell(frame, &mut packet, sequence, limits)?;
        sequence.told -= 1;
    }
    Ok(packet)
}

/// Puts the header in front of a segment's data. Where both do not fit, the data has to come again.
fn put_header(frame: &mut Frame<'_>, packet: &mut Packet, limits: Limits) -> Result<(), DropReason> {
    if packet.kind != Kind::Transport {
        return Err(DropReason::Fragment);
    }
    let header = identity::header(&packet.key);
    let fits = usize::from(packet.end - packet.l3) + header.bytes().len() <= limits.largest.into();
    if !fits {
        segment::cut(frame, packet, limits.unfinished)?;
    }
    segment::insert(frame, packet, header.bytes(), limits.unfinished)
}

/// Adds the option that tells of the client, where it fits.
fn tell(
    frame: &mut Frame<'_>,
    packet: &mut Packet,
    sequence: &Sequence,
    limits: Limits,
) -> Result<(), DropReason> {
    let option = identity::option(&packet.key);
    let used = segment::header_len(frame.bytes(), packet)? - Tcp::LEN;
    let len = option.bytes().len();
    let fits = used + len <= tcp_options::LONGEST
        && usize::from(packet.end - packet.l3) + len <= limits.largest.into()
        && packet.kind == Kind::Transport;
    if sequence.told > 0 && fits {
        segment::add_options(frame, packet, option.bytes(), limits.unfinished)?;
    }
    Ok(())
}

/// A segment of the backend, with the numbers that the client knows.
fn to_client(
    frame: &mut Frame<'_>,
    packet: &Packet,
    sequence: &mut Sequence,
    limits: Limits,
) -> Result<Packet, DropReason> {
    let flags = packet.tcp_flags;
    let acknowledged = view::<Tcp>(frame.bytes(), packet.l4.into())?.acknowledgement.get();
    if flags & ACK != 0 && sequence.note(acknowledged) {
        sequence.told = 0;
    }
    let moves = *sequence;
    segment::edit(frame.bytes_mut(), packet, limits.unfinished, |tcp, options| {
        tcp.sequence = moves.to_client(tcp.sequence.get()).into();
        if flags & ACK != 0 {
            tcp.acknowledgement = moves.acknowledged(acknowledged).into();
        }
        if flags & SYN != 0 {
            segment::lower_mss(options, moves.header.into());
        } else {
            tcp.window = scaled(tcp.window.get(), moves.scale[1]).into();
        }
        segment::renumber_options(options, |edge| moves.acknowledged(edge), moves.clock, 0);
    })?;
    Ok(*packet)
}

/// What the client has offered, for Weir to offer to the backend.
fn offered(sequence: &Sequence, v6: bool) -> Offer {
    let timestamps = sequence.is_timed().then_some((sequence.client_clock, 0));
    Offer { timestamps, ..cookie::unpack(sequence.offset, v6) }
}

fn bits(scale: u8) -> i8 {
    i8::try_from(scale).unwrap_or_default()
}
