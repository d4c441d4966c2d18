//! One port of a worker: the four rings of one socket, and the account of the chunks that are in them.
//!
//! A port has at most as many chunks out for receiving as its fill ring has entries, and as many for sending as its
//! TX ring has. The UMEM holds that many for every port and a batch besides, so no port can starve another.

use std::io;
use std::sync::Arc;

use super::ring::{Consumer, Producer};
use super::umem::{Held, Umem};
use crate::frame;
use crate::io::PortCounters;

/// Frames in a batch at most.
#[expect(clippy::cast_possible_truncation, reason = "64")]
pub(super) const BATCH: u32 = frame::BATCH as u32;

/// The calls that make the other end look at the rings.
pub(super) trait Wake {
    /// Has it send what is in the TX ring.
    fn tx(&self) -> io::Result<()>;
    /// Has it take what is in the fill ring.
    fn rx(&self);
    /// Whether the other end works only while it is called, and then does all: it takes what is in the TX and fill rings,
    /// completes, and receives a batch at most. [`Port::poll`] calls it then, and whether it asks for wakeups does not matter.
    fn is_polled(&self) -> bool;
}

/// The rings of a socket, seen from Weir. TX and completion ring have the same size.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) rx: Consumer<libc::xdp_desc>,
    pub(super) tx: Producer<libc::xdp_desc>,
    pub(super) fill: Producer<u64>,
    pub(super) completion: Consumer<u64>,
}

#[derive(Debug)]
pub(super) struct Port<W> {
    rings: Rings,
    wake: W,
    /// Chunks in the fill ring, the RX ring or the driver's hands for receiving.
    receiving: u32,
    /// Chunks in the TX ring, the completion ring or the driver's hands for sending.
    sending: u32,
    /// Chunks among these after which their frame goes on: they do not count as frames.
    continued: u32,
    /// Whether the TX ring has entries that the other end was not told of.
    unannounced: bool,
    /// Whether a descriptor may ask for a checksum ([`super::metadata`]).
    pub(super) offload: bool,
    counters: Arc<PortCounters>,
}

/// A frame in a chunk, as a descriptor has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// First byte of the frame in its chunk.
    pub(super) offset: usize,
    /// Its length in bytes.
    pub(super) len: u32,
    /// Options of its descriptor.
    pub(super) options: u32,
}

impl Extent {
    /// Whether the frame goes on in the chunk of the next descriptor.
    #[inline]
    pub(super) fn goes_on(self) -> bool {
        goes_on(self.options)
    }

    /// Its bytes in their chunk.
    pub(super) fn of(self, chunk: &[u8]) -> &[u8] {
        chunk.get(self.offset..self.offset + self.len as usize).unwrap_or_default()
    }
}

#[inline]
fn goes_on(options: u32) -> bool {
    options & libc::XDP_PKT_CONTD != 0
}

impl<W: Wake> Port<W> {
    /// Over rings of whose chunks `receiving` are out for that already.
    pub(super) fn new(
        rings: Rings,
        wake: W,
        receiving: u32,
        offload: bool,
        counters: Arc<PortCounters>,
    ) -> Self {
        Self { rings, wake, receiving, sending: 0, continued: 0, unannounced: false, offload, counters }
    }

    /// Takes the next received frame, or the first of its chunks where it [goes on](Extent::goes_on): then
    /// [`Self::gather`] has to follow.
    #[inline]
    pub(super) fn receive(&mut self, umem: &mut Umem) -> Option<(Held, Extent)> {
        loop {
            match self.next_chunk(umem)? {
                Ok(received) => return Some(received),
                Err(options) if goes_on(options) => _ = self.rest(umem, |_| false),
                Err(_) => {}
            }
        }
    }

    /// Copies a frame of several chunks together, to the start of `room`; the first of them is `first`, which it gives back.
    /// `None`, and nothing is left of the frame, where `room` is too small or a descriptor makes no sense.
    #[cold]
    pub(super) fn gather(
        &mut self,
        umem: &mut Umem,
        first: (Held, Extent),
        room: &mut [u8],
    ) -> Option<usize> {
        let mut len = 0;
        let mut append = |part: &[u8]| {
            let place = room.get_mut(len..len + part.len());
            len += part.len();
            place.map(|place| place.copy_from_slice(part)).is_some()
        };
        let (mut chunk, extent) = first;
        let begun = append(extent.of(umem.bytes(&mut chunk)));
        umem.give_back(chunk);
        // Asked for in any case: it takes what is left of the frame.
        let ended = self.rest(umem, append);
        (begun && ended).then_some(len)
    }

    /// Takes the chunks up to the end of a frame, and hands `take` the bytes of each. Returns whether all were there and taken.
    #[cold]
    fn rest(&mut self, umem: &mut Umem, mut take: impl FnMut(&[u8]) -> bool) -> bool {
        let mut whole = true;
        loop {
            let options = match self.next_chunk(umem) {
                Some(Ok((mut chunk, extent))) => {
                    whole &= take(extent.of(umem.bytes(&mut chunk)));
                    umem.give_back(chunk);
                    extent.options
                }
                Some(Err(options)) => {
                    whole = false;
                    options
                }
                // The kernel publishes whole frames.
                None => {
                    self.counters.bad_descriptors.add(1);
                    return false;
                }
            };
            if !goes_on(options) {
                return whole;
            }
        }
    }

