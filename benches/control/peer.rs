//! The same Services in nftables, in the manner of kube-proxy's nftables mode: a map from address, protocol and port to a
//! chain for each Service, from there a random choice among chains for each endpoint, which translate.
//!
//! In a network namespace of its own, by `nft`. No transaction has more than some hundred Services: what the kernel does
//! for one that is not committed yet grows with the square of its size.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::{Deserialize, Serialize};

use crate::cluster;
use crate::numbers::Percentiles;

/// Services of a transaction.
const CHUNK: u32 = 250;
/// Changes of one endpoint: each takes up to a second where there are many Services.
const CHANGES: u32 = 10;

/// What nftables takes for a cluster. Times of the processor are those of `nft`, in the kernel too.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) services: u32,
    /// Until all rules are in.
    load_cpu_ms: f64,
    load_ms: f64,
    /// How many transactions that took.
    transactions: u32,
    /// A change of one endpoint.
    change_cpu_ms: Percentiles,
    /// From the start of `nft` to its end.
    change_ms: Percentiles,
}

/// What `nft` took, all of its runs together.
#[derive(Default)]
struct Taken {
    cpu: Duration,
    wall: Duration,
}

impl Peer {
    /// Programs so many Services in a new namespace, which goes away with the process.
    pub(crate) fn measure(services: u32) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace, which needs root")?;
        let mut load = Taken::default();
        load.nft(
            "table ip weir-bench {\n map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }\n \
             chain mark-for-masquerade { meta mark set mark or 0x4000; }\n \
             chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }\n \
             chain prerouting { type nat hook prerouting priority dstnat; jump services; }\n \
             chain output { type nat hook output priority -100; jump services; }\n \
             chain postrouting { type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 masquerade; }\n}\n",
        )?;
        let mut transactions = 0;
        for first in (0..services).step_by(CHUNK as usize) {
            let rules: String = (first..services.min(first + CHUNK)).map(new_service).collect();
            load.nft(&rules)?;
            transactions += 1;
        }
        let (mut cpus, mut walls) = (Vec::new(), Vec::new());
        for number in 1..=CHANGES {
            let rules = changed(number.wrapping_mul(7919) % services, number);
            let mut taken = Taken::default();
            taken.nft(&rules)?;
            cpus.push(ms(taken.cpu));
            walls.push(ms(taken.wall));
        }
        Ok(Self {
            services,
            load_cpu_ms: ms(load.cpu),
            load_ms: ms(load.wall),
            transactions,
            change_cpu_ms: Percentiles::of(cpus),
            change_ms: Percentiles::of(walls),
        })
    }

    /// What is shown, with the unit.
    pub(crate) fn rows(&self) -> [(&'static str, f64); 5] {
        [
            ("nftables: first load, ms of the processor", self.load_cpu_ms),
            ("nftables: first load, ms", self.load_ms),
            ("nftables: one endpoint, ms of the processor, p50", self.change_cpu_ms.p50),
            ("nftables: one endpoint until committed, ms, p50", self.change_ms.p50),
            ("nftables: one endpoint until committed, ms, most", self.change_ms.p99),
        ]
    }
}

impl Taken {
    /// Commits what `rules` say.
    fn nft(&mut self, rules: &str) -> Result<()> {
        let (start, cpu) = (Instant::now(), children_cpu()?);
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("nft, of Debian's package nftables")?;
        child.stdin.take().context("no standard input")?.write_all(rules.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
        self.wall += start.elapsed();
        self.cpu += children_cpu()? - cpu;
        Ok(())
    }
}

/// Processor time of the processes that this one has started and that have ended.
fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn chain(service: u32, pod: IpAddr) -> String {
    format!("endpoint-{service}-{}", pod.to_string().replace('.', "-"))
}

fn add_endpoint(rules: &mut String, service: u32, pod: IpAddr) {
    let name = chain(service, pod);
    let _ = write!(
        rules,
        "add chain ip weir-bench {name}\n\
         add rule ip weir-bench {name} ip saddr {pod} jump mark-for-masquerade\n\
         add rule ip weir-bench {name} meta l4proto tcp dnat to {pod}:8080\n"
    );
}

fn choice(service: u32, pods: &[IpAddr]) -> String {
    let jumps = pods.iter().enumerate().map(|(at, pod)| format!("{at} : goto {}", chain(service, *pod)));
    let jumps: Vec<String> = jumps.collect();
    format!(
        "add rule ip weir-bench service-{service} numgen random mod {} vmap {{ {} }}\n",
        pods.len(),
        jumps.join(", ")
    )
}

fn new_service(number: u32) -> String {
    let (service, slice) = cluster::objects(&cluster::texts(number));
    let pods = cluster::addresses(&slice);
    let mut rules = String::new();
    pods.iter().for_each(|pod| add_endpoint(&mut rules, number, *pod));
    let _ = writeln!(rules, "add chain ip weir-bench service-{number}");
    rules += &choice(number, &pods);
    for addr in &service.cluster_ips {
        let _ = writeln!(
            rules,
            "add element ip weir-bench service-ips {{ {addr} . tcp . 80 : goto service-{number} }}"
        );
    }
    rules
}

/// One endpoint goes, another one comes.
fn changed(number: u32, change: u32) -> String {
    let before = cluster::addresses(&cluster::objects(&cluster::texts(number)).1);
    let after = cluster::addresses(&cluster::decode(&cluster::changed(number, change)));
    let mut rules = String::new();
    after.iter().filter(|pod| !before.contains(pod)).for_each(|pod| add_endpoint(&mut rules, number, *pod));
    let _ = writeln!(rules, "flush chain ip weir-bench service-{number}");
    rules += &choice(number, &after);
    for pod in before.iter().filter(|pod| !after.contains(pod)) {
        let name = chain(number, *pod);
        let _ = write!(rules, "flush chain ip weir-bench {name}\ndelete chain ip weir-bench {name}\n");
    }
    rules
}
