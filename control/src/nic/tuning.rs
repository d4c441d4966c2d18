//! Settings of the kernel that suit a load balancer, made for as long as it runs.
//!
//! What is changed is written down first, beside the admin socket, so that the next start can put it back where a killed
//! Weir could not. What somebody else has changed meanwhile is left as it is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::{Napi, Nic};

/// What is set on interfaces that Weir serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Nothing.
    #[default]
    Off,
    /// For machines that do other work besides: interrupts are put off for a moment under load.
    Shared,
    /// For machines whose cores are the workers': longer, and each queue's interrupt goes to its worker's core.
    Gateway,
}

impl Profile {
    /// Whether workers poll their queues in place of interrupts where they can ([`super::polling`]).
    pub fn polls(self) -> bool {
        self == Self::Gateway
    }

    /// How often a queue is polled without work before its interrupt comes back, and after how many nanoseconds each time.
    pub fn deferral(self) -> Option<(u32, u32)> {
        match self {
            Self::Off => None,
            Self::Shared => Some((1, 20_000)),
            Self::Gateway => Some((2, 50_000)),
        }
    }
}

/// Why settings could not be kept track of.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// The record cannot be written: then nothing is changed.
    #[error("cannot write {path}, where what tuning changes is recorded: {source}")]
    Record {
        /// The record.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A setting that Weir may change. The kernel's file follows from it, so a record names no file of anybody's choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Setting {
    /// Empty polls before a queue's interrupt comes back.
    NapiDeferHardIrqs(Interface),
    /// Nanoseconds between them.
    GroFlushTimeout(Interface),
    /// The cores that an interrupt may go to.
    IrqCores(u32),
}

/// An interface by its name, which is another one if it has another index or address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Interface {
    name: String,
    ifindex: u32,
    address: String,
}

/// A setting with its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    setting: Setting,
    before: String,
    after: String,
}

/// Where the kernel keeps settings: `/sys/class/net` and `/proc/irq`; and how it tells what those of an interface's NAPI
/// instances are.
#[derive(Clone, Debug)]
struct Places {
    class_net: PathBuf,
    irq: PathBuf,
    napis: fn(u32) -> Vec<Napi>,
}

impl Default for Places {
    fn default() -> Self {
        Self { class_net: "/sys/class/net".into(), irq: "/proc/irq".into(), napis: super::napis }
    }
}

/// What was changed. Put back when dropped, as long as the record is still this one's: another Weir that has started puts
/// back what it finds recorded, and may have set its own.
#[derive(Debug)]
pub struct Tuned {
    places: Places,
    record: PathBuf,
    /// The record, once there is one: kept open, so that no other file gets its inode.
    file: Option<fs::File>,
    changes: Vec<Change>,
}

/// The record that belongs to an admin socket.
pub fn record(socket: &Path) -> PathBuf {
    let mut name = socket.file_name().unwrap_or_default().to_owned();
    name.push(".tuning");
    socket.with_file_name(name)
}

impl Tuned {
    /// Makes the profile's settings for `nics`, whose queue *n* the worker on `cores[n]` serves, and says so in the log. A
    /// setting that an interface does not have or does not take is passed over, with a warning, and so is one that a single
    /// NAPI instance of it has otherwise.
    pub fn apply(
        profile: Profile,
        nics: &[Nic],
        cores: &[u16],
        record: PathBuf,
    ) -> Result<Self, TuningError> {
        Self::apply_at(Places::default(), profile, nics, cores, record)
    }

