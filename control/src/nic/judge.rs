//! What facts mean for Weir: what keeps it from serving an interface, what costs, what is worth knowing. Pure.

use std::fmt;

use dataplane::io::xsk;
use serde::Serialize;

use super::claim::claim;
use super::polling::{self, Unpolled};
use super::{Machine, Napi, Nic, Queues, XdpFeatures};
use crate::config::{Settings, ZeroCopy};

/// The oldest kernel that Weir runs on.
const KERNEL_MIN: (u32, u32) = (5, 15);
/// From here on drivers number zero-copy queues of mlx5 as all others (Linux 6.1).
const MLX5_ONE_NUMBERING: (u32, u32) = (6, 1);
/// Until here sockets of ice that come or go under load could hang its port (Linux 6.11).
const ICE_SOUND: (u32, u32) = (6, 11);
/// From here on a wakeup for receiving reaches the receiving end of igb in any case (Linux 7.0; older series got it late).
const IGB_WAKES: (u32, u32) = (7, 0);
/// Largest MTU of which native XDP is commonly taken: a page less headroom, layer 2 and what the kernel keeps at the end. Beyond,
/// the program has to be one that takes frames of several buffers.
pub(crate) const NATIVE_MTU: u32 = 3498;

/// The kernel with which AF_XDP began to carry frames of several buffers.
const SEVERAL_BUFFERS: (u32, u32) = (6, 6);
/// Bytes of a huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Weir cannot run like this.
    Refuses,
    /// Weir runs, but traffic or speed is lost.
    Costs,
    /// Worth knowing.
    Notes,
}

/// One thing found, in one sentence that says what to do if there is something to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// What it is about.
    pub about: &'static str,
    /// The sentence.
    pub text: String,
}

/// What Weir is asked to do on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Workers, and so queues of every interface.
    pub workers: u8,
    /// The core of each worker, by id, as far as there are any.
    pub cores: Vec<u16>,
    /// Whether XDP may run in generic mode.
    pub allow_generic: bool,
    /// Whether frames are to stay where the NIC puts them.
    pub zero_copy: ZeroCopy,
    /// The largest MTU of the interfaces that are served together: each socket of a worker takes frames of as many buffers.
    pub largest_mtu: u32,
}

impl Wish {
    /// What a configuration asks for of `nics`, on the cores that workers would get.
    pub fn new(settings: &Settings, machine: &Machine, nics: &[Nic]) -> Self {
        let workers = &settings.workers;
        let first = || machine.cores.iter().map(|(core, _)| *core);
        let count = usize::from(workers.count.get());
        Self {
            workers: workers.count.get(),
            cores: workers.cores.clone().unwrap_or_else(|| first().take(count).collect()),
            allow_generic: settings.xdp.allow_generic,
            zero_copy: settings.xdp.zero_copy,
            largest_mtu: largest_mtu(nics),
        }
    }
}

/// The largest MTU of interfaces that are served together.
pub fn largest_mtu(nics: &[Nic]) -> u32 {
    nics.iter().map(|nic| nic.mtu).max().unwrap_or(0)
}

/// Whether frames take more buffers than the driver has for each in zero-copy mode, so that the interface is served in copy mode.
/// The kernel refuses zero-copy for several buffers where the driver has one, but not to a socket that shares its memory with one
/// that has it (`xp_assign_dev`, `xp_assign_dev_shared` of net/xdp/xsk_buff_pool.c).
pub fn lacks_buffers(nic: &Nic, wish: &Wish) -> bool {
    let told = nic.xdp.and_then(|xdp| xdp.zero_copy_segments);
    told.is_some_and(|told| told < xsk::chunks_of_frame(wish.largest_mtu.max(nic.mtu)))
}

/// The findings in the making.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, weight: Weight, about: &'static str, text: impl fmt::Display) {
        self.0.push(Finding { weight, about, text: text.to_string() });
    }

    fn refuses(&mut self, about: &'static str, text: impl fmt::Display) {
        self.add(Weight::Refuses, about, text);
    }

    fn costs(&mut self, about: &'static str, text: impl fmt::Display) {
        self.add(Weight::Costs, about, text);
    }

    fn notes(&mut self, about: &'static str, text: impl fmt::Display) {
        self.add(Weight::Notes, about, text);
    }

    /// The weightiest first, otherwise as found.
    fn done(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.weight);
        self.0
    }
}

