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

impl Way {
    /// The one of `both`, which are by way, that is for this way: by an index, for a branch would be foreseen as badly as
    /// the ways of a batch's packets.
    #[inline]
    pub fn of<T>(self, both: &[T; 2]) -> &T {
        let [forward, _] = both;
        both.get(self as usize).unwrap_or(forward)
    }

    /// The one that is for the other way.
    #[inline]
    pub fn other_of<T>(self, both: &[T; 2]) -> &T {
        let [forward, _] = both;
        both.get(self as usize ^ 1).unwrap_or(forward)
    }
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
/// TCP or UDP in one IP version, outside of tunnels, of which nothing is asked but the translation that lies here.
const SIMPLE: u16 = 1 << 11;
const PACKETS_SHIFT: u16 = 12;

/// A flow: its keys both ways, state, timeout, and all that forwarding one of its packets needs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Entry {
    /// By [`Way`]. IPv4: source and destination of what arrives, in the order of the wire: client and VIP, backend and SNAT
    /// address. IPv6: the index of its [`Wide`] line. Free: first the next free slot.
    pub(super) addresses: [u64; 2],
    /// The ports that belong to `addresses`, in the order of the wire.
    pub(super) ports: [u32; 2],
    /// When the flow is forgotten if nothing comes.
    pub expires: Tick,
    /// The service it was opened on.
    pub service: ServiceId,
    /// The backend it goes to.
    pub backend: BackendId,
    /// Net epoch that both hops were looked up in.
    pub epoch: u32,
    /// Next hops, by [`Way`]: towards the backend and towards the client.
    pub hops: [HopId; 2],
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
        addresses: [0; 2],
        ports: [0; 2],
        expires: Tick(0),
        service: ServiceId(0),
        backend: BackendId(0),
        epoch: 0,
        hops: [NO_HOP; 2],
        deltas: [Deltas::NONE; 2],
        extra: pool::NONE,
        flags: 0,
        proto: 0,
        state: State::None,
    };

    /// A free entry, in the list of which `next` is the slot behind it.
    pub(super) fn free(next: u32) -> Self {
        Self { addresses: [next.into(), 0], ..Self::FREE }
    }

    /// What [`Self::free`] was told. Of a live entry it says nothing.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a slot lies there")]
    pub(super) fn next_free(&self) -> u32 {
        *Way::Forward.of(&self.addresses) as u32
    }

    /// Makes it live. `v6` says which ways are IPv6: forward, reply.
    #[inline]
    pub(super) fn set_live(&mut self, mode: Mode, v6: [bool; 2]) {
        let bits = [(v6[0], V6_FORWARD), (v6[1], V6_REPLY), (!mode.has_replies(), NO_OUTPUT)];
        let set = bits.into_iter().filter(|(is_set, _)| *is_set).map(|(_, bit)| bit);
        self.flags = set.fold(LIVE | (mode as u16) << MODE_SHIFT, |flags, bit| flags | bit);
        self.flags |= self.paths(mode);
    }

    /// Makes it a flow over IPv4 that one packet from the client has opened, and brought to its state.
    #[inline]
    pub(super) fn set_opened(&mut self, mode: Mode) {
        self.set_live(mode, [false; 2]);
        self.set_active(self.state.is_active());
        self.count_packet(Way::Forward);
    }

    /// The paths of their own that its packets may pass, if nothing more is asked of them.
    #[inline]
    fn paths(&self, mode: Mode) -> u16 {
        let is_simple = !mode.is_tunnel() && self.keeps_family() && matches!(self.proto, TCP | UDP);
        let is_plain = is_simple && self.proto == TCP && !self.is_v6(Way::Forward);
        (if is_simple { SIMPLE } else { 0 }) | if is_plain { PLAIN } else { 0 }
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
        let [forward, reply] = self.addresses;
        match self.flags & (V6_FORWARD | V6_REPLY) {
            0 => pool::NONE,
            V6_REPLY => reply as pool::Index,
            _ => forward as pool::Index,
        }
    }

    /// Packets from the client so far; 9 stands for all beyond 8 (IPVS: `in_pkts`).
    #[inline]
    pub fn packets(&self) -> u16 {
        self.flags >> PACKETS_SHIFT
    }

    /// Counts a packet, if it is from the client. Writes only the first few.
    #[inline]
    pub fn count_packet(&mut self, way: Way) {
        if self.packets() < 9 {
            // By arithmetic: a branch on the way would be foreseen badly.
            self.flags += (1 - way as u16) << PACKETS_SHIFT;
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
        let ([forward, reply], [first, second]) = (self.addresses, self.ports);
        let addresses = forward ^ reply.rotate_left(13);
        (addresses ^ addresses >> 32) as u32 ^ first ^ second.rotate_left(7)
    }

    /// Has its packets pass the general path from now on, on which they are given what is not for every flow.
    pub fn leave_plain_path(&mut self) {
        self.flags &= !(PLAIN | PLAIN_LATER | SIMPLE);
    }

    /// Has the packets of its handshake pass the general path, if later ones take the plain one.
    pub fn defer_plain_path(&mut self) {
        if self.flags & PLAIN != 0 {
            self.flags ^= PLAIN | PLAIN_LATER;
        }
    }

    /// Has its packets pass the plain path from now on, if that is for such flows.
    pub fn enter_plain_path(&mut self) {
        if !self.is_ftp() {
            self.flags |= self.paths(self.mode());
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
        let [_, port] = ports(*Way::Forward.of(&self.ports));
        port == FTP && self.proto == TCP && self.mode().has_replies() && self.keeps_family()
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

    /// Whether it is a TCP flow over IPv4 outside of tunnels: the kind that has a path of its own.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.flags & PLAIN != 0
    }

    /// Whether its packets, but for a SYN, need nothing but the translation that lies here.
    #[inline]
    pub fn is_simple(&self) -> bool {
        self.flags & SIMPLE != 0
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
        way.of(&self.deltas)
    }

    /// The hop for packets on `way`.
    #[inline]
    pub fn hop(&self, way: Way) -> HopId {
        *way.of(&self.hops)
    }

    /// Remembers the hop for packets on `way`, as found in this epoch of the network; forgets those of earlier ones.
    #[inline]
    pub fn take_hop(&mut self, way: Way, hop: HopId, epoch: u32) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.hops = [NO_HOP; 2];
        }
        let [forward, reply] = &mut self.hops;
        *(if way == Way::Forward { forward } else { reply }) = hop;
    }

    /// Addresses and ports of an IPv4 flow's packets on this way, in the order of the wire.
    #[inline]
    fn words_v4(&self, way: Way) -> (u64, u32) {
        (*way.of(&self.addresses), *way.of(&self.ports))
    }

    /// Whether an IPv4 packet with `key` belongs to the flow on this way.
    #[inline]
    pub(super) fn matches_v4(&self, key: &FlowKey, way: Way) -> bool {
        self.words_v4(way) == (key.addresses_v4(), key.ports()) && self.proto == key.proto && !self.is_v6(way)
    }

    /// Whether a TCP segment over IPv4 with these words belongs to the flow on this way, and that [is plain](Self::is_plain).
    #[inline]
    pub(super) fn matches_plain(&self, words: (u64, u32), way: Way) -> bool {
        self.words_v4(way) == words && self.is_plain()
    }

    /// [`Self::matches_v4`] for IPv6. `wide` are the entry's addresses.
    #[inline]
    pub(super) fn matches_v6(&self, wide: &Wide, key: &FlowKey, way: Way) -> bool {
        let (src, dst) = match way {
            Way::Forward => (wide.client, wide.vip),
            Way::Reply => (wide.backend, wide.snat),
        };
        src == key.src
            && dst == key.dst
            && *way.of(&self.ports) == key.ports()
            && self.proto == key.proto
            && self.is_v6(way)
    }

    /// What an IPv4 packet on `way` is translated to: the other way's key, turned round. Addresses and ports, in the
    /// order of the wire.
    #[inline]
    pub fn target_v4(&self, way: Way) -> (u64, u32) {
        (way.other_of(&self.addresses).rotate_left(32), way.other_of(&self.ports).rotate_left(16))
    }

    /// [`Self::target_v4`] for IPv6. `wide` are the entry's addresses.
    #[inline]
    pub(super) fn target_v6(&self, wide: &Wide, way: Way) -> ([u128; 2], u32) {
        let addresses = match way {
            Way::Forward => [wide.snat, wide.backend],
            Way::Reply => [wide.vip, wide.client],
        };
        (addresses, way.other_of(&self.ports).rotate_left(16))
    }

    /// Its endpoints. `wide` are its IPv6 addresses.
    pub(super) fn tuple(&self, wide: &Wide) -> Tuple {
        let key = |way: Way, [src, dst]: [u128; 2]| {
            let v6 = self.is_v6(way);
            let (words, both) = self.words_v4(way);
            let [src, dst] = if v6 { [src, dst] } else { addresses(words).map(u128::from) };
            let [sport, dport] = ports(both);
            FlowKey { src, dst, sport, dport, proto: self.proto, v6 }
        };
        Tuple {
            forward: key(Way::Forward, [wide.client, wide.vip]),
            reply: key(Way::Reply, [wide.backend, wide.snat]),
        }
    }
}

/// Two IPv4 addresses out of a word in the order of the wire.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
pub(crate) fn addresses(words: u64) -> [u32; 2] {
    let both = u64::from_be(words);
    [(both >> 32) as u32, both as u32]
}

/// Two ports out of a word in the order of the wire.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
pub(crate) fn ports(words: u32) -> [u16; 2] {
    let both = u32::from_be(words);
    [(both >> 16) as u16, both as u16]
}
