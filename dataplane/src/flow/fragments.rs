//! What was decided about the first fragments of packets, for the later ones, which have no ports.
//!
//! Nothing is reassembled: each fragment is sent on as it came. So no data is kept, overlaps are the receiver's to judge,
//! and an entry is needed only from the first fragment to the last. Fragments leave their sender back to back, so that is
//! a matter of milliseconds; [`LIFE_S`] is far more than a path delays them, and far less than the 30 s in which a host
//! gives reassembly up, for a sender in a hurry has used all 65,536 identifications of IPv4 again after a few seconds
//! (RFC 4963).
//!
//! The table is sized at the start. Where a bucket is full the oldest entry makes room.

use super::key::FlowKey;
use super::table::Slot;
use crate::ids::WorkerId;
use crate::time::Tick;
use crate::verdict::DropReason;

/// Entries of a worker at most: at 1,000 fragmented packets a second all live as long as they should, at 100,000 most
/// live 40 ms.
pub const MOST: usize = 8192;

/// Seconds that an entry lives.
pub const LIFE_S: u32 = 5;

/// Places where a key can lie.
const WAYS: usize = 4;

/// What becomes of a packet's fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They are of the flow of this key.
    Follow(FlowKey),
    /// They are of the flow of this key, which is in this slot and is not found by it: it was opened for this packet alone.
    Once(FlowKey, Slot),
    /// They are another worker's.
    Elsewhere(WorkerId),
    /// They are the kernel's.
    Kernel,
    /// They are refused, as the first one was.
    Refused(DropReason),
}

/// What is known of one packet.
#[derive(Clone, Copy, Debug)]
struct Known {
    key: FlowKey,
    fate: Fate,
    expires: Tick,
    live: bool,
}

impl Known {
    const NONE: Self = Self {
        key: FlowKey { src: 0, dst: 0, sport: 0, dport: 0, proto: 0, v6: false },
        fate: Fate::Kernel,
        expires: Tick(0),
        live: false,
    };

    /// The key of an entry that other workers were told of.
    fn published(&self) -> Option<FlowKey> {
        (self.live && !matches!(self.fate, Fate::Elsewhere(_))).then_some(self.key)
    }
}

/// What a new entry has changed about what other workers are to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The new entry is to be published.
    pub publish: bool,
    /// This one is to be withdrawn.
    pub withdraw: Option<FlowKey>,
    /// An entry that had time left made room.
    pub evicted: bool,
}

/// The fragmented packets that one worker knows of.
#[derive(Debug)]
pub struct Fragments {
    buckets: Box<[[Known; WAYS]]>,
    /// The bucket that the sweep looks at next.
    next: usize,
    live: usize,
    /// First fragments so far.
    arrived: u64,
}

/// How many entries a worker with so many flows has.
pub fn room(flows: usize) -> usize {
    flows.clamp(WAYS, MOST).next_power_of_two()
}