/// What an interface's nature and settings mean for Weir. What others may let go of at any moment is not in it: see
/// [`occupied`].
pub fn nic(nic: &Nic, wish: &Wish, machine: &Machine) -> Vec<Finding> {
    let mut findings = Findings::default();
    if !nic.ethernet {
        findings.refuses("layer 2", format_args!("{} is not Ethernet", nic.name));
        return findings.done();
    }
    place(nic, &mut findings);
    state(nic, machine, &mut findings);
    modes(nic, wish, machine, &mut findings);
    queues(nic, wish, &mut findings);
    spread(nic, wish, &mut findings);
    driver(nic, wish, machine, &mut findings);
    offloads(nic, &mut findings);
    rings(nic, &mut findings);
    cores(nic, wish, machine, &mut findings);
    napis(nic, &mut findings);
    polling(nic, wish, &mut findings);
    findings.done()
}

/// Whether another program or another Weir holds the interface at this moment.
pub fn occupied(nic: &Nic, wish: &Wish) -> Vec<Finding> {
    let (name, mut findings) = (&nic.name, Findings::default());
    for attached in &nic.programs {
        let (program, mode) = (attached.program, attached.mode);
        findings.refuses(
            "XDP program",
            format_args!(
                "XDP program {program} is attached to {name} in {mode} mode, by another Weir or another tool: an interface \
                 serves one (`bpftool prog show id {program}` tells what it is)"
            ),
        );
    }
    for queue in nic.bound_queues.iter().filter(|queue| **queue < u32::from(wish.workers)) {
        findings.refuses(
            "sockets",
            format_args!(
                "queue {queue} of {name} is in use by an AF_XDP socket: stop the program that holds it"
            ),
        );
    }
    findings.done()
}

/// What the machine itself means for Weir; `frame_bytes` is the frame memory of all workers together.
pub fn machine(machine: &Machine, wish: &Wish, frame_bytes: u64) -> Vec<Finding> {
    let mut findings = Findings::default();
    let (kernel, workers) = (&machine.kernel, u64::from(wish.workers));
    if machine.is_before(KERNEL_MIN) {
        findings.refuses("kernel", format_args!("Linux {kernel} is too old: Weir needs 5.15 or newer"));
    }
    if usize::from(wish.workers) > machine.cores.len() {
        let cores = machine.cores.len();
        findings
            .refuses("cores", format_args!("{workers} workers need as many cores, Weir may run on {cores}"));
    }
    if let Some(limit) = machine.lockable_bytes
        && limit < frame_bytes
    {
        findings.refuses(
            "locked memory",
            format_args!(
                "may lock {limit} bytes, the workers' frame memory is {frame_bytes}: raise RLIMIT_MEMLOCK (ulimit -l, \
                 LimitMEMLOCK=) or grant CAP_IPC_LOCK"
            ),
        );
    }
    let pages = frame_bytes.div_ceil(HUGE_PAGE);
    if machine.free_huge_pages < pages {
        findings.notes(
            "huge pages",
            format_args!(
                "{} huge pages of 2 MiB are free, the workers' frame memory would take {pages}: without them it lies on \
                 normal pages (sysctl vm.nr_hugepages={pages})",
                machine.free_huge_pages
            ),
        );
    }
    if !machine.transparent_huge_pages {
        findings.costs(
            "huge pages",
            "transparent huge pages are off, so large flow tables cost more per packet (write madvise to \
             /sys/kernel/mm/transparent_hugepage/enabled)",
        );
    }
    findings.done()
}

