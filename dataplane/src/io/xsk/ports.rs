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

/// A frame of the batch in the making.
#[derive(Debug)]
struct Taken {
    chunk: Held,
    offset: usize,
    arrival: Arrival,
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
    /// The port that the next batch starts with: each has its turn to fill one.
    first: usize,
}

impl<W: Wake> Ports<W> {
    /// Lends every port its share of chunks for receiving.
    pub(super) fn new(umem: Umem, ports: Vec<Port<W>>) -> Self {
        let mut this = Self { umem, ports, injected: ArrayVec::new(), first: 0 };
        for port in &mut this.ports {
            port.refill(&mut this.umem);
        }
        this
    }

    /// As [`crate::io::LiveIo::inject`].
    pub(super) fn inject(&mut self, mut fill: impl FnMut(&mut [u8]) -> Option<Arrival>) -> usize {
        let before = self.injected.len();
        while !self.injected.is_full() {
            let Some(mut chunk) = self.umem.take() else { break };
            let room = self.umem.bytes(&mut chunk).get_mut(HEADROOM..).unwrap_or_default();
            let space = room.len();
            match fill(room) {
                Some(arrival) if arrival.len <= space => {
                    self.injected.push(Taken { chunk, offset: HEADROOM, arrival });
                }
                _ => {
                    self.umem.give_back(chunk);
                    break;
                }
            }
        }
        self.injected.len() - before
    }

    /// As [`crate::io::Io::turn`].
    pub(super) fn turn(&mut self, work: impl FnOnce(&mut [Frame<'_>], &mut [Verdict])) -> Turn {
        for port in &mut self.ports {
            port.complete(&mut self.umem);
        }
        let mut taken: ArrayVec<Taken, BATCH> = self.injected.drain(..).collect();
        self.receive(&mut taken);
        let mut turn = Turn { frames: taken.len(), ..Turn::default() };
        if !taken.is_empty() {
            let orders = self.decide(&mut taken, work);
            self.carry_out(taken, orders, &mut turn.lost);
        }
        for port in &mut self.ports {
            port.flush(&mut self.umem);
            port.refill(&mut self.umem);
        }
        debug_assert_eq!(self.umem.balance().held, 0, "between turns no chunk is held");
        turn
    }

    /// Fills the batch up from the RX rings. Another port is first each time.
    #[inline]
    fn receive(&mut self, taken: &mut ArrayVec<Taken, BATCH>) {
        let count = self.ports.len();
        self.first = if self.first + 1 < count { self.first + 1 } else { 0 };
        for index in (self.first..count).chain(0..self.first) {
            let (Some(port), Ok(id)) = (self.ports.get_mut(index), u8::try_from(index)) else { continue };
            let before = taken.len();
            while !taken.is_full() {
                let Some((mut chunk, frame)) = port.receive(&mut self.umem) else { break };
                if let Some(first) = self.umem.bytes(&mut chunk).get(frame.offset) {
                    prefetch(first);
                }
                taken.push(Taken {
                    chunk,
                    offset: frame.offset,
                    arrival: Arrival {
                        len: frame.len as usize,
                        port: PortId(id),
                        checksum: Checksum::Complete,
                        handed_over: false,
                        overdue: false,
                    },
                });
            }
            port.end_receive((taken.len() - before) as u64);
        }
    }

    /// Has `work` decide on the batch, and makes ready what is to be sent.
    #[inline]
    fn decide(
        &self,
        taken: &mut ArrayVec<Taken, BATCH>,
        work: impl FnOnce(&mut [Frame<'_>], &mut [Verdict]),
    ) -> ArrayVec<Order, BATCH> {
        let mut frames: ArrayVec<Frame<'_>, BATCH> = ArrayVec::new();
        for Taken { chunk, offset, arrival } in taken {
            // Whoever filled `taken` has seen to it that the frame lies in its chunk.
            let Some(frame) = arrival.frame(self.umem.bytes(chunk), *offset) else { break };
            frames.push(frame);
        }
        let mut verdicts = [UNDECIDED; BATCH];
        let verdicts = verdicts.get_mut(..frames.len()).unwrap_or_default();
        work(&mut frames, verdicts);
        let orders = frames.iter_mut().zip(verdicts).map(|(frame, verdict)| self.order(frame, *verdict));
        orders.collect()
    }

    #[inline]
    fn order(&self, frame: &mut Frame<'_>, verdict: Verdict) -> Order {
        let Some(id) = egress(verdict, frame) else { return Ok(None) };
        let port = self.ports.get(id.index()).ok_or(DropReason::NoPort)?;
        Ok(Some(Outgoing { port: id, frame: metadata::prepare(frame, port.offload)?, split: frame.split }))
    }

    #[inline]
    fn carry_out(
        &mut self,
        taken: ArrayVec<Taken, BATCH>,
        orders: ArrayVec<Order, BATCH>,
        lost: &mut ArrayVec<DropReason, BATCH>,
    ) {
        let mut orders = orders.into_iter();
        for Taken { mut chunk, .. } in taken {
            let sent = match orders.next().unwrap_or(Ok(None)) {
                Ok(Some(Outgoing { port, frame, split })) => {
                    match (self.ports.get_mut(port.index()), split) {
                        (Some(port), None) => port
                            .send(&mut self.umem, chunk, frame)
                            .map_err(|c| (c, Some(DropReason::TxRingFull))),
                        (Some(port), Some(split)) => {
                            let sent = send_pieces(port, &mut self.umem, &mut chunk, frame, split);
                            Err((chunk, sent.err()))
                        }
                        (None, _) => Err((chunk, Some(DropReason::NoPort))),
                    }
                }
                Ok(None) => Err((chunk, None)),
                Err(reason) => Err((chunk, Some(reason))),
            };
            if let Err((chunk, reason)) = sent {
                self.umem.give_back(chunk);
                lost.extend(reason);
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

/// Sends a frame in pieces, each in a chunk of its own, or nothing where the port has no room for all. The frame's chunk
/// stays with the caller.
#[cold]
#[inline(never)]
fn send_pieces<W: Wake>(
    port: &mut Port<W>,
    umem: &mut Umem,
    whole: &mut Held,
    frame: Extent,
    split: Split,
) -> Result<(), DropReason> {
    let end = frame.offset + frame.len as usize;
    let range = frame.offset..end;
    let count = Pieces::of(umem.bytes(whole).get(range.clone()).unwrap_or_default(), split)?.count();
    if !u32::try_from(count).is_ok_and(|count| port.has_room(umem, count)) {
        return Err(DropReason::TxRingFull);
    }
    for number in 0..count {
        // With room in the ring there is a chunk: the UMEM has one for each of its entries.
        let mut chunk = umem.take().ok_or(DropReason::TxRingFull)?;
        let pieces = Pieces::of(umem.bytes(whole).get(range.clone()).unwrap_or_default(), split);
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

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "numbers of frames wrap in their first byte")]
#[path = "ports_test.rs"]
mod tests;