impl Fragments {
    /// A table beside one for `flows` flows, all memory taken.
    pub fn new(flows: usize) -> Self {
        let buckets = vec![[Known::NONE; WAYS]; room(flows) / WAYS].into_boxed_slice();
        Self { buckets, next: 0, live: 0, arrived: 0 }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// First fragments so far. What was early is worth another try when this has changed.
    #[inline]
    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    /// What becomes of the fragments with this key, whose hash is `hash`.
    pub fn find(&self, hash: u64, key: &FlowKey, now: Tick) -> Option<Fate> {
        let bucket = self.buckets.get(self.place(hash))?;
        let found = bucket.iter().find(|known| known.live && known.key == *key)?;
        (!found.expires.is_due(now)).then_some(found.fate)
    }

    /// Notes what becomes of the fragments with this key.
    pub fn note(&mut self, hash: u64, key: FlowKey, fate: Fate, now: Tick) -> Change {
        self.arrived = self.arrived.wrapping_add(1);
        let new = Known { key, fate, expires: now.after_seconds(LIFE_S), live: true };
        let at = self.place(hash);
        let Some(bucket) = self.buckets.get_mut(at) else {
            return Change { publish: false, withdraw: None, evicted: false };
        };
        let is_same = |known: &&mut Known| known.live && known.key == key;
        // The time that is left decides, and what is free has least.
        let left = |known: &Known| match known {
            Known { live: false, .. } => 0,
            Known { expires, .. } if expires.is_due(now) => 1,
            Known { expires, .. } => 2 + u64::from(expires.0.wrapping_sub(now.0)),
        };
        let old = match bucket.iter_mut().find(is_same) {
            Some(same) => Some(std::mem::replace(same, new)),
            None => {
                let oldest = bucket.iter_mut().min_by_key(|known| left(known));
                oldest.map(|oldest| std::mem::replace(oldest, new))
            }
        };
        let old = old.unwrap_or(Known::NONE);
        self.live += usize::from(!old.live);
        let (before, after) = (old.published(), new.published());
        Change {
            publish: after.is_some() && before != after,
            withdraw: before.filter(|before| after != Some(*before)),
            evicted: old.live && old.key != key && left(&old) > 1,
        }
    }

    /// Buckets that a sweep has to look at to see every entry once.
    pub fn buckets(&self) -> usize {
        if self.live == 0 { 0 } else { self.buckets.len() }
    }

    /// Forgets what is over in the next bucket, and has `withdraw` take it back from the other workers.
    pub fn sweep(&mut self, now: Tick, mut withdraw: impl FnMut(FlowKey)) {
        let at = if self.next < self.buckets.len() { self.next } else { 0 };
        self.next = at + 1;
        let Some(bucket) = self.buckets.get_mut(at) else { return };
        for known in bucket.iter_mut().filter(|known| known.live && known.expires.is_due(now)) {
            if let Some(key) = known.published() {
                withdraw(key);
            }
            *known = Known::NONE;
            self.live -= 1;
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "targets have 64-bit addresses")]
    fn place(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two packets of the same pair of hosts differ in their identification.
    fn key(id: u16) -> FlowKey {
        FlowKey { src: 1, dst: 2, dport: id, proto: 17, ..FlowKey::default() }
    }

    const FOLLOW: Fate = Fate::Follow(FlowKey { src: 9, dst: 9, sport: 9, dport: 9, proto: 17, v6: false });
    const W1: Fate = Fate::Elsewhere(WorkerId(1));

    #[test]
    fn a_fate_is_known_until_its_time_is_up_or_another_takes_its_place() {
        let mut table = Fragments::new(64);
        assert_eq!(table.find(7, &key(1), Tick(0)), None);
        table.note(7, key(1), FOLLOW, Tick(0));
        assert_eq!(table.find(7, &key(1), Tick(49)), Some(FOLLOW));
        assert_eq!(table.find(7, &key(2), Tick(49)), None, "another packet");
        assert_eq!(table.find(7, &key(1), Tick(50)), None, "after five seconds");
        table.note(7, key(1), Fate::Refused(DropReason::NoBackend), Tick(49));
        assert_eq!(table.find(7, &key(1), Tick(98)), Some(Fate::Refused(DropReason::NoBackend)));
        assert_eq!((table.len(), table.arrived()), (1, 2));
    }

    #[test]
    fn a_full_bucket_forgets_the_oldest() {
        let mut table = Fragments::new(1);
        for id in 0..4 {
            let change = table.note(0, key(id), FOLLOW, Tick(u32::from(id)));
            assert_eq!(change, Change { publish: true, withdraw: None, evicted: false });
        }
        let change = table.note(0, key(4), W1, Tick(10));
        assert_eq!(change, Change { publish: false, withdraw: Some(key(0)), evicted: true });
        let change = table.note(0, key(5), FOLLOW, Tick(51));
        assert_eq!(
            change,
            Change { publish: true, withdraw: Some(key(1)), evicted: false },
            "its time was up"
        );
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn others_are_told_once_and_only_of_what_is_decided_here() {
        let mut table = Fragments::new(64);
        let changes = [W1, FOLLOW, FOLLOW, Fate::Kernel, W1].map(|fate| table.note(3, key(1), fate, Tick(0)));
        let told = changes.map(|change| (change.publish, change.withdraw.is_some()));
        assert_eq!(told, [(false, false), (true, false), (false, false), (false, false), (false, true)]);
    }

    #[test]
    fn a_sweep_over_all_buckets_leaves_what_has_time() {
        let mut table = Fragments::new(64);
        for id in 0..40 {
            table.note(id.into(), key(id), if id % 2 == 0 { FOLLOW } else { W1 }, Tick(u32::from(id)));
        }
        let mut withdrawn = 0;
        for _ in 0..table.buckets() {
            table.sweep(Tick(69), |_| withdrawn += 1);
        }
        assert_eq!((withdrawn, table.len()), (10, 20));
        for _ in 0..table.buckets() {
            table.sweep(Tick(100), |_| withdrawn += 1);
        }
        assert_eq!((withdrawn, table.len(), table.buckets()), (20, 0, 0));
    }
}