    fn apply_at(
        places: Places,
        profile: Profile,
        nics: &[Nic],
        cores: &[u16],
        record: PathBuf,
    ) -> Result<Self, TuningError> {
        let mut tuned = Self { places, record, file: None, changes: Vec::new() };
        let mut wanted = Vec::new();
        for nic in nics {
            let interface =
                || Interface { name: nic.name.clone(), ifindex: nic.ifindex, address: nic.address.clone() };
            if let Some((polls, timeout_ns)) = profile.deferral() {
                // The timer first: polls that are put off without one would not come at all.
                wanted.push((Setting::GroFlushTimeout(interface()), timeout_ns.to_string()));
                wanted.push((Setting::NapiDeferHardIrqs(interface()), polls.to_string()));
            }
            if profile == Profile::Gateway {
                wanted.extend(affinities(nic, cores));
            }
        }
        for (setting, after) in wanted {
            let before = match tuned.places.read(&setting) {
                Ok(before) if before == after => continue,
                Ok(before) => before,
                Err(error) => {
                    tracing::warn!("{} stays: {error}", setting.name());
                    continue;
                }
            };
            if let Some(own) = tuned.places.own_value(&setting, &before) {
                tracing::warn!("{} stays {before}: {own}, which writing it would overwrite", setting.name());
                continue;
            }
            let change = Change { setting, before, after };
            tuned.changes.push(change.clone());
            tuned.write_record()?;
            let (name, Change { setting, before, after }) = (change.setting.name(), &change);
            match tuned.places.write(setting, after) {
                Ok(()) => tracing::info!("{name} is {after} while Weir runs, and was {before}"),
                Err(error) => {
                    tuned.changes.pop();
                    tracing::warn!("{name} stays {before}: {error}");
                }
            }
        }
        Ok(tuned)
    }

    fn write_record(&mut self) -> Result<(), TuningError> {
        let refused = |source| TuningError::Record { path: self.record.clone(), source };
        let text = serde_json::to_string(&self.changes).map_err(|error| refused(error.into()))?;
        let mut part = self.record.clone().into_os_string();
        part.push(".part");
        let file = write_new(Path::new(&part), &text).map_err(refused)?;
        fs::rename(&part, &self.record).map_err(refused)?;
        self.file = Some(file);
        Ok(())
    }

    fn has_record(&self) -> bool {
        let Some(Ok(own)) = self.file.as_ref().map(fs::File::metadata) else { return false };
        let is_own = |found: fs::Metadata| (found.dev(), found.ino()) == (own.dev(), own.ino());
        fs::symlink_metadata(&self.record).is_ok_and(is_own)
    }
}

/// Writes a file for its owner alone, in place of what had the name.
fn write_new(path: &Path, text: &str) -> io::Result<fs::File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(file)
}

impl Drop for Tuned {
    fn drop(&mut self) {
        if !self.has_record() {
            if !self.changes.is_empty() {
                let record = self.record.display();
                tracing::warn!("what tuning has changed stays: {record} is not this process's any more");
            }
            return;
        }
        for change in self.changes.drain(..).rev() {
            self.places.put_back(&change);
        }
        if let Err(error) = fs::remove_file(&self.record) {
            tracing::warn!("cannot remove {}: {error}", self.record.display());
        }
    }
}

/// Puts back what a Weir that was killed has recorded, if it has.
pub fn restore(record: &Path) {
    restore_at(&Places::default(), record);
}

/// Whether there was a record.
fn restore_at(places: &Places, record: &Path) -> bool {
    let text = match read_own(record) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        Err(error) => {
            tracing::warn!("what tuning had changed stays: cannot read {}: {error}", record.display());
            return false;
        }
    };
    match serde_json::from_str::<Vec<Change>>(&text) {
        Ok(changes) => changes.iter().rev().for_each(|change| places.put_back(change)),
        Err(error) => {
            tracing::warn!("what tuning had changed stays: {} is no record of it: {error}", record.display());
        }
    }
    if let Err(error) = fs::remove_file(record) {
        tracing::warn!("cannot remove {}: {error}", record.display());
    }
    true
}

