//! The program itself, where `perf/generator` is built: what it leaves behind, in files and on the machine.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The lab with a directory of its own for results; `None`, and a line that says so, where it cannot run.
fn lab(test: &str, device: &str) -> Option<(Command, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let generator = root.join("perf/generator/target/release/weir-gen");
    if !testbed::is_root() || !generator.exists() {
        eprintln!(
            "{test} did not run: it needs root, and `make lab` or `make bench` to have built {}",
            generator.display()
        );
        return None;
    }
    let results = std::env::temp_dir().join(format!("{test}-{}", std::process::id()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-lab"));
    command.current_dir(&root).args(["run", "--short", "--profiles", "cost", "--devices", device]);
    // It measures no Weir, but wants to know where one is.
    command.args(["--weir", env!("CARGO_BIN_EXE_weir-lab"), "--results"]).arg(&results);
    Some((command, results))
}

/// Namespaces that a process made.
fn namespaces(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&format!("weir-{pid}-"))).collect()
}

fn wait(mut child: Child, until: impl Fn() -> bool) -> Child {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !until() {
        assert!(child.try_wait().unwrap().is_none(), "the lab ended too early");
        assert!(Instant::now() < deadline, "the lab does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn a_run_is_stored_and_the_next_one_compared_with_it() {
    let test = "a_run_is_stored_and_the_next_one_compared_with_it";
    let Some((mut command, results)) = lab(test, "ip-forward") else { return };
    let mut said = Vec::new();
    for _ in 0..2 {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        said.push(text);
    }
    assert!(!said[0].contains("Compared with") && said[1].contains("Compared with"), "{said:?}");
    let files: Vec<_> = std::fs::read_dir(&results).unwrap().map(|entry| entry.unwrap().path()).collect();
    let json = files.iter().find(|path| path.extension().is_some_and(|end| end == "json")).unwrap();
    let report: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(figures.len(), 2, "established and new: {report}");
    for figure in figures {
        let sample = &figure["samples"][0];
        assert_eq!(figure["device"], "ip-forward");
        assert!(sample["received"].as_u64().unwrap() > 1000, "{sample}");
        let [gross_ns, ends_ns] = ["gross_ns", "ends_ns"].map(|part| sample[part].as_f64().unwrap());
        assert!(0.0 < ends_ns && ends_ns <= gross_ns, "{sample}");
    }
    let mut again = Command::new(env!("CARGO_BIN_EXE_weir-lab"));
    let mut again = again.arg("report").arg(json).stdout(Stdio::piped()).spawn().unwrap();
    drop(again.stdout.take());
    assert!(again.wait().unwrap().success(), "nobody reads what it says, but the file is written");
    let html = std::fs::read_to_string(json.with_extension("html")).unwrap();
    assert!(html.contains("ip-forward") && html.contains("<svg"));
    std::fs::remove_dir_all(results).unwrap();
}

/// One port and a switch: handshakes go out and come back by the interface that answers them.
#[test]
fn one_port_and_a_switch_serve_both_ends() {
    let test = "one_port_and_a_switch_serve_both_ends";
    let Some((command, results)) = lab(test, "nftables") else { return };
    let [here, switch] = ["here", "switch"].map(|role| testbed::Namespace::of_role(role).unwrap());
    switch
        .ip("link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 addrgenmode none up\n")
        .unwrap();
    for (port, queues) in [("gen0", 2), ("in0", 1), ("out0", 1)] {
        // What the switch sends goes to the first queue: its own end has no other.
        let peer = format!(
            "type veth peer name sw-{port} netns {} numtxqueues 1 numrxqueues {queues}",
            switch.name()
        );
        here.ip(&format!(
            "link add {port} numtxqueues {queues} numrxqueues {queues} {peer}\nlink set {port} up\n"
        ))
        .unwrap();
        switch.ip(&format!("link set sw-{port} addrgenmode none master br0 up\n")).unwrap();
    }
    let mut inside = here.command(command.get_program());
    inside.current_dir(command.get_current_dir().unwrap()).args(command.get_args());
    inside.args(["--generator-interface", "gen0", "--device-in", "in0", "--device-out", "out0"]);
    let output = inside.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for packets in ["established", "new"] {
        let line =
            text.lines().find(|line| line.contains("net of generator and sink") && line.contains(packets));
        assert!(line.is_some_and(|line| !line.contains("damaged")), "{packets}: {text}");
    }
    std::fs::remove_dir_all(results).unwrap();
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let test = "an_interrupted_run_leaves_nothing_behind";
    let Some((mut command, results)) = lab(test, "ip-forward") else { return };
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let mut child = wait(child, || namespaces(pid).len() >= 2);
    std::thread::sleep(Duration::from_millis(500));
    assert!(Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert!(!status.success(), "{status}");
    assert_eq!(namespaces(pid), Vec::<String>::new());
    assert!(!results.exists(), "nothing is stored of half a run");
}

#[test]
fn a_setup_has_ended_before_it_is_undone() {
    let test = "a_setup_has_ended_before_it_is_undone";
    let Some((mut command, _)) = lab(test, "slow") else { return };
    let peers = std::env::temp_dir().join(format!("{test}-peers-{}", std::process::id()));
    std::fs::create_dir(&peers).unwrap();
    let [begun, undone] = ["begun.pid", "undone.txt"].map(|name| peers.join(name));
    // The program that sets up is a child of the script, as nft is. One that has ended has no `exe`, waited for or not.
    let script = format!(
        "#!/usr/bin/env bash\n\
         case $1 in\n\
         kind) echo router ;;\n\
         check) ;;\n\
         setup) sleep 60 & echo $! >{begun}.new; mv {begun}.new {begun}; wait ;;\n\
         teardown) if [ -e /proc/$(<{begun})/exe ]; then echo early >>{undone}; else echo late >>{undone}; fi ;;\n\
         esac\n",
        begun = begun.display(),
        undone = undone.display(),
    );
    let slow = peers.join("slow");
    std::fs::write(&slow, script).unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let child = command.arg("--peers").arg(&peers).stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let mut child = wait(child, || begun.exists());
    assert!(Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap().success());
    assert!(!child.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(&undone).unwrap(), "late\n");
    std::fs::remove_dir_all(peers).unwrap();
}
