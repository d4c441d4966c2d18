//! How flows end: by their timeout, or to make room.

use super::{Core, Engine};
use crate::flow::table::Slot;
use crate::flow::tcp;
use crate::time::{TICKS_PER_SECOND, Tick};

/// Seconds in which the sweep passes over the whole table.
const ROUND_S: u32 = 10;

/// Slots looked at in one call: some microseconds, so that a sweep never delays a batch much.
const SLOTS_A_TURN: u32 = 256;

/// Slots looked at for one that may go when the table is full.
const EVICTION_SLOTS: u32 = 64;

/// Where the sweep is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    now: Tick,
    next: Slot,
    due: u32,
    hand: Slot,
}

impl Progress {
    /// The time of the present turn.
    pub(super) fn now(&self) -> Tick {
        self.now
    }
}

impl Engine {
    /// Forgets flows whose time is up: a bounded sweep, called once a turn before [`Self::process`], whether there
    /// were frames or not. Returns whether it is behind and wants to be called again soon: a worker with nothing
    /// else to do goes on instead of sleeping.
    pub fn sweep(&mut self, now: Tick) -> bool {
        self.core.sweep(now)
    }
}

impl Core {
    fn sweep(&mut self, now: Tick) -> bool {
        let high = self.flows.high_water();
        let elapsed = now.0.wrapping_sub(self.sweep.now.0).min(ROUND_S * TICKS_PER_SECOND);
        self.sweep.now = now;
        let owed = (u64::from(high) * u64::from(elapsed)).div_ceil(u64::from(ROUND_S * TICKS_PER_SECOND));
        self.sweep.due = high.min(self.sweep.due.saturating_add(u32::try_from(owed).unwrap_or(u32::MAX)));
        let count = self.sweep.due.min(SLOTS_A_TURN);
        self.sweep.due -= count;
        for _ in 0..count {
            let slot = if self.sweep.next < high { self.sweep.next } else { 0 };
            self.sweep.next = slot + 1;
            if self.flows.entry(slot).is_some_and(|entry| entry.expires.is_due(now)) {
                self.expire(slot);
            }
        }
        self.sweep.due > 0
    }

    /// Ends a flow whose time is up.
    pub(super) fn expire(&mut self, slot: Slot) {
        self.setup.stats.flows_expired.add(1);
        self.close(slot);
    }

    /// Ends a flow: out of the table, the directory and its backend's counts.
    pub(super) fn close(&mut self, slot: Slot) {
        let Some(entry) = self.flows.entry(slot) else { return };
        if let Some(counts) = self.setup.state.backend(entry.backend) {
            counts.closed(entry.is_active());
        }
        if self.setup.workers > 1 {
            let tuple = self.flows.tuple(entry);
            self.setup.directory.withdraw(self.flows.hash(&tuple.forward), self.setup.worker);
            if entry.mode().has_replies() {
                self.setup.directory.withdraw(self.flows.hash(&tuple.reply), self.setup.worker);
            }
        }
        self.flows.close(slot);
    }

    /// Makes room for one flow: ends an expired or a half-open one among the next few. False where there is none.
    pub(super) fn evict(&mut self, now: Tick) -> bool {
        let high = self.flows.high_water();
        for _ in 0..EVICTION_SLOTS {
            let slot = if self.sweep.hand < high { self.sweep.hand } else { 0 };
            self.sweep.hand = slot + 1;
            let Some(entry) = self.flows.entry(slot) else { continue };
            let half_open = matches!(entry.state, tcp::State::SynRecv | tcp::State::SynSent);
            if entry.expires.is_due(now) {
                self.expire(slot);
                return true;
            }
            if half_open {
                self.setup.stats.flows_evicted.add(1);
                self.close(slot);
                return true;
            }
        }
        false
    }
}
