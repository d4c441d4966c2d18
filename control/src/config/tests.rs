//! Every fault with its place, and that no text makes parsing panic.

mod kubernetes;
mod services;
mod settings;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use dataplane::schedule::{Flags, Kind};
use dataplane::snapshot::Mode;
use proptest::prelude::*;

use super::*;
use crate::compile;
use crate::model::Protocol;
use dataplane::state::State;

const EXAMPLES: [(&str, &str); 6] = [
    ("gateway-nat.yaml", include_str!("../../../deploy/examples/gateway-nat.yaml")),
    ("gateway-fullnat.yaml", include_str!("../../../deploy/examples/gateway-fullnat.yaml")),
    ("gateway-dr.yaml", include_str!("../../../deploy/examples/gateway-dr.yaml")),
    ("gateway-ipv6.yaml", include_str!("../../../deploy/examples/gateway-ipv6.yaml")),
    ("gateway-tunnels.yaml", include_str!("../../../deploy/examples/gateway-tunnels.yaml")),
    ("gateway-marks.yaml", include_str!("../../../deploy/examples/gateway-marks.yaml")),
];

/// The faults of `text` as they are displayed, without the file's name.
fn faults(text: &str) -> Vec<String> {
    let faults = match parse("f", text) {
        Ok(_) => return Vec::new(),
        Err(faults) => faults.to_string(),
    };
    faults.lines().map(|line| line.strip_prefix("f:").unwrap_or(line).trim_start().to_owned()).collect()
}

