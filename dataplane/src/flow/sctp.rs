//! SCTP as IPVS sees it: states and transitions of `net/netfilter/ipvs/ip_vs_proto_sctp.c`.
//!
//! A state is moved by one chunk of each packet, nearly always the first. The states are those of the backend, by what
//! client and backend have sent; neither tags nor sequence numbers are followed.

pub use super::state::State;
use super::state::{SCTP_FIRST, SCTP_STATES as STATES};
use super::tcp::Direction;
use crate::wire::sctp::{self, Chunk, Sctp};
use crate::wire::view;

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// DATA, SACK, HEARTBEAT and every chunk that has no event of its own.
    Data = 0,
    /// INIT.
    Init = 1,
    /// INIT ACK.
    InitAck = 2,
    /// COOKIE ECHO.
    CookieEcho = 3,
    /// COOKIE ACK.
    CookieAck = 4,
    /// SHUTDOWN.
    Shutdown = 5,
    /// SHUTDOWN ACK.
    ShutdownAck = 6,
    /// SHUTDOWN COMPLETE.
    ShutdownComplete = 7,
    /// ERROR.
    Error = 8,
    /// ABORT.
    Abort = 9,
    /// No chunk at all: changes nothing and opens nothing.
    Nothing = 10,
}

impl Event {
    /// What the SCTP packet in `segment` says. A COOKIE ECHO or COOKIE ACK with an ABORT behind it is an ABORT.
    pub fn of(segment: &[u8]) -> Self {
        let Ok(first) = view::<Chunk>(segment, Sctp::LEN) else { return Self::Nothing };
        let event = Self::of_chunk(first.kind);
        let len = usize::from(first.len.get());
        if matches!(event, Self::CookieEcho | Self::CookieAck) && len >= Chunk::LEN {
            let next = view::<Chunk>(segment, Sctp::LEN + len.next_multiple_of(4));
            if next.is_ok_and(|next| next.kind == sctp::ABORT) {
                return Self::Abort;
            }
        }
        event
    }

    fn of_chunk(kind: u8) -> Self {
        match kind {
            sctp::INIT => Self::Init,
            sctp::INIT_ACK => Self::InitAck,
            sctp::ABORT => Self::Abort,
            sctp::SHUTDOWN => Self::Shutdown,
            sctp::SHUTDOWN_ACK => Self::ShutdownAck,
            sctp::ERROR => Self::Error,
            sctp::COOKIE_ECHO => Self::CookieEcho,
            sctp::COOKIE_ACK => Self::CookieAck,
            sctp::SHUTDOWN_COMPLETE => Self::ShutdownComplete,
            _ => Self::Data,
        }
    }
}

impl State {
    /// The state of an SCTP flow after a packet that says `event`.
    #[must_use]
    pub fn after(self, direction: Direction, event: Event) -> Self {
        let row = ROWS.get(direction as usize).and_then(|rows| rows.get(event as usize));
        let column = usize::from((self as u8).wrapping_sub(SCTP_FIRST));
        row.and_then(|row| row.get(column)).copied().unwrap_or(self)
    }
}

/// Whether a packet of no known flow opens one; `sloppy` lets all do so that have a chunk.
#[inline]
pub fn opens(event: Event, sloppy: bool) -> bool {
    event == Event::Init || sloppy && event != Event::Nothing
}

/// A row for each event but the last, a column for each state.
type Rows = [[State; STATES]; 10];

/// By [`Direction`].
const ROWS: [Rows; 3] = [INPUT, OUTPUT, INPUT_ONLY];

use State::{
    SctpClosed as CL, SctpCookie as CO, SctpCookieEchoed as CE, SctpCookieReplied as CR,
    SctpCookieSent as CS, SctpCookieWait as CW, SctpEstablished as ES, SctpInit as IN, SctpInit1 as I1,
    SctpRejected as RJ, SctpShutdownAckSent as SA, SctpShutdownReceived as SR, SctpShutdownSent as SS,
};

