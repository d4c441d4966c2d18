//! Devices under test: Weir, the bare AF_XDP forwarder, and peers that a script of `perf/peers` sets up.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use control::nic::tuning::Profile;
use serde_json::Value;
use testbed::{Process, Undo, run};

use crate::LIMIT;
use crate::network::{BACKEND, BACKEND_PORT, Middle, Network, PORT, Place, Port, SNAT, VIP, undone_by};
use crate::traffic::{Cores, list, mode};

/// How long a device may take to be ready: rules of 50,000 services take their time.
const SETUP_LIMIT: Duration = Duration::from_secs(240);

/// What a device does with a packet, and so where packets have to be sent for it to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Finds a service by the VIP and translates to a backend.
    Balancer,
    /// Forwards by the destination address.
    Router,
    /// Hands frames from one interface to the other, unchanged.
    Bridge,
    /// Sends frames back by the interface that they came by.
    Reflector,
}

impl Kind {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "balancer" => Self::Balancer,
            "router" => Self::Router,
            "bridge" => Self::Bridge,
            "reflector" => Self::Reflector,
            _ => return None,
        })
    }
}

/// How Weir sends packets to backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Nat,
    Fullnat,
}

/// When the device's interfaces interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupts {
    /// Later, as `--tuning gateway` has it.
    Deferred,
    /// As the kernel has it without being told.
    Usual,
}

/// A device under test.
#[derive(Clone, Debug)]
pub(crate) enum Device {
    /// Generator and sink connected to each other.
    Nothing,
    /// `weir-gen forward`.
    Bare(Interrupts),
    Weir(Mode, Interrupts),
    Peer(Peer),
    /// One that is elsewhere, and set up by whoever runs the lab.
    Elsewhere,
}

/// A script of `perf/peers`.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    path: PathBuf,
    kind: Kind,
}

/// What a balancer is set up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Services {
    pub(crate) count: u32,
    /// Backends of each.
    pub(crate) backends: u32,
    /// Flows that Weir has room for.
    pub(crate) flows: u32,
}

/// Where packets are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) mac: String,
    pub(crate) first: Ipv4Addr,
    /// So many addresses from the first one on.
    pub(crate) count: u32,
    pub(crate) port: u16,
    /// Whether they come back to the generator's interface.
    pub(crate) returns: bool,
}

/// The programs that are measured.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    pub(crate) weir: PathBuf,
    pub(crate) generator: PathBuf,
}

/// A device at work, ended and undone when dropped.
pub(crate) struct Running {
    process: Option<Process>,
    weir: Option<Admin>,
    /// Of the bare forwarder's sockets.
    mode: Option<&'static str>,
    /// Behind the process: undone after it has ended.
    _undo: Vec<Undo>,
}

/// Where Weir answers.
struct Admin {
    binary: PathBuf,
    socket: PathBuf,
}

impl Device {
    /// Its name in reports and on the command line.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Nothing => "nothing",
            Self::Bare(Interrupts::Deferred) => "bare",
            Self::Bare(Interrupts::Usual) => "bare-untuned",
            Self::Weir(Mode::Fullnat, Interrupts::Deferred) => "weir-fullnat",
            Self::Weir(Mode::Fullnat, Interrupts::Usual) => "weir-fullnat-untuned",
            Self::Weir(Mode::Nat, Interrupts::Deferred) => "weir-nat",
            Self::Weir(Mode::Nat, Interrupts::Usual) => "weir-nat-untuned",
            Self::Peer(peer) => &peer.name,
            Self::Elsewhere => "elsewhere",
        }
    }

    /// Whether it is one of those whose interfaces Weir would tune, and left as it is for comparison.
    pub(crate) fn is_untuned(&self) -> bool {
        matches!(self, Self::Bare(Interrupts::Usual) | Self::Weir(_, Interrupts::Usual))
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Nothing | Self::Bare(_) => Kind::Bridge,
            Self::Weir(..) | Self::Elsewhere => Kind::Balancer,
            Self::Peer(peer) => peer.kind,
        }
    }

    /// Where to send packets for it.
    pub(crate) fn target(&self, network: &Network, services: Services) -> Result<Target> {
        let kind = self.kind();
        let mac = match (kind, &network.middle, &network.device_mac) {
            (Kind::Bridge, ..) => &network.far_port.mac,
            (_, Some(Middle { ports: [first, _], .. }), _) => &first.mac,
            (_, None, Some(mac)) => mac,
            (_, None, None) => {
                bail!("{}: neither a device here nor the MAC address of one elsewhere", self.name())
            }
        };
        let balances = kind == Kind::Balancer;
        Ok(Target {
            mac: mac.clone(),
            first: if balances { VIP } else { BACKEND },
            count: services.count,
            port: if balances { PORT } else { BACKEND_PORT },
            returns: kind == Kind::Reflector,
        })
    }

    /// Sets it up and waits until it is ready.
    pub(crate) fn start(
        &self,
        network: &Network,
        binaries: &Binaries,
        cores: &Cores,
        workers: usize,
        services: Services,
    ) -> Result<Running> {
        let middle =
            || network.middle.as_ref().with_context(|| format!("{}: no device's interfaces", self.name()));
        match self {
            Self::Nothing | Self::Elsewhere => {
                Ok(Running { process: None, weir: None, mode: None, _undo: Vec::new() })
            }
            Self::Bare(interrupts) => {
                let scratch = network.scratch.path();
                bare(middle()?, scratch, &binaries.generator, cores, workers, *interrupts)
            }
            Self::Weir(mode, interrupts) => {
                let config = config(*mode, middle()?, network.scratch.path(), cores, workers, services);
                weir(middle()?, network.scratch.path(), &binaries.weir, &config, *interrupts)
            }
            Self::Peer(peer) => peer.start(middle()?, network.scratch.path(), services),
        }
    }
}

