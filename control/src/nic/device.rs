//! What sysfs and /proc tell of a device, by its place on the bus: that is the same in every network namespace.

use std::fs;
use std::path::{Path, PathBuf};

use super::Napi;

/// The driver of a device, and its memory node where the machine has several.
pub(super) fn driver_and_node(bus: &str, device: &str) -> (Option<String>, Option<u32>) {
    let place = Path::new("/sys/bus").join(bus).join("devices").join(device);
    let driver = fs::canonicalize(place.join("driver")).ok();
    let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    (driver, fs::canonicalize(place).ok().and_then(node))
}

/// The memory node of a device, or of the nearest one above that has one. -1 stands for none.
fn node(device: PathBuf) -> Option<u32> {
    device.ancestors().find_map(|place| fs::read_to_string(place.join("numa_node")).ok())?.trim().parse().ok()
}

/// Notes which cores may take each interrupt.
pub(super) fn fill_in_irqs(napis: &mut [Napi]) {
    for napi in napis {
        let Some(irq) = napi.irq.filter(|irq| *irq > 0) else { continue };
        let list = fs::read_to_string(format!("/proc/irq/{irq}/smp_affinity_list")).unwrap_or_default();
        napi.irq_cores = cores(&list);
    }
}

/// The memory node of a core, where the machine has several.
pub(super) fn node_of_core(core: u16) -> Option<u32> {
    let entries = fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")).ok()?;
    entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// A list of cores as the kernel writes it: `0-3,8`. What cannot be read is left out.
pub(super) fn cores(list: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_of_cores_are_read() {
        for (list, want) in [("0-3,8\n", &[0, 1, 2, 3, 8][..]), ("5", &[5]), ("", &[]), ("1,x,3-", &[1])] {
            assert_eq!(cores(list), want, "{list:?}");
        }
    }
}
