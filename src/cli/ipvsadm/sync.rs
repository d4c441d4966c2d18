//! The options of connection synchronisation: checked as ipvsadm does. Weir has no such daemon.

use std::net::IpAddr;

use control::ipvs::command::SyncRole;

use super::line::Fault;
use super::numbers::number;
use super::options::Opt;

/// `master` or `backup`.
pub(super) fn role(text: Option<&str>, message: &str) -> Result<SyncRole, Fault> {
    match text {
        Some("master") => Ok(SyncRole::Master),
        Some("backup") => Ok(SyncRole::Backup),
        _ => Err(Fault::Fail(2, message.to_owned())),
    }
}

/// Whether the option's argument is one; the message where not. Options of anything else have none to check.
pub(super) fn check(option: Opt, text: &str) -> Result<(), String> {
    let (low, high) = match option {
        Opt::SyncId => (0, 255),
        Opt::SyncMaxlen => (1, 65_535 - 20 - 8),
        Opt::McastPort => (1, 65_535),
        Opt::McastTtl => (1, 255),
        Opt::McastGroup => return group(text),
        _ => return Ok(()),
    };
    let is_number = number(text, low, high).is_some();
    if is_number { Ok(()) } else { Err(format!("illegal {} specified", option.name())) }
}

fn group(text: &str) -> Result<(), String> {
    let family = if text.contains(':') { "IPv6" } else { "IPv4" };
    let is_group = text.parse::<IpAddr>().is_ok_and(|addr| addr.is_multicast());
    if is_group { Ok(()) } else { Err(format!("invalid {family} mcast-group `{text}'")) }
}
