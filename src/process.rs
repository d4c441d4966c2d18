//! What the process asks of the machine for itself: its log, and to be kept when memory is short.

use std::fs;
use std::io::{IsTerminal as _, stderr};

use control::config::KubeProxy;
use tracing_subscriber::EnvFilter;

/// Begins the log on standard error, in the form and to the level that kube-proxy's configuration asks for.
/// `WEIR_LOG` says more than the level does.
pub(crate) fn init_log(proxy: &KubeProxy) {
    let level = proxy.log_level().to_string();
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    if proxy.logging().format == "json" {
        log.json().init();
    } else {
        log.with_ansi(stderr().is_terminal()).init();
    }
}

/// Asks the kernel to spare the process when memory is short. Not to be allowed that is no reason to end.
pub(crate) fn set_oom_score(proxy: &KubeProxy) {
    let Some(score) = proxy.oom_score_adj() else { return };
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(score, %error, "oomScoreAdj is not set");
    }
}

/// Switches on IPv4 forwarding, as kube-proxy does.
pub(crate) fn forward_ipv4() -> std::io::Result<()> {
    const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(SETTING)?.trim() == "1" {
        return Ok(());
    }
    fs::write(SETTING, "1")
}
