//! Frames that cannot be decided on yet, kept for a moment: those whose neighbour is being asked for, as the kernel keeps
//! its own (`arp_queue`), later fragments that came before the first one of their packet, and segments of clients whose
//! backend has not answered Weir's own SYN.
//!
//! A frame goes back to the engine whenever there may be news for it: new tables, other fragments, of which other workers
//! tell nothing, so that there they are tried from time to time, or answers of backends. After its patience a
//! frame without a neighbour is given up; any other goes back a last time ([`Frame::overdue`]), for the engine to
//! decide on it. Where there is no room the oldest of its kind makes some: its sender is the likeliest to have sent again,
//! and neither one dead neighbour nor a flood of fragments locks the others out.
//!
//! But for fragments, a frame comes back as one that was handed over. What waited belongs to a flow of this worker, or the
//! engine would not have had it wait; should the flow end in the meantime, this worker decides about the frame
//! anew. A fragment comes back as it came.
//!
//! All memory is taken at the start.

use std::time::Duration;

use arrayvec::ArrayVec;

use crate::frame::{BATCH, Frame};
use crate::io::Arrival;
use crate::verdict::DropReason;

/// Frames without a neighbour kept at most, and fragments.
const CAPACITY: usize = 64;
/// Clients' segments kept at most: each is there for as long as a backend is away, once a connection.
const BACKEND_CAPACITY: usize = 256;
/// Frames kept at most.
const TOTAL: usize = 2 * CAPACITY + BACKEND_CAPACITY;

/// How long a frame without a neighbour is kept at most, nanoseconds: TCP sends a SYN again after a second (RFC 6298,
/// section 2.1).
const PATIENCE_NS: u64 = 1_000_000_000;

/// How long a fragment is kept at most, nanoseconds: paths reorder what was sent together by less.
const FRAGMENT_PATIENCE_NS: u64 = 100_000_000;

/// How long a client's segment is kept at most whose backend has not answered, nanoseconds: it then becomes another SYN,
/// which is due after a second.
const BACKEND_PATIENCE_NS: u64 = 1_100_000_000;

/// How often fragments are tried whose first one may have reached another worker, nanoseconds.
const LOOK_EVERY_NS: u64 = 2_000_000;

/// What a frame waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// The MAC address of its next hop.
    Neighbour,
    /// The first fragment of its packet.
    FirstFragment,
    /// The answer of its backend.
    Backend,
}

impl For {
    /// How many frames may wait for it.
    fn capacity(self) -> usize {
        if self == Self::Backend { BACKEND_CAPACITY } else { CAPACITY }
    }

    /// Why a frame is dropped that has waited in vain.
    pub(super) fn reason(self) -> DropReason {
        match self {
            Self::Neighbour => DropReason::NoNeighbour,
            Self::FirstFragment => DropReason::FragmentUnmatched,
            Self::Backend => DropReason::BackendSilent,
        }
    }
}

/// A frame that waits.
#[derive(Debug)]
struct Kept {
    bytes: Box<[u8]>,
    arrival: Arrival,
    waits: For,
    until_ns: u64,
    /// Whether it is to be tried again.
    due: bool,
}

/// The frames of one worker that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    kept: ArrayVec<Kept, TOTAL>,
    /// The tables that frames without a neighbour were tried with.
    generation: u64,
    /// The number of first fragments that later ones were tried after.
    first_fragments: u64,
    /// The number of answers of backends that clients' segments were tried after.
    answers: u64,
    /// When later fragments were tried last. `None` with one worker: all that there are come here.
    looked_ns: Option<u64>,
    /// What the frames of this turn waited for, and until when they may, that waited before: the first ones of its batch.
    back: ArrayVec<(For, u64), BATCH>,
    free: ArrayVec<Box<[u8]>, TOTAL>,
    /// Bytes that each of them holds.
    frame_len: usize,
}

/// A frame was given up: the one that was to be kept, or another for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenUp;

impl Waiting {
    /// Room for frames of at most `frame_len` bytes, of one of so many workers.
    pub(super) fn new(frame_len: usize, workers: usize) -> Self {
        Self {
            kept: ArrayVec::new(),
            generation: 0,
            first_fragments: 0,
            answers: 0,
            looked_ns: (workers > 1).then_some(0),
            back: ArrayVec::new(),
            free: (0..TOTAL).map(|_| vec![0; frame_len].into_boxed_slice()).collect(),
            frame_len,
        }
    }

    /// A turn begins, with the tables of this generation and after so many first fragments and backends' answers. Returns how many frames have
    /// waited too long for a neighbour.
    #[inline]
    pub(super) fn begin(
        &mut self,
        generation: u64,
        (first_fragments, answers): (u64, u64),
        now_ns: u64,
    ) -> u64 {
        self.back.clear();
        if self.kept.is_empty() {
            (self.generation, self.first_fragments, self.answers) = (generation, first_fragments, answers);
            return 0;
        }
        self.begin_with_frames(generation, (first_fragments, answers), now_ns)
    }

