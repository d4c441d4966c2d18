//! TCP as IPVS sees it: states and transitions of `net/netfilter/ipvs/ip_vs_proto_tcp.c`.
//!
//! A state is moved by the flags of single segments from either side. Sequence numbers are not followed: the state
//! decides on timeouts and on what counts as an active connection, not on what may pass.

pub use super::state::State;
use super::state::TCP_STATES as STATES;
pub use crate::wire::tcp::{ACK, FIN, RST, SYN};

/// Who sent a segment, and whether the other side's segments are seen at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client.
    Input = 0,
    /// From the backend.
    Output = 1,
    /// From the client, where the backend's answers pass Weir by (forwarding mode `dr` and tunnels).
    InputOnly = 2,
}

/// Which transitions apply (IPVS: `secure_tcp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Strictness {
    /// The client's acknowledgement alone establishes a flow.
    #[default]
    Normal = 0,
    /// Under a flood: a flow stays half-open, with that state's short timeout, until the backend speaks again.
    Secure = 1,
}

impl State {
    /// The state after a segment with these TCP flags (the header's byte 13). RST goes before SYN, SYN before FIN,
    /// FIN before ACK; a segment with none of them closes the flow, as in the kernel.
    #[inline]
    #[must_use]
    pub fn next(self, strictness: Strictness, direction: Direction, flags: u8) -> Self {
        let event = EVENTS.get(usize::from(flags) % EVENTS.len()).copied().unwrap_or(Event::Other);
        let index = index(strictness as usize, direction as usize, event as usize, self as usize);
        // The index has as many bits as the table needs, so the default is never taken.
        TRANSITIONS.get(index % TRANSITIONS.len()).copied().unwrap_or(self)
    }
}

/// Whether a segment of no known flow opens one. A SYN-ACK does, as in the kernel; `sloppy` lets all but RST do so.
#[inline]
pub fn opens(flags: u8, sloppy: bool) -> bool {
    flags & RST == 0 && (sloppy || flags & SYN != 0)
}

/// What a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Event {
    Syn = 0,
    Fin = 1,
    Ack = 2,
    Rst = 3,
    Other = 4,
}

/// A row for each of the first four events, a column for each state.
type Rows = [[State; STATES]; 4];

use State::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI,
    SynAck as SA, SynRecv as SR, SynSent as SS, TimeWait as TW,
};

/// By [`Strictness`] and [`Direction`].
const ROWS: [[Rows; 3]; 2] = [[INPUT, OUTPUT, INPUT_ONLY], [SECURE_INPUT, SECURE_OUTPUT, SECURE_INPUT_ONLY]];

