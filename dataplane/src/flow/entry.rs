//! One flow in one cache line.

use crate::flow::key::{FlowKey, TCP, UDP};
use crate::flow::pool;
use crate::flow::state::State;
use crate::flow::tcp;
use crate::ids::{BackendId, HopId, ServiceId};
use crate::rewrite::nat::Deltas;
use crate::snapshot::{FTP, Mode};
use crate::time::Tick;

/// A [`HopId`] that no hop has: not looked up yet.
pub const NO_HOP: HopId = HopId(u32::MAX);

/// Which way a packet travels within its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// From the client to the backend.
    Forward = 0,
    /// From the backend to the client.
    Reply = 1,
}

/// The four endpoints of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Client to VIP: what Weir receives from clients.
    pub forward: FlowKey,
    /// Backend to SNAT address (or, client address kept, to the client): what Weir receives from backends.
    pub reply: FlowKey,
}

impl Tuple {
    /// What a packet on this way looks like once it is translated.
    #[inline]
    pub fn translated(&self, way: Way) -> FlowKey {
        match way {
            Way::Forward => self.reply.reversed(),
            Way::Reply => self.forward.reversed(),
        }
    }
}

/// IPv6 addresses of a flow; an IPv4 flow has its own inside the [`Entry`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Wide {
    pub(super) client: u128,
    pub(super) vip: u128,
    pub(super) backend: u128,
    pub(super) snat: u128,
}

impl Wide {
    /// Of no flow.
    pub(super) const NONE: Self = Self { client: 0, vip: 0, backend: 0, snat: 0 };
}

const LIVE: u16 = 1;
const ACTIVE: u16 = 1 << 1;
const NO_OUTPUT: u16 = 1 << 2;
const PLAIN: u16 = 1 << 3;
/// Packets on the forward way are IPv6; the bit behind it says so of the reply way.
const V6_FORWARD: u16 = 1 << 4;
const V6_REPLY: u16 = 1 << 5;
const MODE_SHIFT: u16 = 6;
/// A packet of the backend was seen. Only kept where a state may change.
const ANSWERED: u16 = 1 << 9;
/// It gets [`PLAIN`] once it is established.
const PLAIN_LATER: u16 = 1 << 10;
const PACKETS_SHIFT: u16 = 12;

/// A flow: its keys both ways, state, timeout, and all that forwarding one of its packets needs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Entry {
    /// IPv4: client in the high half, VIP in the low. IPv6: the index of its [`Wide`] line. Free: next free slot.
    pub(super) forward: u64,
    /// IPv4: backend in the high half, SNAT address in the low. IPv6: the index of its [`Wide`] line.
    pub(super) reply: u64,
    /// Client port in the high half, VIP's port in the low.
    pub(super) forward_ports: u32,
    /// Backend's port in the high half, SNAT port in the low.
    pub(super) reply_ports: u32,
    /// When the flow is forgotten if nothing comes.
    pub expires: Tick,
    /// The service it was opened on.
    pub service: ServiceId,
    /// The backend it goes to.
    pub backend: BackendId,
    /// Net epoch that both hops were looked up in.
    pub epoch: u32,
    /// Next hop towards the backend.
    pub hop_forward: HopId,
    /// Next hop towards the client.
    pub hop_reply: HopId,
    /// What its translation does to checksums, by [`Way`].
    pub(crate) deltas: [Deltas; 2],
    /// The index of its [`super::extra::Extra`]; [`pool::NONE`] for most flows.
    pub(super) extra: pool::Index,
    pub(super) flags: u16,
    pub(super) proto: u8,
    /// Where its protocol is.
    pub state: State,
}

const _: () = assert!(size_of::<Entry>() == 64 && size_of::<Wide>() == 64);

impl Entry {
    pub(super) const FREE: Self = Self {
        forward: 0,
        reply: 0,
        forward_ports: 0,
        reply_ports: 0,
        expires: Tick(0),
        service: ServiceId(0),
        backend: BackendId(0),
        epoch: 0,
        hop_forward: NO_HOP,
        hop_reply: NO_HOP,
        deltas: [Deltas::NONE; 2],
        extra: pool::NONE,
        flags: 0,
        proto: 0,
        state: State::None,
    };

