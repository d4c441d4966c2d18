//! Every fault with its place, and that no text makes parsing panic.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use dataplane::schedule::{Flags, Kind};
use dataplane::snapshot::Mode;
use proptest::prelude::*;

use super::*;
use crate::compile::{IdTable, compile};
use crate::model::Protocol;
use dataplane::state::State;

const EXAMPLES: [(&str, &str); 4] = [
    ("gateway-nat.yaml", include_str!("../../../deploy/examples/gateway-nat.yaml")),
    ("gateway-fullnat.yaml", include_str!("../../../deploy/examples/gateway-fullnat.yaml")),
    ("gateway-dr.yaml", include_str!("../../../deploy/examples/gateway-dr.yaml")),
    ("gateway-ipv6.yaml", include_str!("../../../deploy/examples/gateway-ipv6.yaml")),
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
                "3:1: zzz: unknown key, known are interfaces, workers, flows, limits, xdp, kernel_path, admin, \
                 node_addresses, timeouts, ipvs, floods, snat_pools, match_rules, services",
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
fn settings_out_of_range_or_of_another_type_are_refused() {
    assert_faults(&[
        ("no interfaces", "workers: {count: 1}\n", &["1:1: \"interfaces\" is missing"]),
        ("empty interfaces", "interfaces: []\n", &["1:13: interfaces: Weir needs at least one interface"]),
        (
            "interfaces of another type",
            "interfaces: eth1\n",
            &["1:13: interfaces: expected a list, found a string"],
        ),
        (
            "interface twice",
            "interfaces:\n  - name: eth1\n  - name: eth1\n",
            &["3:11: interfaces[1].name: interface eth1 is already at 2:11"],
        ),
        (
            "names that no interface has",
            "interfaces:\n  - name: sixteen-letters-\n  - name: a/b\n  - name: weir0\n",
            &[
                "2:11: interfaces[0].name: \"sixteen-letters-\" cannot be an interface's name",
                "3:11: interfaces[1].name: \"a/b\" cannot be an interface's name",
                "4:11: interfaces[2].name: weir0 is Weir's own: see kernel_path",
            ],
        ),
        (
            "workers",
            "..\nworkers:\n  count: 0\n  cores: [0, x, 0]\n  spin_us: -1\n  busy_poll: 1\n  beat_limit_ms: 99\n",
            &[
                "3:10: workers.count: 0 is below 1",
                "4:14: workers.cores[1]: expected a whole number, found x",
                "4:17: workers.cores[2]: core 0 already has a worker",
                "5:12: workers.spin_us: -1 is below 0",
                "6:14: workers.busy_poll: expected true or false, found a number",
                "7:18: workers.beat_limit_ms: 99 is below 100",
            ],
        ),
        (
            "fewer cores than workers",
            "..\nworkers:\n  count: 3\n  cores: [0, 1]\n",
            &["4:10: workers.cores: 3 workers need 3 cores, here are 2"],
        ),
        (
            "more workers than queues",
            "..\nworkers: {count: 129}\n",
            &["2:18: workers.count: 129 is above 128"],
        ),
        (
            "limits and flows",
            "..\nflows: {limit: 1.5}\nlimits: {services: 0, backends: 99999999999999999999}\n",
            &[
                "2:16: flows.limit: expected a whole number, found 1.5",
                "3:20: limits.services: 0 is below 1",
                "3:33: limits.backends: 99999999999999999999 is above 10000000",
            ],
        ),
        (
            "words",
            "..\nxdp: {mode: skb, zero_copy: yes}\nkernel_path: eth9\n",
            &[
                "2:13: xdp.mode: \"skb\" is not one of native, generic-allowed",
                "2:29: xdp.zero_copy: \"yes\" is not one of auto, never, require",
                "3:14: kernel_path: \"eth9\" is not one of weir0, none",
            ],
        ),
        (
            "the admin socket",
            "..\nadmin: {socket: run/weir.sock}\n",
            &["2:17: admin.socket: expected an absolute path of a file"],
        ),
        (
            "timeouts",
            "..\ntimeouts:\n  tcp: {established_s: 0, established: 5}\n  udp_s: \"300\"\n",
            &[
                "3:24: timeouts.tcp.established_s: 0 is below 1",
                "3:27: timeouts.tcp.established: unknown key (did you mean \"established_s\"?)",
                "4:10: timeouts.udp_s: expected a whole number, found a string",
            ],
        ),
        (
            "node addresses",
            "..\nnode_addresses: [10.0.0.1, 10.0.0.1, 127.0.0.1, 10.0.0]\n",
            &[
                "2:28: node_addresses[1]: 10.0.0.1 is already in this list (at 2:18)",
                "2:38: node_addresses[2]: 127.0.0.1 is a loopback address",
                "2:49: node_addresses[3]: \"10.0.0\": invalid IP address syntax",
            ],
        ),
    ]);
}

#[test]
fn snat_pools_that_cannot_serve_are_refused() {
    assert_faults(&[
        (
            "an empty pool, a pool without addresses, a name twice",
            "..\nsnat_pools:\n  - {name: a, addresses: []}\n  - {name: b}\n  - {name: a, addresses: [10.9.0.1]}\n",
            &[
                "3:26: snat_pools[0].addresses: a SNAT pool needs at least one address",
                "4:5: snat_pools[1]: \"addresses\" is missing",
                "5:12: snat_pools[2].name: the name a is already used (at 3:12)",
            ],
        ),
        (
            "addresses that make no range",
            "..\nsnat_pools:\n  - name: a\n    addresses:\n      - 10.9.0.9-10.9.0.1\n      - 10.9.0.1-fd00::1\n      \
             - 10.9.0.1/28\n      - 10.0.0.0/8\n      - 10.9.0.0/33\n      - 255.255.255.254/31\n      - fd00::/64\n",
            &[
                "5:9: snat_pools[0].addresses[0]: 10.9.0.1 is before 10.9.0.9",
                "6:9: snat_pools[0].addresses[1]: 10.9.0.1 and fd00::1 are not of one family",
                "7:9: snat_pools[0].addresses[2]: 10.9.0.1/28 has bits set behind its prefix: did you mean \
                 10.9.0.0/28?",
                "8:9: snat_pools[0].addresses[3]: 10.0.0.0 to 10.255.255.255 are more than 4096 addresses",
                "9:9: snat_pools[0].addresses[4]: \"10.9.0.0/33\": invalid IP address syntax",
                "10:9: snat_pools[0].addresses[5]: 255.255.255.255 is the broadcast address",
                "11:9: snat_pools[0].addresses[6]: fd00:: to fd00::ffff:ffff:ffff:ffff are more than 4096 addresses",
            ],
        ),
        (
            "ports",
            "..\nworkers: {count: 2}\nsnat_pools:\n  - {name: a, addresses: [10.9.0.1], ports: 5000-5000}\n  \
             - {name: b, addresses: [10.9.0.2], ports: 0-10}\n  - {name: c, addresses: [10.9.0.3], ports: 20-10}\n  \
             - {name: d, addresses: [10.9.0.4], ports: 1-65536}\n  - {name: e, addresses: [10.9.0.5], ports: 80}\n",
            &[
                "4:45: snat_pools[0].ports: 1 ports are too few: each of the 2 workers needs one",
                "5:45: snat_pools[1].ports: \"0-10\" is not a range of ports such as 1024-65535",
                "6:45: snat_pools[2].ports: first port 20 is above last port 10",
                "7:45: snat_pools[3].ports: \"1-65536\" is not a range of ports such as 1024-65535",
                "8:45: snat_pools[4].ports: expected a string, found a number: put it in quotes",
            ],
        ),
        (
            "an address in two pools, of a VIP, of the node",
            "..\nnode_addresses: [10.9.0.7]\nsnat_pools:\n  - {name: a, addresses: [10.9.0.1-10.9.0.3]}\n  \
             - {name: b, addresses: [10.9.0.3, 10.9.0.5, 10.9.0.7]}\nservices:\n  - {name: s, vip: 10.9.0.5, port: 1}\n",
            &[
                "5:27: snat_pools[1].addresses[0]: 10.9.0.3 is already in SNAT pool a (at 4:27)",
                "5:37: snat_pools[1].addresses[1]: SNAT address 10.9.0.5 is also a VIP (at 7:20)",
                "5:47: snat_pools[1].addresses[2]: SNAT address 10.9.0.7 is also one of the node's own (at 2:18)",
            ],
        ),
    ]);
}

#[test]
fn services_that_cannot_serve_are_refused() {
    assert_faults(&[
        (
            "what is missing",
            "..\nservices:\n  - {}\n",
            &[
                "3:5: services[0]: \"name\" is missing",
                "3:5: services[0]: \"vip\" is missing",
                "3:5: services[0]: \"port\" is missing",
            ],
        ),
        (
            "ports 0 and 65536, a weight above what ipvsadm takes, one below 0",
            "..\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 0\n    node_port: 65536\n    backends:\n      \
             - {address: 10.1.0.1, port: 65536, weight: 2147483648}\n      - {address: 10.1.0.2, port: 1, weight: -1}\n",
            &[
                "5:11: services[0].port: a service on every port needs persistence (one that does without \
                 is made by a mark, see match_rules)",
                "6:16: services[0].node_port: 65536 is above 65535",
                "8:35: services[0].backends[0].port: 65536 is above 65535",
                "8:50: services[0].backends[0].weight: 2147483648 is above 2147483647",
                "9:46: services[0].backends[1].weight: -1 is below 0",
            ],
        ),
        (
            "VIPs that no host has",
            "..\nservices:\n  - {name: a, vip: 224.0.0.1, port: 1}\n  - {name: b, vip: 0.0.0.0, port: 1}\n  \
             - {name: c, vip: 127.0.0.1, port: 1}\n  - {name: d, vip: 255.255.255.255, port: 1}\n  \
             - {name: e, vip: \"::1\", port: 1}\n  - {name: f, vip: \"fe80::1\", port: 1}\n  \
             - {name: g, vip: \"::ffff:10.0.0.1\", port: 1}\n  - {name: h, vip: 10, port: 1}\n",
            &[
                "3:20: services[0].vip: 224.0.0.1 is a multicast address",
                "4:20: services[1].vip: 0.0.0.0 is the unspecified address",
                "5:20: services[2].vip: 127.0.0.1 is a loopback address",
                "6:20: services[3].vip: 255.255.255.255 is the broadcast address",
                "7:20: services[4].vip: ::1 is a loopback address",
                "8:20: services[5].vip: fe80::1 is a link-local address",
                "9:20: services[6].vip: ::ffff:10.0.0.1 is an IPv4 address in IPv6 form",
                "10:20: services[7].vip: expected a string, found a number: put it in quotes",
            ],
        ),
        (
            "vip and vips",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, vips: [10.0.0.2], port: 1}\n  - {name: b, vips: [], port: 1}\n  \
             - {name: c, vips: [10.0.0.3, fd00::3], port: 1}\n  - {name: d, vips: [10.0.0.4, 10.0.0.4], port: 1}\n",
            &[
                "3:5: services[0]: give \"vip\" or \"vips\", not both",
                "4:21: services[1].vips: a service needs at least one VIP",
                "5:32: services[2].vips[1]: fd00::3 is IPv6, the service's first VIP is IPv4",
                "6:32: services[3].vips[1]: 10.0.0.4:1/tcp is already used by service d (at 6:22)",
            ],
        ),
        (
            "VIP, port and protocol twice; another port or protocol is another service",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 80}\n  - {name: b, vip: 10.0.0.1, port: 80, protocol: udp}\n  \
             - {name: c, vips: [10.0.0.2, 10.0.0.1], port: 80}\n  - {name: d, vip: 10.0.0.1, port: 81}\n",
            &["5:32: services[2].vips[1]: 10.0.0.1:80/tcp is already used by service a (at 3:20)"],
        ),
        (
            "node ports",
            "..\nnode_addresses: [192.0.2.1]\nservices:\n  - {name: a, vip: 10.0.0.1, port: 80, node_port: 30080}\n  \
             - {name: b, vip: 10.0.0.2, port: 80, node_port: 30080}\n  - {name: c, vip: 192.0.2.1, port: 30080}\n  \
             - {name: d, vip: \"fd00::1\", port: 80, node_port: 30080}\n",
            &[
                "5:51: services[1].node_port: 192.0.2.1:30080/tcp is already used by service a (at 4:51)",
                "6:20: services[2].vip: 192.0.2.1:30080/tcp is already used by service a (at 4:51)",
                "7:52: services[3].node_port: the service has IPv6 VIPs, but node_addresses has no IPv6 address",
            ],
        ),
        (
            "names",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 1}\n  - {name: a, vip: 10.0.0.2, port: 1}\n  \
             - {name: a b, vip: 10.0.0.3, port: 1}\n  - {name: 80, vip: 10.0.0.4, port: 1}\n",
            &[
                "4:12: services[1].name: the name a is already used (at 3:12)",
                "5:12: services[2].name: a name has no blanks and is not empty",
                "6:12: services[3].name: expected a string, found a number: put it in quotes",
            ],
        ),
        (
            "schedulers and flags",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 1, scheduler: twos}\n  \
             - {name: b, vip: 10.0.0.2, port: 1, scheduler: best}\n  \
             - {name: c, vip: 10.0.0.3, port: 1, scheduler: rr, scheduler_flags: [sh-port]}\n  \
             - {name: d, vip: 10.0.0.4, port: 1, scheduler: sh, scheduler_flags: [sh-port, sh-port, sh]}\n",
            &[
                "4:50: services[1].scheduler: unknown scheduler \"best\", known are rr, wrr, lc, wlc, lblc, lblcr, dh, \
                 sh, sed, nq, fo, ovf, mh, twos",
                "5:72: services[2].scheduler_flags[0]: scheduler flag sh-port is not one of rr's, known are flag-1, \
                 flag-2, flag-3",
                "6:81: services[3].scheduler_flags[1]: sh-port is already in this list",
                "6:90: services[3].scheduler_flags[2]: unknown scheduler flag \"sh\", known are sh-fallback, sh-port, flag-3",
            ],
        ),
        (
            "protocols and modes",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 1, protocol: sctp, mode: tunnel}\n  \
             - {name: b, vip: 10.0.0.1, port: 1, protocol: TCP}\n",
            &[
                "3:61: services[0].mode: \"tunnel\" is not one of nat, fullnat, dr, ipip, gue, gre",
                "4:49: services[1].protocol: \"TCP\" is not one of tcp, udp, sctp",
            ],
        ),
        (
            "a backend's family, whatever else is wrong",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 0, backends: [{address: \"fd00::1\", port: 65536}]}\n",
            &[
                "3:36: services[0].port: a service on every port needs persistence (one that does without \
                 is made by a mark, see match_rules)",
                "3:60: services[0].backends[0].address: fd00::1 is IPv6, the service is IPv4: only fullnat and tunnels \
                 lead to the other family",
                "3:77: services[0].backends[0].port: 65536 is above 65535",
            ],
        ),
        (
            "backends",
            "..\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 80\n    backends:\n      \
             - {address: \"fd00::1\", port: 80}\n      - {address: 10.1.0.1, port: 80}\n      \
             - {address: 10.1.0.1, port: 80, mode: dr}\n      - {address: 10.1.0.2, port: 81, mode: dr}\n      \
             - {address: 10.1.0.3}\n      - {adress: 10.1.0.4, port: 80}\n",
            &[
                "7:19: services[0].backends[0].address: fd00::1 is IPv6, the service is IPv4: only fullnat and tunnels \
                 lead to the other family",
                "9:9: services[0].backends[2]: backend 10.1.0.1:80 is already in this service (at 8:9)",
                "10:35: services[0].backends[3].port: dr leaves the port as it is: 81 has to be the service's port 80",
                "12:9: services[0].backends[5]: \"address\" is missing",
                "12:10: services[0].backends[5].adress: unknown key (did you mean \"address\"?)",
            ],
        ),
        (
            "dr on a node port",
            "..\nnode_addresses: [192.0.2.1]\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 80\n    node_port: 30080\n    \
             mode: dr\n    backends: [{address: 10.1.0.1, port: 80}]\n",
            &[
                "7:16: services[0].node_port: a node port needs nat or fullnat: dr leaves the port as it is, and backend \
                 10.1.0.1:80 is dr",
            ],
        ),
        (
            "fullnat without a pool that serves",
            "..\nsnat_pools: [{name: v6, addresses: [fd00::9]}]\nservices:\n  \
             - {name: a, vip: 10.0.0.1, port: 1, mode: fullnat, backends: [{address: 10.1.0.1, port: 1}]}\n  \
             - {name: b, vip: 10.0.0.2, port: 1, snat_pool: v6, backends: [{address: 10.1.0.1, port: 1, mode: fullnat}]}\n  \
             - {name: c, vip: 10.0.0.3, port: 1, snat_pool: v7}\n",
            &[
                "4:65: services[0].backends[0]: fullnat needs a SNAT pool: set snat_pool",
                "5:50: services[1].snat_pool: SNAT pool v6 has no IPv4 address, which fullnat needs here",
                "6:50: services[2].snat_pool: there is no SNAT pool v7",
            ],
        ),
        (
            "more than the limits",
            "..\nlimits: {services: 1, backends: 1}\nservices:\n  \
             - {name: a, vip: 10.0.0.1, port: 1, backends: [{address: 10.1.0.1, port: 1}]}\n  \
             - {name: b, vip: 10.0.0.2, port: 1, backends: [{address: 10.1.0.1, port: 1}]}\n",
            &[
                "4:3: services: 2 VIPs of services, limits.services is 1",
                "4:3: services: 2 backends, limits.backends is 1",
            ],
        ),
        (
            "more VIPs than services have room",
            "..\nlimits: {services: 2}\nservices: [{name: a, vips: [10.0.0.1, 10.0.0.2, 10.0.0.3], port: 1}]\n",
            &["3:11: services: 3 VIPs of services, limits.services is 2"],
        ),
        (
            "more SNAT addresses than all pools may have",
            "..\nsnat_pools:\n  - {name: a, addresses: [10.9.0.0/20]}\n  - {name: b, addresses: [10.9.16.0/20]}\n  \
             - {name: c, addresses: [10.9.32.0/20]}\n  - {name: d, addresses: [10.9.48.0/20]}\n  \
             - {name: e, addresses: [10.9.64.1]}\n",
            &["3:3: snat_pools: 16385 SNAT addresses, the most are 16384"],
        ),
        (
            "two pools over one another are said once",
            "..\nsnat_pools: [{name: a, addresses: [10.9.0.0/24]}, {name: b, addresses: [10.9.0.0/25]}]\n",
            &["2:73: snat_pools[1].addresses[0]: 10.9.0.0 is already in SNAT pool a (at 2:36)"],
        ),
    ]);
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
    assert_eq!(config.desired, DesiredState::default());
}

