//! Names that many objects have are kept once.

use std::collections::HashSet;
use std::sync::Arc;

use crate::source::kubernetes::object::{EndpointSlice, Extra, Key, Service};

/// Names in use; those that no object has any more are let go of from time to time.
#[derive(Debug, Default)]
pub(super) struct Names {
    texts: Pool<str>,
    extras: Pool<Extra>,
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>, ahash::RandomState>,
    /// How many there may be until it is looked for unused ones.
    limit: usize,
}

/// Names below which it is not worth looking for unused ones.
const FEW: usize = 1024;

impl<T: ?Sized> Default for Pool<T>
where
    Arc<T>: std::hash::Hash + Eq,
{
    fn default() -> Self {
        Self { known: HashSet::default(), limit: FEW }
    }
}

impl<T: ?Sized> Pool<T>
where
    Arc<T>: std::hash::Hash + Eq,
{
    fn share(&mut self, one: &mut Arc<T>) {
        if let Some(known) = self.known.get(&*one) {
            *one = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = FEW.max(self.known.len() * 2);
        }
        self.known.insert(Arc::clone(one));
    }
}

impl Names {
    pub(super) fn key(&mut self, key: &mut Key) {
        self.texts.share(&mut key.namespace);
        self.texts.share(&mut key.name);
    }

    pub(super) fn service(&mut self, service: &mut Service) {
        self.key(&mut service.key);
        service.ports.iter_mut().for_each(|port| self.texts.share(&mut port.name));
        service.class.iter_mut().chain(&mut service.proxy_name).for_each(|name| self.texts.share(name));
    }

    pub(super) fn slice(&mut self, slice: &mut EndpointSlice) {
        self.texts.share(&mut slice.key.namespace);
        slice.service.iter_mut().chain(&mut slice.proxy_name).for_each(|name| self.texts.share(name));
        slice.ports.iter_mut().for_each(|port| self.texts.share(&mut port.name));
        for endpoint in &mut slice.endpoints {
            endpoint.node.iter_mut().for_each(|node| self.texts.share(node));
            endpoint.extra.iter_mut().for_each(|extra| self.extras.share(extra));
        }
    }
}