    #[cold]
    fn begin_with_frames(
        &mut self,
        generation: u64,
        (first_fragments, answers): (u64, u64),
        now_ns: u64,
    ) -> u64 {
        let mut given_up = 0;
        let late = |kept: &Kept| kept.waits == For::Neighbour && kept.until_ns <= now_ns;
        while let Some(position) = self.kept.iter().position(late) {
            self.remove(position);
            given_up += 1;
        }
        let is_time =
            self.looked_ns.is_some_and(|looked_ns| looked_ns.saturating_add(LOOK_EVERY_NS) <= now_ns);
        if is_time {
            self.looked_ns = Some(now_ns);
        }
        let answers_are_new = self.answers != answers;
        let tables_are_new = self.generation != generation;
        let fragments_are_new = self.first_fragments != first_fragments || is_time;
        (self.generation, self.first_fragments, self.answers) = (generation, first_fragments, answers);
        for kept in &mut self.kept {
            kept.due |= match kept.waits {
                For::Neighbour => tables_are_new,
                For::FirstFragment => fragments_are_new || kept.until_ns <= now_ns,
                For::Backend => answers_are_new || kept.until_ns <= now_ns,
            };
            kept.arrival.overdue = kept.waits != For::Neighbour && kept.until_ns <= now_ns;
        }
        given_up
    }

    /// Copies the next frame that is to be tried again to the start of `room`; `None` where there is none. One that is
    /// larger than `room` ends there: `too_large` is called with what it waited for.
    #[inline]
    pub(super) fn retry(&mut self, room: &mut [u8], too_large: impl FnMut(For)) -> Option<Arrival> {
        if self.kept.is_empty() { None } else { self.retry_next(room, too_large) }
    }

    #[cold]
    fn retry_next(&mut self, room: &mut [u8], mut too_large: impl FnMut(For)) -> Option<Arrival> {
        while let Some(position) = self.kept.iter().position(|kept| kept.due) {
            let next = self.kept.get(position)?;
            let (arrival, waits, until_ns) = (next.arrival, next.waits, next.until_ns);
            let fits = match (room.get_mut(..arrival.len), next.bytes.get(..arrival.len)) {
                (Some(room), Some(bytes)) => {
                    room.copy_from_slice(bytes);
                    true
                }
                _ => false,
            };
            self.remove(position);
            if fits {
                // A batch holds no more.
                let _ = self.back.try_push((waits, until_ns));
                return Some(arrival);
            }
            too_large(waits);
        }
        None
    }

    /// How many frames of this turn waited before.
    pub(super) fn came_back(&self) -> usize {
        self.back.len()
    }

    /// Copies the frame at `position` of this turn's batch, to be tried again when there is news for it.
    #[cold]
    pub(super) fn keep(
        &mut self,
        position: usize,
        frame: &Frame<'_>,
        waits: For,
        now_ns: u64,
    ) -> Result<(), GivenUp> {
        let frame_bytes = frame.bytes();
        if frame_bytes.len() > self.frame_len {
            return Err(GivenUp);
        }
        let same = |kept: &&Kept| kept.waits == waits;
        let is_full = self.kept.iter().filter(same).count() >= waits.capacity();
        if is_full && let Some(oldest) = self.kept.iter().position(|kept| kept.waits == waits) {
            self.remove(oldest);
        }
        let mut bytes = self.free.pop().ok_or(GivenUp)?;
        if let Some(room) = bytes.get_mut(..frame_bytes.len()) {
            room.copy_from_slice(frame_bytes);
        }
        let (patience_ns, handed_over) = match waits {
            For::Neighbour => (PATIENCE_NS, true),
            For::FirstFragment => (FRAGMENT_PATIENCE_NS, frame.handed_over),
            For::Backend => (BACKEND_PATIENCE_NS, true),
        };
        let before = self.back.get(position).filter(|(before, _)| *before == waits);
        let until_ns = before.map_or(now_ns.saturating_add(patience_ns), |(_, until_ns)| *until_ns);
        let (len, port, checksum) = (frame_bytes.len(), frame.port, frame.checksum);
        let arrival = Arrival { len, port, checksum, handed_over, overdue: false };
        // What was free has room among the kept.
        let _ = self.kept.try_push(Kept { bytes, arrival, waits, until_ns, due: false });
        if is_full { Err(GivenUp) } else { Ok(()) }
    }

