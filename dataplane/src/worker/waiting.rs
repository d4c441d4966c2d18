//! Frames whose neighbour is being asked for: kept for a moment, as the kernel keeps its own (`arp_queue`).
//!
//! A frame goes back to the engine whenever there are new tables, and is given up after [`PATIENCE_NS`]. Where there is
//! no room the oldest makes some: its sender is the likeliest to have sent again, and one dead neighbour does not lock
//! the others out.
//!
//! It comes back as a frame that was handed over. What waited belongs to a flow of this worker, or the engine would
//! not have looked for its hop; should the flow end in the meantime, this worker decides about the frame anew.
//!
//! All memory is taken at the start.

use std::time::Duration;

use arrayvec::ArrayVec;

use crate::frame::{BATCH, Frame};
use crate::io::Arrival;

/// Frames kept at most.
const CAPACITY: usize = 64;

/// How long a frame is kept at most, nanoseconds: TCP sends a SYN again after a second (RFC 6298, section 2.1).
const PATIENCE_NS: u64 = 1_000_000_000;

/// A frame that waits.
#[derive(Debug)]
struct Kept {
    bytes: Box<[u8]>,
    arrival: Arrival,
    until_ns: u64,
}

/// The frames of one worker that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    kept: ArrayVec<Kept, CAPACITY>,
    /// How many, from the first on, have still to be tried with the present tables.
    untried: usize,
    /// The tables that the others were tried with.
    generation: u64,
    /// Until when the frames of this turn may be kept that waited before: the first ones of its batch.
    back: ArrayVec<u64, BATCH>,
    free: ArrayVec<Box<[u8]>, CAPACITY>,
    /// Bytes that each of them holds.
    frame_len: usize,
}

/// A frame was given up: the one that was to be kept, or another for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenUp;

impl Waiting {
    /// Room for frames of at most `frame_len` bytes.
    pub(super) fn new(frame_len: usize) -> Self {
        Self {
            kept: ArrayVec::new(),
            untried: 0,
            generation: 0,
            back: ArrayVec::new(),
            free: (0..CAPACITY).map(|_| vec![0; frame_len].into_boxed_slice()).collect(),
            frame_len,
        }
    }

    /// A turn with the tables of this generation begins. Returns how many frames have waited too long.
    #[inline]
    pub(super) fn begin(&mut self, generation: u64, now_ns: u64) -> u64 {
        self.back.clear();
        if self.kept.is_empty() {
            self.generation = generation;
            return 0;
        }
        self.begin_with_frames(generation, now_ns)
    }

    #[cold]
    fn begin_with_frames(&mut self, generation: u64, now_ns: u64) -> u64 {
        let mut given_up = 0;
        while let Some(late) = self.kept.iter().position(|kept| kept.until_ns <= now_ns) {
            self.remove(late);
            given_up += 1;
        }
        if self.generation != generation {
            self.generation = generation;
            self.untried = self.kept.len();
        }
        given_up
    }

    /// Copies the next frame that is to be tried again to the start of `room`; `None` where there is none. One that is
    /// larger than `room` ends there: `too_large` is called.
    #[inline]
    pub(super) fn retry(&mut self, room: &mut [u8], mut too_large: impl FnMut()) -> Option<Arrival> {
        while self.untried > 0 {
            let first = self.kept.first()?;
            let (arrival, until_ns) = (first.arrival, first.until_ns);
            let fits = match (room.get_mut(..arrival.len), first.bytes.get(..arrival.len)) {
                (Some(room), Some(bytes)) => {
                    room.copy_from_slice(bytes);
                    true
                }
                _ => false,
            };
            self.remove(0);
            if fits {
                // A batch holds no more.
                let _ = self.back.try_push(until_ns);
                return Some(arrival);
            }
            too_large();
        }
        None
    }

    /// How many frames of this turn waited before.
    pub(super) fn came_back(&self) -> usize {
        self.back.len()
    }

    /// Copies the frame at `position` of this turn's batch, to be tried again with other tables.
    #[cold]
    pub(super) fn keep(&mut self, position: usize, frame: &Frame<'_>, now_ns: u64) -> Result<(), GivenUp> {
        let frame_bytes = frame.bytes();
        if frame_bytes.len() > self.frame_len {
            return Err(GivenUp);
        }
        let is_full = self.free.is_empty();
        if is_full {
            self.remove(0);
        }
        let mut bytes = self.free.pop().ok_or(GivenUp)?;
        if let Some(room) = bytes.get_mut(..frame_bytes.len()) {
            room.copy_from_slice(frame_bytes);
        }
        let until_ns = self.back.get(position).copied().unwrap_or(now_ns.saturating_add(PATIENCE_NS));
        let arrival = Arrival { len: frame_bytes.len(), port: frame.port, checksum: frame.checksum };
        // What was free has room among the kept.
        let _ = self.kept.try_push(Kept { bytes, arrival, until_ns });
        if is_full { Err(GivenUp) } else { Ok(()) }
    }

