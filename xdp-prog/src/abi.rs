//! Keys and values of the kernel's maps, compared with `weir_abi.h` at compile time.
//!
//! The C compiler writes the layout of that header into the program's BTF, `build.rs` turns it into the module
//! `types`, and the assertions here do not compile when the two sides differ.

use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64};

use zerocopy::{Immutable, IntoBytes};

use crate::ours::Proto;

#[allow(
    unsafe_code,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::cast_possible_truncation,
    clippy::undocumented_unsafe_blocks,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "generated; only its types are used, and they have no code"
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/weir_xdp.skel.rs"));
}
use skeleton::types;

/// The compiled program, as an ELF file.
pub(crate) const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weir_xdp.o"));

/// Interfaces that one loader serves at most; port numbers are below it.
pub const MAX_PORTS: u32 = types::weir_limit::WEIR_MAX_PORTS.0;
/// Queues of an interface, and so workers, at most.
pub const MAX_QUEUES: u32 = types::weir_limit::WEIR_MAX_QUEUES.0;
/// Words of the NodePort bitmap for one protocol.
pub(crate) const NODE_PORT_WORDS: u32 = types::weir_limit::WEIR_NODE_PORT_WORDS.0;
/// Rules that are tried for a packet at most.
pub(crate) const MAX_RULES: usize = types::weir_limit::WEIR_MAX_RULES.0 as usize;
/// How many protocols there are.
pub(crate) const PROTOS: u32 = types::weir_proto::WEIR_PROTOS.0;

/// Flags of [`Use`].
#[expect(clippy::cast_possible_truncation, reason = "the C side keeps them in 16 bits, too")]
pub(crate) mod flag {
    use super::types::weir_flag;

    /// The node's own.
    pub(crate) const NODE: u16 = weir_flag::WEIR_NODE.0 as u16;
    /// Answered for by Weir.
    pub(crate) const ANSWERED: u16 = weir_flag::WEIR_ANSWERED.0 as u16;
    /// At the other end of a tunnel.
    pub(crate) const TUNNEL: u16 = weir_flag::WEIR_TUNNEL.0 as u16;
    /// In a SNAT pool.
    pub(crate) const TRANSLATED: u16 = weir_flag::WEIR_TRANSLATED.0 as u16;
}

/// `struct weir_address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Address {
    bits: [u8; 16],
    version: u32,
}

/// `struct weir_endpoint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Place {
    addr: Address,
    port: [u8; 2],
    proto: u16,
}

/// `struct weir_use`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Use {
    pub(crate) snat_low: u16,
    pub(crate) snat_high: u16,
    pub(crate) flags: u16,
    pub(crate) vip_protos: u8,
    pub(crate) backend_protos: u8,
    pub(crate) vip_every: u8,
    pub(crate) backend_every: u8,
    pub(crate) tunnel_low: u16,
    pub(crate) tunnel_high: u16,
}

/// `struct weir_prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Prefix {
    length: u32,
    version: [u8; 4],
    bits: [u8; 16],
}

/// `struct weir_rule`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RuleLine {
    pub(crate) src: [u8; 16],
    pub(crate) src_mask: [u8; 16],
    pub(crate) dport_low: u16,
    pub(crate) dport_high: u16,
    pub(crate) sport_low: u16,
    pub(crate) sport_high: u16,
    pub(crate) port: u16,
    pub(crate) protos: u8,
    pub(crate) ours: u8,
}

impl RuleLine {
    /// Any interface, in [`RuleLine::port`].
    #[expect(clippy::cast_possible_truncation, reason = "the C side keeps it in 16 bits, too")]
    pub(crate) const ANY_PORT: u16 = types::weir_limit::WEIR_ANY_PORT.0 as u16;
}

/// `struct weir_rules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RuleLines {
    pub(crate) count: u32,
    pub(crate) list: [RuleLine; MAX_RULES],
}

/// `struct weir_beat`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct BeatLine {
    pub(crate) at_ns: AtomicU64,
    unused: [u64; 7],
}

/// `struct weir_settings`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Settings {
    pub(crate) beat_limit_ns: AtomicU64,
    pub(crate) front_mix: AtomicU64,
    pub(crate) front_mask: AtomicU32,
    pub(crate) interfaces: [AtomicU32; MAX_PORTS as usize],
}

/// `struct weir_bucket`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Bucket {
    pub(crate) places: [AtomicU64; types::weir_limit::WEIR_BUCKET.0 as usize],
}

/// Fails to compile unless both structs have the same size and the same fields at the same places.
macro_rules! same_layout {
    ($ours:ident = $theirs:ident { $($field:ident),+ }) => {
        const _: () = {
            assert!(size_of::<$ours>() == size_of::<types::$theirs>());
            $(
                assert!(offset_of!($ours, $field) == offset_of!(types::$theirs, $field));
                assert!(field_size(|s: &$ours| &s.$field) == field_size(|s: &types::$theirs| &s.$field));
            )+
        };
    };
}

const fn field_size<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

