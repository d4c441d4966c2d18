//! What becomes of a client that asks a web server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use testbed::{Namespace, run};

use crate::LIMIT;

/// How long a client waits for what does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What a client of a web server gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Page(String),
    Refused,
    Nothing,
}

/// Asks with curl, from one of the client's addresses or from whichever is usual.
pub(crate) fn get(client: &Namespace, from: Option<IpAddr>, to: SocketAddr, path: &str) -> Result<Got> {
    let mut command = client.command("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", &PATIENCE.as_secs().to_string()]);
    if let Some(from) = from {
        command.args(["--interface", &from.to_string()]);
    }
    let said = run(command.arg(format!("http://{to}/{path}")), LIMIT)?;
    match said.status.code() {
        Some(0) => Ok(Got::Page(said.out.trim().to_owned())),
        Some(7) => Ok(Got::Refused),
        Some(28) => Ok(Got::Nothing),
        _ => Err(anyhow::anyhow!("curl of {to}: {}", said.err.trim())),
    }
}
