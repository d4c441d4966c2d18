//! `weir check`: every fault of a configuration, without root and without touching anything.

mod fields;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use control::compile;
use control::config::kube_proxy::{self, Flags};
use control::config::{self, Config, Fault, Faults, KubeProxy, Section};
use dataplane::state::State;
use serde::Serialize;

use super::{EXIT_USAGE, Format};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file.
    #[arg(required_unless_present_any = ["objects", "kube_proxy_config"])]
    file: Option<PathBuf>,
    /// Files of Kubernetes objects, YAML or JSON: tells every fault of those that Weir reads.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "output")]
    objects: Vec<PathBuf>,
    /// KubeProxyConfiguration, or the ConfigMap that it is in: tells what each of its fields will do.
    #[arg(long, value_name = "FILE")]
    kube_proxy_config: Option<PathBuf>,
    /// Output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What is found, as `-o json` prints it.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// What keeps Weir from running by these files.
    faults: Vec<Told>,
    /// What this machine lacks, and what is perhaps not meant.
    warnings: Vec<Told>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<Counts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kube_proxy: Option<fields::Fields>,
}

/// A fault or a warning.
#[derive(Debug, Serialize)]
struct Told {
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    path: String,
    reason: String,
    #[serde(skip)]
    text: String,
}

impl From<&Fault> for Told {
    fn from(fault: &Fault) -> Self {
        Self {
            file: fault.file.to_string(),
            line: fault.at.map(|at| at.line),
            column: fault.at.map(|at| at.column),
            path: fault.path.clone(),
            reason: fault.reason.clone(),
            text: fault.to_string(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Counts {
    file: String,
    services: usize,
    backends: usize,
}

/// Faults of the files decide on the exit status. What this machine lacks is only a warning: the files may be for
/// another.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let sound = args.objects.is_empty() || super::cluster::check(&args.objects)?;
    if args.file.is_none() && args.kube_proxy_config.is_none() {
        return Ok(status(sound));
    }
    let mut report = Report::default();
    let mut config = args.file.as_deref().and_then(|file| report.keep(config::load(file)));
    let proxy = args.kube_proxy_config.as_deref();
    let proxy = proxy.and_then(|file| {
        let proxy = report.keep(kube_proxy::load(file, &Flags::default()))?;
        Some((file, Arc::new(proxy)))
    });
    if let Some(config) = &mut config {
        report.check(config, proxy.as_ref().map(|(_, proxy)| proxy));
    }
    if let Some((file, proxy)) = &proxy {
        let section = config.as_ref().map_or_else(Section::default, |config| config.kubernetes.clone());
        report.warnings.extend(proxy.warnings_beside(&section).map(Told::from));
        report.kube_proxy = Some(fields::Fields::new(file, proxy, &section));
    }
    report.print(args.output)?;
    Ok(status(sound && report.faults.is_empty()))
}

fn status(sound: bool) -> ExitCode {
    if sound { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) }
}

impl Report {
    /// What was loaded, or its faults in the report.
    fn keep<T>(&mut self, loaded: Result<T, Faults>) -> Option<T> {
        loaded.map_err(|faults| self.faults.extend(faults.iter().map(Told::from))).ok()
    }

    fn check(&mut self, config: &mut Config, proxy: Option<&Arc<KubeProxy>>) {
        match proxy {
            None => {}
            Some(_) if config.kubernetes.enabled == Some(false) => {
                let reason = "kubernetes.enabled is false: kube-proxy's configuration has no effect";
                self.warnings.push(whole(Path::new(config.file()), &reason));
            }
            Some(proxy) => {
                self.keep(config.check_kubernetes());
                config.fill_in(proxy, super::cores());
            }
        }
        let limits = config.settings.limits;
        let state = Arc::new(State::new(limits.services, limits.backends));
        if let Err(error) = compile::check(&config.desired, &state) {
            self.faults.push(whole(Path::new(config.file()), &error));
        }
        let host = config.check_host();
        self.warnings.extend(host.faults.iter().chain(host.warnings.iter()).map(Told::from));
        self.config = Some(Counts {
            file: config.file().to_owned(),
            services: config.desired.len(),
            backends: config.desired.services().map(|service| service.backends.len()).sum(),
        });
    }

    fn print(&self, output: Format) -> anyhow::Result<()> {
        if output == Format::Json {
            return super::print(serde_json::to_string_pretty(self)? + "\n");
        }
        for fault in &self.faults {
            eprintln!("{}", fault.text);
        }
        for warning in &self.warnings {
            eprintln!("warning: {}", warning.text);
        }
        if self.faults.is_empty()
            && let Some(Counts { file, services, backends }) = &self.config
        {
            super::print(format_args!("{file}: {services} services with {backends} backends\n"))?;
        }
        self.kube_proxy.as_ref().map_or(Ok(()), super::print)
    }
}

/// What is wrong with a file as a whole.
fn whole(file: &Path, reason: &dyn std::fmt::Display) -> Told {
    let file = file.display().to_string();
    Told {
        text: format!("{file}: {reason}"),
        file,
        line: None,
        column: None,
        path: String::new(),
        reason: reason.to_string(),
    }
}
