//! Makes the schedulers of one generation out of the ones before: what is equal is shared, what is to last goes on.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::mh::{self, Share};
use super::{Flags, Kind, Scheduler, dh, lblc, lblcr, sh, wrr};
use crate::ids::ServiceId;
use crate::snapshot::Backend;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// What control keeps from generation to generation.
///
/// It refers to tables weakly: they go with the last snapshot that uses them.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    kept: Map<ServiceId, Kept>,
    tables: Map<(u32, Arc<[Share]>), Weak<mh::Table>>,
    /// Tables at which those that are gone are swept out.
    sweep_at: usize,
}

/// What is kept of one service.
#[derive(Clone, Debug)]
enum Kept {
    /// The size of its table.
    Mh(u32),
    Lblc(Weak<lblc::Cache>),
    Lblcr(Weak<lblcr::Cache>),
}

impl Compiler {
    /// The scheduler of this kind over `backends` (newest first) for `service`, which is reached by so many
    /// `addresses`, `None` if they are not known.
    ///
    /// mh tables are shared by all services with equal backends; what lblc and lblcr remember is shared by all
    /// generations of a service.
    pub fn compile(
        &mut self,
        service: ServiceId,
        kind: Kind,
        flags: Flags,
        backends: &[Backend],
        addresses: Option<usize>,
    ) -> Scheduler {
        let kept = self.kept.remove(&service);
        let (scheduler, keep) = match kind {
            Kind::Mh => {
                let before = if let Some(Kept::Mh(size)) = kept { size } else { 0 };
                let size = mh::size_for(backends.len(), before);
                let table = self.table(size, backends.iter().map(Share::of).collect());
                (Scheduler::Mh(mh::Lookup::new(table, flags)), Kept::Mh(size))
            }
            Kind::Lblc => {
                let before = if let Some(Kept::Lblc(cache)) = kept { cache.upgrade() } else { None };
                let cache = before.filter(|cache| cache.fits(addresses));
                let cache = cache.unwrap_or_else(|| Arc::new(lblc::Cache::new(addresses)));
                let keep = Kept::Lblc(Arc::downgrade(&cache));
                (Scheduler::Lblc(cache), keep)
            }
            Kind::Lblcr => {
                let before = if let Some(Kept::Lblcr(cache)) = kept { cache.upgrade() } else { None };
                let cache = before.filter(|cache| cache.fits(addresses));
                let cache = cache.unwrap_or_else(|| Arc::new(lblcr::Cache::new(addresses)));
                let keep = Kept::Lblcr(Arc::downgrade(&cache));
                (Scheduler::Lblcr(cache), keep)
            }
            Kind::Rr => return Scheduler::Rr,
            Kind::Wrr => return Scheduler::Wrr(wrr::Levels::of(backends)),
            Kind::Lc => return Scheduler::Lc,
            Kind::Wlc => return Scheduler::Wlc,
            Kind::Dh => return Scheduler::Dh(dh::Table::over(backends)),
            Kind::Sh => return Scheduler::Sh(sh::Table::over(backends, flags)),
            Kind::Sed => return Scheduler::Sed,
            Kind::Nq => return Scheduler::Nq,
            Kind::Fo => return Scheduler::Fo,
            Kind::Ovf => return Scheduler::Ovf,
            Kind::Twos => return Scheduler::Twos,
        };
        self.kept.insert(service, keep);
        scheduler
    }

    /// A Maglev table over `backends` that is the same on every gateway with the same backends: it depends neither on the
    /// order in which they were added nor on what was before. For a service of this scheduler: mh's flags count, any
    /// other's clients are told apart by address and port.
    pub fn steady(&mut self, kind: Kind, flags: Flags, backends: &[Backend]) -> mh::Lookup {
        let flags = if kind == Kind::Mh { flags } else { Flags { port: true, ..Flags::default() } };
        let mut order: Vec<_> = (0..=u16::MAX).zip(backends).collect();
        order.sort_by_key(|(_, backend)| (backend.addr, backend.port));
        let shares = order.iter().map(|(_, backend)| Share::of(backend)).collect();
        let table = self.table(mh::steady_size(backends.len()), shares);
        mh::Lookup::ordered(table, flags, order.into_iter().map(|(place, _)| place).collect())
    }

    /// Forgets what is kept of a service, whose id has a new owner.
    pub fn forget(&mut self, service: ServiceId) {
        self.kept.remove(&service);
    }

    fn table(&mut self, size: u32, shares: Arc<[Share]>) -> Arc<mh::Table> {
        if let Some(table) = self.tables.get(&(size, Arc::clone(&shares))).and_then(Weak::upgrade) {
            return table;
        }
        if self.tables.len() >= self.sweep_at {
            self.tables.retain(|_, table| table.strong_count() > 0);
            self.sweep_at = self.tables.len() * 2 + 16;
        }
        let table = Arc::new(mh::Table::fill(size, &shares));
        self.tables.insert((size, shares), Arc::downgrade(&table));
        table
    }
}