/// What it is a part of, and what it is.
fn place(nic: &Nic, findings: &mut Findings) {
    let name = &nic.name;
    if let Some(master) = &nic.member_of {
        let (above, kind) = (&master.name, master.kind.as_str());
        let why = match kind {
            "vrf" => "its routes are in a table of their own, and Weir follows the main table alone",
            _ => "routes and neighbours lead to that, and Weir sends by the interface that they lead to",
        };
        let kind = if kind.is_empty() { "another link" } else { kind };
        findings.refuses(
            "membership",
            format_args!(
                "{name} is a part of {above} ({kind}): {why}; take it out (ip link set {name} nomaster) and give it the \
                 addresses"
            ),
        );
    }
    if nic.kind.as_deref() == Some("bond") {
        findings.refuses(
            "bond",
            format_args!(
                "{name} is a bond, whose frames come in on the queues of its members: serve these, each with addresses of \
                 its own; several next hops do what the bond did"
            ),
        );
    }
}

fn state(nic: &Nic, machine: &Machine, findings: &mut Findings) {
    let name = &nic.name;
    if !nic.up {
        findings.refuses("state", format_args!("{name} is down: set it up (ip link set {name} up)"));
    } else if !nic.carrier {
        findings.costs("state", format_args!("{name} has no carrier"));
    }
    frame_size(nic, machine, findings);
}

/// Frames of one buffer or of several.
fn frame_size(nic: &Nic, machine: &Machine, findings: &mut Findings) {
    let (name, mtu, kernel) = (&nic.name, nic.mtu, &machine.kernel);
    let (most, one_buffer) = (u32::from(xsk::MTU_MAX), u32::from(xsk::CHUNK_MTU_MAX));
    let lower = format_args!("set it lower (ip link set {name} mtu {one_buffer})");
    if mtu > most {
        findings.refuses(
            "MTU",
            format_args!("the MTU of {name} is {mtu}: Weir takes {most} bytes at most, set it lower (ip link set {name} mtu {most})"),
        );
    } else if mtu > one_buffer && machine.version() < Some(SEVERAL_BUFFERS) {
        findings.refuses(
            "MTU",
            format_args!(
                "the MTU of {name} is {mtu}: AF_XDP of Linux {kernel} carries {one_buffer} bytes at most, Linux 6.6 and newer more; {lower}"
            ),
        );
    } else if mtu > one_buffer && nic.xdp.is_some_and(|xdp| xdp.native && !xdp.multi_buffer) {
        let driver = nic.driver_or_kind();
        findings.refuses(
            "MTU",
            format_args!("the MTU of {name} is {mtu}: {driver} gives XDP programs no frames of several buffers; {lower}"),
        );
    } else if mtu > one_buffer {
        findings.costs(
            "MTU",
            format_args!("the MTU of {name} is {mtu}: frames of more than {one_buffer} bytes come in several buffers and are copied twice"),
        );
    } else if mtu > NATIVE_MTU {
        findings.costs(
            "MTU",
            format_args!("the MTU of {name} is {mtu}: some drivers refuse native XDP above {NATIVE_MTU}"),
        );
    }
}

/// Native or generic, zero-copy or copy.
fn modes(nic: &Nic, wish: &Wish, machine: &Machine, findings: &mut Findings) {
    let (name, driver) = (&nic.name, nic.driver_or_kind());
    let Some(xdp) = nic.xdp else { return };
    if !(xdp.native && xdp.redirect) {
        let instead = match nic.kind.as_deref() {
            Some("veth") => "a veth has it with as many RX queues as its peer has TX queues; change them",
            Some("vlan") => "serve the interface below, whose tags Weir reads and writes",
            _ => "use another interface",
        };
        let text = format_args!("{driver} has no native XDP for {name}");
        if wish.allow_generic {
            findings.costs("XDP", format_args!("{text}: generic mode is slower by far; {instead}"));
        } else {
            findings.refuses("XDP", format_args!("{text}: {instead}, or allow generic mode (xdp.mode)"));
        }
    }
    zero_copy(nic, xdp, wish, machine, findings);
}

