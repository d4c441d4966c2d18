//! TCP as IPVS sees it: states and transitions of `net/netfilter/ipvs/ip_vs_proto_tcp.c`.
//!
//! A state is moved by the flags of single segments from either side. Sequence numbers are not followed: the state
//! decides on timeouts and on what counts as an active connection, not on what may pass.

pub use crate::wire::tcp::{ACK, FIN, RST, SYN};

macro_rules! states {
    ($($(#[$doc:meta])* $variant:ident = $number:literal => $name:literal,)*) => {
        /// State of a TCP flow, with IPVS's numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        #[repr(u8)]
        pub enum State {
            $($(#[$doc])* $variant = $number,)*
        }

        impl State {
            /// Every state, by number.
            pub const ALL: [Self; STATES] = [$(Self::$variant),*];

            /// The name as `ipvsadm -c` prints it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

const STATES: usize = 11;

states! {
    /// Nothing seen yet.
    #[default]
    None = 0 => "NONE",
    /// Data flows.
    Established = 1 => "ESTABLISHED",
    /// The backend opens, the client has not answered.
    SynSent = 2 => "SYN_SENT",
    /// The client opens, the handshake is not complete.
    SynRecv = 3 => "SYN_RECV",
    /// The backend has closed its side.
    FinWait = 4 => "FIN_WAIT",
    /// Both sides have closed.
    TimeWait = 5 => "TIME_WAIT",
    /// Reset.
    Close = 6 => "CLOSE",
    /// The client has closed its side.
    CloseWait = 7 => "CLOSE_WAIT",
    /// The last acknowledgement is awaited. Only ever received from another balancer.
    LastAck = 8 => "LAST_ACK",
    /// Only ever received from another balancer.
    Listen = 9 => "LISTEN",
    /// The backend has answered under `secure_tcp`, the client not yet.
    SynAck = 10 => "SYNACK",
}

/// Who sent a segment, and whether the other side's segments are seen at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client.
    Input = 0,
    /// From the backend.
    Output = 1,
    /// From the client, where the backend's answers pass Weir by (forwarding mode `dr`).
    InputOnly = 2,
}

impl State {
    /// The state after a segment with these TCP flags (the header's byte 13). RST goes before SYN, SYN before FIN,
    /// FIN before ACK; a segment with none of them changes nothing.
    #[inline]
    #[must_use]
    pub fn next(self, direction: Direction, flags: u8) -> Self {
        let event = EVENTS.get(usize::from(flags) % EVENTS.len()).copied().unwrap_or(Event::Other);
        let index = index(direction as usize, event as usize, self as usize);
        // The index has as many bits as the table needs, so the default is never taken.
        TRANSITIONS.get(index % TRANSITIONS.len()).copied().unwrap_or(self)
    }

    /// Whether the flow counts as an active connection; all others are inactive.
    #[inline]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Established | Self::SynSent | Self::SynRecv | Self::SynAck)
    }

    /// Whether the handshake has begun and is not complete.
    #[inline]
    pub fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynRecv | Self::SynAck)
    }
}

/// Whether a segment of no known flow opens one. A SYN-ACK does, as in the kernel.
#[inline]
pub fn opens(flags: u8) -> bool {
    flags & (SYN | RST) == SYN
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
    SynRecv as SR, SynSent as SS, TimeWait as TW,
};

/// By [`Direction`].
const ROWS: [Rows; 3] = [INPUT, OUTPUT, INPUT_ONLY];

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

/// By the five low flags: FIN, SYN, RST, PSH, ACK.
const EVENTS: [Event; 32] = events();

/// [`ROWS`] as [`index`] finds them, padded to powers of two; what is padded changes no state.
static TRANSITIONS: [State; 512] = flatten(&ROWS);

/// Two bits of direction, three of event, four of state.
#[inline]
const fn index(direction: usize, event: usize, state: usize) -> usize {
    direction << 7 | event << 4 | state
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
const fn flatten(rows: &[Rows; 3]) -> [State; 512] {
    let mut table = [State::None; 512];
    let mut at = 0;
    while at < table.len() {
        let (direction, event, state) = (at >> 7, at >> 4 & 7, at & 15);
        if state < STATES {
            let unchanged = direction >= rows.len() || event >= rows[direction].len();
            table[at] = if unchanged { State::ALL[state] } else { rows[direction][event][state] };
        }
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::snapshot::Timeouts;
    use crate::wire::tcp::PSH;

    /// The kernel's answers; the recording's own form is described in its `note`.
    const RECORDED: &str = include_str!("../../tests/golden/ipvs/packets/tcp-state-table.json");

    fn state(name: &str) -> State {
        State::ALL.into_iter().find(|state| state.name() == name).unwrap()
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
            state.next(direction, flags(letters))
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
                let opened = from_client && opens(segment);
                assert!(text("path").is_empty() && !opened, "no flow afterwards: {row}");
                continue;
            };
            let before = walk(text("path"));
            if text("path").is_empty() {
                assert!(from_client && opens(segment), "a flow is opened: {row}");
            } else {
                assert_eq!(before, state(text("before")), "{row}");
            }
            let direction = if from_client { Direction::Input } else { Direction::Output };
            assert_eq!(before.next(direction, segment), after, "{row}");
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
            now = now.next(Direction::InputOnly, flags(letters));
            assert_eq!(now.name(), want, "after {letters}");
        }
        assert_eq!(now.next(Direction::InputOnly, RST), State::Close);
        assert_eq!(now.next(Direction::InputOnly, SYN), State::SynRecv);
    }

    #[test]
    fn the_table_holds_each_row_where_next_looks_for_it() {
        let directions = [Direction::Input, Direction::Output, Direction::InputOnly];
        for (direction, rows) in directions.into_iter().zip(ROWS) {
            for (row, segment) in rows.into_iter().zip([SYN, FIN, ACK, RST]) {
                for (before, after) in State::ALL.into_iter().zip(row) {
                    assert_eq!(before.next(direction, segment), after, "{before:?} {direction:?} {segment}");
                }
            }
        }
    }

    #[test]
    fn of_several_flags_the_strongest_decides() {
        for (name, letters, same_as) in [
            ("rst over syn", "RSFA", RST),
            ("syn over fin", "SFA", SYN),
            ("fin over ack", "FPA", FIN),
            ("ack alone", "PA", ACK),
            ("flags beyond these do not count", "", 0),
        ] {
            for before in State::ALL {
                for direction in [Direction::Input, Direction::Output, Direction::InputOnly] {
                    let want = if same_as == 0 { before } else { before.next(direction, same_as) };
                    // URG, ECE and CWR beside them.
                    assert_eq!(before.next(direction, flags(letters) | 0xe0), want, "{name}");
                }
            }
        }
    }

    #[test]
    fn numbers_are_ipvss() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
        let active = State::ALL.map(State::is_active);
        assert_eq!(active.map(u8::from), [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1]);
    }
}
