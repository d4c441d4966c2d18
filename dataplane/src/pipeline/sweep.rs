//! How flows end: by their timeout, in a sweep of the whole table.

use super::{Core, Engine};
use crate::flow::fragments;
use crate::flow::table::Slot;
use crate::ids::BackendId;
use crate::snapshot::Snapshot;
use crate::state::BackendState;
use crate::time::{TICKS_PER_SECOND, Tick};

/// Seconds in which the sweep passes over the whole table.
const ROUND_S: u32 = 10;

/// Slots looked at in one call: some microseconds, so that a sweep never delays a batch much.
const SLOTS_A_TURN: u32 = 256;

/// Buckets of the fragment table looked at in one call.
const BUCKETS_A_TURN: usize = 64;

/// Where the sweep is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    now: Tick,
    next: Slot,
    due: u32,
    hand: Slot,
    /// Buckets of the fragment table to be looked at.
    buckets_due: usize,
    /// The tables for which all flows were looked at last.
    generation: u64,
}

impl Progress {
    /// The time of the present turn.
    pub(super) fn now(&self) -> Tick {
        self.now
    }

    /// The next slot below `high` to be looked at for one that may go.
    pub(super) fn turn_hand(&mut self, high: Slot) -> Slot {
        let slot = if self.hand < high { self.hand } else { 0 };
        self.hand = slot + 1;
        slot
    }
}

impl Engine {
    /// Forgets flows whose time is up: a bounded sweep, called once a turn before [`Self::process`], whether there
    /// were frames or not. Returns whether it is behind and wants to be called again soon: a worker with nothing
    /// else to do goes on instead of sleeping.
    pub fn sweep(&mut self, now: Tick, tables: &Snapshot) -> bool {
        self.core.defend(now, tables);
        self.core.sweep(now, tables)
    }
}

impl Core {
    fn sweep(&mut self, now: Tick, tables: &Snapshot) -> bool {
        let high = self.flows.high_water();
        let elapsed = now.0.wrapping_sub(self.sweep.now.0).min(ROUND_S * TICKS_PER_SECOND);
        self.sweep_fragments(now, elapsed);
        self.sweep.now = now;
        let owed = (u64::from(high) * u64::from(elapsed)).div_ceil(u64::from(ROUND_S * TICKS_PER_SECOND));
        self.sweep.due = high.min(self.sweep.due.saturating_add(u32::try_from(owed).unwrap_or(u32::MAX)));
        let ends_removed = tables.settings.expire_nodest_conn;
        if ends_removed && self.sweep.generation != tables.generation {
            // Flows of backends that are gone end now, as by the kernel's `expire_nodest_conn_flush`.
            self.sweep.generation = tables.generation;
            self.sweep.due = high;
        }
        let count = self.sweep.due.min(SLOTS_A_TURN);
        self.sweep.due -= count;
        for _ in 0..count {
            let slot = if self.sweep.next < high { self.sweep.next } else { 0 };
            self.sweep.next = slot + 1;
            let Some(entry) = self.flows.entry(slot) else { continue };
            if entry.expires.is_due(now) {
                self.expire(slot);
            } else if self.is_drained(entry.backend, now) {
                self.setup.stats.flows_drained.add(1);
                self.close(slot);
            } else if ends_removed && tables.services.backend(entry.backend).is_none() {
                self.kill(slot);
            }
        }
        self.sweep_templates(now);
        self.sweep.due > 0 || self.sweep.buckets_due > 0
    }

    /// The same for packets whose fragments have long come, in a round of the time that they live.
    fn sweep_fragments(&mut self, now: Tick, elapsed: u32) {
        const ROUND: u32 = fragments::LIFE_S * TICKS_PER_SECOND;
        let buckets = self.fragments.buckets();
        let owed = (buckets * elapsed.min(ROUND) as usize).div_ceil(ROUND as usize);
        self.sweep.buckets_due = buckets.min(self.sweep.buckets_due.saturating_add(owed));
        let count = self.sweep.buckets_due.min(BUCKETS_A_TURN);
        self.sweep.buckets_due -= count;
        for _ in 0..count {
            self.forget_fragments(now);
        }
    }

    /// Whether the time that a drained backend's flows were given is over.
    fn is_drained(&self, backend: BackendId, now: Tick) -> bool {
        let ends = self.setup.state.backend(backend).and_then(BackendState::ends);
        ends.is_some_and(|ends| ends.is_due(now))
    }

    /// Ends a flow whose time is up.
    pub(super) fn expire(&mut self, slot: Slot) {
        self.setup.stats.flows_expired.add(1);
        self.close(slot);
    }

    /// Ends a flow: out of the table, the directory and its backend's counts.
    pub(super) fn close(&mut self, slot: Slot) {
        let Some(entry) = self.flows.entry(slot) else { return };
        let is_known = |hash, key| self.flows.lookup(hash, key).is_some_and(|hit| hit.slot() == slot);
        let tuple = self.flows.tuple(entry);
        if self.setup.workers > 1 && is_known(self.flows.hash(&tuple.forward), &tuple.forward) {
            self.setup.directory.withdraw(self.flows.hash(&tuple.forward), self.setup.worker);
            if entry.mode().has_replies() {
                self.setup.directory.withdraw(self.flows.hash(&tuple.reply), self.setup.worker);
            }
        }
        self.forget(slot);
    }

    /// The part of [`Self::close`] for a flow that no other worker knows of.
    pub(super) fn forget(&mut self, slot: Slot) {
        let Some(entry) = self.flows.entry(slot) else { return };
        if entry.is_half_open() {
            self.half_open.ended();
            self.setup.stats.half_open.set(self.half_open.count() as u64);
        }
        if let Some(counts) = self.setup.state.backend(entry.backend) {
            counts.closed(entry.is_active());
        }
        self.templates.release(self.template(slot));
        self.flows.close(slot);
    }

    /// Ends a flow before its time, and its client's template with it unless other flows hold that, or one was
    /// established (`ip_vs_conn_expire`).
    pub(super) fn kill(&mut self, slot: Slot) {
        let template = self.template(slot);
        self.close(slot);
        if self.templates.is_idle(template) {
            self.close_template(template);
        }
    }
}
