//! Which services have a property: hashes and places alone, since the services say the rest.

use std::hash::Hash;

use ahash::RandomState;
use hashbrown::HashTable;

use super::Order;

/// An index of one property.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    hasher: RandomState,
    places: HashTable<(u64, Order)>,
}

impl Index {
    /// The place of the service that has the property, which `is_it` knows.
    pub(super) fn find(&self, key: &impl Hash, is_it: impl Fn(Order) -> bool) -> Option<Order> {
        let hash = self.hasher.hash_one(key);
        self.places.find(hash, |(of, place)| *of == hash && is_it(*place)).map(|(_, place)| *place)
    }

    /// The places of all services that have it.
    pub(super) fn all(&self, key: &impl Hash, is_it: impl Fn(Order) -> bool) -> impl Iterator<Item = Order> {
        let hash = self.hasher.hash_one(key);
        let alike = self.places.iter_hash(hash).filter(move |(of, _)| *of == hash).map(|(_, place)| *place);
        alike.filter(move |place| is_it(*place))
    }

    /// The service at `place` has it.
    pub(super) fn insert(&mut self, key: &impl Hash, place: Order) {
        let hash = self.hasher.hash_one(key);
        self.places.insert_unique(hash, (hash, place), |(of, _)| *of);
    }

    /// The service at `place` has it no more.
    pub(super) fn remove(&mut self, key: &impl Hash, place: Order) {
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.places.find_entry(hash, |known| *known == (hash, place)) {
            entry.remove();
        }
    }
}
