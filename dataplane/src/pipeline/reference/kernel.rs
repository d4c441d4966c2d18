//! Connection tracking as the kernel's IPVS has it, written down from its state tables and rules, and from nothing of the
//! engine's: no batches, no lazy expiry, no entry of a cache line.

use std::collections::BTreeMap;
use std::sync::LazyLock;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;

/// By direction and event, states as columns: `ip_vs_proto_tcp.c`.
const TCP_STATES: &str = "NO ES SS SR FW TW CL CW LA LI SA";
const TCP_TABLE: &str = "
    SR ES ES SR SR SR SR SR SR SR SR | CL CW SS TW TW TW CL CW LA LI TW |
    ES ES SS ES FW TW CL CW CL LI ES | CL CL CL SR CL CL CL CL LA LI SR |
    SS ES SS SR SS SS SS SS SS LI SR | TW FW SS TW FW TW CL TW LA LI TW |
    ES ES SS ES FW TW CL CW LA ES ES | CL CL SS CL CL TW CL CL CL CL CL |
    SR ES ES SR SR SR SR SR SR SR SR | CL FW SS TW FW TW CL CW LA LI TW |
    ES ES SS ES FW TW CL CW CL LI ES | CL CL CL SR CL CL CL CL LA LI CL";
/// The same under `secure_tcp`.
const TCP_SECURE_TABLE: &str = "
    SR ES ES SR SR SR SR SR SR SR SA | CL CW SS TW TW TW CL CW LA LI SA |
    ES ES SS SR FW TW CL CW CL LI SA | CL CL CL SR CL CL CL CL LA LI CL |
    SS ES SS SA SS SS SS SS SS LI SA | TW FW SS TW FW TW CL TW LA LI TW |
    ES ES SS ES FW TW CL CW LA ES ES | CL CL SS CL CL TW CL CL CL CL CL |
    SA ES ES SR SA SA SA SA SA SA SA | CL FW SS TW FW TW CL CW LA LI TW |
    ES ES SS ES FW TW CL CW CL LI ES | CL CL CL SR CL CL CL CL LA LI CL";
const TCP_NAMES: [&str; 11] = [
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
];

/// By direction and event, states as columns: `ip_vs_proto_sctp.c`.
const SCTP_STATES: &str = "NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL";
const SCTP_TABLE: &str = "
    ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL | I1 IN IN CS CR CW CO CE ES SS SR SA IN IN |
    CW CW CW CS CR CO CO CE ES SS SR SA RJ CL | CR IN IN CR CR CW CO CE ES SS SR SA RJ CL |
    ES I1 IN CS CR CW CO ES ES SS SR SA RJ CL | SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL |
    CL IN IN CS CR CW CO CE ES CL SR CL RJ CL | CL CL CL CS CR CW CO CE ES SS SR CL RJ CL |
    CL I1 IN CS CR CW CO CL ES SS SR SA RJ CL | CL CL CL CL CL RJ CL CL CL CL CL CL CL CL |
    ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL | CW CW CW CW CW CW CW CW ES CW CW CW CW CW |
    CS CS CS CS CR CW CO CE ES SS SR SA RJ CL | CE CE CE CE CE CE CE CE ES SS SR SA RJ CL |
    ES ES ES ES ES ES ES ES ES SS SR SA RJ CL | SS SS SS SS SS SS SS SS SS SS SR SA RJ CL |
    SA SA SA SA SA CW CO CE ES SA SA SA RJ CL | CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL |
    CL CL CL CL CL CW CO CE ES SS SR SA RJ CL | CL RJ CL CL CL CL CL CL CL CL CL CL CL CL |
    ES I1 IN CS CR ES CO CE ES SS SR SA RJ CL | I1 IN IN IN IN IN CO CE ES SS SR SA IN IN |
    CE CE CE CE CE CE CO CE ES SS SR SA RJ CL | ES ES ES ES ES ES CO CE ES SS SR SA RJ CL |
    ES I1 IN ES ES CW ES ES ES SS SR SA RJ CL | SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL |
    CL IN IN CS CR CW CO CE CL CL SR CL RJ CL | CL CL CL CL CL CW CO CE ES SS CL CL RJ CL |
    CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL | CL CL CL CL CL RJ CL CL CL CL CL CL CL CL";
const SCTP_NAMES: [&str; 14] = [
    "NONE",
    "INIT1",
    "INIT",
    "C-SENT",
    "C-REPLIED",
    "C-WAIT",
    "COOKIE",
    "C-ECHOED",
    "ESTABLISHED",
    "S-SENT",
    "S-RECEIVED",
    "S-ACK-SENT",
    "REJECTED",
    "CLOSED",
];

const TIME_WAIT: usize = 5;
const FIN_WAIT: usize = 4;
const CLOSE: usize = 6;
const SCTP_ESTABLISHED: usize = 8;
const SCTP_CLOSED: usize = 13;

/// The event of each SCTP chunk type up to the largest that has one; all others say as much as DATA.
const SCTP_EVENTS: [usize; 15] = [0, 1, 2, 0, 0, 0, 9, 5, 6, 8, 3, 4, 0, 0, 7];

