//! The half-open flows of one worker: how many there are, and in which order they came, so that the oldest goes first.
//!
//! A flow is noted where its handshake begins. Where that ends it is only counted off, and its note grows stale: it is
//! thrown away when it comes to the front. So all is done in a few steps a flow, and the front is the oldest flow that is
//! still half-open, but for one case: while more notes are stale than there is room for, the front is put back to the
//! end to get at the stale ones behind it, and counts as new from then on. Where more flows are half-open than there are
//! notes (a bound above a quarter of the table), the oldest are not noted any more and are only found by a search.

use super::entry::Entry;
use super::table::{FlowTable, Reserve, Slot};

/// Flows to one note.
const SHARE: usize = 4;
/// Notes at least.
const LEAST: usize = 64;
/// Notes looked at for each flow that is opened: more than come, so that stale ones do not pile up.
const STEPS: usize = 2;
/// Notes looked at for one flow that may go.
const SEARCH: usize = 64;

/// A flow as it was when its handshake began: its place, and a mark that hardly another flow has at this place.
type Note = (Slot, u32);

/// The half-open flows of a table.
#[derive(Debug)]
pub struct HalfOpen {
    /// A ring whose length is a power of two.
    notes: Vec<Note>,
    head: usize,
    len: usize,
    count: usize,
}

impl HalfOpen {
    /// For a table of `flows` flows: 2 to 4 bytes a flow.
    pub fn new(flows: usize, reserve: &impl Reserve) -> Self {
        let room = (flows / SHARE).next_power_of_two().max(LEAST);
        let mut notes = reserve.reserve(room);
        notes.resize(room, (0, 0));
        Self { notes, head: 0, len: 0, count: 0 }
    }

    /// How many there are.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The flow in `slot` is half-open from now on.
    #[inline]
    pub fn began(&mut self, slot: Slot, entry: &Entry) {
        self.count += 1;
        self.push((slot, entry.mark()));
    }

