//! kube-proxy's flags on `weir run`, with its meaning.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use control::config::KubeProxy;
use control::config::kube_proxy::flags::{FLAGS, Flag, Kind};
use control::config::kube_proxy::{self, Flags};

use super::EXIT_USAGE;

/// The heading of these flags in help.
const HEADING: &str = "kube-proxy's flags";

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = HEADING)]
pub(crate) struct KubeProxyFlags {
    /// KubeProxyConfiguration, or the ConfigMap that it is in: kube-proxy's own --config. Of the flags below only
    /// --hostname-override, --master and those of the log count beside it.
    #[arg(long, value_name = "FILE")]
    kube_proxy_config: Option<PathBuf>,
    /// Write the KubeProxyConfiguration with its defaults to this file and exit.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(crate) write_config_to: Option<PathBuf>,
    /// Take away what a killed Weir has left on this machine, and exit. Rules of kube-proxy are not touched.
    #[arg(long, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, value_name = "BOOL", action = ArgAction::Set)]
    pub(crate) cleanup: bool,
    /// Do what needs all privileges, which is to switch on IPv4 forwarding, and exit.
    #[arg(long, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, value_name = "BOOL", action = ArgAction::Set)]
    pub(crate) init_only: bool,
    /// The API server's address, instead of the one that the kubeconfig has.
    #[arg(long, value_name = "URL", hide_short_help = true)]
    master: Option<String>,
    #[command(flatten)]
    fields: Fields,
}

/// The flags that stand for fields of a KubeProxyConfiguration, in the order in which they were said.
#[derive(Clone, Debug)]
struct Fields(Vec<(&'static str, String)>);

impl clap::Args for Fields {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, flag| command.arg(arg(flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn arg(flag: &Flag) -> Arg {
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .value_name(flag.kind.value_name())
        .help(flag.help)
        .help_heading(HEADING)
        .hide_short_help(true)
        .action(ArgAction::Append)
        // Durations and numbers may be negative.
        .allow_hyphen_values(true);
    let arg = if flag.name == "v" { arg.short('v') } else { arg };
    match flag.kind {
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg,
    }
}

impl FromArgMatches for Fields {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let said = |flag: &'static Flag| {
            let values: Vec<_> = matches.get_many::<String>(flag.name)?.cloned().collect();
            // Lists grow with each flag; of others the last one counts.
            let value = match flag.kind {
                Kind::List | Kind::Gates | Kind::Modules => values.join(","),
                _ => values.last()?.clone(),
            };
            Some((flag.name, value))
        };
        Ok(Self(FLAGS.iter().filter_map(said).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl KubeProxyFlags {
    /// The file of the KubeProxyConfiguration.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.kube_proxy_config.as_deref()
    }

    /// What kube-proxy is told, and whether anybody has told it anything. Faults are told here; the error is the exit
    /// status that stands for them.
    pub(crate) fn load(&self) -> Result<(Arc<KubeProxy>, bool), ExitCode> {
        let loaded = Flags::parse(&self.fields.0, self.master.clone()).and_then(|flags| {
            let proxy = match &self.kube_proxy_config {
                Some(file) => kube_proxy::load(file, &flags),
                None => KubeProxy::without_file(&flags),
            };
            Ok((proxy?, self.kube_proxy_config.is_some() || !flags.is_empty(), flags))
        });
        let (proxy, said, flags) = loaded.map_err(|faults| {
            eprintln!("{faults}");
            ExitCode::from(EXIT_USAGE)
        })?;
        if self.kube_proxy_config.is_some() {
            for name in flags.ignored() {
                eprintln!("warning: --{name}: does not count beside --kube-proxy-config");
            }
        }
        Ok((Arc::new(proxy), said))
    }
}