fn zero_copy(nic: &Nic, xdp: XdpFeatures, wish: &Wish, machine: &Machine, findings: &mut Findings) {
    let (name, driver) = (&nic.name, nic.driver_or_kind());
    let one_buffer = u32::from(xsk::CHUNK_MTU_MAX);
    let why_copied = || {
        let mtu = wish.largest_mtu.max(nic.mtu);
        let (takes, has) = (xsk::chunks_of_frame(mtu), xdp.zero_copy_segments.unwrap_or(1));
        format!(
            "frames of an MTU of {mtu} take {takes} buffers, and {driver} has {has} for each in zero-copy mode on {name}"
        )
    };
    match wish.zero_copy {
        ZeroCopy::Require if !xdp.zero_copy => findings.refuses(
            "zero-copy",
            format_args!(
                "{driver} cannot do zero-copy on {name} with Linux {}: set xdp.zero_copy to auto or never",
                machine.kernel
            ),
        ),
        ZeroCopy::Auto if !xdp.zero_copy => findings.notes(
            "zero-copy",
            format_args!("{driver} cannot do zero-copy on {name}: the kernel copies every frame, about 1 µs of CPU each"),
        ),
        ZeroCopy::Require if lacks_buffers(nic, wish) => findings.refuses(
            "zero-copy",
            format_args!(
                "{}: set xdp.zero_copy to auto or never, or no served interface's MTU above {one_buffer}",
                why_copied()
            ),
        ),
        ZeroCopy::Auto if lacks_buffers(nic, wish) => findings.costs(
            "zero-copy",
            format_args!(
                "{}: Weir serves it in copy mode, about 1 µs of CPU a frame; set no served interface's MTU above {one_buffer}",
                why_copied()
            ),
        ),
        ZeroCopy::Never if xdp.zero_copy && !lacks_buffers(nic, wish) => findings.notes(
            "zero-copy",
            format_args!("{driver} could do zero-copy on {name}, but xdp.zero_copy says never"),
        ),
        _ => {}
    }
}

fn queues(nic: &Nic, wish: &Wish, findings: &mut Findings) {
    let (name, workers) = (&nic.name, u32::from(wish.workers));
    let is_veth = nic.kind.as_deref() == Some("veth");
    match nic.queues.rx {
        Some(queues) if queues < workers => {
            let remedy = match nic.queues.rx_max {
                _ if is_veth => "a veth gets them when it is made".to_owned(),
                Some(most) if most >= workers => format!("ethtool -L {name} combined {workers}"),
                _ => "run fewer workers".to_owned(),
            };
            findings.refuses(
                "queues",
                format_args!("{workers} workers need {workers} RX queues, {name} has {queues}: {remedy}"),
            );
        }
        Some(queues) if queues > workers => {
            let has = format!("{name} has {queues} RX queues for {}", counted(workers));
            match &nic.rss {
                Some(rss) if rss.table.iter().all(|queue| *queue < workers) => {
                    findings.notes("queues", format_args!("{has}; its indirection table uses only those"));
                }
                rss => {
                    let remedy = match rss {
                        Some(_) => format!("ethtool -X {name} equal {workers}"),
                        None if is_veth => "run more workers, or make it with fewer queues".to_owned(),
                        None => format!("ethtool -L {name} combined {workers}"),
                    };
                    findings.costs(
                        "queues",
                        format_args!(
                            "{has}: what arrives on queues {workers} and up passes Weir by ({remedy})"
                        ),
                    );
                }
            }
        }
        _ => {}
    }
    if let (Some(queues), Some(peer)) = (nic.queues.rx, &nic.peer)
        && let Some(sent_by) = peer.tx_queues.filter(|sent_by| *sent_by > queues)
    {
        let peer = &peer.name;
        let text = format_args!(
            "{name} has {queues} RX queues, its peer {peer} {sent_by} TX queues: native XDP wants no more than those (ethtool \
             -L {peer} tx {queues})"
        );
        if wish.allow_generic { findings.costs("queues", text) } else { findings.refuses("queues", text) }
    }
}

/// Whether TX queues have interrupts of their own: a NAPI without an RX queue has one of those, where queues are told.
fn has_split_interrupts(nic: &Nic) -> bool {
    let has_rx = |napi: &Napi| !napi.rx_queues.is_empty();
    nic.napis.iter().any(has_rx) && !nic.napis.iter().all(has_rx)
}

