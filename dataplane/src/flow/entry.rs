//! One flow in one cache line.

use crate::flow::key::{FlowKey, TCP};
use crate::flow::tcp;
use crate::ids::{BackendId, HopId, ServiceId};
use crate::rewrite::nat::Deltas;
use crate::snapshot::Mode;
use crate::time::Tick;

/// A [`HopId`] that no hop has: not looked up yet.
pub const NO_HOP: HopId = HopId(u32::MAX);

/// Which way a packet travels within its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the backend.
    Forward,
    /// From the backend to the client.
    Reply,
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

const LIVE: u8 = 1;
const V6: u8 = 1 << 1;
const ACTIVE: u8 = 1 << 2;
const NO_OUTPUT: u8 = 1 << 3;
const MODE_SHIFT: u8 = 4;
const PLAIN: u8 = 1 << 6;

/// A flow: its keys both ways, state, timeout, and all that forwarding one of its packets needs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Entry {
    /// IPv4: client in the high half, VIP in the low. IPv6: its own index, which is that of its [`Wide`] line. Free: next free slot.
    pub(super) forward: u64,
    /// IPv4: backend in the high half, SNAT address in the low.
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
    pub(super) proto: u8,
    pub(super) flags: u8,
    /// TCP state; UDP stays in NONE.
    pub state: tcp::State,
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
        proto: 0,
        flags: 0,
        state: tcp::State::None,
    };

    pub(super) fn set_live(&mut self, mode: Mode, v6: bool) {
        self.flags = LIVE | if v6 { V6 } else { 0 } | (mode as u8) << MODE_SHIFT;
        if mode == Mode::Dr {
            self.flags |= NO_OUTPUT;
        } else if self.proto == TCP && !v6 {
            self.flags |= PLAIN;
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.flags & LIVE != 0
    }

    /// Whether its addresses are IPv6.
    #[inline]
    pub fn is_v6(&self) -> bool {
        self.flags & V6 != 0
    }

    /// IP protocol number.
    #[inline]
    pub fn proto(&self) -> u8 {
        self.proto
    }

    /// How its packets are forwarded.
    #[inline]
    pub fn mode(&self) -> Mode {
        match self.flags >> MODE_SHIFT & 3 {
            0 => Mode::Nat,
            1 => Mode::FullNat,
            _ => Mode::Dr,
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
        addresses == pair(key) && ports == ports_of(key) && self.proto == key.proto && !self.is_v6()
    }

    /// [`Self::matches_v4`] for IPv6. `wide` are the entry's addresses.
    #[inline]
    pub(super) fn matches_v6(&self, wide: &Wide, key: &FlowKey, way: Way) -> bool {
        let (src, dst, ports) = match way {
            Way::Forward => (wide.client, wide.vip, self.forward_ports),
            Way::Reply => (wide.backend, wide.snat, self.reply_ports),
        };
        src == key.src && dst == key.dst && ports == ports_of(key) && self.proto == key.proto && self.is_v6()
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

    pub(super) fn tuple_v4(&self) -> Tuple {
        let key = |addresses: u64, ports: u32| FlowKey {
            src: u128::from(addresses >> 32),
            dst: u128::from(addresses & u64::from(u32::MAX)),
            sport: high(ports),
            dport: low(ports),
            proto: self.proto,
            v6: false,
        };
        Tuple { forward: key(self.forward, self.forward_ports), reply: key(self.reply, self.reply_ports) }
    }

    pub(super) fn tuple_v6(&self, wide: &Wide) -> Tuple {
        let key = |src, dst, ports| FlowKey {
            src,
            dst,
            sport: high(ports),
            dport: low(ports),
            proto: self.proto,
            v6: true,
        };
        Tuple {
            forward: key(wide.client, wide.vip, self.forward_ports),
            reply: key(wide.backend, wide.snat, self.reply_ports),
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
