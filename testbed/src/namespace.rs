//! A network namespace and what can be done in it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::cleanup::{self, Mess};

/// A named network namespace, removed with all that runs in it when it goes out of scope.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new namespace, as by [`Namespace::add`], whose name tells this process and `role`.
    ///
    /// # Errors
    /// Without root, without `ip`, or when this process has one with this role.
    pub fn of_role(role: &str) -> Result<Self> {
        Self::add(format!("{}{role}", cleanup::prefix()))
    }

    /// A new namespace whose loopback interface is up and whose addresses are usable at once: duplicate address
    /// detection is off.
    ///
    /// # Errors
    /// Without root, without `ip`, or when the name is taken.
    pub fn add(name: String) -> Result<Self> {
        cleanup::register(Mess::Namespace(name.clone()));
        let namespace = Self { name };
        checked(Command::new("ip").args(["netns", "add", &namespace.name]))?;
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            namespace.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` in a thread of its own inside the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or when `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = Path::new("/run/netns").join(&self.name);
        let inside = || -> Result<T> {
            setns(File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        match std::thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(done) => done.with_context(|| format!("entering the namespace {}", self.name)),
            Err(_) => bail!("a thread in the namespace {} panicked", self.name),
        }
    }

    /// A command that runs in the namespace; the process id is the program's own.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs lines of `ip` commands (`link set eth0 up`).
    ///
    /// # Errors
    /// With the lines and what `ip` said.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-netns", &self.name, "-batch", "-"]);
        let mut child = ip.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(lines.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip in {}: {}; the commands were:\n{lines}", self.name, said.trim());
        Ok(())
    }

    /// Sets a kernel parameter of the namespace, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// When it does not exist or takes no such value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        // `/proc/sys/net` shows the namespace of the thread that opens it.
        self.enter(|| std::fs::write(Path::new("/proc/sys").join(path), value))?
            .with_context(|| format!("setting {path} to {value} in {}", self.name))
    }

    /// The hardware address of an interface.
    ///
    /// # Errors
    /// When there is no such interface, or its address is none of Ethernet.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let path = Path::new("/sys/class/net").join(interface).join("address");
        // `/sys` shows the interfaces of the namespace that it was mounted in, so a program reads it that mounts it anew.
        let output = self.command("cat").arg(path).output()?;
        ensure!(output.status.success(), "{interface}: {}", String::from_utf8_lossy(&output.stderr).trim());
        let said = String::from_utf8_lossy(&output.stdout);
        let octets = said.trim().split(':').map(|octet| u8::from_str_radix(octet, 16));
        let octets = octets.collect::<Result<Vec<_>, _>>().ok().and_then(|octets| octets.try_into().ok());
        octets.with_context(|| format!("{interface} has the address {}", said.trim()))
    }

    /// Whether a TCP socket listens on the port, on any address.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn listens(&self, port: u16) -> Result<bool> {
        // Looking leaves no connection behind for the server to wonder about.
        const LISTEN: &str = "0A";
        let table =
            |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        let tables = self.enter(|| table("tcp") + &table("tcp6"))?;
        let port = format!(":{port:04X}");
        Ok(tables.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            let local = words.next().is_some_and(|local| local.ends_with(&port));
            local && words.nth(1) == Some(LISTEN)
        }))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        cleanup::remove(&Mess::Namespace(std::mem::take(&mut self.name)));
    }
}

fn checked(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