//                        NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
#[rustfmt::skip]
const INPUT: Rows = [
    /*data             */ [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*init             */ [I1, IN, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, IN, IN],
    /*init ack         */ [CW, CW, CW, CS, CR, CO, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*cookie echo      */ [CR, IN, IN, CR, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*cookie ack       */ [ES, I1, IN, CS, CR, CW, CO, ES, ES, SS, SR, SA, RJ, CL],
    /*shutdown         */ [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    /*shutdown ack     */ [CL, IN, IN, CS, CR, CW, CO, CE, ES, CL, SR, CL, RJ, CL],
    /*shutdown complete*/ [CL, CL, CL, CS, CR, CW, CO, CE, ES, SS, SR, CL, RJ, CL],
    /*error            */ [CL, I1, IN, CS, CR, CW, CO, CL, ES, SS, SR, SA, RJ, CL],
    /*abort            */ [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
];

#[rustfmt::skip]
const OUTPUT: Rows = [
    /*data             */ [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*init             */ [CW, CW, CW, CW, CW, CW, CW, CW, ES, CW, CW, CW, CW, CW],
    /*init ack         */ [CS, CS, CS, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*cookie echo      */ [CE, CE, CE, CE, CE, CE, CE, CE, ES, SS, SR, SA, RJ, CL],
    /*cookie ack       */ [ES, ES, ES, ES, ES, ES, ES, ES, ES, SS, SR, SA, RJ, CL],
    /*shutdown         */ [SS, SS, SS, SS, SS, SS, SS, SS, SS, SS, SR, SA, RJ, CL],
    /*shutdown ack     */ [SA, SA, SA, SA, SA, CW, CO, CE, ES, SA, SA, SA, RJ, CL],
    /*shutdown complete*/ [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*error            */ [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*abort            */ [CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
];

#[rustfmt::skip]
const INPUT_ONLY: Rows = [
    /*data             */ [ES, I1, IN, CS, CR, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*init             */ [I1, IN, IN, IN, IN, IN, CO, CE, ES, SS, SR, SA, IN, IN],
    /*init ack         */ [CE, CE, CE, CE, CE, CE, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*cookie echo      */ [ES, ES, ES, ES, ES, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*cookie ack       */ [ES, I1, IN, ES, ES, CW, ES, ES, ES, SS, SR, SA, RJ, CL],
    /*shutdown         */ [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    /*shutdown ack     */ [CL, IN, IN, CS, CR, CW, CO, CE, CL, CL, SR, CL, RJ, CL],
    /*shutdown complete*/ [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, CL, CL, RJ, CL],
    /*error            */ [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /*abort            */ [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The states on a path of events from `c`lient and `s`erver.
    fn walk(has_replies: bool, path: &[(char, Event)]) -> Vec<State> {
        let mut state = State::SctpNone;
        let step = |(from, event): &(char, Event)| {
            let direction = match (from, has_replies) {
                ('s', _) => Direction::Output,
                (_, true) => Direction::Input,
                (_, false) => Direction::InputOnly,
            };
            state = state.after(direction, *event);
            state
        };
        path.iter().map(step).collect()
    }

    #[test]
    fn an_association_opens_lives_and_ends() {
        use Event::*;
        let path = [
            ('c', Init),
            ('s', InitAck),
            ('c', CookieEcho),
            ('s', CookieAck),
            ('c', Data),
            ('c', Shutdown),
            ('s', ShutdownAck),
            ('c', ShutdownComplete),
        ];
        let names: Vec<_> = walk(true, &path).into_iter().map(State::name).collect();
        let want = [
            "INIT1",
            "C-SENT",
            "C-REPLIED",
            "ESTABLISHED",
            "ESTABLISHED",
            "S-RECEIVED",
            "S-ACK-SENT",
            "CLOSED",
        ];
        assert_eq!(names, want);
    }

    #[test]
    fn a_client_alone_drives_the_states_where_answers_pass_by() {
        use Event::*;
        let path = [('c', Init), ('c', CookieEcho), ('c', Data), ('c', Shutdown), ('c', ShutdownComplete)];
        let names: Vec<_> = walk(false, &path).into_iter().map(State::name).collect();
        assert_eq!(names, ["INIT1", "ESTABLISHED", "ESTABLISHED", "S-RECEIVED", "CLOSED"]);
    }

    #[test]
    fn an_init_that_is_refused_or_repeated_has_a_state_of_its_own() {
        use Event::*;
        assert_eq!(walk(true, &[('c', Init), ('s', Abort)])[1], State::SctpRejected);
        assert_eq!(walk(true, &[('c', Init), ('c', Init)])[1], State::SctpInit);
        assert_eq!(walk(true, &[('c', Init), ('s', Abort), ('c', Init)])[2], State::SctpInit);
    }

    #[test]
    fn a_packet_without_a_chunk_changes_nothing() {
        for state in State::SCTP {
            for direction in [Direction::Input, Direction::Output, Direction::InputOnly] {
                assert_eq!(state.after(direction, Event::Nothing), state);
            }
        }
    }

    #[test]
    fn the_first_chunk_speaks_for_the_packet_but_an_abort_behind_a_cookie_goes_before_it() {
        let header = [0; Sctp::LEN];
        let packet = |chunks: &[&[u8]]| [&header[..], &chunks.concat()].concat();
        for (name, chunks, want) in [
            ("none", &[][..], Event::Nothing),
            ("half a chunk header", &[&[1, 0, 0][..]][..], Event::Nothing),
            ("init", &[&[1, 0, 0, 4]], Event::Init),
            ("an unknown type", &[&[77, 0, 0, 4]], Event::Data),
            ("heartbeat, abort", &[&[4, 0, 0, 4], &[6, 0, 0, 4]], Event::Data),
            ("cookie echo, abort", &[&[10, 0, 0, 6, 1, 2, 0, 0], &[6, 0, 0, 4]], Event::Abort),
            ("cookie ack, abort", &[&[11, 0, 0, 4], &[6, 0, 0, 4]], Event::Abort),
            ("cookie ack, data", &[&[11, 0, 0, 4], &[0, 0, 0, 4]], Event::CookieAck),
            ("cookie ack of no length, abort", &[&[11, 0, 0, 0], &[6, 0, 0, 4]], Event::CookieAck),
            ("cookie ack longer than the packet", &[&[11, 0, 0xff, 0xff]], Event::CookieAck),
        ] {
            assert_eq!(Event::of(&packet(chunks)), want, "{name}");
        }
    }
}