/// What is known of single drivers.
fn driver(nic: &Nic, wish: &Wish, machine: &Machine, findings: &mut Findings) {
    let (name, kernel) = (&nic.name, &machine.kernel);
    let wants_zero_copy = wish.zero_copy != ZeroCopy::Never;
    match nic.driver.as_deref() {
        Some("mlx5_core") if wants_zero_copy && machine.is_before(MLX5_ONE_NUMBERING) => {
            findings.costs(
                "driver",
                format_args!(
                    "mlx5 of Linux {kernel} gives zero-copy queues numbers of their own, behind all others: Weir serves {name} \
                     in copy mode; Linux 6.1 and newer have one numbering"
                ),
            );
        }
        Some("ice") if wants_zero_copy && machine.is_before(ICE_SOUND) => {
            findings.costs(
                "driver",
                format_args!(
                    "ice of Linux {kernel} can hang {name} when zero-copy sockets come or go under load: use Linux 6.11 or \
                     newer, or set xdp.zero_copy to never"
                ),
            );
        }
        Some("igb") if wants_zero_copy && machine.is_before(IGB_WAKES) && has_split_interrupts(nic) => {
            let Queues { rx_max: Some(most), .. } = nic.queues else { return };
            let workers = wish.workers;
            findings.costs(
                "driver",
                format_args!(
                    "RX and TX queues of {name} have interrupts of their own, and igb of some kernels before Linux 7.0 raises the \
                     wrong one: a queue whose worker pauses until all its buffers are full receives nothing any more (ethtool -L \
                     {name} combined {most}; ethtool -X {name} equal {workers}), or set xdp.zero_copy to never"
                ),
            );
        }
        Some("ena") => {
            let Queues { rx: Some(rx), rx_max: Some(most), .. } = nic.queues else { return };
            if rx > most / 2 {
                findings.refuses(
                    "driver",
                    format_args!(
                        "ena runs XDP on half of its {most} queues at most, {name} uses {rx}: ethtool -L {name} combined {}",
                        most / 2
                    ),
                );
            }
        }
        _ => {}
    }
}

/// Whether replies to SNAT ports can be had on their worker's queue.
fn spread(nic: &Nic, wish: &Wish, findings: &mut Findings) {
    let has_queues = nic.queues.rx.is_some_and(|queues| queues > 1);
    if wish.workers < 2 || !has_queues || nic.kind.is_some() {
        return;
    }
    if let Err(why) = claim(nic.rss.as_ref()) {
        let name = &nic.name;
        findings.notes(
            "RSS",
            format_args!("replies to SNAT ports arrive on any queue of {name} and are handed over: {why}"),
        );
    }
}

fn offloads(nic: &Nic, findings: &mut Findings) {
    let name = &nic.name;
    let Some(on) = &nic.offloads else { return };
    if on.contains("rx-lro") {
        findings.costs(
            "offloads",
            format_args!(
                "large receive offload is on: frames larger than a buffer are lost, and most drivers refuse XDP with it \
                 (ethtool -K {name} lro off)"
            ),
        );
    }
    if on.contains("rx-vlan-hw-parse") && nic.kind.is_none() {
        let text = "strips VLAN tags, which hides them from Weir";
        let remedy = format_args!("(ethtool -K {name} rxvlan off)");
        if nic.vlans.is_empty() {
            findings
                .notes("offloads", format_args!("{name} {text}: {remedy} where services are behind tags"));
        } else {
            let vlans = nic.vlans.join(", ");
            findings.costs("offloads", format_args!("{name} {text}, and there are {vlans} {remedy}"));
        }
    }
    if on.contains("rx-vlan-filter") && nic.kind.is_none() && nic.vlans.is_empty() {
        findings.notes(
            "offloads",
            format_args!(
                "{name} lets in frames of those VLANs alone that it has an interface for, and there is none: ip link add link \
                 {name} name {name}.7 type vlan id 7 (for VLAN 7) where services are behind tags"
            ),
        );
    }
}

