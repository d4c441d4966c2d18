//! The flow table of one worker: entries of one cache line behind buckets of one cache line, both directions of a
//! flow found, sized at start and never grown.
//!
//! Every key hashes to two buckets; it lies in the first unless that was full. The table keeps at most four
//! references of eight a bucket on average, so that a lookup of a known flow reads one bucket and one entry almost
//! always, and a lookup of an unknown one reads one bucket unless something had to leave it (`Bucket::spilled`).

use super::bucket::{Bucket, Reference};
use super::entry::{self, Entry, Tuple, Way, Wide};
use super::extra::Extra;
use super::key::FlowKey;
use super::pool::{self, Pool};
use super::state::State;
use crate::ids::{BackendId, HopId, ServiceId};
use crate::packet::Plain;
use crate::prefetch::{prefetch, prefetch_at};
use crate::rewrite::nat::Deltas;
use crate::snapshot::Mode;
use crate::time::Tick;

/// Index of an entry.
pub type Slot = u32;

/// Flows that a table has at most. Two bits of a reference are its own, and the last slots name none.
pub const MAX_FLOWS: usize = (1 << 30) - 8;

/// A found flow: its slot and the way that the packet travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit(Reference);

impl Hit {
    /// Of no flow: no table has its slot.
    pub const NONE: Self = Self(Reference::NONE);

    /// The entry's index.
    #[inline]
    pub fn slot(self) -> Slot {
        self.0.slot()
    }

    /// The packet's way within the flow.
    #[inline]
    pub fn way(self) -> Way {
        self.0.way()
    }
}

/// Flows to one line of IPv6 addresses, and of [`Extra`]s, that is faulted in at start.
pub const READY: usize = 32;

/// Slots beyond the limit, for a flow that is [not found](FlowTable::open_unlinked).
const UNLINKED: usize = 1;

/// What a flow is opened with.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    /// Its endpoints.
    pub tuple: Tuple,
    /// How it is forwarded. Without replies ([`Mode::has_replies`]) it has no reply key.
    pub mode: Mode,
    /// Its service.
    pub service: ServiceId,
    /// Its backend.
    pub backend: BackendId,
}

/// What a flow over IPv4 is opened with, in the order of the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewWords {
    /// Addresses and ports of what arrives, by [`Way`].
    pub(crate) words: [(u64, u32); 2],
    /// The hashes of both.
    pub(crate) hashes: [u64; 2],
    /// IP protocol number.
    pub(crate) proto: u8,
    /// See [`NewFlow::mode`].
    pub(crate) mode: Mode,
    /// Its service.
    pub(crate) service: ServiceId,
    /// Its backend.
    pub(crate) backend: BackendId,
    /// The next hops that are known, by [`Way`], and the net epoch that they are of.
    pub(crate) hops: [HopId; 2],
    pub(crate) epoch: u32,
    /// Its state once its first packet was seen, and until when it then lasts.
    pub(crate) state: State,
    pub(crate) expires: Tick,
}

/// The table has no slot, or no room in either bucket of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Flows of one worker.
#[derive(Debug)]
pub struct FlowTable {
    buckets: Vec<Bucket>,
    entries: Vec<Entry>,
    /// IPv6 addresses of the entries that have some.
    wide: Pool<Wide>,
    extra: Pool<Extra>,
    /// Head of the list of free slots below `high`; `Slot::MAX` ends it.
    free: Slot,
    /// Slots from here on were never used.
    high: Slot,
    live: usize,
    seed: u64,
    mask: u64,
}

/// Ends the list of free slots.
const NONE: Slot = Slot::MAX;

