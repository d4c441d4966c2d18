//! How many frames a sink has received, in a file that it and the generator have mapped.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use memmap2::{MmapOptions, MmapRaw};

/// Bytes of the file: one counter.
const LEN: usize = size_of::<AtomicU64>();

/// The counter.
#[derive(Debug)]
pub(crate) struct Progress(MmapRaw);

impl Progress {
    /// A new file with the count at zero; the sink's end.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| format!("creating {}", path.display()))?;
        file.set_len(LEN as u64)?;
        Self::map(&file, path)
    }

    /// The file of a running sink; the generator's end.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Self::map(&file.with_context(|| format!("opening {}", path.display()))?, path)
    }

    fn map(file: &File, path: &Path) -> Result<Self> {
        ensure!(file.metadata()?.len() == LEN as u64, "{} is no file of a sink", path.display());
        let map = MmapOptions::new().len(LEN).map_raw(file);
        Ok(Self(map.with_context(|| format!("mapping {}", path.display()))?))
    }

    fn counter(&self) -> &AtomicU64 {
        // SAFETY: the mapping is page-aligned, long enough, writable, and lives as long as `self`; nobody in this or another
        // process touches it but by this atomic.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().cast()) }
    }

    /// Frames received.
    pub(crate) fn count(&self) -> u64 {
        self.counter().load(Ordering::Relaxed)
    }

    /// So many more.
    pub(crate) fn add(&self, frames: u64) {
        self.counter().fetch_add(frames, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_see_one_counter_and_other_files_are_refused() {
        let path = std::env::temp_dir().join(format!("weir-gen-progress-{}", std::process::id()));
        assert!(Progress::open(&path).is_err());
        let sink = Progress::create(&path).unwrap();
        let generator = Progress::open(&path).unwrap();
        sink.add(3);
        sink.add(4);
        assert_eq!(generator.count(), 7);
        std::fs::write(&path, "no counter").unwrap();
        assert!(Progress::open(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
