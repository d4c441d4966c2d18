//! SNAT ports whose replies arrive on the worker's own queue, and whether they do.

use super::Core;
use crate::flow::key;
use crate::flow::suited::Suited;
use crate::frame::Frame;
use crate::ids::PoolId;
use crate::packet::{self, Kind};
use crate::snapshot::steering::Class;
use crate::snapshot::{Backend, Snapshot};

/// Of so many batches a frame of one is looked at.
const SAMPLED: u64 = 8;

impl Core {
    /// The addresses and ports of a pool that replies from this backend and port come back to on this worker's queue. `None`
    /// where that is not known: where cards do not say, and where they differ and the source is a backend with several ways,
    /// or one that no flow has found the way to yet.
    #[inline]
    pub(super) fn suited<'t>(
        &self,
        pool: PoolId,
        backend: &Backend,
        port: u16,
        proto: u8,
        tables: &'t Snapshot,
    ) -> Option<Suited<'t>> {
        let steering = tables.steering.as_deref()?;
        let (addr, v6) = key::bits(backend.addr);
        // What goes there comes from there, unless routes are different for each direction: then it is handed over.
        let hop = self.ways.to_backend(backend.id, addr, v6).and_then(|hop| tables.net.hop(hop));
        let by = hop.map(|hop| hop.port);
        steering.suited(by, pool, self.setup.worker, Class::of(proto, v6)?, (addr, v6, port))
    }

    /// Looks at a frame of some batches: whether it came on the queue that its card's key and table say.
    #[inline]
    pub(super) fn check_steering(&mut self, frames: &[Frame<'_>], tables: &Snapshot) {
        if tables.steering.is_some() {
            self.batches = self.batches.wrapping_add(1);
            if self.batches.is_multiple_of(SAMPLED) {
                self.sample(frames, tables);
            }
        }
    }

    #[cold]
    fn sample(&self, frames: &[Frame<'_>], tables: &Snapshot) {
        let place = self.batches / SAMPLED % (frames.len() as u64).max(1);
        let frame = usize::try_from(place).ok().and_then(|place| frames.get(place));
        let Some(frame) = frame.filter(|frame| !frame.handed_over) else { return };
        let Ok(packet) = packet::parse(frame.bytes()) else { return };
        let queue = tables.steering.as_ref().and_then(|steering| steering.queue(frame.port, &packet.key));
        if let Some((class, queue)) = queue.filter(|_| packet.kind == Kind::Transport) {
            // A worker serves the queue of its own number.
            self.setup.stats.arrived(frame.port, class, queue == u16::from(self.setup.worker.0));
        }
    }
}