impl FlowTable {
    /// A table for `limit` flows (at least 1, at most [`MAX_FLOWS`]), all memory taken: 64 bytes a flow and 32 to 64
    /// for its two references, faulted in, and another 64 for IPv6 addresses and 64 for an [`Extra`], of which one in
    /// [`READY`] is faulted in. `seed` keys the hash.
    ///
    /// `reserve` gives the empty vectors of a given capacity, so that the caller may place them on huge pages.
    pub fn new(limit: usize, seed: u64, reserve: &impl Reserve) -> Self {
        let limit = limit.clamp(1, MAX_FLOWS);
        let buckets = (limit * 2 / 4).next_power_of_two().max(2);
        let slots = limit + UNLINKED;
        Self {
            buckets: filled(reserve, buckets, Bucket::EMPTY),
            entries: filled(reserve, slots, Entry::FREE),
            wide: Pool::new(slots, limit / READY, reserve),
            extra: Pool::new(slots, limit / READY, reserve),
            free: NONE,
            high: 0,
            live: 0,
            seed,
            mask: buckets as u64 - 1,
        }
    }

    /// The hash by which this table knows a key.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        key.hash(self.seed)
    }

    /// [`Self::hash`] of a packet's key, whose protocol this is.
    #[inline]
    pub(crate) fn hash_plain(&self, plain: &Plain, protocol: u8) -> u64 {
        plain.hash(protocol, self.seed)
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Whether there is a slot for one more.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.live < self.capacity()
    }

    /// Flows that there is room for.
    pub fn capacity(&self) -> usize {
        self.entries.len() - UNLINKED
    }

    /// Slots that may hold a live flow: all below this one.
    pub fn high_water(&self) -> Slot {
        self.high
    }

    /// Brings the first bucket of a hash into the cache.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch_at(&self.buckets, self.home(hash));
    }

    /// Brings the entry of a slot into the cache.
    #[inline]
    pub fn prefetch_slot(&self, slot: Slot) {
        prefetch_at(&self.entries, slot as usize);
    }

    /// Brings the IPv6 addresses of what probably is a flow into the cache, once its entry is there.
    #[inline]
    pub fn prefetch_wide(&self, hit: Hit) {
        let entry = self.entries.get(hit.slot() as usize);
        if let Some(wide) = entry.and_then(|entry| self.wide.get(entry.wide())) {
            prefetch(wide);
        }
    }

    /// What probably is the flow of a hash, and its entry on the way into the cache. To be confirmed by [`Self::confirm`].
    #[inline]
    pub fn probe(&self, hash: u64) -> Option<Hit> {
        let reference = self.buckets.get(self.home(hash))?.matching(tag(hash)).next()?;
        self.prefetch_slot(reference.slot());
        Some(Hit(reference))
    }

    /// The entry of `hit`, to be changed, if that is the [plain](Entry::is_plain) flow of a TCP segment over IPv4 with these
    /// addresses and ports, in the order of the wire.
    #[inline]
    pub fn confirm_plain(&mut self, hit: Hit, words: (u64, u32)) -> Option<&mut Entry> {
        self.entries.get_mut(hit.slot() as usize).filter(|entry| entry.matches_plain(words, hit.way()))
    }

    /// The entry of `hit`, to be changed, if that is the flow of `key`.
    #[inline]
    pub fn confirm(&mut self, hit: Hit, key: &FlowKey) -> Option<&mut Entry> {
        let Self { entries, wide, .. } = self;
        entries.get_mut(hit.slot() as usize).filter(|entry| matches(entry, wide, key, hit.way()))
    }

    /// Whether no flow has a key with this hash. `false` says nothing.
    #[inline]
    pub fn is_unknown(&self, hash: u64) -> bool {
        let bucket = self.buckets.get(self.home(hash));
        bucket.is_some_and(|bucket| bucket.spilled == 0 && bucket.matching(tag(hash)).next().is_none())
    }

    /// The flow of `key`, whose hash is `hash`.
    #[inline]
    pub fn lookup(&self, hash: u64, key: &FlowKey) -> Option<Hit> {
        let (home, tag) = (self.home(hash), tag(hash));
        let bucket = self.buckets.get(home)?;
        if let Some(found) = bucket.matching(tag).find(|reference| self.matches(*reference, key)) {
            return Some(Hit(found));
        }
        if bucket.spilled == 0 {
            return None;
        }
        let other = self.buckets.get(self.other(home, tag))?;
        other.matching(tag).find(|reference| self.matches(*reference, key)).map(Hit)
    }

    /// [`Self::lookup`] of a key over IPv4: its addresses and ports, in the order of the wire.
    #[inline(never)]
    pub(crate) fn lookup_words(&self, hash: u64, (addresses, ports): (u64, u32), proto: u8) -> Option<Hit> {
        let ([src, dst], [sport, dport]) = (entry::addresses(addresses), entry::ports(ports));
        self.lookup(hash, &FlowKey { src: src.into(), dst: dst.into(), sport, dport, proto, v6: false })
    }

    /// The live entry in `slot`.
    #[inline]
    pub fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot as usize).filter(|entry| entry.is_live())
    }

    /// The live entry in `slot`, to be changed.
    #[inline]
    pub fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize).filter(|entry| entry.is_live())
    }

    /// The endpoints of an entry.
    #[inline]
    pub fn tuple(&self, entry: &Entry) -> Tuple {
        entry.tuple(wide_of(entry, &self.wide))
    }

    /// What an IPv6 packet of `entry` on `way` is translated to: source, destination, and both ports in one word.
    #[inline]
    pub fn target_v6(&self, entry: &Entry, way: Way) -> ([u128; 2], u32) {
        entry.target_v6(wide_of(entry, &self.wide), way)
    }

    /// What the flow in `slot` needs besides its entry, if it needs anything.
    #[inline]
    pub fn extra(&self, slot: Slot) -> Option<&Extra> {
        self.extra.get(self.entry(slot)?.extra)
    }

    /// The same, to be changed. A flow that has none gets one; `None` where there is no flow, or no room.
    pub fn extra_mut(&mut self, slot: Slot) -> Option<&mut Extra> {
        let entry = self.entries.get_mut(slot as usize).filter(|entry| entry.is_live())?;
        if entry.extra == pool::NONE {
            entry.extra = self.extra.take(Extra::default())?;
        }
        self.extra.get_mut(entry.extra)
    }

    /// Opens a flow. Both directions are found afterwards, or nothing has changed.
    pub fn open(&mut self, new: &NewFlow, expires: Tick) -> Result<Slot, Full> {
        self.open_hashed(new, [&new.tuple.forward, &new.tuple.reply].map(|key| self.hash(key)), expires)
    }

    /// The same where the hashes of both keys are known, by [`Way`].
    pub(crate) fn open_hashed(
        &mut self,
        new: &NewFlow,
        hashes: [u64; 2],
        expires: Tick,
    ) -> Result<Slot, Full> {
        if !self.has_room() {
            return Err(Full);
        }
        let slot = self.take_slot(new)?;
        self.link_both(slot, hashes, new.mode)?;
        self.start(slot, new, expires);
        Ok(slot)
    }

    /// [`Self::open`] for a flow over IPv4 outside of tunnels, with its first packet counted.
    ///
    /// Inlined, or what it is given would go through memory.
    #[inline(always)]
    pub(crate) fn open_words(&mut self, new: &NewWords) -> Result<Slot, Full> {
        if !self.has_room() {
            return Err(Full);
        }
        let slot = self.next_slot().ok_or(Full)?;
        let NewWords { words: [forward, reply], .. } = *new;
        let mut entry = Entry {
            addresses: [forward.0, reply.0],
            ports: [forward.1, reply.1],
            expires: new.expires,
            service: new.service,
            backend: new.backend,
            epoch: new.epoch,
            hops: new.hops,
            deltas: Deltas::of_words(forward, (reply.0.rotate_left(32), reply.1.rotate_left(16))),
            proto: new.proto,
            state: new.state,
            ..Entry::FREE
        };
        // Complete before it is written: what is written in pieces waits for its way to the cache when it is read whole.
        entry.set_opened(new.mode);
        *self.use_slot(slot).ok_or(Full)? = entry;
        self.link_both(slot, new.hashes, new.mode)?;
        self.live += 1;
        Ok(slot)
    }

    /// Has the flow in `slot` found by its keys, whose hashes these are, or gives the slot back.
    #[inline]
    fn link_both(&mut self, slot: Slot, [forward, reply]: [u64; 2], mode: Mode) -> Result<(), Full> {
        if !self.link(forward, Reference::new(slot, Way::Forward)) {
            self.give_slot_back(slot);
            return Err(Full);
        }
        if mode.has_replies() && !self.link(reply, Reference::new(slot, Way::Reply)) {
            self.unlink(forward, Reference::new(slot, Way::Forward));
            self.give_slot_back(slot);
            return Err(Full);
        }
        Ok(())
    }

    /// Opens a flow that is not found by its keys: for one packet, also in a full table. There may be another one with the
    /// same endpoints.
    pub fn open_unlinked(&mut self, new: &NewFlow, expires: Tick) -> Result<Slot, Full> {
        let slot = self.take_slot(new)?;
        self.start(slot, new, expires);
        Ok(slot)
    }

    fn start(&mut self, slot: Slot, new: &NewFlow, expires: Tick) {
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            entry.expires = expires;
            entry.service = new.service;
            entry.backend = new.backend;
        }
        self.live += 1;
    }

    /// Forgets the flow in `slot`; nothing happens where there is none.
    pub fn close(&mut self, slot: Slot) {
        let Some(entry) = self.entry(slot) else { return };
        let tuple = self.tuple(entry);
        let mode = entry.mode();
        self.unlink(self.hash(&tuple.forward), Reference::new(slot, Way::Forward));
        if mode.has_replies() {
            self.unlink(self.hash(&tuple.reply), Reference::new(slot, Way::Reply));
        }
        self.give_slot_back(slot);
        self.live -= 1;
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "targets have 64-bit addresses")]
    fn home(&self, hash: u64) -> usize {
        (hash & self.mask) as usize
    }

    /// The other bucket of a tag that lies in `bucket`: the same function both ways.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "targets have 64-bit addresses")]
    fn other(&self, bucket: usize, tag: u16) -> usize {
        // Odd multiplier (2^64 over the golden ratio): no tag gives 0 in the bits that `| 1` leaves open.
        let step = u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16 | 1;
        bucket ^ (step & self.mask) as usize
    }

    #[inline]
    fn matches(&self, reference: Reference, key: &FlowKey) -> bool {
        let entry = self.entries.get(reference.slot() as usize);
        entry.is_some_and(|entry| matches(entry, &self.wide, key, reference.way()))
    }

    /// Puts a reference into one of its two buckets, moving at most one other out of the way.
    #[inline]
    fn link(&mut self, hash: u64, reference: Reference) -> bool {
        let (home, tag) = (self.home(hash), tag(hash));
        self.buckets.get_mut(home).is_some_and(|bucket| bucket.insert(tag, reference))
            || self.link_elsewhere(home, tag, reference)
    }

    /// The same where the first bucket is full.
    #[cold]
    fn link_elsewhere(&mut self, home: usize, tag: u16, reference: Reference) -> bool {
        self.put(self.other(home, tag), tag, reference.moved())
            || self.make_room(home) && self.put(home, tag, reference)
    }

    fn put(&mut self, at: usize, tag: u16, reference: Reference) -> bool {
        let done = self.buckets.get_mut(at).is_some_and(|bucket| bucket.insert(tag, reference));
        if done && reference.is_away() {
            self.count_spilled(self.other(at, tag), 1);
        }
        done
    }

    /// Moves one reference of a full bucket to its other bucket.
    fn make_room(&mut self, at: usize) -> bool {
        let Some(bucket) = self.buckets.get(at).copied() else { return false };
        let moved =
            bucket.iter().find(|(tag, reference)| self.put(self.other(at, *tag), *tag, reference.moved()));
        let Some((tag, reference)) = moved else { return false };
        self.take_out(at, tag, reference)
    }

    fn unlink(&mut self, hash: u64, reference: Reference) {
        let (home, tag) = (self.home(hash), tag(hash));
        if !self.take_out(home, tag, reference) {
            self.take_out(self.other(home, tag), tag, reference);
        }
    }

    fn take_out(&mut self, at: usize, tag: u16, reference: Reference) -> bool {
        let Some(found) = self.buckets.get_mut(at).and_then(|bucket| bucket.remove(tag, reference)) else {
            return false;
        };
        if found.is_away() {
            self.count_spilled(self.other(at, tag), -1);
        }
        true
    }

    fn count_spilled(&mut self, at: usize, change: i32) {
        if let Some(bucket) = self.buckets.get_mut(at) {
            bucket.spilled = bucket.spilled.saturating_add_signed(change);
        }
    }

    fn take_slot(&mut self, new: &NewFlow) -> Result<Slot, Full> {
        let (forward, reply) = (&new.tuple.forward, &new.tuple.reply);
        let v6 = [forward.v6, reply.v6];
        let slot = self.next_slot().ok_or(Full)?;
        let wide = if v6 == [false; 2] {
            pool::NONE
        } else {
            let line = Wide { client: forward.src, vip: forward.dst, backend: reply.src, snat: reply.dst };
            self.wide.take(line).ok_or(Full)?
        };
        let entry = self.use_slot(slot).ok_or(Full)?;
        let addresses = |key: &FlowKey| if key.v6 { wide.into() } else { key.addresses_v4() };
        *entry = Entry {
            addresses: [forward, reply].map(addresses),
            ports: [forward, reply].map(FlowKey::ports),
            proto: forward.proto,
            ..Entry::FREE
        };
        entry.set_live(new.mode, v6);
        Ok(slot)
    }

    /// The slot that the next flow takes, if there is one.
    #[inline]
    pub(crate) fn next_slot(&self) -> Option<Slot> {
        let slot = if self.free != NONE { self.free } else { self.high };
        ((slot as usize) < self.entries.len()).then_some(slot)
    }

    /// The slot that is next once `slot` is taken, if none is given back meanwhile.
    #[inline]
    pub(crate) fn slot_behind(&self, slot: Slot) -> Option<Slot> {
        if slot >= self.high {
            return slot.checked_add(1);
        }
        let behind = self.entries.get(slot as usize)?.next_free();
        Some(if behind != NONE { behind } else { self.high })
    }

    /// Takes the [next slot](Self::next_slot) for a flow.
    #[inline]
    fn use_slot(&mut self, slot: Slot) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(slot as usize)?;
        if slot == self.high {
            self.high += 1;
        } else {
            self.free = entry.next_free();
        }
        Some(entry)
    }

    fn give_slot_back(&mut self, slot: Slot) {
        let Some(entry) = self.entries.get_mut(slot as usize) else { return };
        self.wide.give_back(entry.wide());
        self.extra.give_back(entry.extra);
        *entry = Entry::free(self.free);
        self.free = slot;
    }
}