    /// How long until the first frame is given up; `None` where none waits.
    pub(super) fn patience(&self, now_ns: u64) -> Option<Duration> {
        let first_ns = self.kept.iter().map(|kept| kept.until_ns).min()?;
        Some(Duration::from_nanos(first_ns.saturating_sub(now_ns)))
    }

    fn remove(&mut self, position: usize) {
        if let Some(kept) = self.kept.pop_at(position) {
            self.free.push(kept.bytes);
            self.untried -= usize::from(position < self.untried);
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
        waiting.keep(position, &frame, now_ns)
    }

    /// What is to be tried again, by first byte.
    fn retried(waiting: &mut Waiting) -> Vec<u8> {
        let mut room = [0; LEN + 4];
        let next = |_| {
            let arrival = waiting.retry(&mut room, || panic!("it fits"))?;
            let checksum = Checksum::Partial { start: 34, offset: 16 };
            assert_eq!(arrival, Arrival { len: LEN, port: PortId(1), checksum });
            assert!(room[..LEN].iter().all(|byte| *byte == room[0]) && room[LEN..] == [0; 4]);
            Some(room[0])
        };
        (0..).map_while(next).collect()
    }

    #[test]
    fn frames_come_back_whole_and_in_order_once_there_are_new_tables() {
        let mut waiting = Waiting::new(LEN);
        assert_eq!(waiting.begin(1, 0), 0);
        for first in 1..=3 {
            keep(&mut waiting, 0, first, 0).unwrap();
        }
        assert_eq!(retried(&mut waiting), [0; 0], "the same turn");
        assert_eq!(waiting.begin(1, 5), 0);
        assert_eq!(retried(&mut waiting), [0; 0], "the same tables");
        assert_eq!(waiting.begin(2, 6), 0);
        assert_eq!(retried(&mut waiting), [1, 2, 3]);
        assert_eq!((waiting.came_back(), waiting.patience(6)), (3, None));
        assert_eq!(waiting.begin(3, 7), 0);
        assert_eq!((waiting.came_back(), retried(&mut waiting).len()), (0, 0));
    }

    #[test]
    fn a_round_goes_on_where_a_turn_had_no_room_and_tries_nothing_twice() {
        let mut waiting = Waiting::new(LEN);
        waiting.begin(1, 0);
        for first in 1..=3 {
            keep(&mut waiting, 0, first, 0).unwrap();
        }
        waiting.begin(2, 1);
        let mut room = [0; LEN];
        assert!(waiting.retry(&mut room, || panic!("it fits")).is_some());
        keep(&mut waiting, 0, 1, 1).unwrap();
        waiting.begin(2, 2);
        assert_eq!(retried(&mut waiting), [2, 3], "the first was tried with these tables");
        waiting.begin(3, 3);
        assert_eq!(retried(&mut waiting), [1]);
    }

    #[test]
    fn a_frame_is_given_up_a_second_after_it_came_however_often_it_was_tried() {
        let mut waiting = Waiting::new(LEN);
        waiting.begin(0, 0);
        keep(&mut waiting, 0, 1, 0).unwrap();
        for turn in 1..10 {
            let now_ns = turn * SECOND / 10;
            assert_eq!(waiting.begin(turn, now_ns), 0, "after {now_ns} ns");
            assert_eq!(retried(&mut waiting), [1]);
            keep(&mut waiting, 0, 1, now_ns).unwrap();
            assert_eq!(waiting.patience(now_ns), Some(Duration::from_nanos(SECOND - now_ns)));
        }
        keep(&mut waiting, 1, 2, SECOND * 9 / 10).unwrap();
        assert_eq!(waiting.begin(10, SECOND), 1, "of the two only the first");
        assert_eq!(retried(&mut waiting), [2], "it came later, at another place of the batch");
    }

    #[test]
    fn a_full_place_gives_up_the_oldest() {
        let mut waiting = Waiting::new(LEN);
        waiting.begin(1, 0);
        for first in 0..FULL {
            assert_eq!(keep(&mut waiting, 0, first, 0), Ok(()));
        }
        assert_eq!(keep(&mut waiting, 0, 200, 0), Err(GivenUp));
        let mut large = [0; LEN + 1];
        let large = Frame::new(&mut large, 0, LEN + 1, PortId(1)).unwrap();
        assert_eq!(waiting.keep(0, &large, 0), Err(GivenUp), "and nothing for what does not fit");
        waiting.begin(2, 0);
        let want: Vec<u8> = (1..FULL).chain([200]).collect();
        assert_eq!(retried(&mut waiting), want);
    }

    #[test]
    fn what_does_not_fit_the_room_is_given_up() {
        let mut waiting = Waiting::new(LEN);
        waiting.begin(1, 0);
        keep(&mut waiting, 0, 1, 0).unwrap();
        waiting.begin(2, 0);
        let mut lost = 0;
        assert_eq!(waiting.retry(&mut [0; LEN - 1], || lost += 1), None);
        assert_eq!((lost, waiting.came_back()), (1, 0));
    }
}