    /// Makes it live. `v6` says which ways are IPv6: forward, reply.
    pub(super) fn set_live(&mut self, mode: Mode, v6: [bool; 2]) {
        let bits = [(v6[0], V6_FORWARD), (v6[1], V6_REPLY), (!mode.has_replies(), NO_OUTPUT)];
        let set = bits.into_iter().filter(|(is_set, _)| *is_set).map(|(_, bit)| bit);
        self.flags = set.fold(LIVE | (mode as u16) << MODE_SHIFT, |flags, bit| flags | bit);
        if mode.has_replies() && self.proto == TCP && v6 == [false; 2] {
            self.flags |= PLAIN;
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.flags & LIVE != 0
    }

    /// Whether packets on `way` are IPv6 as they arrive.
    #[inline]
    pub fn is_v6(&self, way: Way) -> bool {
        self.flags & V6_FORWARD << way as u16 != 0
    }

    /// Whether packets leave in the IP version that they arrive in.
    #[inline]
    pub fn keeps_family(&self) -> bool {
        self.is_v6(Way::Forward) == self.is_v6(Way::Reply)
    }

    /// Whether it has an [`super::extra::Extra`].
    #[inline]
    pub fn has_extra(&self) -> bool {
        self.extra != pool::NONE
    }

    /// The index of its [`Wide`] line; [`pool::NONE`] where it has none.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "an index of 32 bits lies there")]
    pub(super) fn wide(&self) -> pool::Index {
        match self.flags & (V6_FORWARD | V6_REPLY) {
            0 => pool::NONE,
            V6_REPLY => self.reply as pool::Index,
            _ => self.forward as pool::Index,
        }
    }

    /// Packets from the client so far; 9 stands for all beyond 8 (IPVS: `in_pkts`).
    #[inline]
    pub fn packets(&self) -> u16 {
        self.flags >> PACKETS_SHIFT
    }

    /// Counts a packet from the client. Writes only the first few.
    #[inline]
    pub fn count_packet(&mut self) {
        if self.packets() < 9 {
            self.flags += 1 << PACKETS_SHIFT;
        }
    }

    /// Notes that a packet of the backend was seen, where the protocol has no states that say so. Returns whether it is
    /// the first.
    #[inline]
    pub fn set_answered(&mut self) -> bool {
        let is_first = self.flags & ANSWERED == 0;
        if is_first {
            self.flags |= ANSWERED;
        }
        is_first
    }

    /// Whether all that was ever seen of it is one packet from the client, in a protocol without a handshake: one that
    /// anybody can send in another's name.
    pub fn is_unassured(&self) -> bool {
        self.proto == UDP && self.flags & ANSWERED == 0 && self.packets() <= 1
    }

    /// Whether its handshake has begun and is not complete.
    #[inline]
    pub fn is_half_open(&self) -> bool {
        self.state.is_half_open()
    }

    /// Tells it from other flows that use the same slot before or after it, almost certainly.
    #[expect(clippy::cast_possible_truncation, reason = "all bits are mixed into the low ones")]
    pub(super) fn mark(&self) -> u32 {
        let addresses = self.forward ^ self.reply.rotate_left(13);
        (addresses ^ addresses >> 32) as u32 ^ self.forward_ports ^ self.reply_ports.rotate_left(7)
    }

    /// Has its packets pass the general path from now on, on which they are given what is not for every flow.
    pub fn leave_plain_path(&mut self) {
        self.flags &= !(PLAIN | PLAIN_LATER);
    }

    /// Has the packets of its handshake pass the general path, if later ones take the plain one.
    pub fn defer_plain_path(&mut self) {
        if self.flags & PLAIN != 0 {
            self.flags ^= PLAIN | PLAIN_LATER;
        }
    }

    /// Has its packets pass the plain path from now on, if that is for such flows.
    pub fn enter_plain_path(&mut self) {
        let v6 = self.flags & (V6_FORWARD | V6_REPLY) != 0;
        if self.mode().has_replies() && self.proto == TCP && !v6 && !self.is_ftp() {
            self.flags |= PLAIN;
        }
    }

    /// Ends what [`Self::defer_plain_path`] has begun.
    pub fn resume_plain_path(&mut self) {
        if self.flags & PLAIN_LATER != 0 {
            self.flags ^= PLAIN | PLAIN_LATER;
        }
    }

    /// Whether it is a control connection of FTP whose replies pass here.
    #[inline]
    pub fn is_ftp(&self) -> bool {
        low(self.forward_ports) == FTP
            && self.proto == TCP
            && self.mode().has_replies()
            && self.keeps_family()
    }

    /// IP protocol number.
    #[inline]
    pub fn proto(&self) -> u8 {
        self.proto
    }

    /// How its packets are forwarded.
    #[inline]
    pub fn mode(&self) -> Mode {
        match self.flags >> MODE_SHIFT & 7 {
            0 => Mode::Nat,
            1 => Mode::FullNat,
            2 => Mode::Dr,
            3 => Mode::Ipip,
            4 => Mode::Gue,
            _ => Mode::Gre,
        }
    }

    /// Whether it is a translated TCP flow over IPv4: the kind that has a path of its own.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.flags & PLAIN != 0
    }

