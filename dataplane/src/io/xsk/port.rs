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
    /// Options of a TX descriptor.
    pub(super) options: u32,
}

impl<W: Wake> Port<W> {
    pub(super) fn new(rings: Rings, wake: W, offload: bool, counters: Arc<PortCounters>) -> Self {
        Self { rings, wake, receiving: 0, sending: 0, unannounced: false, offload, counters }
    }

    /// Takes the next received frame.
    #[inline]
    pub(super) fn receive(&mut self, umem: &mut Umem) -> Option<(Held, Extent)> {
        loop {
            let descriptor = self.rings.rx.pop()?;
            let Some((chunk, offset)) = umem.reclaim(descriptor.addr) else {
                self.counters.bad_descriptors.add(1);
                continue;
            };
            self.receiving = self.receiving.saturating_sub(1);
            if offset + descriptor.len as usize > umem.chunk_size() {
                self.counters.bad_descriptors.add(1);
                umem.give_back(chunk);
                continue;
            }
            return Some((chunk, Extent { offset, len: descriptor.len, options: 0 }));
        }
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
        if self.sending != 0 && self.rings.tx.needs_wakeup() {
            self.kick(umem);
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
            self.counters.tx.add(u64::from(count));
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
        if self.rings.fill.needs_wakeup() {
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
