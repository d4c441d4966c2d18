//! Faults of what is not a service, and settings as they are read.

use dataplane::ids::PortId;
use dataplane::snapshot::{Defence, Settings, Timeouts};

use super::{assert_faults, parse};
use crate::model::{Family, MatchRule, PortRange, Protocol};

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
            "addresses for health and metrics",
            "..\nhealth: {listen: \"10256\"}\nmetrics: {listen: \"127.0.0.1:0\", path: /m, services: 100001}\n",
            &[
                "2:18: health.listen: \"10256\": invalid socket address syntax",
                "3:19: metrics.listen: port 0 is no port",
                "3:34: metrics.path: unknown key, known are listen, services",
                "3:54: metrics.services: 100001 is above 100000",
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
fn sysctls_timeouts_and_limits_out_of_range_are_refused() {
    assert_faults(&[
        (
            "sctp timeouts",
            "..\ntimeouts: {sctp: {init_s: 0, closed_s: 2678401, cookie: 1}}\n",
            &[
                "2:27: timeouts.sctp.init_s: 0 is below 1",
                "2:40: timeouts.sctp.closed_s: 2678401 is above 2678400",
                "2:49: timeouts.sctp.cookie: unknown key (did you mean \"cookie_s\"?)",
            ],
        ),
        (
            "sysctls",
            "..\nipvs:\n  conn_reuse_mode: 4\n  drop_entry: off\n  secure_tcp: 4\n  sloppy_tcp: 1\n  am_droprate: 0\n  \
             amemthresh: 4294967296\n  lblc_expiration: 2678401\n  sync_ports: 1\n",
            &[
                "3:20: ipvs.conn_reuse_mode: 4 is above 3",
                "4:15: ipvs.drop_entry: expected a whole number, found off",
                "5:15: ipvs.secure_tcp: 4 is above 3",
                "6:15: ipvs.sloppy_tcp: expected true or false, found a number",
                "7:16: ipvs.am_droprate: 0 is below 1",
                "8:15: ipvs.amemthresh: 4294967296 is above 4294967295",
                "9:20: ipvs.lblc_expiration: 2678401 is above 2678400",
                "10:3: ipvs.sync_ports: unknown key, known are conn_reuse_mode, expire_nodest_conn, \
                 expire_quiescent_template, sloppy_tcp, sloppy_sctp, drop_entry, drop_packet, secure_tcp, am_droprate, \
                 amemthresh, drop_removed, lblc_expiration, lblcr_expiration",
            ],
        ),
        (
            "floods",
            "..\nfloods: {half_open: -1, new_flows_per_s: many}\n",
            &[
                "2:21: floods.half_open: -1 is below 0",
                "2:42: floods.new_flows_per_s: expected a whole number, found many",
            ],
        ),
    ]);
}

#[test]
fn every_setting_of_ipvs_is_read() {
    let text = "interfaces: [{name: eth1}]
timeouts: {tcp: {established_s: 1}, udp_s: 2, sctp: {none_s: 3, established_s: 4, closed_s: 5}}
ipvs:
  conn_reuse_mode: 2
  expire_nodest_conn: true
  expire_quiescent_template: true
  sloppy_tcp: true
  sloppy_sctp: true
  drop_entry: 1
  drop_packet: 2
  secure_tcp: 3
  am_droprate: 11
  amemthresh: 12
  drop_removed: true
  lblc_expiration: 15
  lblcr_expiration: 0
floods: {half_open: 13, new_flows_per_s: 14}
";
    let desired = parse("f", text).unwrap().desired;
    assert_eq!(
        desired.settings(),
        Settings {
            conn_reuse_mode: 2,
            expire_nodest_conn: true,
            expire_quiescent_template: true,
            sloppy_tcp: true,
            sloppy_sctp: true,
            drop_entry: Defence::Automatic,
            drop_packet: Defence::Engaged,
            secure_tcp: Defence::Always,
            am_droprate: 11,
            amemthresh: 12,
            drop_removed: true,
            lblc_expiration_s: 15,
            lblcr_expiration_s: 0,
            half_open: 13,
            new_flows_per_s: 14,
        }
    );
    let mut want = Timeouts { udp_s: 2, ..Timeouts::default() };
    (want.tcp_s[1], want.sctp_s[0], want.sctp_s[8], want.sctp_s[13]) = (1, 3, 4, 5);
    assert_eq!(desired.timeouts(), want);
}

#[test]
fn rules_that_match_nothing_or_too_much_are_refused() {
    let many = format!(
        "..\nmatch_rules:\n  - {{mark: 1}}\n  - {{mark: 2, source_ports: [{}], destination_ports: [{}]}}\n  - {{mark: 3}}\n",
        "1, ".repeat(31) + "2",
        "3, ".repeat(31) + "4"
    );
    assert_faults(&[
        (
            "what is missing or out of range",
            "..\nmatch_rules:\n  - {}\n  - {mark: 0}\n  - {mark: 4294967296, port: 80}\n",
            &[
                "3:5: match_rules[0]: \"mark\" is missing",
                "4:12: match_rules[1].mark: 0 is below 1",
                "5:12: match_rules[2].mark: 4294967296 is above 4294967295",
                "5:24: match_rules[2].port: unknown key, known are mark, sources, destinations, protocols, \
                 destination_ports, source_ports, interface",
            ],
        ),
        (
            "prefixes, ports, protocols, interfaces",
            "..\nmatch_rules:\n  - mark: 1\n    sources: [10.0.0.1/8, x, 10.0.0.0/33]\n    destinations: []\n    \
             protocols: [icmp]\n    destination_ports: [65536, 9-8, 80-, http]\n    interface: eth2\n",
            &[
                "4:15: match_rules[0].sources[0]: 10.0.0.1/8 has bits set behind its prefix: did you mean 10.0.0.0/8?",
                "4:27: match_rules[0].sources[1]: \"x\": invalid IP address syntax",
                "4:30: match_rules[0].sources[2]: \"10.0.0.0/33\": invalid IP address syntax",
                "5:19: match_rules[0].destinations: the list is empty: leave it out to match everything",
                "6:17: match_rules[0].protocols[0]: \"icmp\" is not one of tcp, udp, sctp",
                "7:25: match_rules[0].destination_ports[0]: 65536 is above 65535",
                "7:32: match_rules[0].destination_ports[1]: \"9-8\" is neither a port nor a range of ports such as \
                 8000-8999",
                "7:37: match_rules[0].destination_ports[2]: \"80-\" is neither a port nor a range of ports such as \
                 8000-8999",
                "7:42: match_rules[0].destination_ports[3]: \"http\" is neither a port nor a range of ports such as \
                 8000-8999",
                "8:16: match_rules[0].interface: eth2 is none of the interfaces",
            ],
        ),
        (
            "families",
            "..\nmatch_rules:\n  - {mark: 0}\n  - {mark: 1, sources: [10.0.0.1], destinations: [\"fd00::/8\"]}\n",
            &[
                "3:12: match_rules[0].mark: 0 is below 1",
                "4:5: match_rules[1]: sources and destinations have no address family in common",
            ],
        ),
        (
            "combinations",
            &many,
            &[
                "4:5: match_rules[1]: with this one there are 1025 rules of single prefixes and port ranges, the most \
               are 1024",
            ],
        ),
    ]);
}

#[test]
fn a_rule_is_read_and_spread_out() {
    let text = "interfaces: [{name: eth0}, {name: eth1}]
match_rules:
  - mark: 9
    sources: [10.0.0.0/8, 192.0.2.1, \"fd00::/8\"]
    destinations: [203.0.113.0/24, \"2001:db8::/32\"]
    protocols: [udp, sctp]
    destination_ports: [53, 8000-8999]
    source_ports: [1024-65535]
    interface: eth1
  - {mark: 10}
";
    let desired = parse("f", text).unwrap().desired;
    let [rule, any] = desired.rules() else { panic!("two rules") };
    assert_eq!(*any, MatchRule::new(10.try_into().unwrap()));
    assert_eq!(
        rule.destination_ports,
        [PortRange::new(53, 53), PortRange::new(8000, 8999)].map(Option::unwrap)
    );
    assert_eq!(rule.interface.as_ref().map(|interface| &*interface.name), Some("eth1"));
    assert_eq!((rule.count(), any.count()), (6, 1));
    assert!(rule.has_protocol(Protocol::Udp) && !rule.has_protocol(Protocol::Tcp));
    assert!(rule.has_family(Family::V4) && rule.has_family(Family::V6));
    let spread: Vec<_> = rule.spread().collect();
    assert_eq!(spread.len(), 6);
    assert_eq!(any.spread().count(), 1);
    for rule in &spread {
        let (src, dst) = (rule.src.unwrap(), rule.dst.unwrap());
        assert_eq!((src.v6, rule.port, rule.sports.clone()), (dst.v6, Some(PortId(1)), 1024..=u16::MAX));
    }
    let of_v4 = spread.iter().filter(|rule| !rule.src.unwrap().v6);
    assert_eq!(
        of_v4.map(|rule| rule.dports.clone()).collect::<Vec<_>>(),
        [53..=53, 8000..=8999, 53..=53, 8000..=8999]
    );
}