    /// Whether it counts as an active connection of its backend.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.flags & ACTIVE != 0
    }

    /// Sets whether it counts as an active connection.
    #[inline]
    pub fn set_active(&mut self, active: bool) {
        self.flags = self.flags & !ACTIVE | if active { ACTIVE } else { 0 };
    }

    /// Whether the backend's packets have been seen, or will be.
    #[inline]
    pub fn sees_replies(&self) -> bool {
        self.flags & NO_OUTPUT == 0
    }

    /// Which of the TCP tables applies to a packet on `way`: a flow whose replies do not pass here (`dr`) is
    /// judged by its input alone, until one does.
    #[inline]
    pub fn direction(&mut self, way: Way) -> tcp::Direction {
        match way {
            Way::Reply => {
                self.flags &= !NO_OUTPUT;
                tcp::Direction::Output
            }
            Way::Forward if self.flags & NO_OUTPUT != 0 => tcp::Direction::InputOnly,
            Way::Forward => tcp::Direction::Input,
        }
    }

    /// What the translation on `way` does to checksums.
    #[inline]
    pub fn deltas(&self, way: Way) -> &Deltas {
        let [forward, reply] = &self.deltas;
        match way {
            Way::Forward => forward,
            Way::Reply => reply,
        }
    }

    /// The hop for packets on `way`.
    #[inline]
    pub fn hop(&self, way: Way) -> HopId {
        match way {
            Way::Forward => self.hop_forward,
            Way::Reply => self.hop_reply,
        }
    }

    /// Whether an IPv4 packet with `key` belongs to the flow on this way.
    #[inline]
    pub(super) fn matches_v4(&self, key: &FlowKey, way: Way) -> bool {
        let (addresses, ports) = match way {
            Way::Forward => (self.forward, self.forward_ports),
            Way::Reply => (self.reply, self.reply_ports),
        };
        addresses == pair(key) && ports == ports_of(key) && self.proto == key.proto && !self.is_v6(way)
    }

    /// [`Self::matches_v4`] for IPv6. `wide` are the entry's addresses.
    #[inline]
    pub(super) fn matches_v6(&self, wide: &Wide, key: &FlowKey, way: Way) -> bool {
        let (src, dst, ports) = match way {
            Way::Forward => (wide.client, wide.vip, self.forward_ports),
            Way::Reply => (wide.backend, wide.snat, self.reply_ports),
        };
        src == key.src
            && dst == key.dst
            && ports == ports_of(key)
            && self.proto == key.proto
            && self.is_v6(way)
    }

    /// What an IPv4 packet on `way` is translated to: the other way's key, turned round. Source address in the high
    /// half, destination in the low; ports alike.
    #[inline]
    pub fn target_v4(&self, way: Way) -> (u64, u32) {
        let (addresses, ports) = match way {
            Way::Forward => (self.reply, self.reply_ports),
            Way::Reply => (self.forward, self.forward_ports),
        };
        (addresses.rotate_left(32), ports.rotate_left(16))
    }

    /// [`Self::target_v4`] for IPv6. `wide` are the entry's addresses.
    #[inline]
    pub(super) fn target_v6(&self, wide: &Wide, way: Way) -> ([u128; 2], u32) {
        let (addresses, ports) = match way {
            Way::Forward => ([wide.snat, wide.backend], self.reply_ports),
            Way::Reply => ([wide.vip, wide.client], self.forward_ports),
        };
        (addresses, ports.rotate_left(16))
    }

    /// Its endpoints. `wide` are its IPv6 addresses.
    pub(super) fn tuple(&self, wide: &Wide) -> Tuple {
        let key = |way, addresses: u64, [src, dst]: [u128; 2], ports: u32| {
            let v6 = self.is_v6(way);
            let v4 = [addresses >> 32, addresses & u64::from(u32::MAX)].map(u128::from);
            let [src, dst] = if v6 { [src, dst] } else { v4 };
            FlowKey { src, dst, sport: high(ports), dport: low(ports), proto: self.proto, v6 }
        };
        Tuple {
            forward: key(Way::Forward, self.forward, [wide.client, wide.vip], self.forward_ports),
            reply: key(Way::Reply, self.reply, [wide.backend, wide.snat], self.reply_ports),
        }
    }
}

/// Both IPv4 addresses of a key in one word.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "IPv4 addresses are the low 32 bits")]
pub(super) fn pair(key: &FlowKey) -> u64 {
    (key.src as u64) << 32 | key.dst as u64
}

/// Both ports of a key in one word.
#[inline]
pub(super) fn ports_of(key: &FlowKey) -> u32 {
    u32::from(key.sport) << 16 | u32::from(key.dport)
}

fn high(ports: u32) -> u16 {
    (ports >> 16) as u16
}

#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
fn low(ports: u32) -> u16 {
    ports as u16
}
