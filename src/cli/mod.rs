//! The command line: one file a subcommand.

mod check;
mod cluster;
mod demo;
mod doctor;
mod explain;
mod imagine;
mod ipvsadm;
mod kube_proxy_flags;
mod replay;
mod show;

use std::fmt::Display;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use control::config::kube_proxy::settings;
use control::config::{Config, KubeProxy};
use control::source::kubernetes::settings::Settings;

pub(crate) use ipvsadm::by_name;
pub(crate) use kube_proxy_flags::KubeProxyFlags;

/// Exit status for a fault in what the user gave: configuration, arguments.
pub(crate) const EXIT_USAGE: u8 = 2;

/// A userspace layer-4 load balancer with an AF_XDP fast path and the kernel's IPVS schedulers.
#[derive(Debug, Parser)]
#[command(name = "weir", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load-balance: attach to the interfaces of the configuration and forward until stopped.
    Run(crate::run::Args),
    /// Tell every fault of a configuration (no root needed).
    Check(check::Args),
    /// Tell what this machine and its interfaces can do for Weir, what that costs and what to change.
    Doctor(doctor::Args),
    /// Show what a running Weir does.
    Show(show::ShowArgs),
    /// Make a running Weir read its configuration again.
    Reload(show::ReloadArgs),
    /// The commands of ipvsadm for a running Weir (the same as this binary under the name ipvsadm).
    Ipvsadm(ipvsadm::Args),
    /// Tell what would happen to one packet, and why (no root needed).
    Explain(explain::Args),
    /// Send a capture through the engine (no root needed).
    Replay(replay::Args),
    /// Watch real HTTP, DNS and bulk TCP go through Weir, in namespaces made for it.
    Demo(demo::DemoArgs),
}

/// The configuration in a file. Its faults are told here; the error is the exit status that stands for them.
pub(crate) fn load(path: &Path) -> Result<Config, ExitCode> {
    control::config::load(path).map_err(|faults| {
        eprintln!("{faults}");
        ExitCode::from(EXIT_USAGE)
    })
}

/// The settings of the Kubernetes source; the configuration then has what kube-proxy's sets and it leaves out. Faults
/// are told here; the error is the exit status that stands for them.
pub(crate) fn settings_of_kubernetes(
    config: &mut Config,
    proxy: &Arc<KubeProxy>,
) -> Result<Settings, ExitCode> {
    let told = |fault: &dyn Display| {
        eprintln!("{fault}");
        ExitCode::from(EXIT_USAGE)
    };
    config.check_kubernetes().map_err(|faults| told(&faults))?;
    config.fill_in(proxy, cores());
    let host = nix::unistd::gethostname().unwrap_or_default();
    settings(proxy, &config.kubernetes, &host.to_string_lossy()).map_err(|fault| told(&fault))
}

/// How many cores there are for connection tracking, whose table kube-proxy sizes by them.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Prints to standard output. Where its reader is gone that is an error, for `main` to pass over.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    write!(output, "{text}")?;
    Ok(output.flush()?)
}

impl Cli {
    /// Carries the command out. An error is for the user; the exit status says more where a command defines it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(args) => crate::run::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::Show(args) => show::show(&args),
            Command::Reload(args) => show::reload(&args),
            Command::Ipvsadm(args) => ipvsadm::run(args),
            Command::Explain(args) => explain::run(&args),
            Command::Replay(args) => replay::run(&args),
            Command::Demo(args) => demo::run(args),
        }
    }
}
