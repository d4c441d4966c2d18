use std::cell::RefCell;
use std::os::unix::fs::{chown, symlink};
use std::process::Command;

use netlink_bindings::netdev;
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::*;
use crate::nic::genl::Genetlink;
use crate::nic::napis;

/// A folder in the kernel's place, with the settings of `eth1` and two interrupts.
struct Kernel(TempDir);

thread_local! {
    /// Polls and timers of the NAPI instances 100 and up of `eth1`.
    static NAPIS: RefCell<Vec<(u32, u32)>> = const { RefCell::new(Vec::new()) };
}

fn set_napis(values: &[(u32, u32)]) {
    NAPIS.replace(values.to_vec());
}

impl Kernel {
    fn new() -> Self {
        let kernel = Self(TempDir::new().unwrap());
        let (nic, irq) = (kernel.0.path().join("net/eth1"), kernel.0.path().join("irq"));
        fs::create_dir_all(&nic).unwrap();
        for (file, value) in [
            ("ifindex", "7"),
            ("address", ADDRESS),
            ("napi_defer_hard_irqs", "0"),
            ("gro_flush_timeout", "0"),
        ] {
            fs::write(nic.join(file), format!("{value}\n")).unwrap();
        }
        for number in ["30", "31"] {
            fs::create_dir_all(irq.join(number)).unwrap();
            fs::write(irq.join(number).join("smp_affinity_list"), "0-3\n").unwrap();
        }
        kernel
    }

    fn places(&self) -> Places {
        let napis = |ifindex: u32| -> Vec<Napi> {
            assert_eq!(ifindex, 7);
            let napi = |(id, (polls, timeout_ns))| {
                let (defer_hard_irqs, gro_flush_timeout_ns) = (Some(polls), Some(timeout_ns));
                Napi { id, defer_hard_irqs, gro_flush_timeout_ns, ..Napi::default() }
            };
            NAPIS.with_borrow(|napis| (100..).zip(napis.iter().copied()).map(napi).collect())
        };
        Places { class_net: self.0.path().join("net"), irq: self.0.path().join("irq"), napis }
    }

    fn record(&self) -> PathBuf {
        record(&self.0.path().join("weir.sock"))
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.0.path().join(file), value).unwrap();
    }

    /// Polls, timer and the cores of both interrupts.
    fn settings(&self) -> [String; 4] {
        let read = |file: &str| fs::read_to_string(self.0.path().join(file)).unwrap().trim().to_owned();
        [
            read("net/eth1/napi_defer_hard_irqs"),
            read("net/eth1/gro_flush_timeout"),
            read("irq/30/smp_affinity_list"),
            read("irq/31/smp_affinity_list"),
        ]
    }

    fn apply(&self, profile: Profile) -> Tuned {
        let napi = |(irq, queue)| Napi { irq: Some(irq), rx_queues: vec![queue], ..Napi::default() };
        let nic = Nic {
            name: "eth1".to_owned(),
            ifindex: 7,
            address: ADDRESS.to_owned(),
            napis: [(30, 0), (31, 1)].map(napi).into(),
            ..Nic::default()
        };
        Tuned::apply_at(self.places(), profile, &[nic], &[2, 3], self.record()).unwrap()
    }
}

const ADDRESS: &str = "02:00:00:00:00:07";

const UNTOUCHED: [&str; 4] = ["0", "0", "0-3", "0-3"];

#[test]
fn each_profile_sets_its_own_and_puts_all_back() {
    for (profile, want) in [
        (Profile::Off, UNTOUCHED),
        (Profile::Shared, ["1", "20000", "0-3", "0-3"]),
        (Profile::Gateway, ["2", "50000", "2", "3"]),
    ] {
        let kernel = Kernel::new();
        let tuned = kernel.apply(profile);
        assert_eq!(kernel.settings(), want, "{profile:?}");
        assert_eq!(kernel.record().exists(), profile != Profile::Off, "{profile:?}");
        drop(tuned);
        assert_eq!((kernel.settings(), kernel.record().exists()), (UNTOUCHED.map(str::to_owned), false));
    }
}

#[test]
fn what_a_killed_weir_has_changed_is_put_back_by_the_next() {
    let kernel = Kernel::new();
    std::mem::forget(kernel.apply(Profile::Gateway));
    assert!(restore_at(&kernel.places(), &kernel.record()));
    assert_eq!(kernel.settings(), UNTOUCHED);
    assert!(!restore_at(&kernel.places(), &kernel.record()), "there is no record any more");
}

