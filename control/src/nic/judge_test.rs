use std::collections::BTreeSet;

use super::*;
use crate::nic::{Attached, Master, Peer, Rings, Rss};

fn wish() -> Wish {
    Wish { workers: 2, cores: vec![0, 1], allow_generic: false, zero_copy: ZeroCopy::Auto, largest_mtu: 0 }
}

fn linux(kernel: &str) -> Machine {
    Machine {
        kernel: kernel.to_owned(),
        cores: vec![(0, None), (1, None)],
        transparent_huge_pages: true,
        free_huge_pages: 1000,
        ..Machine::default()
    }
}

/// A device that has nothing against Weir.
fn sound() -> Nic {
    Nic {
        name: "eth1".to_owned(),
        ifindex: 2,
        ethernet: true,
        driver: Some("ixgbe".to_owned()),
        mtu: 1500,
        up: true,
        carrier: true,
        queues: Queues { rx: Some(2), tx: Some(2), rx_max: Some(64) },
        rings: Some(Rings { rx: 512, rx_max: 512, tx: 512, tx_max: 512 }),
        rss: Some(Rss {
            key: "6d5a56da".repeat(10),
            table: vec![0, 1, 0, 1],
            function: Some("toeplitz".to_owned()),
            ..Rss::default()
        }),
        offloads: Some(BTreeSet::new()),
        xdp: Some(XdpFeatures { native: true, redirect: true, zero_copy: true, ..XdpFeatures::default() }),
        ..Nic::default()
    }
}

fn changed(change: impl FnOnce(&mut Nic)) -> Nic {
    let mut nic = sound();
    change(&mut nic);
    nic
}

fn serves(id: u32, rx_queues: Vec<u32>, tx_queues: Vec<u32>) -> Napi {
    Napi { id, rx_queues, tx_queues, ..Napi::default() }
}

/// The findings as lines of weight and sentence.
fn told(findings: &[Finding]) -> Vec<String> {
    let name = |weight| match weight {
        Weight::Refuses => "refuses",
        Weight::Costs => "costs",
        Weight::Notes => "notes",
    };
    findings.iter().map(|finding| format!("{}: {}", name(finding.weight), finding.text)).collect()
}

fn driver_of(name: &str) -> impl FnOnce(&mut Nic) {
    move |nic| nic.driver = Some(name.to_owned())
}

fn veth(nic: &mut Nic) {
    nic.kind = Some("veth".to_owned());
    (nic.driver, nic.rss, nic.queues.rx_max) = (None, None, Some(2));
}

#[test]
fn a_sound_interface_has_no_findings() {
    assert_eq!(nic(&sound(), &wish(), &linux("6.18.1")), []);
    // Of a driver that tells nothing nothing is concluded.
    let silent = changed(|nic| {
        (nic.queues, nic.rings, nic.rss, nic.offloads, nic.xdp) = (Queues::default(), None, None, None, None);
    });
    assert_eq!(nic(&silent, &wish(), &linux("6.18.1")), []);
}

