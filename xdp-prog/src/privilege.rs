//! What the process may do and what it runs on, for errors that say what to do.

use std::fs;

/// Bit numbers of <linux/capability.h>.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The capabilities that loading an XDP program needs and this thread lacks; none where that cannot be told.
pub(crate) fn missing() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective(&status).map(lacking).unwrap_or_default()
}

/// The running kernel's release.
pub(crate) fn kernel_release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

fn effective(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// `CAP_PERFMON` is what the verifier asks of a program that follows headers of variable length: it allows
/// arithmetic on packet pointers with values that are known at run time only.
fn lacking(set: u64) -> Vec<&'static str> {
    let has = |bit: u32| set & 1 << bit != 0;
    if has(CAP_SYS_ADMIN) {
        return Vec::new(); // stands for all of them
    }
    let needed = [("CAP_BPF", CAP_BPF), ("CAP_PERFMON", CAP_PERFMON), ("CAP_NET_ADMIN", CAP_NET_ADMIN)];
    needed.into_iter().filter(|(_, bit)| !has(*bit)).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        for (name, set, want) in [
            ("root", "CapEff:\t000001ffffffffff", vec![]),
            (
                "an ordinary user",
                "CapEff:\t0000000000000000",
                vec!["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"],
            ),
            ("network administrator", "CapEff:\t0000000000001000", vec!["CAP_BPF", "CAP_PERFMON"]),
            ("without CAP_PERFMON", "CapEff:\t0000008000001000", vec!["CAP_PERFMON"]),
            ("all three", "CapEff:\t000000c000001000", vec![]),
            ("the older capability", "CapEff:\t0000000000200000", vec![]),
        ] {
            let status = format!("Name:\tweir\n{set}\nCapBnd:\t000001ffffffffff\n");
            assert_eq!(effective(&status).map(lacking), Some(want), "{name}");
        }
        assert_eq!(effective("Name:\tweir\n"), None);
    }
}
