//! `weir show` and `weir reload`: questions to a running Weir over its admin socket.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use control::admin::client;
use control::admin::protocol::{FLOWS_DEFAULT, Reply, Request};
use control::admin::render::render;

use super::Format;

/// Where Weir listens unless its configuration says otherwise.
pub(super) use control::config::SOCKET;

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// What to show.
    #[arg(value_enum)]
    what: What,
    /// Backends and flows: of this service alone.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Flows: from this client alone.
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// Flows: how many at most.
    #[arg(long, value_name = "COUNT", default_value_t = FLOWS_DEFAULT)]
    limit: usize,
    /// Drops: the reasons that never happened too.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReloadArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// The admin socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Status,
    Services,
    Backends,
    Flows,
    Workers,
    Drops,
    Interfaces,
    /// The configuration in force, as a file would have it.
    Config,
}

pub(crate) fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let service = args.service.clone();
    let request = match args.what {
        What::Status => Request::Status {},
        What::Services => Request::Services {},
        What::Backends => Request::Backends { service },
        What::Flows => Request::Flows { limit: args.limit, service, client: args.client, after: None },
        What::Workers => Request::Workers {},
        What::Drops => Request::Drops { all: args.all },
        What::Interfaces => Request::Interfaces {},
        What::Config => Request::Config {},
    };
    print(&ask(&args.common, &request)?, args.common.output)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn reload(args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let reply = ask(&args.common, &Request::Reload {})?;
    let refused = matches!(&reply, Reply::Reload(reload) if !reload.faults.is_empty());
    if refused && args.common.output == Format::Text {
        eprint!("{}", render(&reply));
    } else {
        print(&reply, args.common.output)?;
    }
    Ok(if refused { ExitCode::from(super::EXIT_USAGE) } else { ExitCode::SUCCESS })
}

fn ask(common: &Common, request: &Request) -> anyhow::Result<Reply> {
    match client::ask(&common.socket, request)? {
        Reply::Error { message } => anyhow::bail!(message),
        reply => Ok(reply),
    }
}

/// JSON is the reply's body alone: what the request names.
fn print(reply: &Reply, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Text => super::print(render(reply)),
        Format::Json => {
            let reply = serde_json::to_value(reply)?;
            let body = reply.get("body").context("a reply has a body")?;
            super::print(serde_json::to_string_pretty(body)? + "\n")
        }
    }
}