#[test]
fn each_trap_is_told_with_what_to_do() {
    let member = |kind: &str| Some(Master { name: "up0".to_owned(), kind: kind.to_owned() });
    let pair = |queues| Some(Peer { name: "far".to_owned(), ifindex: 9, tx_queues: Some(queues) });
    for (name, kernel, subject, want) in [
        (
            "a member of a bond",
            "6.18",
            changed(|nic| nic.member_of = member("bond")),
            "refuses: eth1 is a part of up0 (bond): routes and neighbours lead to that",
        ),
        (
            "a member of a bridge",
            "6.18",
            changed(|nic| nic.member_of = member("bridge")),
            "refuses: eth1 is a part of up0 (bridge)",
        ),
        (
            "a member of a team",
            "6.18",
            changed(|nic| nic.member_of = member("team")),
            "(ip link set eth1 nomaster)",
        ),
        ("a member of a VRF", "6.18", changed(|nic| nic.member_of = member("vrf")), "the main table alone"),
        ("a bond", "6.18", changed(|nic| nic.kind = Some("bond".into())), "refuses: eth1 is a bond"),
        ("not Ethernet", "6.18", changed(|nic| nic.ethernet = false), "refuses: eth1 is not Ethernet"),
        (
            "down",
            "6.18",
            changed(|nic| nic.up = false),
            "refuses: eth1 is down: set it up (ip link set eth1 up)",
        ),
        ("no carrier", "6.18", changed(|nic| nic.carrier = false), "costs: eth1 has no carrier"),
        (
            "jumbo frames",
            "6.18",
            changed(|nic| {
                nic.mtu = 9000;
                nic.xdp = nic.xdp.map(|xdp| XdpFeatures { multi_buffer: true, ..xdp });
            }),
            "costs: the MTU of eth1 is 9000: frames of more than 3818 bytes come in several buffers",
        ),
        (
            "jumbo frames of a driver that has one buffer for each",
            "6.18",
            changed(|nic| nic.mtu = 9000),
            "refuses: the MTU of eth1 is 9000: ixgbe gives XDP programs no frames of several buffers",
        ),
        (
            "jumbo frames of an old kernel",
            "6.1",
            changed(|nic| nic.mtu = 9000),
            "refuses: the MTU of eth1 is 9000: AF_XDP of Linux 6.1 carries 3818 bytes at most",
        ),
        (
            "larger than jumbo frames",
            "6.18",
            changed(|nic| nic.mtu = 16_000),
            "refuses: the MTU of eth1 is 16000: Weir takes 11498 bytes at most",
        ),
        ("a large MTU", "6.18", changed(|nic| nic.mtu = 3600), "costs: the MTU of eth1 is 3600"),
        (
            "no native XDP",
            "6.18",
            changed(|nic| nic.xdp = Some(XdpFeatures { zero_copy: true, ..XdpFeatures::default() })),
            "refuses: ixgbe has no native XDP for eth1: use another interface, or allow generic",
        ),
        (
            "too few queues",
            "6.18",
            changed(|nic| nic.queues.rx = Some(1)),
            "refuses: 2 workers need 2 RX queues, eth1 has 1: ethtool -L eth1 combined 2",
        ),
        (
            "no more queues",
            "6.18",
            changed(|nic| nic.queues = Queues { rx: Some(1), tx: Some(1), rx_max: Some(1) }),
            "eth1 has 1: run fewer workers",
        ),
        (
            "too many queues",
            "6.18",
            changed(|nic| {
                nic.queues.rx = Some(4);
                nic.rss = Some(Rss { table: vec![0, 1, 2, 3], ..Rss::default() });
            }),
            "costs: eth1 has 4 RX queues for 2 workers: what arrives on queues 2 and up passes Weir by (ethtool -X eth1 equal 2)",
        ),
        (
            "a table that avoids them",
            "6.18",
            changed(|nic| nic.queues.rx = Some(4)),
            "notes: eth1 has 4 RX queues for 2 workers; its indirection table uses only those",
        ),
        (
            "another hash",
            "6.18",
            changed(|nic| {
                nic.rss = nic.rss.take().map(|rss| Rss { function: Some("xor".to_owned()), ..rss });
            }),
            "notes: replies to SNAT ports arrive on any queue of eth1 and are handed over: its hash function is xor, not toeplitz",
        ),
        (
            "a veth of one queue",
            "6.18",
            changed(|nic| {
                veth(nic);
                nic.queues.rx = Some(1);
            }),
            "eth1 has 1: a veth gets them when it is made",
        ),
        (
            "a veth's peer",
            "6.18",
            changed(|nic| {
                veth(nic);
                nic.peer = pair(4);
            }),
            "refuses: eth1 has 2 RX queues, its peer far 4 TX queues: native XDP wants no more than those (ethtool -L far tx 2)",
        ),
        (
            "mlx5 of old",
            "5.15.0",
            changed(driver_of("mlx5_core")),
            "costs: mlx5 of Linux 5.15.0 gives zero-copy queues numbers of their own",
        ),
        ("ice of old", "6.1.0", changed(driver_of("ice")), "costs: ice of Linux 6.1.0 can hang eth1"),
        (
            "igb with an interrupt for each queue",
            "6.18",
            changed(|nic| {
                driver_of("igb")(nic);
                nic.queues.rx_max = Some(8);
                let napi = |rx_queues| Napi { rx_queues, ..Napi::default() };
                nic.napis = vec![napi(vec![0]), napi(vec![1]), napi(vec![]), napi(vec![])];
            }),
            "receives nothing any more (ethtool -L eth1 combined 8; ethtool -X eth1 equal 2)",
        ),
        (
            "ena with all queues",
            "6.18",
            changed(|nic| {
                driver_of("ena")(nic);
                nic.queues.rx_max = Some(2);
            }),
            "refuses: ena runs XDP on half of its 2 queues at most, eth1 uses 2: ethtool -L eth1 combined 1",
        ),
        (
            "LRO",
            "6.18",
            changed(|nic| nic.offloads = Some(["rx-lro".to_owned()].into())),
            "(ethtool -K eth1 lro off)",
        ),
        (
            "stripped tags",
            "6.18",
            changed(|nic| {
                nic.offloads = Some(["rx-vlan-hw-parse".to_owned()].into());
                nic.vlans = vec!["eth1.7".into()];
            }),
            "costs: eth1 strips VLAN tags, which hides them from Weir, and there are eth1.7 (ethtool -K eth1 rxvlan off)",
        ),
        (
            "a filter of VLANs",
            "6.18",
            changed(|nic| nic.offloads = Some(["rx-vlan-filter".to_owned()].into())),
            "notes: eth1 lets in frames of those VLANs alone that it has an interface for, and there is none: ip link add \
             link eth1 name eth1.7 type vlan id 7",
        ),
        (
            "short rings",
            "6.18",
            changed(|nic| nic.rings = Some(Rings { rx: 256, rx_max: 4096, ..Rings::default() })),
            "notes: eth1 has 256 RX ring entries of 4096",
        ),
        (
            "an interrupt elsewhere",
            "6.18",
            changed(|nic| {
                nic.napis = vec![Napi {
                    irq: Some(30),
                    irq_cores: vec![0, 1, 3],
                    rx_queues: vec![1],
                    ..Napi::default()
                }]
            }),
            "notes: interrupt 30 of queue 1 may go to cores 0-1,3, worker 1 runs on 1",
        ),
        (
            "interrupts not deferred",
            "6.18",
            changed(|nic| {
                nic.napis =
                    vec![Napi { defer_hard_irqs: Some(0), gro_flush_timeout_ns: Some(0), ..Napi::default() }]
            }),
            "notes: interrupts of eth1 are not deferred (napi_defer_hard_irqs and gro_flush_timeout are 0): weir run --tuning gateway",
        ),
        (
            "queues that workers can poll",
            "6.18",
            changed(|nic| {
                nic.napis = [0, 1].map(|queue| serves(8193 + queue, vec![queue], vec![queue])).into();
            }),
            "notes: weir run --tuning gateway would have the workers poll the queues of eth1",
        ),
        (
            "queues that they cannot",
            "6.18",
            changed(|nic| {
                driver_of("igc")(nic);
                let [a, b] = [0, 1].map(|queue| serves(8193 + queue, vec![queue], vec![]));
                nic.napis = vec![a, b, serves(8195, vec![], vec![0]), serves(8196, vec![], vec![1])];
            }),
            "notes: workers cannot poll the queues of eth1 in place of interrupts (--tuning gateway), for sending and receiving have a \
             NAPI instance each; with more queues they share one (ethtool -L eth1 combined 64)",
        ),
        (
            "queues of which half is told",
            "6.18",
            changed(|nic| nic.napis = [0, 1].map(|queue| serves(8193 + queue, vec![queue], vec![])).into()),
            "notes: workers cannot poll the queues of eth1 in place of interrupts (--tuning gateway), for the kernel does not tell what \
             serves them both ways",
        ),
    ] {
        let told = told(&nic(&subject, &wish(), &linux(kernel)));
        assert!(told.iter().any(|line| line.contains(want)), "{name}: {want:?} is not in {told:#?}");
    }
}