fn rings(nic: &Nic, findings: &mut Findings) {
    let Some(rings) = nic.rings.filter(|rings| rings.rx < rings.rx_max) else { return };
    let (name, rx, most) = (&nic.name, rings.rx, rings.rx_max);
    findings.notes(
        "rings",
        format_args!(
            "{name} has {rx} RX ring entries of {most}: more outlast longer pauses of a worker and leave the cache sooner \
             (ethtool -G {name} rx)"
        ),
    );
}

/// Workers near the NIC, and interrupts near the workers.
fn cores(nic: &Nic, wish: &Wish, machine: &Machine, findings: &mut Findings) {
    let name = &nic.name;
    for (worker, core) in wish.cores.iter().enumerate() {
        if let (Some(own), Some(nics)) = (machine.node_of(*core), nic.numa_node)
            && own != nics
        {
            findings.costs(
                "memory node",
                format_args!(
                    "worker {worker} runs on core {core} of memory node {own}, {name} is at node {nics}: choose workers.cores \
                     of that node"
                ),
            );
        }
    }
    for napi in &nic.napis {
        let Some(irq) = napi.irq.filter(|_| !napi.irq_cores.is_empty()) else { continue };
        for queue in &napi.rx_queues {
            let Some(core) = usize::try_from(*queue).ok().and_then(|queue| wish.cores.get(queue)) else {
                continue;
            };
            if napi.irq_cores != [*core] {
                findings.notes(
                    "interrupts",
                    format_args!(
                        "interrupt {irq} of queue {queue} may go to cores {}, worker {queue} runs on {core} (echo {core} > \
                         /proc/irq/{irq}/smp_affinity_list)",
                        listed(&napi.irq_cores)
                    ),
                );
            }
        }
    }
}

fn napis(nic: &Nic, findings: &mut Findings) {
    let idle = |napi: &&Napi| napi.defer_hard_irqs == Some(0) && napi.gro_flush_timeout_ns == Some(0);
    if nic.kind.is_none() && nic.napis.iter().filter(idle).count() > 0 {
        findings.notes(
            "NAPI",
            format_args!(
                "interrupts of {} are not deferred (napi_defer_hard_irqs and gro_flush_timeout are 0): weir run --tuning gateway \
                 defers them while it runs",
                nic.name
            ),
        );
    }
}

/// Whether workers could poll their queues in place of interrupts.
fn polling(nic: &Nic, wish: &Wish, findings: &mut Findings) {
    if wish.zero_copy == ZeroCopy::Never || !nic.xdp.is_some_and(|xdp| xdp.zero_copy) {
        return;
    }
    let served = (0..u32::from(wish.workers)).map(|queue| polling::instance(&nic.napis, queue));
    let name = &nic.name;
    match served.collect::<Result<Vec<_>, _>>() {
        Ok(_) => findings.notes(
            "polling",
            format_args!(
                "weir run --tuning gateway would have the workers poll the queues of {name} in place of interrupts"
            ),
        ),
        // Of an older kernel nothing is known.
        Err(_) if nic.napis.is_empty() => {}
        Err(why) => {
            let more = match (why, nic.driver.as_deref(), nic.queues.rx_max) {
                (Unpolled::Apart, Some("igb" | "igc"), Some(most)) => {
                    format!("; with more queues they share one (ethtool -L {name} combined {most})")
                }
                _ => String::new(),
            };
            findings.notes(
                "polling",
                format_args!(
                    "workers cannot poll the queues of {name} in place of interrupts (--tuning gateway), for {why}{more}"
                ),
            );
        }
    }
}

/// So many workers, in words.
pub fn counted(workers: u32) -> String {
    if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") }
}

/// Cores as one lists them: `0-3,8`.
pub fn listed(cores: &[u16]) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for core in cores {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*core) => *last = *core,
            _ => ranges.push((*core, *core)),
        }
    }
    let range = |(first, last): (u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.into_iter().map(range).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[path = "judge_test.rs"]
mod tests;
