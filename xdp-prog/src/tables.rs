//! The kernel's maps that say what is ours, and how they follow what is claimed.
//!
//! A change comes in two steps. [`Tables::begin`] takes out what nobody claims any more and narrows what is claimed for
//! less; [`Tables::finish`] puts in what is new. In between the maps hold what is in both.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use zerocopy::IntoBytes;

use crate::abi::{Address, NODE_PORT_WORDS, PROTOS, Place, Prefix, RuleLines, Use};
use crate::claims::{Claims, Held, Kind, Touched};
use crate::error::SyncError;
use crate::fronts::Fronts;
use crate::ours::Delta;
use crate::rules;

/// Entries that one system call writes at most.
const BATCH: usize = 4096;
/// How often a write is tried again that the kernel has no memory for, and after how long.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(1);

/// How many changes the kernel's maps took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Entries added or changed.
    pub written: usize,
    /// Entries removed.
    pub deleted: usize,
}

/// A map with the name that errors call it by.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) map: MapHandle,
}

/// The maps that hold what is ours.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) vips: Table,
    pub(crate) fronts: Fronts,
    pub(crate) backends: Table,
    pub(crate) addresses: Table,
    pub(crate) node_ports: Table,
    pub(crate) rules: Table,
}

type Rules = HashMap<Prefix, Arc<RuleLines>>;

/// The maps, what they are to hold, and how far they are from that.
#[derive(Debug)]
pub(crate) struct Tables {
    maps: Maps,
    claims: Claims,
    lag: Lag,
    /// [`NODE_PORT_WORDS`] a protocol, as they were written.
    node_ports: Vec<u64>,
    /// As they were written.
    rules: Rules,
}

/// What is still to be written.
#[derive(Debug, Default)]
struct Lag {
    /// All that is claimed; the maps are empty. The rest is as if they were not.
    all: bool,
    held: BTreeSet<Held>,
    /// What they are used for: as it is written, and as it is to be.
    addresses: BTreeMap<Address, (Use, Use)>,
    words: BTreeSet<u32>,
    rules: Option<Rules>,
    /// The kernel has refused something: of what is not named here, it may have less, too.
    failed: bool,
}

impl Tables {
    pub(crate) fn new(maps: Maps) -> Self {
        Self {
            maps,
            claims: Claims::default(),
            lag: Lag::default(),
            node_ports: vec![0; (PROTOS * NODE_PORT_WORDS) as usize],
            rules: Rules::new(),
        }
    }

    /// Takes note of a change, and takes what nobody claims any more out of the maps. Where that does not work, or what
    /// is new will not fit, the claims are what they were before.
    pub(crate) fn begin(&mut self, delta: &Delta) -> Result<SyncReport, SyncError> {
        if self.lag.failed {
            self.finish()?;
        }
        let rules = delta.rules.as_deref().map(rules::lines);
        if self.claims.is_empty() && delta.gone.is_empty() {
            return self.begin_anew(delta, rules);
        }
        let touched = self.claims.change(&delta.gone, &delta.new);
        let fits = self.check(rules.as_ref());
        let refused = fits.is_err();
        let done = fits.and_then(|()| self.shut(&touched, rules.as_ref()));
        if done.is_err() {
            let undone = self.claims.change(&delta.new, &delta.gone);
            if !refused {
                self.lag.add(undone);
                self.lag.failed = true;
            }
        } else if rules.is_some() {
            self.lag.rules = rules;
        }
        done
    }

    /// [`Self::begin`] where nothing is claimed yet: what costs most is left out.
    fn begin_anew(&mut self, delta: &Delta, rules: Option<Rules>) -> Result<SyncReport, SyncError> {
        self.claims = Claims::first(&delta.new);
        let done = self.check(rules.as_ref()).and_then(|()| match &rules {
            Some(rules) => self.delete_rules(rules),
            None => Ok(SyncReport::default()),
        });
        match done {
            Ok(_) => {
                self.lag.all = true;
                self.lag.rules = rules.or(self.lag.rules.take());
            }
            Err(_) => self.claims = Claims::default(),
        }
        done
    }

    /// Puts all that is claimed into the maps.
    pub(crate) fn finish(&mut self) -> Result<SyncReport, SyncError> {
        let mut report = SyncReport::default();
        let done = self.write(&mut report);
        self.lag.failed = done.is_err();
        done.map(|()| report)
    }