    /// How long until a frame is given up or tried again; `None` where none waits.
    pub(super) fn patience(&self, now_ns: u64) -> Option<Duration> {
        let next_ns = |kept: &Kept| match (kept.waits, self.looked_ns) {
            (For::FirstFragment, Some(looked_ns)) => {
                kept.until_ns.min(looked_ns.saturating_add(LOOK_EVERY_NS))
            }
            _ => kept.until_ns,
        };
        let first_ns = self.kept.iter().map(next_ns).min()?;
        Some(Duration::from_nanos(first_ns.saturating_sub(now_ns)))
    }

    fn remove(&mut self, position: usize) {
        if let Some(kept) = self.kept.pop_at(position) {
            self.free.push(kept.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Checksum;
    use crate::ids::PortId;

    const LEN: usize = 60;
    const FULL: u8 = 64;
    const SECOND: u64 = 1_000_000_000;

    fn keep(waiting: &mut Waiting, position: usize, first: u8, now_ns: u64) -> Result<(), GivenUp> {
        let mut bytes = [first; LEN];
        let mut frame = Frame::new(&mut bytes, 0, LEN, PortId(1)).unwrap();
        frame.checksum = Checksum::Partial { start: 34, offset: 16 };
        waiting.keep(position, &frame, For::Neighbour, now_ns)
    }

    /// What is to be tried again, by first byte.
    fn retried(waiting: &mut Waiting) -> Vec<u8> {
        let mut room = [0; LEN + 4];
        let next = |_| {
            let arrival = waiting.retry(&mut room, |_| panic!("it fits"))?;
            let checksum = Checksum::Partial { start: 34, offset: 16 };
            assert_eq!(arrival, Arrival::handed_over(LEN, PortId(1), checksum));
            assert!(room[..LEN].iter().all(|byte| *byte == room[0]) && room[LEN..] == [0; 4]);
            Some(room[0])
        };
        (0..).map_while(next).collect()
    }

    #[test]
    fn frames_come_back_whole_and_in_order_once_there_are_new_tables() {
        let mut waiting = Waiting::new(LEN, 1);
        assert_eq!(waiting.begin(1, (0, 0), 0), 0);
        for first in 1..=3 {
            keep(&mut waiting, 0, first, 0).unwrap();
        }
        assert_eq!(retried(&mut waiting), [0; 0], "the same turn");
        assert_eq!(waiting.begin(1, (0, 0), 5), 0);
        assert_eq!(retried(&mut waiting), [0; 0], "the same tables");
        assert_eq!(waiting.begin(2, (0, 0), 6), 0);
        assert_eq!(retried(&mut waiting), [1, 2, 3]);
        assert_eq!((waiting.came_back(), waiting.patience(6)), (3, None));
        assert_eq!(waiting.begin(3, (0, 0), 7), 0);
        assert_eq!((waiting.came_back(), retried(&mut waiting).len()), (0, 0));
    }

    #[test]
    fn a_round_goes_on_where_a_turn_had_no_room_and_tries_nothing_twice() {
        let mut waiting = Waiting::new(LEN, 1);
        waiting.begin(1, (0, 0), 0);
        for first in 1..=3 {
            keep(&mut waiting, 0, first, 0).unwrap();
        }
        waiting.begin(2, (0, 0), 1);
        let mut room = [0; LEN];
        assert!(waiting.retry(&mut room, |_| panic!("it fits")).is_some());
        keep(&mut waiting, 0, 1, 1).unwrap();
        waiting.begin(2, (0, 0), 2);
        assert_eq!(retried(&mut waiting), [2, 3], "the first was tried with these tables");
        waiting.begin(3, (0, 0), 3);
        assert_eq!(retried(&mut waiting), [1]);
    }

    #[test]
    fn a_frame_is_given_up_a_second_after_it_came_however_often_it_was_tried() {
        let mut waiting = Waiting::new(LEN, 1);
        waiting.begin(0, (0, 0), 0);
        keep(&mut waiting, 0, 1, 0).unwrap();
        for turn in 1..10 {
            let now_ns = turn * SECOND / 10;
            assert_eq!(waiting.begin(turn, (0, 0), now_ns), 0, "after {now_ns} ns");
            assert_eq!(retried(&mut waiting), [1]);
            keep(&mut waiting, 0, 1, now_ns).unwrap();
            assert_eq!(waiting.patience(now_ns), Some(Duration::from_nanos(SECOND - now_ns)));
        }
        keep(&mut waiting, 1, 2, SECOND * 9 / 10).unwrap();
        assert_eq!(waiting.begin(10, (0, 0), SECOND), 1, "of the two only the first");
        assert_eq!(retried(&mut waiting), [2], "it came later, at another place of the batch");
    }

    #[test]
    fn a_full_place_gives_up_the_oldest() {
        let mut waiting = Waiting::new(LEN, 1);
        waiting.begin(1, (0, 0), 0);
        for first in 0..FULL {
            assert_eq!(keep(&mut waiting, 0, first, 0), Ok(()));
        }
        assert_eq!(keep(&mut waiting, 0, 200, 0), Err(GivenUp));
        let mut large = [0; LEN + 1];
        let large = Frame::new(&mut large, 0, LEN + 1, PortId(1)).unwrap();
        assert_eq!(
            waiting.keep(0, &large, For::Neighbour, 0),
            Err(GivenUp),
            "and nothing for what does not fit"
        );
        waiting.begin(2, (0, 0), 0);
        let want: Vec<u8> = (1..FULL).chain([200]).collect();
        assert_eq!(retried(&mut waiting), want);
    }

    #[test]
    fn what_does_not_fit_the_room_is_given_up() {
        let mut waiting = Waiting::new(LEN, 1);
        waiting.begin(1, (0, 0), 0);
        keep(&mut waiting, 0, 1, 0).unwrap();
        waiting.begin(2, (0, 0), 0);
        let mut lost = 0;
        assert_eq!(waiting.retry(&mut [0; LEN - 1], |_| lost += 1), None);
        assert_eq!((lost, waiting.came_back()), (1, 0));
    }

    /// A later fragment whose first byte is `first`, or an error where another made room.
    fn keep_fragment(waiting: &mut Waiting, first: u8, now_ns: u64) -> Result<(), GivenUp> {
        let mut bytes = [first; LEN];
        let frame = Frame::new(&mut bytes, 0, LEN, PortId(1)).unwrap();
        waiting.keep(BATCH, &frame, For::FirstFragment, now_ns)
    }

    /// The next frame that is to be tried again: its first byte, and whether it was handed over and is overdue.
    fn next(waiting: &mut Waiting) -> Option<(u8, bool, bool)> {
        let mut room = [0; LEN];
        let arrival = waiting.retry(&mut room, |_| panic!("it fits"))?;
        Some((room[0], arrival.handed_over, arrival.overdue))
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn a_fragment_comes_back_with_other_fragments_and_a_last_time_when_it_is_overdue() {
        let mut waiting = Waiting::new(LEN, 1);
        waiting.begin(1, (5, 0), 0);
        keep_fragment(&mut waiting, 7, 0).unwrap();
        waiting.begin(2, (5, 0), 50 * MS);
        assert_eq!(next(&mut waiting), None, "new tables are nothing to it");
        waiting.begin(2, (6, 0), 60 * MS);
        assert_eq!(next(&mut waiting), Some((7, false, false)));
        assert_eq!((next(&mut waiting), waiting.came_back()), (None, 1));

        let mut bytes = [7; LEN];
        let frame = Frame::new(&mut bytes, 0, LEN, PortId(1)).unwrap();
        waiting.keep(0, &frame, For::FirstFragment, 60 * MS).unwrap();
        assert_eq!(waiting.patience(60 * MS), Some(Duration::from_millis(40)), "since it came first");
        assert_eq!(waiting.begin(2, (6, 0), 100 * MS), 0, "not given up here");
        assert_eq!(next(&mut waiting), Some((7, false, true)));
        assert_eq!(waiting.patience(100 * MS), None);
    }

    #[test]
    fn among_several_workers_fragments_are_tried_from_time_to_time() {
        let mut waiting = Waiting::new(LEN, 2);
        waiting.begin(1, (0, 0), SECOND);
        keep_fragment(&mut waiting, 7, SECOND).unwrap();
        waiting.begin(1, (0, 0), SECOND);
        assert_eq!(next(&mut waiting), Some((7, false, false)));
        keep_fragment(&mut waiting, 7, SECOND).unwrap();
        waiting.begin(1, (0, 0), SECOND + MS);
        assert_eq!(next(&mut waiting), None);
        assert_eq!(waiting.patience(SECOND + MS), Some(Duration::from_millis(1)));
        waiting.begin(1, (0, 0), SECOND + 2 * MS);
        assert_eq!(next(&mut waiting), Some((7, false, false)));
    }

    #[test]
    fn fragments_and_frames_without_a_neighbour_do_not_crowd_each_other_out() {
        let mut waiting = Waiting::new(LEN, 1);
        waiting.begin(1, (1, 0), 0);
        keep(&mut waiting, 0, 200, 0).unwrap();
        for first in 0..FULL {
            assert_eq!(keep_fragment(&mut waiting, first, 0), Ok(()));
        }
        assert_eq!(keep_fragment(&mut waiting, 100, 0), Err(GivenUp), "the oldest fragment");
        keep(&mut waiting, 0, 201, 0).unwrap();
        waiting.begin(2, (2, 0), 0);
        let back: Vec<_> = std::iter::from_fn(|| next(&mut waiting)).collect();
        let want: Vec<u8> = [200].into_iter().chain(1..FULL).chain([100, 201]).collect();
        assert_eq!(back.iter().map(|(first, ..)| *first).collect::<Vec<_>>(), want);
    }
}