    /// A flow is half-open no more, whether it goes on or has ended.
    pub fn ended(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    /// The oldest flow in `flows` that is half-open; the next call gives the next one.
    pub fn oldest(&mut self, flows: &FlowTable) -> Option<Slot> {
        (0..SEARCH.min(self.len))
            .find_map(|_| self.pop().filter(|note| holds(*note, flows)))
            .map(|(slot, _)| slot)
    }

    /// Throws stale notes away: called for every flow that is opened.
    #[inline]
    pub fn tidy(&mut self, flows: &FlowTable) {
        if self.front().is_some_and(|front| self.is_crowded() || !holds(front, flows)) {
            self.throw_away(flows);
        }
    }

    #[inline(never)]
    fn throw_away(&mut self, flows: &FlowTable) {
        for _ in 0..STEPS {
            let Some(front) = self.front() else { return };
            if !holds(front, flows) {
                self.pop();
            } else if self.is_crowded() {
                self.pop();
                self.push(front);
            } else {
                return;
            }
        }
    }

    /// Whether there are stale notes, and hardly room for more.
    #[inline]
    fn is_crowded(&self) -> bool {
        self.len > self.count && self.len > self.notes.len() / 8 * 7
    }

    #[inline]
    fn front(&self) -> Option<Note> {
        if self.len == 0 { None } else { self.notes.get(self.head).copied() }
    }

    fn pop(&mut self) -> Option<Note> {
        let front = self.front()?;
        self.head = self.place(1);
        self.len -= 1;
        Some(front)
    }

    #[inline]
    fn push(&mut self, note: Note) {
        let place = self.place(self.len);
        if self.len == self.notes.len() {
            // In the place of the front, whose flow is found by the sweep.
            self.head = self.place(1);
        } else {
            self.len += 1;
        }
        if let Some(free) = self.notes.get_mut(place) {
            *free = note;
        }
    }

    #[inline]
    fn place(&self, offset: usize) -> usize {
        (self.head + offset) & (self.notes.len() - 1)
    }
}

/// Whether the flow of a note is still there and half-open.
#[inline]
fn holds((slot, mark): Note, flows: &FlowTable) -> bool {
    flows.entry(slot).is_some_and(|entry| entry.is_half_open() && entry.mark() == mark)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test numbers are small")]
mod tests {
    use super::*;
    use crate::flow::entry::Tuple;
    use crate::flow::key::{FlowKey, TCP};
    use crate::flow::table::{Heap, NewFlow};
    use crate::flow::tcp::State;
    use crate::ids::{BackendId, ServiceId};
    use crate::snapshot::Mode;
    use crate::time::Tick;

    fn open(flows: &mut FlowTable, half_open: &mut HalfOpen, number: u32) -> Slot {
        let forward = FlowKey { src: number.into(), dst: 1, sport: 9, dport: 80, proto: TCP, v6: false };
        let reply = FlowKey { src: 2, dst: number.into(), sport: 80, dport: 9, ..forward };
        let new = NewFlow {
            tuple: Tuple { forward, reply },
            mode: Mode::Nat,
            service: ServiceId(0),
            backend: BackendId(0),
        };
        half_open.tidy(flows);
        let slot = flows.open(&new, Tick(0)).unwrap();
        flows.entry_mut(slot).unwrap().state = State::SynRecv;
        half_open.began(slot, flows.entry(slot).unwrap());
        slot
    }

    fn complete(flows: &mut FlowTable, half_open: &mut HalfOpen, slot: Slot) {
        flows.entry_mut(slot).unwrap().state = State::Established;
        half_open.ended();
    }

    #[test]
    fn the_oldest_goes_first_and_completed_ones_never() {
        let (mut flows, mut half_open) = (FlowTable::new(1000, 1, &Heap), HalfOpen::new(1000, &Heap));
        let slots: Vec<_> = (0..100).map(|number| open(&mut flows, &mut half_open, number)).collect();
        for slot in slots.iter().step_by(3) {
            complete(&mut flows, &mut half_open, *slot);
        }
        assert_eq!(half_open.count(), 66);
        let want: Vec<_> =
            slots.iter().enumerate().filter(|(n, _)| n % 3 != 0).map(|(_, slot)| *slot).collect();
        let left: Vec<_> = std::iter::from_fn(|| half_open.oldest(&flows)).collect();
        assert_eq!(left, want);
    }

    #[test]
    fn past_its_room_it_knows_the_newest() {
        let (mut flows, mut half_open) = (FlowTable::new(1000, 1, &Heap), HalfOpen::new(1000, &Heap));
        let slots: Vec<_> = (0..300).map(|number| open(&mut flows, &mut half_open, number)).collect();
        assert_eq!(half_open.count(), 300);
        let known: Vec<_> = std::iter::from_fn(|| half_open.oldest(&flows)).collect();
        assert_eq!(known, slots[300 - 256..]);
    }

    #[test]
    fn a_slot_used_again_does_not_make_its_new_flow_old() {
        let (mut flows, mut half_open) = (FlowTable::new(1000, 1, &Heap), HalfOpen::new(1000, &Heap));
        let first = open(&mut flows, &mut half_open, 1);
        let second = open(&mut flows, &mut half_open, 2);
        flows.close(first);
        half_open.ended();
        let third = open(&mut flows, &mut half_open, 3);
        assert_eq!(third, first, "the slot is used again");
        assert_eq!([half_open.oldest(&flows), half_open.oldest(&flows)], [Some(second), Some(third)]);
    }

    #[test]
    fn however_many_handshakes_complete_a_lasting_one_is_found() {
        let (mut flows, mut half_open) = (FlowTable::new(1000, 1, &Heap), HalfOpen::new(1000, &Heap));
        let lasting = open(&mut flows, &mut half_open, 0);
        for number in 1..100_000 {
            let slot = open(&mut flows, &mut half_open, number);
            complete(&mut flows, &mut half_open, slot);
            flows.close(slot);
        }
        assert_eq!((half_open.count(), half_open.oldest(&flows)), (1, Some(lasting)));
    }
}