    /// Takes the next received chunk; the options of its descriptor where that makes no sense.
    #[inline]
    fn next_chunk(&mut self, umem: &mut Umem) -> Option<Result<(Held, Extent), u32>> {
        let descriptor = self.rings.rx.pop()?;
        let libc::xdp_desc { addr, len, options } = descriptor;
        let Some((chunk, offset)) = umem.reclaim(addr) else {
            self.counters.bad_descriptors.add(1);
            return Some(Err(options));
        };
        self.receiving = self.receiving.saturating_sub(1);
        if offset + len as usize > umem.chunk_size() {
            self.counters.bad_descriptors.add(1);
            umem.give_back(chunk);
            return Some(Err(options));
        }
        Some(Ok((chunk, Extent { offset, len, options })))
    }

    /// Ends a run of [`Self::receive`]: the entries that were read are the other end's again.
    #[inline]
    pub(super) fn end_receive(&mut self, frames: u64) {
        if frames != 0 {
            self.rings.rx.release();
            self.counters.rx.add(frames);
        }
    }

    /// Writes a TX descriptor for the frame in `chunk`, to be sent by [`Self::flush`]. Gives the chunk back where the
    /// ring is full, after it has tried to make room.
    #[inline]
    pub(super) fn send(&mut self, umem: &mut Umem, chunk: Held, frame: Extent) -> Result<(), Held> {
        if self.sending >= self.rings.tx.size() && !self.make_room(umem) {
            return Err(chunk);
        }
        let addr = umem.lend(chunk, frame.offset);
        // `sending` counts every entry that is not completed, so there is room for this one.
        let pushed = self.rings.tx.push(libc::xdp_desc { addr, len: frame.len, options: frame.options });
        debug_assert!(pushed, "the TX ring holds fewer entries than are being sent");
        self.sending += 1;
        self.continued += u32::from(frame.goes_on());
        self.unannounced = true;
        Ok(())
    }

    /// Whether so many frames can be sent, after it has tried to make room.
    pub(super) fn has_room(&mut self, umem: &mut Umem, frames: u32) -> bool {
        let size = self.rings.tx.size();
        if size - self.sending < frames {
            self.make_room(umem);
        }
        size - self.sending >= frames
    }

    #[cold]
    fn make_room(&mut self, umem: &mut Umem) -> bool {
        self.flush(umem);
        if self.wake.is_polled() {
            // Also where all was taken: a poll completes.
            self.wake.rx();
        }
        self.complete(umem);
        self.sending < self.rings.tx.size()
    }

    /// Publishes the TX descriptors written so far and has them sent. What does not go now goes with a later call.
    #[inline]
    pub(super) fn flush(&mut self, umem: &mut Umem) {
        if self.unannounced {
            self.rings.tx.publish();
            self.unannounced = false;
        }
        if self.sending != 0 && self.rings.tx.needs_wakeup() && !self.wake.is_polled() {
            self.kick(umem);
        }
    }

    /// Ends a turn where the queue is [polled](Wake::is_polled): what was published is sent, and what has come is received, if
    /// nothing waits from before.
    #[inline]
    pub(super) fn poll(&mut self) {
        if self.wake.is_polled() && (self.rings.rx.is_drained() || self.has_unsent()) {
            self.wake.rx();
        }
    }

    /// In copy mode a call sends a bounded number of frames (32, unless the budget could be raised) and then says
    /// EAGAIN, so it is repeated for as long as it gets on.
    fn kick(&mut self, umem: &mut Umem) {
        let mut left = self.rings.tx.untaken();
        while left != 0 {
            let result = self.wake.tx();
            let untaken = self.rings.tx.untaken();
            if let Err(error) = result {
                self.complete(umem);
                // The interface is down, or its queue is full: the frames wait in the ring.
                if untaken >= left || !is_passing(&error) {
                    self.counters.failed_wakeups.add(1);
                    return;
                }
            } else if untaken >= left {
                return; // zero-copy: the driver takes them in its own time
            }
            left = untaken;
        }
    }

    /// Frees the chunks of frames that have been sent.
    #[inline]
    pub(super) fn complete(&mut self, umem: &mut Umem) {
        if self.sending == 0 {
            return;
        }
        let mut count = 0;
        while let Some(address) = self.rings.completion.pop() {
            let Some((chunk, _)) = umem.reclaim(address) else {
                self.counters.bad_descriptors.add(1);
                continue;
            };
            umem.give_back(chunk);
            count += 1;
        }
        if count != 0 {
            self.rings.completion.release();
            self.sending = self.sending.saturating_sub(count);
            let continued = self.continued.min(count);
            self.continued -= continued;
            self.counters.tx.add(u64::from(count - continued));
        }
    }

    /// Lends free chunks for receiving, once a batch's worth of them is missing.
    #[inline]
    pub(super) fn refill(&mut self, umem: &mut Umem) {
        let share = self.rings.fill.size();
        let worthwhile = BATCH.min(share / 2);
        if share - self.receiving < worthwhile {
            return;
        }
        while self.receiving < share {
            let Some(chunk) = umem.take() else { break };
            // `receiving` counts every chunk in the fill ring, so there is room for this one.
            let pushed = self.rings.fill.push(umem.lend(chunk, 0));
            debug_assert!(pushed, "the fill ring holds fewer entries than are out for receiving");
            self.receiving += 1;
        }
        self.rings.fill.publish();
        if self.rings.fill.needs_wakeup() && !self.wake.is_polled() {
            self.wake.rx();
        }
    }

    /// Whether frames wait in the TX ring that the other end has not taken.
    pub(super) fn has_unsent(&mut self) -> bool {
        self.sending != 0 && self.rings.tx.untaken() != 0
    }

    /// Chunks out for receiving and for sending.
    pub(super) fn lent(&self) -> usize {
        self.receiving as usize + self.sending as usize
    }
}

/// Whether a wakeup failed for a reason that passes by itself.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR))
}
