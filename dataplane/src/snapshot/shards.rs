//! A map by hash of which an edited copy shares everything but what was edited.
//!
//! The map is a directory of small tables, by bits of the hash. A copy costs a reference; the first edit of it copies the
//! directory, and every table costs a copy when it is first edited. Where a table is full the directory doubles, and each
//! table is parted in two when it is next edited, so no edit costs more than a few tables (after extendible hashing: Fagin
//! et al., 1979). To look something up is two loads more than in a single table.

use std::hash::Hash;
use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Entries of a table past which the directory doubles.
const FULL: usize = 512;
/// Bits of the hash that the directory uses at most; the tables use others, the lowest and the highest.
const DEPTH_MAX: u32 = 24;

/// A map in tables of some [`FULL`] entries at most.
#[derive(Clone, Debug)]
pub(super) struct Shards<K, V> {
    hasher: RandomState,
    /// As many as a power of two; some of them are the same one.
    directory: Arc<[Arc<Shard<K, V>>]>,
    len: usize,
}

/// One of the tables.
#[derive(Clone, Debug)]
struct Shard<K, V> {
    /// How many of the directory's bits all entries have in common; as many as it has, for a table of one place.
    depth: u32,
    entries: HashTable<(K, V)>,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let first = Arc::new(Shard { depth: 0, entries: HashTable::new() });
        Self { hasher: RandomState::new(), directory: Arc::new([first]), len: 0 }
    }
}

impl<K: Copy + Eq + Hash, V: Copy> Shards<K, V> {
    /// What is kept with `key`.
    #[inline]
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let shard = self.directory.get(number(hash, self.directory.len()))?;
        shard.entries.find(hash, |(known, _)| known == key).map(|(_, value)| *value)
    }

    /// Puts what `edit` makes of the present value, if any, in its place.
    pub(super) fn edit(&mut self, key: K, edit: impl FnOnce(Option<V>) -> Option<V>) {
        let hash = self.hasher.hash_one(key);
        let at = number(hash, self.directory.len());
        while self.directory.get(at).is_some_and(|shard| self.directory.len() >> shard.depth > 1) {
            self.part(at);
        }
        let Some(shard) = Arc::make_mut(&mut self.directory).get_mut(at) else { return };
        let shard = Arc::make_mut(shard);
        let hasher = &self.hasher;
        match shard.entries.entry(hash, |(known, _)| *known == key, |(known, _)| hasher.hash_one(known)) {
            Entry::Occupied(mut entry) => match edit(Some(entry.get().1)) {
                Some(value) => entry.get_mut().1 = value,
                None => {
                    entry.remove();
                    self.len -= 1;
                }
            },
            Entry::Vacant(free) => {
                if let Some(value) = edit(None) {
                    free.insert((key, value));
                    self.len += 1;
                    if shard.entries.len() > FULL && shard.depth < DEPTH_MAX {
                        self.directory = self.directory.iter().chain(&*self.directory).cloned().collect();
                    }
                }
            }
        }
    }

    /// Keeps `value` with `key`.
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.edit(key, |_| Some(value));
    }

    /// How many keys there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All keys with what is kept with them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, V)> {
        // A table that several places of the directory share counts at the first of them.
        let firsts = self.directory.iter().enumerate().filter(|(at, shard)| at >> shard.depth == 0);
        firsts.flat_map(|(_, shard)| shard.entries.iter().copied())
    }

    /// Parts the table at this place of the directory, which stands at another one, too, in two.
    fn part(&mut self, at: usize) {
        let Some(whole) = self.directory.get(at).cloned() else { return };
        let bit = 1_usize << whole.depth;
        let mut parts = [HashTable::new(), HashTable::new()];
        let hash = |(key, _): &(K, V)| self.hasher.hash_one(key);
        for entry in &whole.entries {
            let one = number(hash(entry), bit << 1) & bit != 0;
            if let Some(part) = parts.get_mut(usize::from(one)) {
                part.insert_unique(hash(entry), *entry, hash);
            }
        }
        let [zero, one] = parts.map(|entries| Arc::new(Shard { depth: whole.depth + 1, entries }));
        let places = Arc::make_mut(&mut self.directory).iter_mut().enumerate();
        for (place, shard) in places.skip(at & (bit - 1)).step_by(bit) {
            *shard = Arc::clone(if place & bit == 0 { &zero } else { &one });
        }
    }
}

impl<K: Copy + Eq + Hash> Shards<K, u32> {
    /// Counts one more use of `key`.
    pub(super) fn hold(&mut self, key: K) {
        self.edit(key, |uses| Some(uses.unwrap_or(0).saturating_add(1)));
    }

    /// Counts one use of `key` less; the last one takes the key away.
    pub(super) fn release(&mut self, key: K) {
        self.edit(key, |uses| uses?.checked_sub(1).filter(|uses| *uses > 0));
    }
}

/// Which of so many places of a directory, a power of two, a hash belongs to.
#[inline]
fn number(hash: u64, places: usize) -> usize {
    // Bits that the tables do not tell their entries apart by.
    usize::try_from(hash >> 32 & 0xff_ffff).unwrap_or(0) & places.wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn content(map: &Shards<u32, u32>) -> HashMap<u32, u32> {
        map.iter().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_a_map_and_its_copies_keep_what_they_had(
            edits in proptest::collection::vec((0..3000_u32, 1..200_u32, any::<bool>()), 0..60),
        ) {
            let (mut shards, mut map) = (Shards::default(), HashMap::new());
            let mut copies = Vec::new();
            for (first, count, is_added) in edits {
                copies.push((shards.clone(), map.clone()));
                for key in first..first + count {
                    if is_added {
                        shards.insert(key, first);
                        map.insert(key, first);
                    } else {
                        shards.edit(key, |_| None);
                        map.remove(&key);
                    }
                }
            }
            copies.push((shards, map));
            for (shards, map) in copies {
                prop_assert_eq!(shards.len(), map.len());
                prop_assert!((0..3200).all(|key| shards.get(&key) == map.get(&key).copied()));
                prop_assert_eq!(shards.iter().count(), map.len());
                prop_assert_eq!(content(&shards), map);
            }
        }
    }

    #[test]
    fn tables_stay_small_and_an_edit_copies_one() {
        let mut shards = Shards::default();
        (0..100_000).for_each(|key| shards.insert(key, key));
        assert!(shards.directory.iter().all(|shard| shard.entries.len() <= FULL));
        assert!(shards.directory.len() <= 1024, "{}", shards.directory.len());
        let before = shards.clone();
        shards.insert(5, 6);
        let tables = shards.directory.iter().zip(&*before.directory);
        let copied =
            tables.filter(|(now, before)| !Arc::ptr_eq(now, before)).map(|(now, _)| Arc::as_ptr(now));
        assert_eq!(copied.collect::<std::collections::HashSet<_>>().len(), 1);
        assert_eq!((before.get(&5), shards.get(&5)), (Some(5), Some(6)));
    }

    #[test]
    fn a_key_goes_with_its_last_use() {
        let mut uses = Shards::default();
        uses.release(1);
        for (hold, want) in [(true, Some(1)), (true, Some(2)), (false, Some(1)), (false, None), (false, None)]
        {
            if hold {
                uses.hold(1)
            } else {
                uses.release(1)
            }
            assert_eq!(uses.get(&1), want);
        }
        assert_eq!(uses.len(), 0);
    }
}