//          NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
#[rustfmt::skip]
const INPUT: Rows = [
    /*syn*/ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    /*fin*/ [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /*rst*/ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
];

#[rustfmt::skip]
const OUTPUT: Rows = [
    /*syn*/ [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
    /*fin*/ [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
    /*rst*/ [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
];

#[rustfmt::skip]
const INPUT_ONLY: Rows = [
    /*syn*/ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    /*fin*/ [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /*rst*/ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

#[rustfmt::skip]
const SECURE_INPUT: Rows = [
    /*syn*/ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SA],
    /*fin*/ [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, SA],
    /*ack*/ [ES, ES, SS, SR, FW, TW, CL, CW, CL, LI, SA],
    /*rst*/ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

#[rustfmt::skip]
const SECURE_OUTPUT: Rows = [
    /*syn*/ [SS, ES, SS, SA, SS, SS, SS, SS, SS, LI, SA],
    /*fin*/ [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
    /*rst*/ [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
];

#[rustfmt::skip]
const SECURE_INPUT_ONLY: Rows = [
    /*syn*/ [SA, ES, ES, SR, SA, SA, SA, SA, SA, SA, SA],
    /*fin*/ [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
    /*ack*/ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /*rst*/ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

/// By the five low flags: FIN, SYN, RST, PSH, ACK.
const EVENTS: [Event; 32] = events();

/// [`ROWS`] as [`index`] finds them, padded to powers of two.
static TRANSITIONS: [State; 1024] = flatten(&ROWS);

/// A bit of strictness, two of direction, three of event, four of state.
#[inline]
const fn index(strictness: usize, direction: usize, event: usize, state: usize) -> usize {
    strictness << 9 | direction << 7 | event << 4 | state
}

#[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
#[expect(clippy::cast_possible_truncation, reason = "32 flags fit a byte")]
const fn events() -> [Event; 32] {
    let mut events = [Event::Other; 32];
    let mut flags = 0;
    while flags < events.len() {
        let set = flags as u8;
        events[flags] = match () {
            () if set & RST != 0 => Event::Rst,
            () if set & SYN != 0 => Event::Syn,
            () if set & FIN != 0 => Event::Fin,
            () if set & ACK != 0 => Event::Ack,
            () => Event::Other,
        };
        flags += 1;
    }
    events
}

#[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
const fn flatten(rows: &[[Rows; 3]; 2]) -> [State; 1024] {
    let mut table = [State::Close; 1024];
    let mut at = 0;
    while at < table.len() {
        let (strictness, direction, event, state) = (at >> 9, at >> 7 & 3, at >> 4 & 7, at & 15);
        if state < STATES && direction < 3 && event < 4 {
            table[at] = rows[strictness][direction][event][state];
        }
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::Strictness::{Normal, Secure};
    use super::*;
    use crate::snapshot::Timeouts;
    use crate::wire::tcp::PSH;

    /// The kernel's answers; the recording's own form is described in its `note`.
    const RECORDED: &str = include_str!("../../tests/golden/ipvs/packets/tcp-state-table.json");

    fn state(name: &str) -> State {
        State::TCP.into_iter().find(|state| state.name() == name).unwrap()
    }

    fn flags(letters: &str) -> u8 {
        letters.chars().fold(0, |flags, letter| {
            flags
                | match letter {
                    'S' => SYN,
                    'F' => FIN,
                    'R' => RST,
                    'A' => ACK,
                    'P' => PSH,
                    _ => panic!("flag {letter}"),
                }
        })
    }

    /// The state that `path` ("c:S s:SA ..") leads to.
    fn walk(path: &str) -> State {
        path.split_whitespace().fold(State::None, |state, step| {
            let (from, letters) = step.split_once(':').unwrap();
            let direction = if from == "c" { Direction::Input } else { Direction::Output };
            state.next(Normal, direction, flags(letters))
        })
    }

    #[test]
    fn every_transition_that_the_kernel_was_asked_for_is_the_same() {
        let recorded: Value = serde_json::from_str(RECORDED).unwrap();
        let rows = recorded["table"].as_array().unwrap();
        let mut compared = 0;
        for row in rows {
            let text = |field: &str| row[field].as_str().unwrap_or_default();
            let (from_client, segment) = (text("from") == "client", flags(text("segment")));
            let Some(after) = row["after"].as_str().map(state) else {
                let opened = from_client && opens(segment, false);
                assert!(text("path").is_empty() && !opened, "no flow afterwards: {row}");
                continue;
            };
            let before = walk(text("path"));
            if text("path").is_empty() {
                assert!(from_client && opens(segment, false), "a flow is opened: {row}");
            } else {
                assert_eq!(before, state(text("before")), "{row}");
            }
            let direction = if from_client { Direction::Input } else { Direction::Output };
            assert_eq!(before.next(Normal, direction, segment), after, "{row}");
            let known = i64::from(before.is_active());
            assert_eq!(row["active_inactive_change"][0], i64::from(after.is_active()) - known, "{row}");
            // A second boundary lies between the segment and the look at the table.
            let timeout_s = Timeouts::default().tcp_s[after as usize];
            assert_eq!(row["expires"], timeout_s - 1, "{row}");
            compared += 1;
        }
        assert_eq!((compared, rows.len()), (146, 160));
    }

    #[test]
    fn a_client_alone_drives_the_states_of_a_flow_whose_answers_pass_by() {
        // Recorded from the kernel with direct routing.
        let mut now = State::None;
        for (letters, want) in [
            ("S", "SYN_RECV"),
            ("A", "ESTABLISHED"),
            ("PA", "ESTABLISHED"),
            ("FA", "FIN_WAIT"),
            ("A", "FIN_WAIT"),
        ] {
            now = now.next(Normal, Direction::InputOnly, flags(letters));
            assert_eq!(now.name(), want, "after {letters}");
        }
        assert_eq!(now.next(Normal, Direction::InputOnly, RST), State::Close);
        assert_eq!(now.next(Normal, Direction::InputOnly, SYN), State::SynRecv);
    }

    #[test]
    fn the_table_holds_each_row_where_next_looks_for_it() {
        let directions = [Direction::Input, Direction::Output, Direction::InputOnly];
        for (strictness, tables) in [Normal, Secure].into_iter().zip(ROWS) {
            for (direction, rows) in directions.into_iter().zip(tables) {
                for (row, segment) in rows.into_iter().zip([SYN, FIN, ACK, RST]) {
                    for (before, after) in State::TCP.into_iter().zip(row) {
                        let got = before.next(strictness, direction, segment);
                        assert_eq!(got, after, "{before:?} {strictness:?} {direction:?} {segment}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_secure_flow_is_established_by_the_backend_alone() {
        let steps = [(Direction::Input, SYN), (Direction::Output, SYN | ACK), (Direction::Input, ACK)];
        let walk = |strictness| {
            steps.iter().fold(State::None, |state, (way, flags)| state.next(strictness, *way, *flags))
        };
        assert_eq!((walk(Normal), walk(Secure)), (State::Established, State::SynAck));
        assert_eq!(State::SynAck.next(Secure, Direction::Output, ACK), State::Established);
    }

    #[test]
    fn of_several_flags_the_strongest_decides() {
        for (name, letters, same_as) in [
            ("rst over syn", "RSFA", RST),
            ("syn over fin", "SFA", SYN),
            ("fin over ack", "FPA", FIN),
            ("ack alone", "PA", ACK),
        ] {
            for before in State::TCP {
                for direction in [Direction::Input, Direction::Output, Direction::InputOnly] {
                    let want = before.next(Normal, direction, same_as);
                    // URG, ECE and CWR beside them.
                    assert_eq!(before.next(Normal, direction, flags(letters) | 0xe0), want, "{name}");
                    assert_eq!(before.next(Normal, direction, 0xe8), State::Close, "none of the four");
                }
            }
        }
    }
}