/// A table's rows, one after another.
fn parsed(states: &str, table: &str) -> Vec<Vec<usize>> {
    let number = |name: &str| states.split_whitespace().position(|state| state == name).expect("a state");
    table.split('|').map(|row| row.split_whitespace().map(number).collect()).collect()
}

static TCP_ROWS: LazyLock<[Vec<Vec<usize>>; 2]> =
    LazyLock::new(|| [TCP_TABLE, TCP_SECURE_TABLE].map(|table| parsed(TCP_STATES, table)));
static SCTP_ROWS: LazyLock<Vec<Vec<usize>>> = LazyLock::new(|| parsed(SCTP_STATES, SCTP_TABLE));

/// Client and service.
pub(super) type Key = (usize, usize);

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) proto: u8,
    pub(super) state: usize,
    /// In ticks.
    pub(super) expires: u64,
    pub(super) backend: u32,
    inactive: bool,
    /// Answers have not been seen, and need not come.
    no_output: bool,
}

impl Connection {
    pub(super) fn state_name(&self) -> &'static str {
        match self.proto {
            TCP => TCP_NAMES[self.state],
            SCTP => SCTP_NAMES[self.state],
            _ => "UDP",
        }
    }

    /// The connection on this tuple has ended (`is_new_conn_expected`).
    fn is_over(&self, reuse_mode: u8) -> bool {
        match self.proto {
            TCP => {
                matches!(self.state, TIME_WAIT | CLOSE)
                    || reuse_mode & 2 != 0 && self.state == FIN_WAIT && self.no_output
            }
            SCTP => self.state == SCTP_CLOSED,
            _ => false,
        }
    }
}

/// A backend and its counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Destination {
    pub(super) available: bool,
    pub(super) weight: u32,
    pub(super) upper: u32,
    pub(super) lower: u32,
    pub(super) overloaded: bool,
    pub(super) active: u32,
    pub(super) inactive: u32,
}

impl Destination {
    fn total(&self) -> u32 {
        self.active + self.inactive
    }

    fn floor(&self) -> u32 {
        if self.lower > 0 { self.lower } else { self.upper - self.upper / 4 }
    }

    fn bind(&mut self) {
        self.inactive += 1;
        if self.upper > 0 && self.total() >= self.upper {
            self.overloaded = true;
        }
    }

    fn unbind(&mut self, inactive: bool) {
        *(if inactive { &mut self.inactive } else { &mut self.active }) -= 1;
        if self.upper == 0 || self.total() < self.floor() {
            self.overloaded = false;
        }
    }

    /// New thresholds: the flag stays where the count is between them.
    pub(super) fn limit(&mut self, upper: u32, lower: u32) {
        (self.upper, self.lower) = (upper, lower);
        if upper == 0 || self.total() < self.floor() {
            self.overloaded = false;
        } else if self.total() >= upper {
            self.overloaded = true;
        }
    }

    pub(super) fn takes_new(&self) -> bool {
        self.available && self.weight > 0 && !self.overloaded
    }
}

/// The settings that connections depend on. The defaults are the kernel's, but for `drop_removed`, which it has not.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) reuse_mode: u8,
    pub(super) expire_nodest_conn: bool,
    pub(super) sloppy_tcp: bool,
    pub(super) sloppy_sctp: bool,
    pub(super) secure_tcp: bool,
    pub(super) drop_removed: bool,
    /// Seconds.
    pub(super) tcp_s: [u32; 11],
    pub(super) udp_s: u32,
    pub(super) sctp_s: [u32; 14],
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            reuse_mode: 1,
            expire_nodest_conn: false,
            sloppy_tcp: false,
            sloppy_sctp: false,
            secure_tcp: false,
            drop_removed: true,
            tcp_s: [2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120],
            udp_s: 300,
            sctp_s: [2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61],
        }
    }
}

/// A packet as far as connections are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) proto: u8,
    /// The TCP header's byte 13.
    pub(super) flags: u8,
    /// The type of the first chunk, if there is one.
    pub(super) chunk: Option<u8>,
}

impl Seen {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn is_new(&self) -> bool {
        match self.proto {
            TCP => self.has(0x02),
            SCTP => self.chunk == Some(1),
            _ => false,
        }
    }

    /// Whether it may be scheduled (`tcp_conn_schedule`, `sctp_conn_schedule`, `udp_conn_schedule`).
    fn may_open(&self, rules: &Rules) -> bool {
        match self.proto {
            TCP => !self.has(0x04) && (rules.sloppy_tcp || self.has(0x02)),
            SCTP => self.chunk.is_some_and(|chunk| chunk == 1 || rules.sloppy_sctp),
            _ => true,
        }
    }
}

/// What becomes of a client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It goes to its backend.
    Sent,
    /// A connection may be opened for it.
    Schedules,
    /// No backend takes it: ICMP port unreachable.
    NoDestination,
    /// It belongs to no connection and opens none: the host's own stack would answer a TCP segment.
    NoConnection,
    /// Its backend is gone.
    Dropped,
}