impl Running {
    /// Its programs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.process.iter().map(Process::pid).collect()
    }

    /// The mode of its sockets, where this is the bare forwarder.
    pub(crate) fn mode(&self) -> Option<&'static str> {
        self.mode
    }

    /// What `weir show SUBJECT` says, where this is Weir.
    pub(crate) fn show(&self, subject: &str) -> Result<Option<Value>> {
        let Some(Admin { binary, socket }) = &self.weir else { return Ok(None) };
        let mut command = Command::new(binary);
        command.args(["show", subject, "--output", "json", "--socket"]).arg(socket);
        let said = run(&mut command, LIMIT)?;
        ensure!(said.status.success(), "weir show {subject}: {}", said.err.trim());
        serde_json::from_str(&said.out)
            .map(Some)
            .with_context(|| format!("weir show {subject}: {}", said.out))
    }
}

fn bare(
    middle: &Middle,
    scratch: &Path,
    binary: &Path,
    cores: &Cores,
    workers: usize,
    interrupts: Interrupts,
) -> Result<Running> {
    let [first, second] = &middle.ports;
    let mut undo = Vec::new();
    if interrupts == Interrupts::Deferred {
        for port in &middle.ports {
            undo.extend(defer_interrupts(&middle.place, port)?);
        }
    }
    let mut command = middle.place.command(binary);
    command.args(["forward", "--in", &first.name, "--out", &second.name, "--queues", &workers.to_string()]);
    // The generator's checksums are whole, and an idle forwarder that spins would count as work.
    command.args(["--cores", &list(&cores.device, workers), "--checksums", "keep", "--spins", "0"]);
    let log = scratch.join("forward.log");
    let mut process = Process::spawn("the forwarder", command, log.clone())?;
    undo.push(Undo::process(process.pid(), "weir-gen"));
    process.wait_until(SETUP_LIMIT, || Ok(std::fs::read_to_string(&log)?.contains("ready")))?;
    let said = process.log();
    let mode = sockets_mode(&said).with_context(|| format!("the forwarder says of no sockets:\n{said}"))?;
    Ok(Running { process: Some(process), weir: None, mode: Some(mode), _undo: undo })
}

/// What `1 of 2 sockets are zero-copy` says.
fn sockets_mode(log: &str) -> Option<&'static str> {
    let line = log.lines().find_map(|line| line.strip_suffix(" sockets are zero-copy"))?;
    let (zero_copy, all) = line.split_once(" of ")?;
    Some(mode(zero_copy.parse().ok()?, all.parse().ok()?))
}

/// The settings of `weir run --tuning gateway`, for what has no such option.
fn defer_interrupts(place: &Place, port: &Port) -> Result<[Undo; 2]> {
    let (polls, timeout_ns) = Profile::Gateway.deferral().context("a gateway defers its interrupts")?;
    let set = |name: &str, value: u32| {
        let file = format!("/sys/class/net/{}/{name}", port.name);
        let write = |value: &str| format!("echo {value} >{file}");
        let before = place.said(&["cat", &file])?;
        let undo = undone_by(place.command("sh").args(["-c", &write(before.trim())]), &[]);
        place.said(&["sh", "-c", &write(&value.to_string())])?;
        Ok::<_, anyhow::Error>(undo)
    };
    // The timer first: polls that are put off without one would not come at all.
    Ok([set("gro_flush_timeout", timeout_ns)?, set("napi_defer_hard_irqs", polls)?])
}

fn weir(
    middle: &Middle,
    scratch: &Path,
    binary: &Path,
    config: &str,
    interrupts: Interrupts,
) -> Result<Running> {
    let (file, socket) = (scratch.join("weir.yaml"), scratch.join("weir.sock"));
    std::fs::write(&file, config)?;
    let mut command = middle.place.command(binary);
    command.arg("run").arg("--config").arg(&file);
    if interrupts == Interrupts::Deferred {
        command.args(["--tuning", "gateway"]);
    }
    let process = Process::spawn("weir", command, scratch.join("weir.log"))?;
    let undo = Undo::process(process.pid(), "weir");
    let weir = Some(Admin { binary: binary.to_owned(), socket: socket.clone() });
    let mut running = Running { process: Some(process), weir, mode: None, _undo: vec![undo] };
    let mut show = Command::new(binary);
    show.args(["show", "workers", "--output", "json", "--socket"]).arg(&socket);
    if let Some(process) = &mut running.process {
        process.wait_until(SETUP_LIMIT, || Ok(socket.exists() && run(&mut show, LIMIT)?.status.success()))?;
    }
    Ok(running)
}