#[test]
fn the_examples_say_what_they_mean() {
    let [nat, fullnat, dr, v6] = EXAMPLES.map(|(name, text)| parse(name, text).unwrap());
    let web = &nat.desired.services()[0];
    let shares: Vec<_> =
        web.backends.iter().map(|b| (b.addr.ip().to_string(), b.port_number(), b.weight.0)).collect();
    let want = [("10.1.0.11", 8080, 2), ("10.1.0.12", 8080, 1), ("10.1.0.13", 8080, 1)];
    assert_eq!(shares, want.map(|(addr, port, weight)| (addr.to_owned(), port, weight)));
    assert_eq!((web.scheduling.kind, web.backends[0].mode), (Kind::Wrr, Mode::Nat));
    assert_eq!(nat.desired.services()[1].protocol(), Some(Protocol::Udp));
    let sticky = Flags { fallback: true, ..Flags::default() };
    assert_eq!(nat.desired.services()[2].scheduling.flags, sticky);
    assert_eq!(nat.settings.workers.cores, Some(vec![0, 1]));

    let api = &fullnat.desired.services()[0];
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

    assert_eq!(dr.desired.services()[0].backends[0].mode, Mode::Dr);
    assert_eq!((dr.settings.workers.busy_poll, dr.settings.xdp.zero_copy), (true, ZeroCopy::Require));
    let web6 = &v6.desired.services()[1];
    assert_eq!(
        (web6.vips().len(), web6.announce, web6.vips()[0].ip().to_string()),
        (2, false, "fd00::10".to_owned())
    );
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
        let compiled = compile(&config.desired, &IdTable::new(&State::new(100, 100))).unwrap();
        assert_eq!(compiled.services.iter().count(), config.desired.services().len(), "{name}");
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
    let ids = IdTable::new(&State::new(50_000, 500_000));
    let start = Instant::now();
    let compiled = compile(&config.desired, &ids).unwrap();
    let first = start.elapsed();
    let start = Instant::now();
    let again = compile(&config.desired, &compiled.ids).unwrap();
    let mib = text.len() >> 20;
    println!(
        "{mib} MiB: parsed in {parsed:?}, compiled in {first:?}, compiled again in {:?}",
        start.elapsed()
    );
    assert_eq!(compiled.services.iter().count(), 50_000);
    assert_eq!((again.fresh.services.len(), again.fresh.backends.len()), (0, 0));
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
