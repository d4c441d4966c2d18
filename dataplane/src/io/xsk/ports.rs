//! All ports of one worker over one UMEM: a batch in from everywhere, verdicts out.

use arrayvec::ArrayVec;

use super::metadata;
use super::port::{Extent, Port, Wake};
use super::umem::{Held, Umem};
use crate::frame::{BATCH, Checksum, Frame};
use crate::ids::PortId;
use crate::io::{Arrival, Turn, UNDECIDED, egress};
use crate::prefetch::prefetch;
use crate::rewrite::split::{Pieces, Split};
use crate::verdict::{DropReason, Verdict};

/// Where frames from other workers are put in a chunk: where the kernel puts received ones
/// (`XDP_PACKET_HEADROOM` of linux/bpf.h).
pub(super) const XDP_HEADROOM: u32 = 256;
const HEADROOM: usize = XDP_HEADROOM as usize;

/// Where pieces of a frame are put in a chunk. A frame that is to be sent begins there or later, so its pieces have room.
const PIECE_OFFSET: usize = metadata::TX_METADATA_LEN as usize;

/// Frames from other workers in a batch at most, so that neither they nor received ones wait for ever.
const INJECTED: usize = BATCH / 2;

/// Chunks of a frame at most.
pub(super) const CHUNKS_OF_FRAME: usize = 3;

/// A frame of the batch in the making.
#[derive(Debug)]
struct Taken {
    place: Place,
    offset: usize,
    arrival: Arrival,
}

/// Where a frame of the batch lies.
#[derive(Debug)]
enum Place {
    /// In a chunk.
    Chunk(Held),
    /// In the next of the rooms for large frames: those of a batch have them in turn.
    Room,
}

/// What is sent, or nothing; or why it cannot be.
type Order = Result<Option<Outgoing>, DropReason>;

/// A frame to be sent.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    port: PortId,
    frame: Extent,
    split: Option<Split>,
}

#[derive(Debug)]
pub(super) struct Ports<W> {
    umem: Umem,
    ports: Vec<Port<W>>,
    injected: ArrayVec<Taken, INJECTED>,
    /// Where frames that do not fit a chunk are put together: one for each of a batch, or none where all fit.
    rooms: Box<[Box<[u8]>]>,
    /// Rooms that frames of this batch lie in.
    occupied: usize,
    /// The port that the next batch starts with: each has its turn to fill one.
    first: usize,
}

impl<W: Wake> Ports<W> {
    /// Lends every port its share of chunks for receiving. `large` is how many bytes a frame may have that does not fit a
    /// chunk, where there are such frames.
    pub(super) fn new(umem: Umem, ports: Vec<Port<W>>, large: Option<usize>) -> Self {
        let rooms = large.map_or(Vec::new(), |len| vec![vec![0; HEADROOM + len].into_boxed_slice(); BATCH]);
        let rooms = rooms.into_boxed_slice();
        let mut this = Self { umem, ports, injected: ArrayVec::new(), rooms, occupied: 0, first: 0 };
        for port in &mut this.ports {
            port.refill(&mut this.umem);
        }
        this
    }

    /// As [`crate::io::LiveIo::inject`].
    pub(super) fn inject(&mut self, mut fill: impl FnMut(&mut [u8]) -> Option<Arrival>) -> usize {
        let before = self.injected.len();
        while !self.injected.is_full() {
            // How large the frame is, only `fill` knows: where there are large ones, each is taken for one.
            let place = match self.rooms.get_mut(self.occupied) {
                Some(room) => fill_in(room, &mut fill).map(|arrival| (Place::Room, arrival)),
                None => {
                    let Some(mut chunk) = self.umem.take() else { break };
                    match fill_in(self.umem.bytes(&mut chunk), &mut fill) {
                        Some(arrival) => Some((Place::Chunk(chunk), arrival)),
                        None => {
                            self.umem.give_back(chunk);
                            None
                        }
                    }
                }
            };
            let Some((place, arrival)) = place else { break };
            self.occupied += usize::from(matches!(place, Place::Room));
            self.injected.push(Taken { place, offset: HEADROOM, arrival });
        }
        self.injected.len() - before
    }

