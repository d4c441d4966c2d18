//! The maps that say what is ours, and what was last written to them.

use std::collections::HashSet;
use std::sync::Arc;

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use zerocopy::IntoBytes;

use crate::abi::Place;
use crate::error::SyncError;
use crate::image::Image;

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

/// The maps, with a copy of what they hold.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) vips: Table,
    pub(crate) backends: Table,
    pub(crate) addresses: Table,
    pub(crate) node_ports: Table,
    pub(crate) rules: Table,
    pub(crate) written: Image,
}

impl Tables {
    /// Whether the maps were made large enough for `image`.
    pub(crate) fn check(&self, image: &Image) -> Result<(), SyncError> {
        self.vips.check(image.vips.len())?;
        self.backends.check(image.backends.len())?;
        self.addresses.check(image.addresses.len())?;
        self.rules.check(image.rules.len())
    }

    /// Makes the maps equal to `wanted`, removals first, with one system call for each entry that differs.
    pub(crate) fn make(&mut self, wanted: &Image) -> Result<SyncReport, SyncError> {
        self.check(wanted)?;
        let mut report = SyncReport::default();
        // An address opens the way to the sets of its ports: shut first, opened last.
        self.delete_addresses(wanted, &mut report)?;
        self.vips.shrink(&mut self.written.vips, &wanted.vips, &mut report)?;
        self.backends.shrink(&mut self.written.backends, &wanted.backends, &mut report)?;
        self.vips.grow(&mut self.written.vips, &wanted.vips, &mut report)?;
        self.backends.grow(&mut self.written.backends, &wanted.backends, &mut report)?;
        self.write_node_ports(wanted, &mut report)?;
        self.write_rules(wanted, &mut report)?;
        self.write_addresses(wanted, &mut report)?;
        Ok(report)
    }

    fn delete_addresses(&mut self, wanted: &Image, report: &mut SyncReport) -> Result<(), SyncError> {
        let known = self.written.addresses.keys();
        let stale: Vec<_> = known.filter(|addr| !wanted.addresses.contains_key(addr)).copied().collect();
        for addr in stale {
            self.addresses.delete(addr.as_bytes())?;
            self.written.addresses.remove(&addr);
            report.deleted += 1;
        }
        Ok(())
    }

    fn write_addresses(&mut self, wanted: &Image, report: &mut SyncReport) -> Result<(), SyncError> {
        for (addr, purpose) in &wanted.addresses {
            if self.written.addresses.get(addr) != Some(purpose) {
                self.addresses.write(addr.as_bytes(), purpose.as_bytes())?;
                self.written.addresses.insert(*addr, *purpose);
                report.written += 1;
            }
        }
        Ok(())
    }

    /// New prefixes go in first: one that is inside another takes over from it, and has what that one had.
    fn write_rules(&mut self, wanted: &Image, report: &mut SyncReport) -> Result<(), SyncError> {
        for (prefix, lines) in &wanted.rules {
            if self.written.rules.get(prefix) != Some(lines) {
                self.rules.write(prefix.as_bytes(), lines.as_bytes())?;
                self.written.rules.insert(*prefix, Arc::clone(lines));
                report.written += 1;
            }
        }
        let known = self.written.rules.keys();
        let stale: Vec<_> = known.filter(|prefix| !wanted.rules.contains_key(prefix)).copied().collect();
        for prefix in stale {
            self.rules.delete(prefix.as_bytes())?;
            self.written.rules.remove(&prefix);
            report.deleted += 1;
        }
        Ok(())
    }

    fn write_node_ports(&mut self, wanted: &Image, report: &mut SyncReport) -> Result<(), SyncError> {
        let words = self.written.node_ports.iter_mut().zip(&wanted.node_ports);
        for (index, (written, wanted)) in
            (0u32..).zip(words).filter(|(_, (written, wanted))| written != wanted)
        {
            self.node_ports.write(index.as_bytes(), wanted.as_bytes())?;
            *written = *wanted;
            report.written += 1;
        }
        Ok(())
    }
}

impl Table {
    fn check(&self, wanted: usize) -> Result<(), SyncError> {
        let limit = self.map.max_entries();
        if wanted > limit as usize {
            return Err(SyncError::Full { map: self.name, limit, wanted });
        }
        Ok(())
    }

    fn shrink(
        &self,
        written: &mut HashSet<Place>,
        wanted: &HashSet<Place>,
        report: &mut SyncReport,
    ) -> Result<(), SyncError> {
        let stale: Vec<_> = written.difference(wanted).copied().collect();
        for place in stale {
            self.delete(place.as_bytes())?;
            written.remove(&place);
            report.deleted += 1;
        }
        Ok(())
    }

    fn grow(
        &self,
        written: &mut HashSet<Place>,
        wanted: &HashSet<Place>,
        report: &mut SyncReport,
    ) -> Result<(), SyncError> {
        for place in wanted {
            if !written.contains(place) {
                self.write(place.as_bytes(), &[1])?;
                written.insert(*place);
                report.written += 1;
            }
        }
        Ok(())
    }

    fn write(&self, key: &[u8], value: &[u8]) -> Result<(), SyncError> {
        self.map.update(key, value, MapFlags::ANY).map_err(|source| self.refused(source))
    }

    fn delete(&self, key: &[u8]) -> Result<(), SyncError> {
        match self.map.delete(key) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| self.refused(source)),
        }
    }

    fn refused(&self, source: libbpf_rs::Error) -> SyncError {
        SyncError::Kernel { map: self.name, source }
    }
}