/// The connection table.
#[derive(Default)]
pub(super) struct Kernel {
    pub(super) connections: BTreeMap<Key, Connection>,
    pub(super) destinations: BTreeMap<u32, Destination>,
    pub(super) rules: Rules,
}

impl Kernel {
    /// A packet of a client (`ip_vs_in_hook`). `candidates` are the service's backends.
    pub(super) fn client_sends(&mut self, key: Key, seen: Seen, now: u64, candidates: &[u32]) -> Answer {
        if let Some(connection) = self.connections.get(&key) {
            let destination = &self.destinations[&connection.backend];
            let quiet = destination.available && destination.weight == 0;
            let (rules, expired) = (&self.rules, connection.expires <= now);
            let over = rules.reuse_mode != 0 && connection.is_over(rules.reuse_mode);
            let reused = seen.is_new() && (rules.expire_nodest_conn && quiet || over);
            let gone = !destination.available;
            if expired || reused || gone && rules.expire_nodest_conn {
                self.end(key);
            } else if gone && rules.drop_removed {
                return Answer::Dropped;
            } else {
                self.step(key, seen, false, now);
                return Answer::Sent;
            }
        }
        if !seen.may_open(&self.rules) {
            return Answer::NoConnection;
        }
        let takes = candidates.iter().any(|id| self.destinations[id].takes_new());
        if takes { Answer::Schedules } else { Answer::NoDestination }
    }

    /// Opens a connection to the backend that was chosen.
    pub(super) fn open(&mut self, key: Key, seen: Seen, backend: u32, has_replies: bool, now: u64) {
        let destination = self.destinations.get_mut(&backend).expect("a backend");
        assert!(destination.takes_new(), "backend {backend} takes no new connections: {destination:?}");
        destination.bind();
        let connection = Connection {
            proto: seen.proto,
            state: 0,
            expires: now,
            backend,
            inactive: true,
            no_output: !has_replies,
        };
        self.connections.insert(key, connection);
        self.step(key, seen, false, now);
    }

    /// A packet of the backend. Whether it belongs to a connection.
    pub(super) fn backend_sends(&mut self, key: Key, seen: Seen, now: u64) -> bool {
        let lives = self.connections.get(&key).is_some_and(|connection| connection.expires > now);
        if lives {
            self.step(key, seen, true, now);
        }
        lives
    }

    /// Ends a connection.
    pub(super) fn end(&mut self, key: Key) {
        let connection = self.connections.remove(&key).expect("a connection");
        self.destinations.get_mut(&connection.backend).expect("a backend").unbind(connection.inactive);
    }

    /// A destination was removed (`ip_vs_expire_nodest_conn_flush`).
    pub(super) fn end_removed(&mut self) {
        if !self.rules.expire_nodest_conn {
            return;
        }
        let gone = |connection: &Connection| !self.destinations[&connection.backend].available;
        let keys: Vec<_> =
            self.connections.iter().filter(|(_, connection)| gone(connection)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.end(key));
    }

    /// The state after a packet, the counts with it, and the timeout (`set_tcp_state`, `set_sctp_state`).
    fn step(&mut self, key: Key, seen: Seen, output: bool, now: u64) {
        let connection = self.connections.get_mut(&key).expect("a connection");
        let mut direction = usize::from(output);
        if connection.no_output {
            if output {
                connection.no_output = false;
            } else {
                direction = 2;
            }
        }
        let (next, is_active, timeout_s) = match seen.proto {
            TCP => {
                let event = [0x04, 0x02, 0x01, 0x10].iter().position(|flag| seen.has(*flag));
                let row = event.map(|priority| [3, 0, 1, 2][priority]);
                let rows = &TCP_ROWS[usize::from(self.rules.secure_tcp)];
                let next = row.map_or(CLOSE, |row| rows[direction * 4 + row][connection.state]);
                (next, matches!(next, 1 | 2 | 3 | 10), self.rules.tcp_s[next])
            }
            SCTP => {
                // Without a chunk not even the timeout is set: it stays what it was.
                let event =
                    seen.chunk.map(|chunk| SCTP_EVENTS.get(usize::from(chunk)).copied().unwrap_or_default());
                let state = connection.state;
                let next = event.map_or(state, |event| SCTP_ROWS[direction * 10 + event][state]);
                (next, next == SCTP_ESTABLISHED, self.rules.sctp_s[next])
            }
            _ => (0, false, self.rules.udp_s),
        };
        let destination = self.destinations.get_mut(&connection.backend).expect("a backend");
        if next != connection.state && is_active == connection.inactive {
            connection.inactive = !is_active;
            let (to, from) = if is_active {
                (&mut destination.active, &mut destination.inactive)
            } else {
                (&mut destination.inactive, &mut destination.active)
            };
            *to += 1;
            *from -= 1;
        }
        connection.state = next;
        connection.expires = now + u64::from(timeout_s) * 10;
    }
}