    /// As [`crate::io::Io::turn`].
    pub(super) fn turn(&mut self, work: impl FnOnce(&mut [Frame<'_>], &mut [Verdict])) -> Turn {
        for port in &mut self.ports {
            port.complete(&mut self.umem);
        }
        let mut taken: ArrayVec<Taken, BATCH> = self.injected.drain(..).collect();
        let mut turn = Turn::default();
        self.receive(&mut taken, &mut turn.lost);
        turn.frames = taken.len() + turn.lost.len();
        if !taken.is_empty() {
            let orders = self.decide(&mut taken, work);
            self.carry_out(taken, orders, &mut turn.lost);
        }
        self.occupied = 0;
        for port in &mut self.ports {
            port.flush(&mut self.umem);
            port.refill(&mut self.umem);
            port.poll();
        }
        debug_assert_eq!(self.umem.balance().held, 0, "between turns no chunk is held");
        turn
    }

    /// Fills the batch up from the RX rings. Another port is first each time. What cannot be taken is `lost`, and counts for the
    /// batch.
    #[inline]
    fn receive(&mut self, taken: &mut ArrayVec<Taken, BATCH>, lost: &mut ArrayVec<DropReason, BATCH>) {
        let count = self.ports.len();
        self.first = if self.first + 1 < count { self.first + 1 } else { 0 };
        for index in (self.first..count).chain(0..self.first) {
            let (Some(port), Ok(id)) = (self.ports.get_mut(index), u8::try_from(index)) else { continue };
            let before = taken.len() + lost.len();
            while taken.len() + lost.len() < BATCH {
                let Some((mut chunk, frame)) = port.receive(&mut self.umem) else { break };
                let (place, offset, len) = if frame.goes_on() {
                    let room = self.rooms.get_mut(self.occupied).and_then(|room| room.get_mut(HEADROOM..));
                    let Some(len) = port.gather(&mut self.umem, (chunk, frame), room.unwrap_or_default())
                    else {
                        lost.push(DropReason::FrameTooLarge);
                        continue;
                    };
                    self.occupied += 1;
                    (Place::Room, HEADROOM, len)
                } else {
                    if let Some(first) = self.umem.bytes(&mut chunk).get(frame.offset) {
                        prefetch(first);
                    }
                    (Place::Chunk(chunk), frame.offset, frame.len as usize)
                };
                taken.push(Taken {
                    place,
                    offset,
                    arrival: Arrival {
                        len,
                        port: PortId(id),
                        checksum: Checksum::Complete,
                        handed_over: false,
                        overdue: false,
                    },
                });
            }
            port.end_receive((taken.len() + lost.len() - before) as u64);
        }
    }

    /// Has `work` decide on the batch, and makes ready what is to be sent.
    #[inline]
    fn decide(
        &mut self,
        taken: &mut ArrayVec<Taken, BATCH>,
        work: impl FnOnce(&mut [Frame<'_>], &mut [Verdict]),
    ) -> ArrayVec<Order, BATCH> {
        let Self { umem, ports, rooms, .. } = self;
        let mut rooms = rooms.iter_mut();
        let mut frames: ArrayVec<Frame<'_>, BATCH> = ArrayVec::new();
        for Taken { place, offset, arrival } in taken {
            let bytes = match place {
                Place::Chunk(chunk) => umem.bytes(chunk),
                Place::Room => rooms.next().map(|room| &mut **room).unwrap_or_default(),
            };
            // Whoever filled `taken` has seen to it that the frame lies there.
            let Some(frame) = arrival.frame(bytes, *offset) else { break };
            frames.push(frame);
        }
        let mut verdicts = [UNDECIDED; BATCH];
        let verdicts = verdicts.get_mut(..frames.len()).unwrap_or_default();
        work(&mut frames, verdicts);
        frames.iter_mut().zip(verdicts).map(|(frame, verdict)| order(ports, frame, *verdict)).collect()
    }

    #[inline]
    fn carry_out(
        &mut self,
        taken: ArrayVec<Taken, BATCH>,
        orders: ArrayVec<Order, BATCH>,
        lost: &mut ArrayVec<DropReason, BATCH>,
    ) {
        let Self { umem, ports, rooms, .. } = self;
        let (mut orders, mut rooms) = (orders.into_iter(), rooms.iter());
        for Taken { place, .. } in taken {
            let order = match orders.next().unwrap_or(Ok(None)) {
                Ok(Some(out)) => match ports.get_mut(out.port.index()) {
                    Some(port) => Ok(Some((port, out))),
                    None => Err(DropReason::NoPort),
                },
                Ok(None) => Ok(None),
                Err(reason) => Err(reason),
            };
            match place {
                Place::Chunk(mut chunk) => {
                    let kept = match order {
                        Ok(Some((port, Outgoing { frame, split: None, .. }))) => port
                            .send(umem, chunk, frame)
                            .map_err(|chunk| (chunk, Some(DropReason::TxRingFull))),
                        Ok(Some((port, Outgoing { frame, split: Some(split), .. }))) => {
                            let sent = send_pieces(port, umem, &mut Whole::Chunk(&mut chunk), frame, split);
                            Err((chunk, sent.err()))
                        }
                        Ok(None) => Err((chunk, None)),
                        Err(reason) => Err((chunk, Some(reason))),
                    };
                    if let Err((chunk, reason)) = kept {
                        umem.give_back(chunk);
                        lost.extend(reason);
                    }
                }
                Place::Room => {
                    let room = rooms.next().map(|room| &**room).unwrap_or_default();
                    let sent = order.and_then(|order| match order {
                        Some((port, Outgoing { frame, split: None, .. })) => spread(port, umem, room, frame),
                        Some((port, Outgoing { frame, split: Some(split), .. })) => {
                            send_pieces(port, umem, &mut Whole::Room(room), frame, split)
                        }
                        None => Ok(()),
                    });
                    lost.extend(sent.err());
                }
            }
        }
    }

    /// Has what still waits in TX rings sent. Returns whether something waits on.
    pub(super) fn push_out(&mut self) -> bool {
        let mut waits = false;
        for port in &mut self.ports {
            port.flush(&mut self.umem);
            waits |= port.has_unsent();
        }
        waits
    }

    pub(super) fn umem(&self) -> &Umem {
        &self.umem
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Port<W>> {
        self.ports.iter()
    }
}

/// Has a frame written to the start of `bytes`, behind the headroom; `None` where there is none, or it has no room.
#[inline]
fn fill_in(bytes: &mut [u8], fill: &mut impl FnMut(&mut [u8]) -> Option<Arrival>) -> Option<Arrival> {
    let room = bytes.get_mut(HEADROOM..).unwrap_or_default();
    let space = room.len();
    fill(room).filter(|arrival| arrival.len <= space)
}

#[inline]
fn order<W>(ports: &[Port<W>], frame: &mut Frame<'_>, verdict: Verdict) -> Order {
    let Some(id) = egress(verdict, frame) else { return Ok(None) };
    let port = ports.get(id.index()).ok_or(DropReason::NoPort)?;
    Ok(Some(Outgoing { port: id, frame: metadata::prepare(frame, port.offload)?, split: frame.split }))
}

/// Where a frame lies that is sent in pieces.
enum Whole<'a> {
    Chunk(&'a mut Held),
    Room(&'a [u8]),
}

impl Whole<'_> {
    fn bytes<'a>(&'a mut self, umem: &'a Umem, frame: Extent) -> &'a [u8] {
        match self {
            Self::Chunk(chunk) => frame.of(umem.bytes(chunk)),
            Self::Room(room) => frame.of(room),
        }
    }
}

/// Sends a frame in pieces, each in a chunk of its own, or nothing where the port has no room for all. The frame stays where
/// it is.
#[cold]
#[inline(never)]
fn send_pieces<W: Wake>(
    port: &mut Port<W>,
    umem: &mut Umem,
    whole: &mut Whole<'_>,
    frame: Extent,
    split: Split,
) -> Result<(), DropReason> {
    // A path may carry more than a chunk does: then the pieces are smaller than they need to be.
    let room = u16::try_from(umem.chunk_size() - PIECE_OFFSET).unwrap_or(u16::MAX);
    let split = Split { mtu: split.mtu.min(room.saturating_sub(split.l3)), ..split };
    let count = Pieces::of(whole.bytes(umem, frame), split)?.count();
    if !u32::try_from(count).is_ok_and(|count| port.has_room(umem, count)) {
        return Err(DropReason::TxRingFull);
    }
    for number in 0..count {
        // With room in the ring there is a chunk: the UMEM has one for each of its entries.
        let mut chunk = umem.take().ok_or(DropReason::TxRingFull)?;
        let pieces = Pieces::of(whole.bytes(umem, frame), split);
        let room = umem.bytes(&mut chunk).get_mut(PIECE_OFFSET..).unwrap_or_default();
        let written = pieces.and_then(|pieces| pieces.write(number, room).ok_or(DropReason::NoHeadroom));
        let len = written.and_then(|len| u32::try_from(len).map_err(|_| DropReason::BadLength));
        let sent = match len {
            Ok(len) => {
                let piece = Extent { offset: PIECE_OFFSET, len, options: 0 };
                port.send(umem, chunk, piece).map_err(|chunk| (chunk, DropReason::TxRingFull))
            }
            Err(reason) => Err((chunk, reason)),
        };
        if let Err((chunk, reason)) = sent {
            umem.give_back(chunk);
            return Err(reason);
        }
    }
    Ok(())
}

/// Sends a frame that lies in none of the chunks, in as many as it takes, or nothing where the port has no room for all.
#[cold]
#[inline(never)]
fn spread<W: Wake>(
    port: &mut Port<W>,
    umem: &mut Umem,
    room: &[u8],
    frame: Extent,
) -> Result<(), DropReason> {
    let step = umem.chunk_size() - PIECE_OFFSET;
    // What the metadata in front of the frame say goes along.
    let (metadata, bytes) =
        frame.offset.checked_sub(PIECE_OFFSET).zip(Some(frame.of(room))).ok_or(DropReason::NoHeadroom)?;
    let metadata = room.get(metadata..frame.offset).unwrap_or_default();
    let count = bytes.len().div_ceil(step);
    if count > CHUNKS_OF_FRAME {
        return Err(DropReason::FrameTooLarge);
    }
    if !u32::try_from(count).is_ok_and(|count| port.has_room(umem, count)) {
        return Err(DropReason::TxRingFull);
    }
    // With room in the ring there are chunks: the UMEM has one for each of its entries. A frame goes whole or not at all.
    let mut chunks: ArrayVec<Held, CHUNKS_OF_FRAME> = (0..count).map_while(|_| umem.take()).collect();
    if chunks.len() < count {
        chunks.into_iter().for_each(|chunk| umem.give_back(chunk));
        return Err(DropReason::TxRingFull);
    }
    let last = count - 1;
    for (number, (mut chunk, part)) in chunks.drain(..).zip(bytes.chunks(step)).enumerate() {
        if let Some((front, behind)) = umem.bytes(&mut chunk).split_at_mut_checked(PIECE_OFFSET) {
            front.copy_from_slice(metadata);
            if let Some(place) = behind.get_mut(..part.len()) {
                place.copy_from_slice(part);
            }
        }
        let first = if number == 0 { frame.options } else { 0 };
        let options = if number == last { first } else { first | libc::XDP_PKT_CONTD };
        let len = u32::try_from(part.len()).map_err(|_| DropReason::BadLength)?;
        let sent = port.send(umem, chunk, Extent { offset: PIECE_OFFSET, len, options });
        if let Err(chunk) = sent {
            debug_assert!(false, "the port had room for all of the frame");
            umem.give_back(chunk);
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "numbers of frames wrap in their first byte")]
#[path = "ports_test.rs"]
mod tests;