#[test]
fn what_was_fixed_is_not_told_of() {
    for (driver, kernel) in
        [("mlx5_core", "6.1"), ("ice", "6.11"), ("igb", "7.0"), ("igb", "6.18"), ("ixgbe", "6.1")]
    {
        assert_eq!(nic(&changed(driver_of(driver)), &wish(), &linux(kernel)), [], "{driver} of {kernel}");
    }
    let never = Wish { zero_copy: ZeroCopy::Never, ..wish() };
    for driver in ["mlx5_core", "ice"] {
        let told = told(&nic(&changed(driver_of(driver)), &never, &linux("5.15")));
        let note = format!("notes: {driver} could do zero-copy on eth1, but xdp.zero_copy says never");
        assert_eq!(told, [note], "{driver}");
    }
}

#[test]
fn the_modes_asked_for_decide_what_an_incapable_driver_means() {
    let none = changed(|nic| nic.xdp = Some(XdpFeatures::default()));
    for (allow_generic, zero_copy, want) in [
        (false, ZeroCopy::Never, [Some(Weight::Refuses), None]),
        (true, ZeroCopy::Never, [Some(Weight::Costs), None]),
        (true, ZeroCopy::Auto, [Some(Weight::Costs), Some(Weight::Notes)]),
        (true, ZeroCopy::Require, [Some(Weight::Costs), Some(Weight::Refuses)]),
    ] {
        let found = nic(&none, &Wish { allow_generic, zero_copy, ..wish() }, &linux("6.18"));
        let about = |what| found.iter().find(|finding| finding.about == what).map(|finding| finding.weight);
        assert_eq!([about("XDP"), about("zero-copy")], want, "{allow_generic} {zero_copy:?}");
    }
}

