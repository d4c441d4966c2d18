//! What the machine itself offers: kernel, memory, cores.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;
use serde::Serialize;

use super::device;

/// The bit of <linux/capability.h> by which memory may be locked without a limit.
const CAP_IPC_LOCK: u32 = 14;

/// The machine as this process may use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The cores that this process may run on, each with its memory node where there are several.
    pub cores: Vec<(u16, Option<u32>)>,
    /// Bytes that may be locked; `None`: without limit.
    pub lockable_bytes: Option<u64>,
    /// Free huge pages of 2 MiB.
    pub free_huge_pages: u64,
    /// Whether memory of flow tables can be on transparent huge pages.
    pub transparent_huge_pages: bool,
}

impl Machine {
    /// Asks the kernel.
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let own = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let cores = (0..CpuSet::count()).filter(|core| own.is_set(*core).unwrap_or(false));
        let cores = cores.filter_map(|core| u16::try_from(core).ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cores: cores.map(|core| (core, device::node_of_core(core))).collect(),
            lockable_bytes: lockable_bytes(&read("/proc/thread-self/status")),
            free_huge_pages: read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
                .parse()
                .unwrap_or(0),
            transparent_huge_pages: !matches!(
                read("/sys/kernel/mm/transparent_hugepage/enabled").as_str(),
                "" | "always madvise [never]"
            ),
        }
    }

    /// Whether this process may run on this core.
    pub fn has(&self, core: u16) -> bool {
        self.cores.iter().any(|(known, _)| *known == core)
    }

    /// The memory node of a core, where the machine has several.
    pub fn node_of(&self, core: u16) -> Option<u32> {
        self.cores.iter().find(|(known, _)| *known == core)?.1
    }

    /// The first two numbers of the kernel's release.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Whether the kernel is known to be older than this.
    pub fn is_before(&self, version: (u32, u32)) -> bool {
        self.version().is_some_and(|own| own < version)
    }
}

fn lockable_bytes(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    (set & 1 << CAP_IPC_LOCK == 0 && limit != u64::MAX).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_version() {
        for (kernel, want) in [
            ("6.18.44-fc-v669", Some((6, 18))),
            ("5.15.0-91-generic", Some((5, 15))),
            ("7.0-rc1", Some((7, 0))),
            ("", None),
            ("linux", None),
        ] {
            let machine = Machine { kernel: kernel.to_owned(), ..Machine::default() };
            assert_eq!(machine.version(), want, "{kernel}");
            assert_eq!(machine.is_before((6, 8)), want == Some((5, 15)), "{kernel}");
        }
    }

    #[test]
    fn this_machine_has_a_core_and_a_kernel() {
        let machine = Machine::read();
        assert!(!machine.cores.is_empty());
        assert!(machine.version().is_some(), "{machine:?}");
    }
}