/// Each row: name, the text, its faults. Line 1 of a text that begins with `..` is `interfaces: [{name: eth1}]`.
fn assert_faults(rows: &[(&str, &str, &[&str])]) {
    let mut wrong = String::new();
    for (name, text, want) in rows {
        let text = text.replace("..\n", "interfaces: [{name: eth1}]\n");
        let found = faults(&text);
        if found != *want {
            writeln!(wrong, "{name}:\n{text}found {found:#?}\nwanted {want:#?}\n").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_file_that_is_no_mapping_of_known_keys_is_refused() {
    let deep = format!("services: {}{}", "[".repeat(20), "]".repeat(20));
    let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
    assert_faults(&[
        ("empty", "", &["the file is empty"]),
        ("comments alone", "# nothing\n\n", &["the file is empty"]),
        ("a document of null", "--- ~\n", &["the file is empty"]),
        ("a list", "- a\n", &["1:1: expected a mapping, found a list"]),
        ("a string", "weir\n", &["1:1: expected a mapping, found a string"]),
        ("two documents", "..\n---\na: b\n", &["2:1: more than one YAML document in the file"]),
        ("nested too deep", &deep, &["1:22: nested too deep"]),
        ("an alias bomb", bomb, &["1:4: anchors are not supported"]),
        ("a tag", "interfaces: !!set {}\n", &["1:13: tags are not supported"]),
        ("a mapping as key", "? {a: b}\n: c\n", &["1:3: a key has to be a string"]),
        (
            "unknown keys, one of them close to a known one",
            "..\nservises: []\nzzz: 1\n",
            &[
                "2:1: servises: unknown key (did you mean \"services\"?)",
                "3:1: zzz: unknown key, known are interfaces, workers, flows, limits, xdp, kernel_path, admin, health, \
                 metrics, node_addresses, local_networks, virtual_networks, timeouts, ipvs, floods, snat_pools, \
                 match_rules, services, kubernetes",
            ],
        ),
        ("a key twice", "..\nservices: []\nservices: []\n", &["3:1: services: the key is already at 2:1"]),
    ]);
}

#[test]
fn text_that_is_not_yaml_is_refused_at_its_place() {
    for (text, place) in [("a: [1, 2\nb: c\n", "2:"), ("a: b: c\n", "1:"), ("a: \"\n", "")] {
        let faults = faults(text);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with(place) && faults[0].contains("not YAML: "), "{faults:?}");
    }
}

#[test]
fn places_are_the_files_own_behind_parts_with_faults() {
    assert_faults(&[(
        "faulty services, backends, pools and addresses do not shift the places of the others",
        "..\nsnat_pools:\n  - {name: bad, addresses: [x]}\n  - {name: a, addresses: [x, 10.9.0.1, 10.9.0.1]}\n\
         services:\n  - {name: bad, vip: x, port: 1}\n  - name: b\n    vip: 10.0.0.1\n    port: 1\n    backends:\n      \
         - {address: x, port: 1}\n      - {address: \"fd00::1\", port: 1}\n  - {name: b, vip: 10.0.0.2, port: 1}\n",
        &[
            "3:29: snat_pools[0].addresses[0]: \"x\": invalid IP address syntax",
            "4:27: snat_pools[1].addresses[0]: \"x\": invalid IP address syntax",
            "4:40: snat_pools[1].addresses[2]: 10.9.0.1 is already in SNAT pool a (at 4:30)",
            "6:22: services[0].vip: \"x\": invalid IP address syntax",
            "11:19: services[1].backends[0].address: \"x\": invalid IP address syntax",
            "12:19: services[1].backends[1].address: fd00::1 is IPv6, the service is IPv4: only fullnat and tunnels \
                 lead to the other family",
            "13:12: services[2].name: the name b is already used (at 7:11)",
        ],
    )]);
}

#[test]
fn a_faulty_pool_is_not_also_said_to_be_missing() {
    assert_faults(&[(
        "the pool is there, its ports are wrong",
        "..\nsnat_pools: [{name: a, addresses: [10.9.0.1], ports: x}]\nservices:\n  \
         - {name: s, vip: 10.0.0.1, port: 1, mode: fullnat, snat_pool: a, backends: [{address: 10.1.0.1, port: 1}]}\n",
        &["2:54: snat_pools[0].ports: \"x\" is not a range of ports such as 1024-65535"],
    )]);
}

#[test]
fn many_faults_are_counted_and_the_first_thousand_are_kept() {
    let mut text = "interfaces: [{name: eth1}]\nservices:\n".to_owned();
    for _ in 0..1500 {
        text.push_str("  - 1\n");
    }
    let faults = parse("f", &text).unwrap_err();
    assert_eq!((faults.count(), faults.iter().len()), (1500, 1000));
    assert!(faults.to_string().ends_with("\nand 500 more"));
}

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let config = parse("f", "interfaces: [{name: eth1}]\n").unwrap();
    let settings = &config.settings;
    assert_eq!(settings.interfaces[0].as_str(), "eth1");
    assert_eq!((settings.workers.count.get(), &settings.workers.cores), (1, &None));
    assert_eq!((settings.workers.spin, settings.workers.busy_poll), (Duration::from_micros(50), false));
    assert_eq!(settings.workers.beat_limit, Duration::from_secs(1));
    assert_eq!(settings.flow_limit, 1_000_000);
    assert_eq!(settings.limits, Limits { services: 16_384, backends: 65_536 });
    assert_eq!(settings.xdp, Xdp { allow_generic: false, zero_copy: ZeroCopy::Auto });
    assert_eq!(
        (settings.kernel_path, settings.socket.to_str()),
        (KernelPath::Veth, Some("/run/weir/weir.sock"))
    );
    assert_eq!((settings.health, settings.metrics), (None, None));
    assert_eq!(config.desired, DesiredState::default());
}

#[test]
fn the_examples_say_what_they_mean() {
    let [nat, fullnat, dr, v6, tunnels, marks] =
        EXAMPLES.map(|(name, text)| parse(name, text).unwrap_or_else(|faults| panic!("{faults}")));
    let web = nat.desired.services().next().unwrap();
    let shares: Vec<_> =
        web.backends.iter().map(|b| (b.addr.ip().to_string(), b.port_number(), b.weight.0)).collect();
    let want = [("10.1.0.11", 8080, 2), ("10.1.0.12", 8080, 1), ("10.1.0.13", 8080, 1)];
    assert_eq!(shares, want.map(|(addr, port, weight)| (addr.to_owned(), port, weight)));
    assert_eq!((web.scheduling.kind, web.backends[0].mode), (Kind::Wrr, Mode::Nat));
    assert_eq!(nat.desired.services().nth(1).unwrap().protocol(), Some(Protocol::Udp));
    let sticky = Flags { fallback: true, ..Flags::default() };
    assert_eq!(nat.desired.services().nth(2).unwrap().scheduling.flags, sticky);
    assert_eq!(nat.settings.workers.cores, Some(vec![0, 1]));

    let api = fullnat.desired.services().next().unwrap();
    assert_eq!(
        api.backends.iter().map(|b| b.mode).collect::<Vec<_>>(),
        [Mode::FullNat, Mode::FullNat, Mode::Nat]
    );
    assert_eq!((api.node_port.map(|port| port.number()), api.pool.as_deref()), (Some(30443), Some("uplink")));
    let pool = &fullnat.desired.pools()[0];
    assert_eq!(
        pool.ranges.iter().map(AddressRangeExt::text).collect::<Vec<_>>(),
        ["10.9.0.0..10.9.0.15", "10.9.1.1..10.9.1.4", "10.9.2.1..10.9.2.1",]
    );
    let timeouts = fullnat.desired.timeouts();
    assert_eq!((timeouts.tcp_s, timeouts.udp_s), ([2, 7200, 120, 60, 60, 120, 10, 60, 30, 120, 120], 60));

    assert_eq!(dr.desired.services().next().unwrap().backends[0].mode, Mode::Dr);
    assert_eq!((dr.settings.workers.busy_poll, dr.settings.xdp.zero_copy), (true, ZeroCopy::Require));
    let web6 = v6.desired.services().nth(1).unwrap();
    assert_eq!(
        (web6.vips().len(), web6.announce, web6.vips()[0].ip().to_string()),
        (2, false, "fd00::10".to_owned())
    );

    let two: Vec<_> = tunnels.desired.services().collect();
    let [web, media] = *two else { panic!("two services") };
    assert_eq!((web.options.mss, web.options.drain_s), (Some(0), Some(600)));
    assert!(web.backends.iter().all(|backend| backend.mode == Mode::Ipip && backend.port_number() == 80));
    assert_eq!((web.backends[0].upper, web.backends[0].lower), (10_000, 8_000));
    assert_eq!(web.backends[2].addr.ip().to_string(), "fd00:1::13");
    assert_eq!(media.scheduling.flags, Flags { port: true, ..Flags::default() });
    let tunnels = media.backends.iter().map(|backend| (backend.mode, backend.tunnel.port));
    assert_eq!(tunnels.collect::<Vec<_>>(), [(Mode::Gue, 6080), (Mode::Gue, 6081), (Mode::Gre, 0)]);

    assert_eq!(marks.desired.rules().iter().map(|rule| rule.count()).collect::<Vec<_>>(), [1, 6]);
    let reach = |name| marks.desired.services().find(|service| &*service.name == name).unwrap();
    let mark = reach("web").mark().unwrap();
    assert_eq!((mark.value.get(), mark.v6, reach("web6").mark().unwrap().v6), (7, false, true));
    assert_eq!((reach("host").port(), reach("host").persistence.unwrap().timeout_s.get()), (None, 360));
    assert_eq!(reach("signalling").protocol(), Some(Protocol::Sctp));
    assert!(reach("logs").one_packet);
}

trait AddressRangeExt {
    fn text(&self) -> String;
}

impl AddressRangeExt for crate::model::AddressRange {
    fn text(&self) -> String {
        let (first, last) = (self.iter().next().unwrap(), self.iter().last().unwrap());
        format!("{first}..{last}")
    }
}

#[test]
fn the_examples_compile() {
    for (name, text) in EXAMPLES {
        let config = parse(name, text).unwrap();
        let tables = compile::tables(&config.desired, &State::new(100, 100)).unwrap();
        assert_eq!(tables.len(), config.desired.len(), "{name}");
    }
}

#[test]
fn a_reload_names_the_settings_that_need_a_restart() {
    let [nat, fullnat, ..] = EXAMPLES.map(|(name, text)| parse(name, text).unwrap());
    let same = parse("other-name", &EXAMPLES[0].1.replace("weight: 2", "weight: 3")).unwrap();
    assert_eq!(same.restart_needed(&nat), Vec::<String>::new());
    let want = ["interfaces", "workers.count", "workers.cores", "workers.spin_us", "flows.limit"];
    assert_eq!(fullnat.restart_needed(&nat), want);
}

#[test]
fn files_that_cannot_be_read_as_text_are_named() {
    let folder = std::env::temp_dir().join(format!("weir-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = |name: &str| folder.join(name);
    std::fs::write(path("binary"), b"interfaces:\n  - name: \xff\n").unwrap();
    let huge = File::create(path("huge")).unwrap();
    huge.set_len(FILE_MAX + 1).unwrap();
    std::fs::write(path("good"), EXAMPLES[0].1).unwrap();
    let reasons: Vec<String> = ["binary", "huge", "absent", "."]
        .map(|name| load(&path(name)).unwrap_err().iter().next().unwrap().reason.clone())
        .to_vec();
    let good = load(&path("good")).map(|config| config.file().to_owned());
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(reasons[..2], ["not UTF-8: a bad byte in line 2", "larger than 64 MiB"]);
    assert_eq!(reasons[2], "cannot be read: No such file or directory (os error 2)");
    assert!(reasons[3].starts_with("cannot be read: "), "{}", reasons[3]);
    assert_eq!(good.unwrap(), path("good").display().to_string());
}

/// `services` services of `backends` backends each, of which no two have a VIP in common.
fn large(services: u32, backends: u32) -> String {
    let mut text =
        "interfaces: [{name: eth1}]\nlimits: {services: 1000000, backends: 10000000}\nservices:\n".to_owned();
    for service in 0..services {
        let vip = std::net::Ipv4Addr::from_bits(0x0a00_0001 + service);
        write!(text, "  - name: s{service}\n    vip: {vip}\n    port: 80\n    backends:\n").unwrap();
        for backend in 0..backends {
            let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + service * backends + backend);
            writeln!(text, "      - address: {address}\n        port: 8080\n        weight: {backend}")
                .unwrap();
        }
    }
    text
}

#[test]
fn fifty_thousand_services_are_read_and_compiled() {
    let text = large(50_000, 10);
    let start = Instant::now();
    let config = parse("large.yaml", &text).unwrap();
    let parsed = start.elapsed();
    let start = Instant::now();
    let tables = compile::tables(&config.desired, &State::new(50_000, 500_000)).unwrap();
    let mib = text.len() >> 20;
    println!("{mib} MiB: parsed in {parsed:?}, compiled in {:?}", start.elapsed());
    assert_eq!(tables.len(), 50_000);
}

proptest! {
    #[test]
    fn no_text_makes_parsing_panic(text in "\\PC{0,200}") {
        let _ = parse("f", &text);
    }

    #[test]
    fn no_text_of_yaml_signs_makes_parsing_panic(text in "[-:,?\\[\\]{}#&*!|>'\"%@` \n\ta0.~]{0,120}") {
        let _ = parse("f", &text);
    }

    /// A file with one part replaced parses, or every fault has a place inside the file.
    #[test]
    fn mutated_examples_parse_or_are_refused_at_a_place(
        example in 0..EXAMPLES.len(),
        at in any::<prop::sample::Index>(),
        length in 0..40_usize,
        with in "[-:,\\[\\]{}#&*!|'\" \n0-9a-f./]{0,12}",
    ) {
        let text = EXAMPLES[example].1;
        let start = at.index(text.len());
        let end = (start + length).min(text.len());
        prop_assume!(text.is_char_boundary(start) && text.is_char_boundary(end));
        let text = [&text[..start], &with, &text[end..]].concat();
        if let Err(faults) = parse("f", &text) {
            let lines = text.lines().count() + 1;
            for fault in faults.iter() {
                let at = fault.at.expect("a file that is not empty has places");
                prop_assert!((1..=lines).contains(&at.line) && at.column >= 1, "{fault}");
            }
        }
    }
}