#[test]
fn frames_of_more_buffers_than_zero_copy_has_are_copied_or_refused() {
    let (one, three) = (Some(1), Some(3));
    let why = |mtu, takes, has| {
        format!(
            "frames of an MTU of {mtu} take {takes} buffers, and ixgbe has {has} for each in zero-copy mode on eth1"
        )
    };
    let lower = "no served interface's MTU above 3818";
    let refused = |why| Some(format!("refuses: {why}: set xdp.zero_copy to auto or never, or {lower}"));
    let copied = |why| {
        Some(format!("costs: {why}: Weir serves it in copy mode, about 1 µs of CPU a frame; set {lower}"))
    };
    let never = || Some("notes: ixgbe could do zero-copy on eth1, but xdp.zero_copy says never".to_owned());
    use ZeroCopy::{Auto, Never, Require};
    for (name, zero_copy, mtu, largest_mtu, segments, want) in [
        ("its own MTU", Require, 9000, 9000, one, refused(why(9000, 3, 1))),
        ("its own MTU, auto", Auto, 9000, 9000, one, copied(why(9000, 3, 1))),
        ("copied anyway", Never, 9000, 9000, one, None),
        ("served alone", Auto, 5000, 0, one, copied(why(5000, 2, 1))),
        ("another's MTU", Require, 1500, 9000, one, refused(why(9000, 3, 1))),
        ("too few", Auto, 9000, 9000, Some(2), copied(why(9000, 3, 2))),
        ("enough", Require, 9000, 9000, three, None),
        ("enough, but not asked for", Never, 9000, 9000, three, never()),
        ("the largest MTU of one buffer", Require, 3818, 3818, one, None),
        ("the smallest of two", Require, 3819, 3819, one, refused(why(3819, 2, 1))),
        ("a driver that does not tell", Require, 9000, 9000, None, None),
    ] {
        let subject = changed(|nic| {
            nic.mtu = mtu;
            let several = |xdp| XdpFeatures { multi_buffer: true, zero_copy_segments: segments, ..xdp };
            nic.xdp = nic.xdp.map(several);
        });
        let wish = Wish { zero_copy, largest_mtu, ..wish() };
        let found: Vec<_> = nic(&subject, &wish, &linux("6.18"));
        let found: Vec<_> = found.into_iter().filter(|finding| finding.about == "zero-copy").collect();
        assert_eq!(told(&found), Vec::from_iter(want.clone()), "{name}");
        let is_copied = want.is_some_and(|want| want.contains("take")) || name == "copied anyway";
        assert_eq!(lacks_buffers(&subject, &wish), is_copied, "{name}");
    }
}

#[test]
fn who_holds_an_interface_is_told() {
    let held = changed(|nic| {
        nic.programs = vec![Attached { program: 41, mode: "native" }];
        nic.bound_queues = vec![1, 5];
    });
    let told = told(&occupied(&held, &wish()));
    assert_eq!(told.len(), 2, "queue 5 is no worker's: {told:?}");
    assert!(told[0].contains("XDP program 41 is attached to eth1 in native mode"), "{told:?}");
    assert!(told[1].contains("queue 1 of eth1 is in use"), "{told:?}");
}

#[test]
fn the_machine_is_judged_by_what_the_workers_need() {
    let mib = 1 << 20;
    for (name, subject, workers, want) in [
        ("a sound machine", linux("6.18"), 2, None),
        ("an old kernel", linux("5.10.0"), 2, Some("refuses: Linux 5.10.0 is too old")),
        ("too few cores", linux("6.18"), 3, Some("refuses: 3 workers need as many cores, Weir may run on 2")),
        (
            "little lockable memory",
            Machine { lockable_bytes: Some(8 * mib), ..linux("6.18") },
            2,
            Some("refuses: may lock 8388608 bytes"),
        ),
        ("enough lockable memory", Machine { lockable_bytes: Some(64 * mib), ..linux("6.18") }, 2, None),
        (
            "no huge pages",
            Machine { free_huge_pages: 3, ..linux("6.18") },
            2,
            Some("notes: 3 huge pages of 2 MiB are free, the workers' frame memory would take 16"),
        ),
        (
            "no transparent ones",
            Machine { transparent_huge_pages: false, ..linux("6.18") },
            2,
            Some("costs: transparent huge pages are off"),
        ),
    ] {
        let told = told(&machine(&subject, &Wish { workers, ..wish() }, 32 * mib));
        match want {
            None => assert!(told.is_empty(), "{name}: {told:?}"),
            Some(want) => assert!(told[0].starts_with(want), "{name}: {told:?}"),
        }
    }
}

#[test]
fn a_worker_far_from_the_interface_is_told_of() {
    let far = Machine { cores: vec![(0, Some(0)), (1, Some(1))], ..linux("6.18") };
    let told = told(&nic(&changed(|nic| nic.numa_node = Some(0)), &wish(), &far));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("costs: worker 1 runs on core 1 of memory node 1, eth1 is at node 0"),
        "{told:?}"
    );
}

#[test]
fn cores_are_listed_in_ranges() {
    for (cores, want) in [(&[][..], ""), (&[3], "3"), (&[0, 1, 2, 7, 9, 10], "0-2,7,9-10")] {
        assert_eq!(listed(cores), want);
    }
}
