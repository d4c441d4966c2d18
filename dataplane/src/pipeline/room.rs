//! How room is made for a new flow, and which flows have to go for it.
//!
//! Established flows never do. First go those whose time is up, then half-open ones, the oldest first, then those of
//! which only a single datagram was ever seen.

use super::Core;
use crate::flow::table::Slot;
use crate::snapshot::Settings;
use crate::time::Tick;
use crate::verdict::DropReason;

/// Slots looked at for a flow whose time is up, before one that lives has to go.
const FEW: u32 = 8;
/// Slots looked at for any flow that may go, when no half-open one is known.
const MANY: u32 = 64;
/// Half-open flows that go for one that comes: more than one, so that a lower bound is reached in time.
const GO: usize = 2;
/// Of the table, the part that may be half-open where no bound is set.
const SHARE: usize = 4;

impl Core {
    /// Half-open flows that this worker may have.
    pub(super) fn half_open_bound(&self, settings: &Settings) -> usize {
        match settings.half_open {
            0 => (self.flows.capacity() / SHARE).max(1),
            bound => usize::try_from(bound).unwrap_or(usize::MAX),
        }
    }

    /// Keeps the half-open flows within their bound when one more comes.
    pub(super) fn bound_half_open(&mut self, settings: &Settings) -> Result<(), DropReason> {
        self.half_open.tidy(&self.flows);
        let bound = self.half_open_bound(settings);
        for gone in 0..GO {
            if self.half_open.count() < bound {
                break;
            }
            if !self.evict_half_open() && gone == 0 {
                return Err(DropReason::FlowTableFull);
            }
        }
        Ok(())
    }

    /// Makes room for one flow in a full table. False where nothing may go.
    pub(super) fn make_room(&mut self, now: Tick) -> bool {
        self.end_one(FEW, now, false) || self.evict_half_open() || self.end_one(MANY, now, true)
    }

    fn evict_half_open(&mut self) -> bool {
        let oldest = self.half_open.oldest(&self.flows);
        if let Some(slot) = oldest {
            self.setup.stats.flows_evicted.add(1);
            self.kill(slot);
        }
        oldest.is_some()
    }

    /// Ends one among the next few slots: a flow whose time is up, or with `live` any that may go.
    fn end_one(&mut self, slots: u32, now: Tick, live: bool) -> bool {
        (0..slots).any(|_| {
            let slot = self.sweep.turn_hand(self.flows.high_water());
            self.end_if_due(slot, now) || live && self.end_if_light(slot)
        })
    }

    fn end_if_due(&mut self, slot: Slot, now: Tick) -> bool {
        let is_due = self.flows.entry(slot).is_some_and(|entry| entry.expires.is_due(now));
        if is_due {
            self.expire(slot);
        }
        is_due
    }

    fn end_if_light(&mut self, slot: Slot) -> bool {
        let is_light =
            self.flows.entry(slot).is_some_and(|entry| entry.is_half_open() || entry.is_unassured());
        if is_light {
            self.setup.stats.flows_evicted.add(1);
            self.kill(slot);
        }
        is_light
    }
}