#[test]
fn what_somebody_else_has_changed_stays() {
    let kernel = Kernel::new();
    let tuned = kernel.apply(Profile::Gateway);
    kernel.set("net/eth1/gro_flush_timeout", "7000");
    kernel.set("irq/31/smp_affinity_list", "0");
    drop(tuned);
    assert_eq!(kernel.settings(), ["0", "7000", "0-3", "0"]);
}

#[test]
fn a_setting_that_a_napi_has_otherwise_is_left_alone() {
    for (name, napis, want) in [
        ("as the interface", &[(0, 0), (0, 0)][..], ["2", "50000"]),
        ("its own polls", &[(0, 0), (7, 0)], ["0", "50000"]),
        ("its own timer", &[(0, 9000), (0, 0)], ["2", "0"]),
        ("both", &[(7, 9000)], ["0", "0"]),
    ] {
        let kernel = Kernel::new();
        set_napis(napis);
        let tuned = kernel.apply(Profile::Gateway);
        assert_eq!(kernel.settings()[..2], want, "{name}");
        assert_eq!(kernel.settings()[2..], ["2", "3"], "{name}");
        // What is written goes to all of them.
        set_napis(
            &napis
                .iter()
                .map(|(polls, timeout)| {
                    (
                        if want[0] == "2" { 2 } else { *polls },
                        if want[1] == "50000" { 50_000 } else { *timeout },
                    )
                })
                .collect::<Vec<_>>(),
        );
        drop(tuned);
        assert_eq!(kernel.settings(), UNTOUCHED, "{name}");
    }
}

#[test]
fn what_somebody_has_given_a_single_napi_since_stays() {
    let kernel = Kernel::new();
    set_napis(&[(0, 0), (0, 0)]);
    let tuned = kernel.apply(Profile::Gateway);
    set_napis(&[(2, 50_000), (2, 8000)]);
    drop(tuned);
    assert_eq!(kernel.settings(), ["0", "50000", "0-3", "0-3"]);
}

#[test]
fn another_interface_of_the_name_is_not_touched() {
    for (file, other) in [("ifindex", "8"), ("address", "02:00:00:00:00:08"), ("address", "")] {
        let kernel = Kernel::new();
        std::mem::forget(kernel.apply(Profile::Shared));
        kernel.set(&format!("net/eth1/{file}"), other);
        assert!(restore_at(&kernel.places(), &kernel.record()));
        assert_eq!(kernel.settings()[..2], ["1", "20000"], "{file} {other:?}");
        drop(kernel.apply(Profile::Gateway));
        assert_eq!(kernel.settings()[..2], ["1", "20000"], "{file} {other:?}");
    }
}

#[test]
fn what_a_successor_has_recorded_is_its_own() {
    let kernel = Kernel::new();
    let first = kernel.apply(Profile::Shared);
    assert!(restore_at(&kernel.places(), &kernel.record()));
    let second = kernel.apply(Profile::Shared);
    drop(first);
    assert_eq!(kernel.settings()[..2], ["1", "20000"]);
    assert!(kernel.record().exists());
    drop(second);
    assert_eq!((kernel.settings(), kernel.record().exists()), (UNTOUCHED.map(str::to_owned), false));
}

#[test]
fn a_record_is_for_its_owner_alone_and_writing_it_follows_no_link() {
    let kernel = Kernel::new();
    let others = kernel.0.path().join("others");
    fs::write(&others, "kept").unwrap();
    for link in ["weir.sock.tuning", "weir.sock.tuning.part"] {
        symlink(&others, kernel.0.path().join(link)).unwrap();
    }
    let tuned = kernel.apply(Profile::Gateway);
    let record = fs::symlink_metadata(kernel.record()).unwrap();
    assert!(record.is_file());
    assert_eq!(record.mode() & 0o777, 0o600);
    drop(tuned);
    assert_eq!(kernel.settings(), UNTOUCHED);
    assert_eq!(fs::read_to_string(&others).unwrap(), "kept");
}