/// The text of a regular file of this process's user. What others have put there is not believed.
fn read_own(path: &Path) -> io::Result<String> {
    // Neither led elsewhere by a link nor kept waiting by a pipe.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to the user {}", found.uid())));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// The interrupt of each queue to the core of its worker.
fn affinities(nic: &Nic, cores: &[u16]) -> Vec<(Setting, String)> {
    let of_queue = |queue: u32| {
        let core = cores.get(usize::try_from(queue).ok()?)?;
        let napi = nic.napis.iter().find(|napi| napi.rx_queues.contains(&queue))?;
        Some((Setting::IrqCores(napi.irq.filter(|irq| *irq > 0)?), core.to_string()))
    };
    (0u32..).zip(cores).filter_map(|(queue, _)| of_queue(queue)).collect()
}

impl Setting {
    /// What messages call it.
    fn name(&self) -> String {
        match self {
            Self::NapiDeferHardIrqs(interface) => format!("napi_defer_hard_irqs of {}", interface.name),
            Self::GroFlushTimeout(interface) => format!("gro_flush_timeout of {}", interface.name),
            Self::IrqCores(irq) => format!("the cores of interrupt {irq}"),
        }
    }
}

impl Places {
    fn read(&self, setting: &Setting) -> io::Result<String> {
        Ok(fs::read_to_string(self.file(setting)?)?.trim().to_owned())
    }

    fn write(&self, setting: &Setting, value: &str) -> io::Result<()> {
        fs::write(self.file(setting)?, value)
    }

    /// A NAPI instance whose value of an interface's setting is not the interface's `value` (Linux 6.13 and newer), in words.
    /// The kernel gives all of them what is written for the interface, and what they had cannot be told from it.
    fn own_value(&self, setting: &Setting, value: &str) -> Option<String> {
        let (interface, of): (_, fn(&Napi) -> Option<u32>) = match setting {
            Setting::IrqCores(_) => return None,
            Setting::NapiDeferHardIrqs(interface) => (interface, |napi| napi.defer_hard_irqs),
            Setting::GroFlushTimeout(interface) => (interface, |napi| napi.gro_flush_timeout_ns),
        };
        (self.napis)(interface.ifindex).iter().find_map(|napi| {
            let own = of(napi)?.to_string();
            (own != value).then(|| format!("NAPI {} has {own}", napi.id))
        })
    }

    /// The kernel's file. An interface's name is looked up anew, for another may have it now, or sysfs show another network
    /// namespace.
    fn file(&self, setting: &Setting) -> io::Result<PathBuf> {
        let (interface, file) = match setting {
            Setting::IrqCores(irq) => return Ok(self.irq.join(irq.to_string()).join("smp_affinity_list")),
            Setting::NapiDeferHardIrqs(interface) => (interface, "napi_defer_hard_irqs"),
            Setting::GroFlushTimeout(interface) => (interface, "gro_flush_timeout"),
        };
        let Interface { name, ifindex, address } = interface;
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(io::Error::other(format!("{name:?} is no interface's name")));
        }
        let folder = self.class_net.join(name);
        let is = |file: &str, value: &str| {
            Ok::<_, io::Error>(fs::read_to_string(folder.join(file))?.trim() == value)
        };
        if !is("ifindex", &ifindex.to_string())? || !is("address", address)? {
            return Err(io::Error::other(format!("{name} is another interface in sysfs")));
        }
        Ok(folder.join(file))
    }

    fn put_back(&self, change: &Change) {
        let (name, Change { setting, before, after }) = (change.setting.name(), change);
        let done = match self.read(setting) {
            Ok(now) if now == *after => match self.own_value(setting, after) {
                None => self.write(setting, before),
                Some(own) => {
                    tracing::warn!(
                        "{name} stays {after}: {own}, which somebody has set since, and which {before} would overwrite"
                    );
                    return;
                }
            },
            Ok(now) if now == *before => return,
            Ok(now) => {
                tracing::warn!(
                    "{name} stays {now}: somebody has changed it since Weir set {after} for {before}"
                );
                return;
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => tracing::info!("{name} is {before} again"),
            Err(error) => tracing::warn!("{name} cannot be put back to {before}: {error}"),
        }
    }
}

#[cfg(test)]
#[path = "tuning_test.rs"]
mod tests;
