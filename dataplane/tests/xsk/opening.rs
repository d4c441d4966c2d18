//! Opening sockets, and what is said where that fails.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::io::xsk::{BindMode, PortConfig, XskConfig, XskError, XskIo, ZeroCopy};

use crate::net::{Lab, config, ip};

fn error(config: &XskConfig) -> String {
    XskIo::open(config).map(drop).unwrap_err().to_string()
}

#[test]
fn every_refusal_says_what_to_do() {
    let Some(lab) = Lab::new("every_refusal_says_what_to_do") else { return };
    lab.middle.run(|| {
        let good = config(0, &["p0", "p1"]);
        let changed = |change: &dyn Fn(&mut XskConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config
        };
        for (name, config, want) in [
            (
                "no such queue",
                changed(&|c| c.queue = 2),
                "interface p0 has no queue 2: give it more (ethtool -L p0 combined 3; a veth gets them when it is \
                 made) or run fewer workers",
            ),
            (
                "zero-copy on a veth",
                changed(&|c| c.ports[1].zero_copy = ZeroCopy::Require),
                "queue 0 of p1 cannot do zero-copy (Operation not supported (os error 95)): set zero_copy to auto or \
                 never",
            ),
            (
                "no such interface",
                changed(&|c| c.ports[1].ifindex = 9999),
                "interface p1 is gone: give one that `ip link` shows",
            ),
            (
                "larger than jumbo frames",
                changed(&|c| c.ports[1].mtu = 12_000),
                "the MTU of p1 is 12000: Weir takes at most 11498, set it lower (ip link set p1 mtu 11498)",
            ),
            ("ring size", changed(&|c| c.ring_size = 1000), "ring size 1000 is not a power of two from 64 to 32768"),
        ] {
            assert_eq!(error(&config), want, "{name}");
        }
        assert!(XskIo::open(&good).is_ok());
        assert_eq!(XskIo::open(&changed(&|c| c.ports[0].mtu = 3000)).unwrap().memory().chunk_size, 4096);
        assert_eq!(XskIo::open(&changed(&|c| c.ports[1].mtu = 9000)).unwrap().memory().chunk_size, 4096);
        for (zero_copy, want) in [(ZeroCopy::Auto, 4096), (ZeroCopy::Never, 2048)] {
            let coarse = changed(&|c| {
                c.whole_kib = true;
                c.ports.iter_mut().for_each(|port| port.zero_copy = zero_copy);
            });
            assert_eq!(XskIo::open(&coarse).unwrap().memory().chunk_size, want, "{zero_copy:?}");
        }
    });
}

#[test]
fn every_port_says_which_mode_it_is_in() {
    let Some(lab) = Lab::new("every_port_says_which_mode_it_is_in") else { return };
    lab.middle.run(|| {
        let mut config = config(0, &["p0", "p1"]);
        for zero_copy in [ZeroCopy::Auto, ZeroCopy::Never] {
            config.ports[0].zero_copy = zero_copy;
            let io = XskIo::open(&config).unwrap();
            let modes: Vec<_> =
                io.sockets().iter().map(|socket| (&*socket.interface, socket.queue, socket.mode)).collect();
            assert_eq!(modes, [("p0", 0, BindMode::Copy), ("p1", 0, BindMode::Copy)]);
            assert!(io.memory_fd().is_some());
        }
        ip("link set p0 down");
        assert!(XskIo::open(&config).is_ok(), "frames come once it is up");
    });
}

#[test]
fn a_queue_that_is_in_use_is_waited_for_and_then_named() {
    let Some(lab) = Lab::new("a_queue_that_is_in_use_is_waited_for_and_then_named") else { return };
    lab.middle.run(|| {
        let config = config(0, &["p0", "p1"]);
        let holder = XskIo::open(&config).unwrap();
        let other_queue = XskIo::open(&XskConfig { queue: 1, ..config.clone() });
        assert!(other_queue.is_ok(), "{other_queue:?}");
        let start = Instant::now();
        assert_eq!(
            error(&config),
            "queue 0 of p0 is in use by another AF_XDP socket: stop the program that holds it"
        );
        assert!(start.elapsed() > Duration::from_millis(500), "it was waited for");
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(holder);
        });
        let opened = XskIo::open(&config);
        assert!(opened.is_ok(), "{opened:?}");
        release.join().unwrap();
        drop(opened);
        // Each binds while the kernel still releases the one before.
        for round in 0..10 {
            let opened = XskIo::open(&config);
            assert!(opened.is_ok(), "round {round}: {opened:?}");
        }
    });
}

#[test]
fn what_others_hold_of_a_socket_does_not_keep_it_open() {
    let Some(lab) = Lab::new("what_others_hold_of_a_socket_does_not_keep_it_open") else { return };
    lab.middle.run(|| {
        let io = XskIo::open(&config(0, &["p0"])).unwrap();
        let socket = io.sockets()[0].clone();
        assert!(socket.fd().is_some() && socket.statistics().unwrap().is_ok());
        drop(io);
        assert!(socket.fd().is_none() && socket.statistics().is_none());
    });
}

/// Not a test by itself: [`missing_rights_are_named`] runs it with fewer rights.
#[test]
#[ignore = "a part of another test"]
fn open_and_say() {
    let port = PortConfig { name: Arc::from("p0"), ifindex: 0, mtu: 1500, zero_copy: ZeroCopy::Never };
    let ports = vec![PortConfig { ifindex: crate::net::ifindex("p0"), ..port }];
    match XskIo::open(&XskConfig { queue: 0, ring_size: 2048, ports, whole_kib: false }) {
        Ok(_) => println!("said: opened"),
        Err(error @ XskError::Os { .. }) => println!("said: unexplained: {error}"),
        Err(error) => println!("said: {error}"),
    }
}

#[test]
fn missing_rights_are_named() {
    let Some(lab) = Lab::new("missing_rights_are_named") else { return };
    let test = std::env::current_exe().unwrap();
    let said = |command: &[&str]| {
        let output = lab.middle.run(|| {
            let mut words = command.iter();
            let mut command = Command::new(words.next().unwrap());
            command.args(words).arg(&test).args([
                "--exact",
                "opening::open_and_say",
                "--ignored",
                "--nocapture",
            ]);
            command.output().unwrap()
        });
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once("said: "));
        line.unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&output.stderr))).1.to_owned()
    };
    assert_eq!(said(&["env"]), "opened");
    assert_eq!(
        said(&["setpriv", "--bounding-set=-net_raw"]),
        "may not open AF_XDP sockets: run as root or with CAP_NET_RAW"
    );
    let limited = ["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock"];
    assert_eq!(
        said(&limited),
        "may not lock 10485760 bytes of frame memory, which each worker needs: raise RLIMIT_MEMLOCK (ulimit -l, \
         LimitMEMLOCK=) or grant CAP_IPC_LOCK"
    );
}