#[test]
fn a_record_that_others_may_have_put_there_is_not_believed() {
    let kernel = Kernel::new();
    std::mem::forget(kernel.apply(Profile::Shared));
    let moved = kernel.0.path().join("moved");
    fs::rename(kernel.record(), &moved).unwrap();
    symlink(&moved, kernel.record()).unwrap();
    assert!(!restore_at(&kernel.places(), &kernel.record()), "a link to a record");
    assert_eq!(kernel.settings()[..2], ["1", "20000"]);
    fs::remove_file(kernel.record()).unwrap();
    fs::create_dir(kernel.record()).unwrap();
    assert!(!restore_at(&kernel.places(), &kernel.record()), "a folder");
    fs::remove_dir(kernel.record()).unwrap();
    fs::rename(&moved, kernel.record()).unwrap();
    if geteuid().is_root() {
        chown(kernel.record(), Some(1), None).unwrap();
        assert!(!restore_at(&kernel.places(), &kernel.record()), "another user's");
        assert_eq!(kernel.settings()[..2], ["1", "20000"]);
        chown(kernel.record(), Some(0), None).unwrap();
    } else {
        eprintln!("not tried without root: the record of another user");
    }
    assert!(restore_at(&kernel.places(), &kernel.record()));
    assert_eq!(kernel.settings(), UNTOUCHED);
}

#[test]
fn a_record_that_is_none_changes_nothing() {
    let outside = r#"[{"setting": {"gro_flush_timeout": {"name": "../irq/30", "ifindex": 7, "address": ""}}, "before": "9", "after": "0-3"}]"#;
    for text in
        ["", "{}", "[{\"setting\": {\"file\": \"/etc/passwd\"}, \"before\": \"\", \"after\": \"\"}]", outside]
    {
        let kernel = Kernel::new();
        fs::write(kernel.record(), text).unwrap();
        assert!(restore_at(&kernel.places(), &kernel.record()), "{text}");
        assert_eq!(kernel.settings(), UNTOUCHED, "{text}");
        assert!(!kernel.record().exists(), "{text}");
    }
}

#[test]
fn nothing_is_changed_that_cannot_be_recorded() {
    let kernel = Kernel::new();
    let nic = Nic { name: "eth1".to_owned(), ifindex: 7, address: ADDRESS.to_owned(), ..Nic::default() };
    let nowhere = kernel.0.path().join("not-there/weir.sock.tuning");
    let refused = Tuned::apply_at(kernel.places(), Profile::Shared, &[nic], &[0], nowhere).unwrap_err();
    assert!(refused.to_string().contains("not-there/weir.sock.tuning"), "{refused}");
    assert_eq!(kernel.settings(), UNTOUCHED);
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_kernel_keeps_what_a_single_napi_was_given() {
    if !geteuid().is_root() {
        eprintln!("the_kernel_keeps_what_a_single_napi_was_given did not run: it needs root for namespaces");
        return;
    }
    // The namespaces end with the thread.
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        run("mount --make-rprivate /");
        run("mount -t sysfs sysfs /sys");
        run("ip link add v0 numrxqueues 2 numtxqueues 2 type veth peer name v1 numrxqueues 2 numtxqueues 2");
        run("ethtool -K v0 gro on");
        run("ip link set v0 up");
        let nics = Nic::read(|name| name == "v0").unwrap();
        let index = nics[0].ifindex;
        let told = || -> Vec<_> {
            let both = |napi: &Napi| Some((napi.defer_hard_irqs?, napi.gro_flush_timeout_ns?));
            napis(index).iter().filter_map(both).collect()
        };
        if told().is_empty() {
            println!("this kernel tells no values of single NAPI instances (6.13 and newer do)");
            return;
        }
        assert_eq!(told(), [(0, 0), (0, 0)]);
        let mut request = netdev::Request::new().op_napi_set_do();
        request.encode().push_id(napis(index)[1].id).push_defer_hard_irqs(7);
        assert!(Genetlink::default().ask(&request).is_some());
        assert_eq!(told(), [(0, 0), (7, 0)]);

        let scratch = TempDir::new().unwrap();
        let record = scratch.path().join("weir.sock.tuning");
        let tuned = Tuned::apply(Profile::Shared, &nics, &[0, 1], record).unwrap();
        assert_eq!(told(), [(0, 20_000), (7, 20_000)], "the timer alone is set");
        drop(tuned);
        assert_eq!(told(), [(0, 0), (7, 0)]);
    });
    thread.join().unwrap();
}
