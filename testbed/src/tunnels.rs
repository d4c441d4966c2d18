//! Decapsulation in a backend, by the kernel's own tunnel devices.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::namespace::Namespace;
use crate::process::run;
use crate::topology::Family;

/// The UDP port that backends take Generic UDP Encapsulation on.
pub const GUE_PORT: u16 = 6080;

/// Has the backend `number` take packets that come to it by `mode` (`ipip`, `gue` or `gre`), inside packets of either
/// family.
///
/// # Errors
/// When this kernel has no such devices, with what it says.
pub fn decapsulate(backend: &Namespace, number: u8, mode: &str) -> Result<()> {
    let [v4, v6] = Family::BOTH.map(|family| family.backend(number));
    let lines: &[String] = match mode {
        "gre" => &[format!("gre local {v4}"), format!("ip6gre local {v6}")],
        _ => &[format!("ipip local {v4}"), format!("sit local {v4}"), format!("ip6tnl local {v6} mode any")],
    };
    for (index, line) in lines.iter().enumerate() {
        backend.ip(&format!("link add tunnel{index} type {line}\nlink set tunnel{index} up\n"))?;
    }
    if mode == "gue" {
        // Unlike devices, these are not loaded when they are first asked for. Where they are not modules, `ip fou` tells.
        let _ = run(Command::new("modprobe").args(["-a", "fou", "fou6"]), Duration::from_secs(10));
        for family in [&[][..], &["-6"]] {
            let mut command = backend.command("ip");
            command.args(family).args(["fou", "add", "port", &GUE_PORT.to_string(), "gue"]);
            let said = run(&mut command, Duration::from_secs(5))?;
            ensure!(said.status.success(), "ip fou: {}", said.err);
        }
    }
    // What comes out of a tunnel has the client's address, which is not behind it.
    backend.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    for index in 0..lines.len() {
        backend.sysctl(&format!("net/ipv4/conf/tunnel{index}/rp_filter"), "0")?;
    }
    Ok(())
}