/// Whether a packet with `key` belongs to the flow of `entry` on this way. A free entry has no protocol and no flow.
#[inline]
fn matches(entry: &Entry, wide: &Pool<Wide>, key: &FlowKey, way: Way) -> bool {
    if key.v6 { matches_v6(entry, wide, key, way) } else { entry.matches_v4(key, way) }
}

/// Not inlined: its eight words would push the IPv4 path's values out of the registers.
#[inline(never)]
fn matches_v6(entry: &Entry, wide: &Pool<Wide>, key: &FlowKey, way: Way) -> bool {
    entry.matches_v6(wide_of(entry, wide), key, way)
}

/// The addresses of an IPv6 entry.
#[inline]
fn wide_of<'w>(entry: &Entry, wide: &'w Pool<Wide>) -> &'w Wide {
    const NOWHERE: &Wide = &Wide::NONE;
    wide.get(entry.wide()).unwrap_or(NOWHERE)
}

/// The part of a hash that is kept in the bucket; odd, so never 0.
#[inline]
fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
}

/// Where a table's memory comes from.
pub trait Reserve {
    /// An empty vector with room for `count` values.
    fn reserve<T>(&self, count: usize) -> Vec<T>;
}

/// Memory from the global allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

impl Reserve for Heap {
    fn reserve<T>(&self, count: usize) -> Vec<T> {
        Vec::with_capacity(count)
    }
}

/// A vector of `count` copies: writing them faults every page in.
fn filled<T: Copy>(reserve: &impl Reserve, count: usize, value: T) -> Vec<T> {
    let mut vector = reserve.reserve(count);
    vector.resize(count, value);
    vector
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test numbers are small")]
mod tests;