    /// Whether the maps were made large enough for what is claimed.
    fn check(&self, rules: Option<&Rules>) -> Result<(), SyncError> {
        let (maps, claims) = (&self.maps, &self.claims);
        maps.vips.check(claims.vips)?;
        maps.backends.check(claims.backends)?;
        maps.addresses.check(claims.addresses)?;
        rules.map_or(Ok(()), |rules| maps.rules.check(rules.len()))
    }

    /// Takes out and narrows.
    fn shut(&mut self, touched: &Touched, rules: Option<&Rules>) -> Result<SyncReport, SyncError> {
        let Self { maps, claims, lag, node_ports, .. } = self;
        let mut report = SyncReport::default();
        // An address opens the way to the sets of its ports: shut first, opened last.
        let mut lagging = Vec::new();
        for (addr, (before, after)) in touched.addresses.iter().filter(|_| !lag.all) {
            let written = lag.addresses.get(addr).map_or(*before, |(written, _)| *written);
            let shared = written.common(after);
            if shared != written {
                maps.addresses.put(*addr, shared, &mut report)?;
            }
            if shared == *after {
                lag.addresses.remove(addr);
            } else {
                lagging.push((*addr, (shared, *after)));
            }
        }
        lag.addresses.append(&mut lagging.into_iter().collect());
        let (new, gone): (Vec<Held>, Vec<Held>) =
            touched.held.iter().filter(|_| !lag.all).partition(|held| claims.has(**held));
        lag.held.append(&mut new.into_iter().collect());
        for held in &gone {
            lag.held.remove(held);
            maps.fronts.remove(*held);
            if let Some((map, key)) = maps.place(*held) {
                map.delete(key.as_bytes(), &mut report)?;
            }
        }
        for index in &touched.words {
            let Some(written) = node_ports.get_mut(*index as usize) else { continue };
            let shared = *written & claims.word(*index);
            if shared != *written {
                maps.node_ports.write(index.as_bytes(), shared.as_bytes(), &mut report)?;
                *written = shared;
            }
            lag.words.insert(*index);
        }
        if let Some(rules) = rules {
            let SyncReport { written, deleted } = self.delete_rules(rules)?;
            report.written += written;
            report.deleted += deleted;
        }
        Ok(report)
    }

    /// Takes the prefixes out that are not in `wanted`. Of one whose rules differ, those before stay: what only these give
    /// a mark is handed over for a moment longer, which costs a detour, while without any established flows would miss
    /// their packets.
    fn delete_rules(&mut self, wanted: &Rules) -> Result<SyncReport, SyncError> {
        let mut report = SyncReport::default();
        let stale: Vec<_> =
            self.rules.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        if !stale.is_empty() {
            self.lag.rules.get_or_insert_with(|| self.rules.clone());
        }
        for prefix in stale {
            self.maps.rules.delete(prefix.as_bytes(), &mut report)?;
            self.rules.remove(&prefix);
        }
        Ok(report)
    }

    /// Writes what is still to be written.
    fn write(&mut self, report: &mut SyncReport) -> Result<(), SyncError> {
        let Self { maps, claims, lag, node_ports, rules } = self;
        if lag.all {
            write_held(maps, claims.held(), report)?;
            lag.words.extend(claims.words());
        } else {
            // What was undone may be among it.
            write_held(maps, lag.held.iter().copied().filter(|held| claims.has(*held)), report)?;
        }
        while let Some(index) = lag.words.first().copied() {
            if let Some(written) =
                node_ports.get_mut(index as usize).filter(|word| **word != claims.word(index))
            {
                let wanted = claims.word(index);
                maps.node_ports.write(index.as_bytes(), wanted.as_bytes(), report)?;
                *written = wanted;
            }
            lag.words.pop_first();
        }
        // New prefixes go in before others go: one that is inside another takes over from it, and has what that one had.
        for (prefix, lines) in lag.rules.iter().flatten() {
            if rules.get(prefix) != Some(lines) {
                maps.rules.write(prefix.as_bytes(), lines.as_bytes(), report)?;
                rules.insert(*prefix, Arc::clone(lines));
            }
        }
        lag.rules = None;
        if lag.all {
            write_addresses(&maps.addresses, claims.uses(), report)?;
        } else {
            let lagging = lag.addresses.iter().filter(|(_, (written, wanted))| written != wanted);
            write_addresses(&maps.addresses, lagging.map(|(addr, (_, wanted))| (*addr, *wanted)), report)?;
        }
        // Behind the maps, which have to have what is here.
        if lag.all {
            claims.held().for_each(|held| maps.fronts.add(held));
        } else {
            lag.held.iter().filter(|held| claims.has(**held)).for_each(|held| maps.fronts.add(*held));
        }
        lag.held.clear();
        lag.addresses.clear();
        lag.all = false;
        Ok(())
    }
}

