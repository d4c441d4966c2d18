//! Which Service has an address and port that several ask for: the oldest, by its creation and then by its name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use dataplane::flow::key::VipKey;

use crate::source::kubernetes::object::Key;

/// The Services that ask for an address and port.
#[derive(Debug)]
struct Claim {
    holder: Arc<Key>,
    /// Those that would have it after the holder, in their order.
    waiting: Vec<Arc<Key>>,
}

/// All claims.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<VipKey, Claim, ahash::RandomState>);

impl Claims {
    /// Who has it.
    pub(super) fn holder(&self, vip: &VipKey) -> Option<&Arc<Key>> {
        self.0.get(vip).map(|claim| &claim.holder)
    }

    /// `key` asks for it; `is_later` says who came after it. Those whom that concerns are told to `concerned`.
    pub(super) fn add(
        &mut self,
        vip: VipKey,
        key: &Arc<Key>,
        is_later: impl Fn(&Key) -> bool,
        mut concerned: impl FnMut(&Arc<Key>),
    ) {
        let claim = match self.0.entry(vip) {
            Entry::Vacant(free) => {
                free.insert(Claim { holder: Arc::clone(key), waiting: Vec::new() });
                return;
            }
            Entry::Occupied(claim) => claim.into_mut(),
        };
        if claim.holder == *key || claim.waiting.contains(key) {
            return;
        }
        if is_later(&claim.holder) {
            let second = std::mem::replace(&mut claim.holder, Arc::clone(key));
            claim.waiting.insert(0, second);
            claim.waiting.iter().for_each(&mut concerned);
        } else {
            let place = claim.waiting.iter().position(|other| is_later(other));
            claim.waiting.insert(place.unwrap_or(claim.waiting.len()), Arc::clone(key));
        }
    }

    /// `key` no longer asks for it. Those whom that concerns are told to `concerned`.
    pub(super) fn remove(&mut self, vip: &VipKey, key: &Key, concerned: impl FnMut(&Arc<Key>)) {
        let Some(claim) = self.0.get_mut(vip) else { return };
        if *claim.holder != *key {
            claim.waiting.retain(|other| **other != *key);
        } else if claim.waiting.is_empty() {
            self.0.remove(vip);
        } else {
            claim.holder = claim.waiting.remove(0);
            std::iter::once(&claim.holder).chain(&claim.waiting).for_each(concerned);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
