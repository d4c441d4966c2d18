//! `weir check`: every fault of a configuration, without root and without touching anything.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use control::compile::{IdTable, compile};
use dataplane::state::State;

use super::EXIT_USAGE;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file.
    #[arg(required_unless_present = "objects")]
    file: Option<PathBuf>,
    /// Files of Kubernetes objects, YAML or JSON: tells every fault of those that Weir reads.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    objects: Vec<PathBuf>,
}

/// Faults of the file decide on the exit status. What this machine lacks is only a warning: the file may be for another.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let sound = args.objects.is_empty() || super::cluster::check(&args.objects)?;
    let status = if sound { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
    let Some(file) = &args.file else { return Ok(status) };
    let config = match super::load(file) {
        Ok(config) => config,
        Err(status) => return Ok(status),
    };
    let limits = config.settings.limits;
    let state = Arc::new(State::new(limits.services, limits.backends));
    if let Err(error) = compile(&config.desired, &IdTable::new(&state)) {
        eprintln!("{}: {error}", file.display());
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let host = config.check_host();
    for warning in host.faults.iter().chain(host.warnings.iter()) {
        eprintln!("warning: {warning}");
    }
    let services = config.desired.services();
    let backends: usize = services.iter().map(|service| service.backends.len()).sum();
    let (file, services) = (file.display(), services.len());
    super::print(format_args!("{file}: {services} services with {backends} backends\n"))?;
    Ok(status)
}
