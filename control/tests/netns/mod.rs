//! Network namespaces without names: they end with the last that refers to them, whatever happens.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// Whether namespaces can be made; says so where not.
pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not run: this test makes network namespaces and needs root");
    }
    root
}

/// A network namespace.
pub(crate) struct Netns(File);

impl Netns {
    /// A new one with its loopback interface up.
    pub(crate) fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Self(file.join().unwrap());
        netns.ip("link set lo up");
        netns
    }

    /// Runs `work` inside, in a thread of its own. Commands that it starts run inside too.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs an `ip` command inside and returns what it prints.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.enter(|| ip(arguments))
    }

    /// Writes a setting, `net/ipv4/ip_forward` say.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        self.enter(|| fs::write(format!("/proc/sys/{name}"), value).unwrap());
    }

    /// How `ip` commands name it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Connects it with `other` by a veth pair, both ends up and usable at once.
    pub(crate) fn connect(&self, name: &str, other: &Netns, far_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {far_name} netns {}", other.path()));
        for (netns, name) in [(self, name), (other, far_name)] {
            netns.sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0");
            netns.ip(&format!("link set {name} up"));
        }
    }
}

/// Runs an `ip` command in the namespace of the calling thread.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
