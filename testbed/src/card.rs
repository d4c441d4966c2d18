//! Network cards that are there for tests alone, instead of the gateway's veth pairs: in the guest of `perf/vm/run.sh --nics`.

use anyhow::{Context, Result};

use crate::topology::QUEUES;

/// The variable of the environment that names the cards.
const VARIABLE: &str = "WEIR_TEST_NICS";

/// A kind of network card, and what Weir can have of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    /// The emulator's own.
    VirtioNet,
    /// Intel 82576.
    Igb,
    /// VMware's.
    Vmxnet3,
    /// Intel 82574: its driver has no XDP.
    E1000e,
}

impl Card {
    const ALL: [Self; 4] = [Self::VirtioNet, Self::Igb, Self::Vmxnet3, Self::E1000e];

    /// The cards that are here; `None` where there are none.
    ///
    /// # Errors
    /// When the environment names others than these.
    pub fn here() -> Result<Option<Self>> {
        let Some(name) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let known = Self::ALL.into_iter().find(|card| card.name() == name);
        known.map(Some).with_context(|| format!("{VARIABLE} names no card that is known: {}", name.display()))
    }

    /// What the emulator calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::VirtioNet => "virtio-net",
            Self::Igb => "igb",
            Self::Vmxnet3 => "vmxnet3",
            Self::E1000e => "e1000e",
        }
    }

    /// The kernel's driver.
    pub fn driver(self) -> &'static str {
        match self {
            Self::VirtioNet => "virtio_net",
            card => card.name(),
        }
    }

    /// How the XDP program runs on it, as Weir names it.
    pub fn xdp(self) -> &'static str {
        if self == Self::E1000e { "generic" } else { "native" }
    }

    /// The best mode that this kernel has for it, as Weir names it: virtio-net has zero-copy both ways from Linux 6.13 on, igb from
    /// 6.14 on.
    ///
    /// # Errors
    /// Where the kernel does not tell its version.
    pub fn mode(self) -> Result<&'static str> {
        let since = match self {
            Self::VirtioNet => (6, 13),
            Self::Igb => (6, 14),
            Self::Vmxnet3 | Self::E1000e => return Ok("copy"),
        };
        Ok(if kernel_version()? >= since { "zero-copy" } else { "copy" })
    }

    /// Its queues, and so workers of a Weir that uses them all.
    pub fn queues(self) -> u32 {
        if self == Self::E1000e { 1 } else { QUEUES }
    }

    /// Whether frames arrive on all of its queues: the emulator gives those of vmxnet3 to the first one.
    pub fn spreads(self) -> bool {
        matches!(self, Self::VirtioNet | Self::Igb)
    }
}

/// The version of the kernel: its first two numbers.
///
/// # Errors
/// Where the kernel does not tell it.
pub fn kernel_version() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    Ok((numbers.next().context("a version")??, numbers.next().context("a version")??))
}
