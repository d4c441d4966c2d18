//! What applies to all services: idle times, and what IPVS has as sysctls (`/proc/sys/net/ipv4/vs/`).

use crate::flow::state::State;

/// Idle times after which a flow is forgotten, in seconds, as IPVS names its states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, by the state numbers of [`State`].
    pub tcp_s: [u32; 11],
    /// UDP.
    pub udp_s: u32,
    /// SCTP, by the state numbers of IPVS (`IP_VS_SCTP_S_*`).
    pub sctp_s: [u32; 14],
}

impl Default for Timeouts {
    /// The kernel's: `net/netfilter/ipvs/ip_vs_proto_tcp.c`, `ip_vs_proto_udp.c` and `ip_vs_proto_sctp.c`.
    fn default() -> Self {
        Self { tcp_s: [2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120], udp_s: 300, sctp_s: SCTP_S }
    }
}

impl Timeouts {
    /// The idle time of a flow in this state, in seconds.
    #[inline]
    pub fn of(&self, state: State) -> u32 {
        let number = usize::from(state.number());
        let table: &[u32] = match state {
            State::Udp => return self.udp_s,
            state if state < State::SctpNone => &self.tcp_s,
            _ => &self.sctp_s,
        };
        table.get(number).copied().unwrap_or_default()
    }
}

/// NONE 2, INIT1 4, REJECTED 4, ESTABLISHED 900, all others 61 seconds.
const SCTP_S: [u32; 14] = [2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61];

/// When a defence against floods works (IPVS: the values of `drop_entry`, `drop_packet` and `secure_tcp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Defence {
    /// 0: never.
    #[default]
    Off = 0,
    /// 1: not now, but it turns itself on when memory is short.
    Automatic = 1,
    /// 2: now, because memory is short; it turns itself off when that is over.
    Engaged = 2,
    /// 3: always.
    Always = 3,
}

/// The kernel's default of what `lblc` and `lblcr` remember.
const DAY_S: u32 = 24 * 60 * 60;

/// Settings under their names in IPVS, and limits of Weir's own. The defaults are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are switches, independent of each other")]
pub struct Settings {
    /// What a SYN on a flow that has ended does: 0 the old flow goes on, 1 it is scheduled anew, 2 also where the
    /// backend alone closed (`dr` and tunnels).
    pub conn_reuse_mode: u8,
    /// A flow whose backend was removed ends with its next packet, and the client's next packet is scheduled anew.
    pub expire_nodest_conn: bool,
    /// A client's persistence ends when its backend drains.
    pub expire_quiescent_template: bool,
    /// Any TCP segment but RST opens a flow, not only a SYN.
    pub sloppy_tcp: bool,
    /// Any SCTP packet opens a flow, not only INIT.
    pub sloppy_sctp: bool,
    /// Random flows are ended.
    pub drop_entry: Defence,
    /// One packet of `am_droprate` that would open a flow is dropped.
    pub drop_packet: Defence,
    /// A handshake has to be complete before a flow counts as established.
    pub secure_tcp: Defence,
    /// See `drop_packet`.
    pub am_droprate: u32,
    /// Free entries of a worker's flow table below which memory counts as short. IPVS counts pages; here it is flows.
    pub amemthresh: u32,
    /// Packets of flows whose backend was removed are dropped, as IPVS does. Weir by default has such flows go on: a
    /// removed backend is no reason to break a connection that works.
    pub drop_removed: bool,
    /// Seconds that `lblc` remembers the backend of a destination without use.
    pub lblc_expiration_s: u32,
    /// The same for the backends of `lblcr`; one of several leaves where none has joined for so long.
    pub lblcr_expiration_s: u32,
    /// Half-open flows of a worker at most; a new one then ends an old one. 0: a quarter of the table.
    pub half_open: u32,
    /// Flows that a worker opens a second at most; packets beyond are sent where consistent hashing says. 0: no limit.
    pub new_flows_per_s: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            conn_reuse_mode: 1,
            expire_nodest_conn: false,
            expire_quiescent_template: false,
            sloppy_tcp: false,
            sloppy_sctp: false,
            drop_entry: Defence::Off,
            drop_packet: Defence::Off,
            secure_tcp: Defence::Off,
            am_droprate: 10,
            amemthresh: 1024,
            drop_removed: false,
            lblc_expiration_s: DAY_S,
            lblcr_expiration_s: DAY_S,
            half_open: 0,
            new_flows_per_s: 0,
        }
    }
}