/// Weir's configuration, as somebody would write it, but for `spin_us`: spinning would count as work.
fn config(
    mode: Mode,
    middle: &Middle,
    scratch: &Path,
    cores: &Cores,
    workers: usize,
    services: Services,
) -> String {
    let [first, second] = &middle.ports;
    let Services { count, backends, flows } = services;
    let [snat_first, snat_last] = SNAT;
    let mode = match mode {
        Mode::Nat => "mode: nat",
        Mode::Fullnat => "mode: fullnat, snat_pool: pool",
    };
    let mut text = format!(
        "interfaces: [{{name: {}}}, {{name: {}}}]\n\
         workers: {{count: {workers}, cores: [{}], spin_us: 0}}\n\
         flows: {{limit: {flows}}}\n\
         limits: {{services: {}, backends: {}}}\n\
         admin: {{socket: \"{}\"}}\n\
         snat_pools: [{{name: pool, addresses: [{snat_first}-{snat_last}]}}]\n\
         services:\n",
        first.name,
        second.name,
        list(&cores.device, workers),
        count.max(1),
        (count * backends).max(1),
        scratch.join("weir.sock").display(),
    );
    for service in 0..count {
        let vip = Ipv4Addr::from_bits(VIP.to_bits() + service);
        let line = (0..backends).map(|backend| {
            let addr = Ipv4Addr::from_bits(BACKEND.to_bits() + service * backends + backend);
            format!("{{address: {addr}, port: {BACKEND_PORT}}}")
        });
        let backends = line.collect::<Vec<_>>().join(", ");
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  - {{name: s{service}, vip: {vip}, port: {PORT}, protocol: tcp, scheduler: rr, announce: false, {mode}, \
             backends: [{backends}]}}"
        );
    }
    text
}

impl Peer {
    /// Those of a directory, by name; README.md is none.
    pub(crate) fn all(directory: &Path) -> Result<Vec<Self>> {
        let entries =
            std::fs::read_dir(directory).with_context(|| format!("peers in {}", directory.display()))?;
        let mut peers = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if path.extension().is_some() || !path.is_file() {
                continue;
            }
            let said = run(Command::new(&path).arg("kind"), LIMIT).with_context(|| format!("peer {name}"))?;
            let kind = Kind::of(said.out.trim());
            let kind = kind.with_context(|| format!("peer {name}: not a kind: {}{}", said.out, said.err))?;
            peers.push(Self { name, path, kind });
        }
        peers.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(peers)
    }

    /// Why it cannot be measured on this machine, if so.
    pub(crate) fn obstacle(&self) -> Result<Option<String>> {
        let said = run(Command::new(&self.path).arg("check"), LIMIT)?;
        let text = format!("{}{}", said.out, said.err);
        Ok((!said.status.success()).then(|| text.trim().to_owned()))
    }

    fn start(&self, middle: &Middle, scratch: &Path, services: Services) -> Result<Running> {
        let [first, second] = &middle.ports;
        let environment: Vec<(String, String)> = [
            ("LAB_IN", first.name.clone()),
            ("LAB_OUT", second.name.clone()),
            ("LAB_STATE", scratch.display().to_string()),
            ("LAB_SERVICES", services.count.to_string()),
            ("LAB_BACKENDS", services.backends.to_string()),
            ("LAB_VIP", VIP.to_string()),
            ("LAB_PORT", PORT.to_string()),
            ("LAB_BACKEND", BACKEND.to_string()),
            ("LAB_BACKEND_PORT", BACKEND_PORT.to_string()),
            ("LAB_PROTOCOL", "tcp".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        // The namespace's end would do, but the same script serves interfaces that stay.
        let undo = undone_by(middle.place.command(&self.path).arg("teardown"), &environment);
        let mut setup = middle.place.command("env");
        setup.args(environment.iter().map(|(key, value)| format!("{key}={value}")));
        let said = run(setup.arg(&self.path).arg("setup"), SETUP_LIMIT)?;
        ensure!(said.status.success(), "{} setup: {}{}", self.name, said.out, said.err.trim());
        Ok(Running { process: None, weir: None, mode: None, _undo: vec![undo] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarder_tells_the_mode_of_its_sockets() {
        for (log, want) in [
            ("0 of 2 sockets are zero-copy\nready\n", Some("copy")),
            ("libbpf: something\n4 of 4 sockets are zero-copy\n", Some("zero-copy")),
            ("1 of 2 sockets are zero-copy", Some("copy and zero-copy")),
            ("ready", None),
            ("some of 2 sockets are zero-copy", None),
        ] {
            assert_eq!(sockets_mode(log), want, "{log}");
        }
    }
}