impl Lag {
    /// Adds what was undone after the kernel had refused a part of it: it may have any of it or not.
    fn add(&mut self, undone: Touched) {
        self.held.extend(undone.held);
        self.words.extend(undone.words);
        let unknown = |(addr, (_, wanted))| (addr, (Use::default(), wanted));
        self.addresses.extend(undone.addresses.into_iter().map(unknown));
    }
}

impl Maps {
    /// The map that holds it, and its key there; `None` where it needs none.
    fn place(&self, held: Held) -> Option<(&Table, Place)> {
        let map = if held.kind()? == Kind::Vip { &self.vips } else { &self.backends };
        Some((map, held.key()?))
    }
}

/// Writes all that is held into the maps of VIPs and backends.
fn write_held(
    maps: &Maps,
    held: impl Iterator<Item = Held>,
    report: &mut SyncReport,
) -> Result<(), SyncError> {
    let mut batches = [(&maps.vips, Vec::new()), (&maps.backends, Vec::new())];
    for held in held {
        let (Some(key), [vips, backends]) = (held.key(), &mut batches) else { continue };
        let (map, keys) = if held.kind() == Some(Kind::Vip) { vips } else { backends };
        keys.push(key);
        if keys.len() == BATCH {
            map.write_all(keys.as_bytes(), &[1; BATCH], report)?;
            keys.clear();
        }
    }
    for (map, keys) in batches {
        map.write_all(keys.as_bytes(), [1; BATCH].get(..keys.len()).unwrap_or_default(), report)?;
    }
    Ok(())
}

fn write_addresses(
    map: &Table,
    uses: impl Iterator<Item = (Address, Use)>,
    report: &mut SyncReport,
) -> Result<(), SyncError> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for (addr, purpose) in uses {
        // Left over from a change that was undone.
        if purpose == Use::default() {
            map.delete(addr.as_bytes(), &mut SyncReport::default())?;
            continue;
        }
        keys.push(addr);
        values.push(purpose);
        if keys.len() == BATCH {
            map.write_all(keys.as_bytes(), values.as_bytes(), report)?;
            keys.clear();
            values.clear();
        }
    }
    map.write_all(keys.as_bytes(), values.as_bytes(), report)
}

impl Table {
    fn check(&self, wanted: usize) -> Result<(), SyncError> {
        let limit = self.map.max_entries();
        if wanted > limit as usize {
            return Err(SyncError::Full { map: self.name, limit, wanted });
        }
        Ok(())
    }

    /// Writes what an address is used for, or takes it out where that is nothing.
    fn put(&self, addr: Address, purpose: Use, report: &mut SyncReport) -> Result<(), SyncError> {
        if purpose == Use::default() {
            self.delete(addr.as_bytes(), report)
        } else {
            self.write(addr.as_bytes(), purpose.as_bytes(), report)
        }
    }

    fn write(&self, key: &[u8], value: &[u8], report: &mut SyncReport) -> Result<(), SyncError> {
        self.patiently(|| self.map.update(key, value, MapFlags::ANY))?;
        report.written += 1;
        Ok(())
    }

    /// Writes entries, whose keys and values lie one after the other.
    fn write_all(&self, keys: &[u8], values: &[u8], report: &mut SyncReport) -> Result<(), SyncError> {
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX) / self.map.key_size().max(1);
        if count == 0 {
            return Ok(());
        }
        self.patiently(|| self.map.update_batch(keys, values, count, MapFlags::ANY, MapFlags::ANY))?;
        report.written += count as usize;
        Ok(())
    }

    fn delete(&self, key: &[u8], report: &mut SyncReport) -> Result<(), SyncError> {
        match self.map.delete(key) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|source| self.refused(source))?,
        }
        report.deleted += 1;
        Ok(())
    }

    /// Writes, a few times if need be: the kernel takes an entry's memory from a small stock, which it fills up behind it.
    fn patiently(&self, write: impl Fn() -> libbpf_rs::Result<()>) -> Result<(), SyncError> {
        for _ in 0..ATTEMPTS {
            match write() {
                Err(error) if error.kind() == ErrorKind::OutOfMemory => std::thread::sleep(PAUSE),
                done => return done.map_err(|source| self.refused(source)),
            }
        }
        write().map_err(|source| self.refused(source))
    }

    fn refused(&self, source: libbpf_rs::Error) -> SyncError {
        SyncError::Kernel { map: self.name, source }
    }
}