same_layout!(Address = weir_address { bits, version });
same_layout!(Place = weir_endpoint { addr, port, proto });
same_layout!(
    Use = weir_use {
        snat_low,
        snat_high,
        flags,
        vip_protos,
        backend_protos,
        vip_every,
        backend_every,
        tunnel_low,
        tunnel_high
    }
);
same_layout!(Prefix = weir_prefix { length, version, bits });
same_layout!(
    RuleLine = weir_rule { src, src_mask, dport_low, dport_high, sport_low, sport_high, port, protos, ours }
);
same_layout!(RuleLines = weir_rules { count, list });
same_layout!(BeatLine = weir_beat { at_ns, unused });
same_layout!(Settings = weir_settings { beat_limit_ns, front_mix, front_mask, interfaces });
same_layout!(Bucket = weir_bucket { places });

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $theirs:ident => $name:literal,)*) => {
        /// What became of a frame, and by which rule. The program counts every frame once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[$doc])* $variant = types::weir_counter::$theirs.0,)*
        }

        impl Counter {
            /// Every counter, in the order of the kernel's map.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The counter's name as metrics and documentation have it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        const _: () = assert!(Counter::ALL.len() == types::weir_counter::WEIR_COUNTERS.0 as usize);
    };
}

counters! {
    /// Passed to the kernel: no rule matched.
    NotOurs = WEIR_NOT_OURS => "not_ours",
    /// Passed to the kernel: a header runs past the end of the frame or contradicts another.
    Malformed = WEIR_MALFORMED => "malformed",
    /// Passed to the kernel although ours: the interface has no port number.
    UnknownPort = WEIR_UNKNOWN_PORT => "unknown_port",
    /// Passed to the kernel although ours: the queue's worker has not beaten within the limit.
    StaleWorker = WEIR_STALE_WORKER => "stale_worker",
    /// Passed to the kernel although ours: no worker serves the queue, or no socket is registered for it.
    NoSocket = WEIR_NO_SOCKET => "no_socket",
    /// Handed over: for a VIP, port and protocol.
    Vip = WEIR_VIP => "vip",
    /// Handed over: for a NodePort on a node's address.
    NodePort = WEIR_NODE_PORT => "node_port",
    /// Handed over: for a SNAT address and a port of its range.
    Snat = WEIR_SNAT => "snat",
    /// Handed over: from the address and port of a `nat` backend.
    NatReply = WEIR_NAT_REPLY => "nat_reply",
    /// Handed over: by a rule that gives the mark of a service.
    Marked = WEIR_MARKED => "marked",
    /// Handed over: an ICMP error about a packet of one of the kinds above.
    IcmpError = WEIR_ICMP_ERROR => "icmp_error",
    /// Handed over: a fragment of such traffic.
    Fragment = WEIR_FRAGMENT => "fragment",
    /// Handed over: ARP, neighbour solicitation or echo request for an owned address.
    Owned = WEIR_OWNED => "owned",
}

impl Counter {
    /// Whether its frames went to a socket. All others went to the kernel.
    pub fn is_handed_over(self) -> bool {
        self >= Self::Vip
    }
}

impl Address {
    /// The address with these bits; those of IPv4 come first.
    pub(crate) fn of_bits(bits: [u8; 16], v6: bool) -> Self {
        Self { bits, version: if v6 { 6 } else { 4 } }
    }

    pub(crate) fn bits(self) -> [u8; 16] {
        self.bits
    }

    pub(crate) fn is_v6(self) -> bool {
        self.version == 6
    }
}

impl From<IpAddr> for Address {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => {
                let mut bits = [0; 16];
                if let Some(first) = bits.first_chunk_mut() {
                    *first = v4.octets();
                }
                Self { bits, version: 4 }
            }
            IpAddr::V6(v6) => Self { bits: v6.octets(), version: 6 },
        }
    }
}

impl Prefix {
    /// The first `length` bits of an address.
    pub(crate) fn new(addr: IpAddr, length: u8) -> Self {
        let Address { bits, version } = addr.into();
        // The version takes the first 32 bits of what counts.
        Self { length: 32 + u32::from(length), version: version.to_be_bytes(), bits }
    }
}

/// The bytes of an address as [`Address`] has them, and a mask of its first `length` bits.
pub(crate) fn masked(addr: IpAddr, length: u8) -> ([u8; 16], [u8; 16]) {
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
    (Address::from(addr).bits, mask.to_be_bytes())
}

impl Place {
    /// `proto` is the number that [`Proto::number`] gives.
    pub(crate) fn new(addr: Address, port: u16, proto: u16) -> Self {
        Self { addr, port: port.to_be_bytes(), proto }
    }
}

impl Proto {
    /// Its number in the kernel's maps.
    #[expect(clippy::cast_possible_truncation, reason = "below PROTOS")]
    pub(crate) fn number(self) -> u16 {
        use types::weir_proto;
        match self {
            Self::Tcp => weir_proto::WEIR_TCP.0 as u16,
            Self::Udp => weir_proto::WEIR_UDP.0 as u16,
            Self::Sctp => weir_proto::WEIR_SCTP.0 as u16,
        }
    }

    /// Its bit in a set of protocols.
    pub(crate) fn bit(self) -> u8 {
        1 << self.number()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_name_and_its_place_in_the_map() {
        let names: std::collections::BTreeSet<_> =
            Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        for (number, counter) in (0u32..).zip(Counter::ALL) {
            assert_eq!(*counter as u32, number);
        }
    }

    #[test]
    fn families_never_meet_in_one_key() {
        let v4 = Address::from(IpAddr::from([10, 0, 0, 1]));
        let v6 = Address::from(IpAddr::from([0x0a00, 1, 0, 0, 0, 0, 0, 0]));
        assert_eq!(v4.bits, v6.bits);
        assert_ne!(v4, v6);
    }
}
