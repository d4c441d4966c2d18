//! Faults of services, and services as they are read.

use std::net::Ipv4Addr;

use dataplane::snapshot::{Engine, Mode, Options, SynProxy, Tunnel, TunnelChecksum};

use super::super::write;
use super::{assert_faults, parse};
use crate::model::{
    Access, Backend, DesiredState, Family, Masquerade, Netmask, Origin, Port, Protocol, Reach, Service,
    Unicast, WhenEmpty,
};

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
fn what_leads_to_no_service_is_refused() {
    assert_faults(&[
        (
            "a mark beside VIPs, a family without a mark, marks out of range",
            "..\nservices:\n  - {name: a, mark: 1, vip: 10.0.0.1, port: 80, protocol: tcp, node_port: 30000}\n  \
             - {name: b, vip: 10.0.0.2, port: 80, family: ipv4}\n  - {name: c, mark: 0}\n  \
             - {name: d, mark: 1, family: v6}\n",
            &[
                "3:29: services[0].vip: a service has \"mark\" or \"vip\", not both",
                "3:45: services[0].port: a service has \"mark\" or \"port\", not both",
                "3:59: services[0].protocol: a service has \"mark\" or \"protocol\", not both",
                "3:75: services[0].node_port: a service that is reached by a mark has no node port",
                "4:48: services[1].family: only a service with a mark is told its family",
                "5:21: services[2].mark: 0 is below 1",
                "6:32: services[3].family: \"v6\" is not one of ipv4, ipv6",
            ],
        ),
        (
            "a mark twice in one family",
            "..\nservices:\n  - {name: a, mark: 1}\n  - {name: b, mark: 1, family: ipv6}\n  - {name: c, mark: 1}\n",
            &["5:21: services[2].mark: mark 1 is already used by IPv4 service a (at 3:21)"],
        ),
        (
            "every port",
            "..\nnode_addresses: [192.0.2.1]\nservices:\n  - {name: a, vip: 10.0.0.1, port: 0, node_port: 30000, persistence: {}}\n  \
             - {name: b, vip: 10.0.0.2, port: 0}\n  - {name: c, vip: 10.0.0.1, port: 0, persistence: {}}\n  \
             - {name: d, vip: 10.0.0.1, port: 1}\n",
            &[
                "4:50: services[0].node_port: a service on every port has no node port",
                "5:36: services[1].port: a service on every port needs persistence (one that does without is made by a \
                 mark, see match_rules)",
                "6:20: services[2].vip: 10.0.0.1:0/tcp is already used by service a (at 4:20)",
            ],
        ),
    ]);
}

#[test]
fn persistence_and_options_that_cannot_be_are_refused() {
    assert_faults(&[
        (
            "persistence",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 1, persistence: {timeout_s: 0, netmask: 33}}\n  \
             - {name: b, vip: 10.0.0.2, port: 1, persistence: {timeout_s: 2678401, netmask: 300.0.0.0}}\n  \
             - {name: c, vip: \"fd00::1\", port: 1, persistence: {netmask: 0}}\n  \
             - {name: d, vip: \"fd00::2\", port: 1, persistence: {netmask: 255.0.0.0}}\n  \
             - {name: e, vip: 10.0.0.3, port: 1, persistence: 300}\n",
            &[
                "3:64: services[0].persistence.timeout_s: 0 is below 1",
                "3:76: services[0].persistence.netmask: 33 is above 32",
                "4:64: services[1].persistence.timeout_s: 2678401 is above 2678400",
                "4:82: services[1].persistence.netmask: \"300.0.0.0\": invalid IPv4 address syntax",
                "5:63: services[2].persistence.netmask: 0 is below 1",
                "6:63: services[3].persistence.netmask: expected a whole number, found 255.0.0.0",
                "7:52: services[4].persistence: expected a mapping, found a number",
            ],
        ),
        (
            "one packet of tcp and sctp; a mark has no protocol",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 1, one_packet: true}\n  \
             - {name: b, vip: 10.0.0.1, port: 1, protocol: sctp, one_packet: true}\n  - {name: c, mark: 1, one_packet: true}\n",
            &[
                "3:51: services[0].one_packet: only udp is scheduled packet by packet, and this is tcp",
                "4:67: services[1].one_packet: only udp is scheduled packet by packet, and this is sctp",
            ],
        ),
        (
            "options of tcp, one of which udp has, too",
            "..\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 1\n    protocol: udp\n    proxy_protocol: true\n    \
             toa: true\n    mss: 1400\n    syn_proxy: always\n    stateless_fallback: true\n    drain_s: 5\n",
            &[
                "8:10: services[0].toa: toa is for tcp, and this is udp",
                "9:10: services[0].mss: mss is for tcp, and this is udp",
                "10:16: services[0].syn_proxy: syn_proxy is for tcp, and this is udp",
            ],
        ),
        (
            "options that need the replies, also with a mark",
            "..\nservices:\n  - name: a\n    mark: 1\n    proxy_protocol: true\n    toa: true\n    mss: auto\n    \
             syn_proxy: {above: 5}\n    backends: [{address: 10.1.0.1}, {address: 10.1.0.2, mode: ipip}]\n",
            &[
                "5:21: services[0].proxy_protocol: proxy_protocol needs nat or fullnat, and backend 10.1.0.2:0 is ipip",
                "6:10: services[0].toa: toa needs nat or fullnat, and backend 10.1.0.2:0 is ipip",
                "8:16: services[0].syn_proxy: syn_proxy needs nat or fullnat, and backend 10.1.0.2:0 is ipip",
            ],
        ),
        (
            "values",
            "..\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 1\n    mss: 63\n    syn_proxy: never\n    drain_s: -1\n  \
             - {name: b, vip: 10.0.0.2, port: 1, mss: any, syn_proxy: {}}\n",
            &[
                "6:10: services[0].mss: 63 is below 64",
                "7:16: services[0].syn_proxy: \"never\" is not one of off, always",
                "8:14: services[0].drain_s: -1 is below 0",
                "9:44: services[1].mss: \"any\" is not one of auto",
                "9:60: services[1].syn_proxy: \"above\" is missing",
            ],
        ),
    ]);
}

#[test]
fn backends_that_cannot_be_reached_are_refused() {
    assert_faults(&[
        (
            "tunnels",
            "..\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 80\n    mode: gue\n    backends:\n      \
             - {address: 10.1.0.1}\n      - {address: 10.1.0.2, tunnel: {port: 0}}\n      \
             - {address: 10.1.0.3, mode: ipip, tunnel: {port: 6080, checksum: full}}\n      \
             - {address: 10.1.0.4, mode: gre, tunnel: {checksum: remote}}\n      \
             - {address: 10.1.0.5, mode: nat, tunnel: {port: 6080}}\n      \
             - {address: 10.1.0.6, tunnel: {port: 6080, checksum: some}}\n",
            &[
                "8:9: services[0].backends[0]: gue needs a destination port: set tunnel.port",
                "9:9: services[0].backends[1]: gue needs a destination port: set tunnel.port",
                "9:44: services[0].backends[1].tunnel.port: 0 is below 1",
                "10:49: services[0].backends[2].tunnel: only gue has a port, and this is ipip",
                "10:49: services[0].backends[2].tunnel: ipip has no full checksum",
                "11:48: services[0].backends[3].tunnel: gre has no remote checksum",
                "12:48: services[0].backends[4].tunnel: only gue has a port, and this is nat",
                "13:60: services[0].backends[5].tunnel.checksum: \"some\" is not one of none, full, remote",
            ],
        ),
        (
            "thresholds",
            "..\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 80\n    backends:\n      \
             - {address: 10.1.0.1, upper_threshold: 10, lower_threshold: 11}\n      \
             - {address: 10.1.0.2, lower_threshold: 5}\n      - {address: 10.1.0.3, upper_threshold: 4294967296}\n      \
             - {address: 10.1.0.4, upper_threshold: 10, lower_threshold: 10}\n",
            &[
                "7:67: services[0].backends[0].lower_threshold: lower_threshold 11 is above upper_threshold 10",
                "8:46: services[0].backends[1].lower_threshold: lower_threshold needs an upper_threshold",
                "9:46: services[0].backends[2].upper_threshold: 4294967296 is above 4294967295",
            ],
        ),
        (
            "families: fullnat and tunnels lead to the other one",
            "..\nsnat_pools: [{name: p, addresses: [10.9.0.1]}]\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 80\n    \
             snat_pool: p\n    backends:\n      - {address: \"fd00::1\", mode: nat}\n      \
             - {address: \"fd00::2\", mode: dr}\n      - {address: \"fd00::3\", mode: ipip}\n      \
             - {address: \"fd00::4\", mode: fullnat}\n      - {address: 10.1.0.5, mode: fullnat}\n  \
             - {name: b, mark: 1, family: ipv6, mode: fullnat, snat_pool: p, backends: [{address: 10.1.0.1}]}\n",
            &[
                "7:16: services[0].snat_pool: SNAT pool p has no IPv6 address, which fullnat needs here",
                "9:19: services[0].backends[0].address: fd00::1 is IPv6, the service is IPv4: only fullnat and tunnels \
                 lead to the other family",
                "10:19: services[0].backends[1].address: fd00::2 is IPv6, the service is IPv4: only fullnat and tunnels \
                 lead to the other family",
            ],
        ),
        (
            "ports where they are left as they are",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 80, mode: ipip, backends: [{address: 10.1.0.1, port: 81}]}\n  \
             - {name: b, vip: 10.0.0.1, port: 0, persistence: {}, mode: gre, backends: [{address: 10.1.0.1, port: 81}]}\n  \
             - {name: c, mark: 1, mode: dr, backends: [{address: 10.1.0.1, port: 81}]}\n",
            &[
                "3:89: services[0].backends[0].port: ipip leaves the port as it is: 81 has to be the service's port 80",
                "4:104: services[1].backends[0].port: gre leaves the port as it is, and the service is on every port: \
                 leave the port out",
            ],
        ),
        (
            "a VIP for all and for clients inside, twice each",
            "..\nservices:\n  - {name: a, vip: 10.0.0.1, port: 80}\n  - {name: b, vip: 10.0.0.1, port: 80, clients: inside}\n  \
             - {name: c, vip: 10.0.0.1, port: 80, clients: all}\n  - {name: d, vip: 10.0.0.1, port: 80, clients: inside}\n  \
             - {name: e, mark: 1, clients: inside}\n  - {name: f, vip: 10.0.0.2, port: 80, clients: outside}\n",
            &[
                "5:20: services[2].vip: 10.0.0.1:80/tcp is already used by service a (at 3:20)",
                "6:20: services[3].vip: 10.0.0.1:80/tcp is already used by service b (at 4:20)",
                "7:33: services[4].clients: a service has \"mark\" or \"clients\", not both",
                "8:49: services[5].clients: \"outside\" is not one of all, inside",
            ],
        ),
        (
            "who may use a service, and what becomes of him",
            "..\nlocal_networks: [10.0.0.1/8]\nvirtual_networks: [10.96.0.0/12, 0.0.0.0/0]\nservices:\n  \
             - {name: a, vip: 10.0.0.1, port: 80, source_ranges: [10.0.0.0/33, \"fd00::/8\", 10.0.0.0/8]}\n  \
             - {name: b, vip: 10.0.0.2, port: 80, source_ranges: []}\n  \
             - {name: c, vip: 10.0.0.3, port: 80, when_empty: silence, masquerade: always, backends: [{address: 10.1.0.1}]}\n  \
             - {name: d, vip: 10.0.0.4, port: 80, masquerade: sometimes}\n",
            &[
                "2:18: local_networks[0]: 10.0.0.1/8 has bits set behind its prefix: did you mean 10.0.0.0/8?",
                "3:34: virtual_networks[1]: every address would be one of services",
                "5:56: services[0].source_ranges[0]: \"10.0.0.0/33\": invalid IP address syntax",
                "5:69: services[0].source_ranges[1]: fd00::/8 is IPv6, the service is IPv4",
                "6:55: services[1].source_ranges: the list is empty: leave it out to match everything",
                "7:52: services[2].when_empty: \"silence\" is not one of reject, drop",
                "7:73: services[2].masquerade: service c masquerades and has no SNAT pool: set snat_pool",
                "8:52: services[3].masquerade: \"sometimes\" is not one of hairpin, not-local, always",
            ],
        ),
        (
            "tunnels on a node port",
            "..\nnode_addresses: [192.0.2.1]\nservices:\n  - name: a\n    vip: 10.0.0.1\n    port: 80\n    node_port: 30080\n    \
             mode: ipip\n    backends: [{address: 10.1.0.1}]\n",
            &[
                "7:16: services[0].node_port: a node port needs nat or fullnat: ipip leaves the port as it is, and \
                 backend 10.1.0.1:80 is ipip",
            ],
        ),
    ]);
}

/// The first of the services in `text`.
fn service(text: &str) -> Service {
    let text = format!(
        "interfaces: [{{name: eth1}}]\nsnat_pools: [{{name: p, addresses: [10.9.0.1]}}]\nservices:\n{text}"
    );
    let desired = parse("f", &text).unwrap_or_else(|faults| panic!("{faults}\n{text}")).desired;
    desired.services().next().unwrap().clone()
}

#[test]
fn every_option_of_a_service_is_read() {
    let all = service(
        "  - name: a
    vip: 10.0.0.1
    port: 443
    mode: fullnat
    snat_pool: p
    stateless_fallback: true
    proxy_protocol: true
    toa: true
    mss: 1400
    syn_proxy: {above: 7}
    drain_s: 60
    move_udp: true
    persistence: {timeout_s: 5, netmask: 255.255.0.0}
    persistence_engine: sip
    source_ranges: [192.0.2.0/24, 198.51.100.7]
    masquerade: always
    when_empty: drop
",
    );
    let sources = ["192.0.2.0/24", "198.51.100.7/32"].map(|net| net.parse().unwrap());
    let access =
        Access { sources: Some(sources.into()), masquerade: Masquerade::Always, when_empty: WhenEmpty::Drop };
    assert_eq!(all.access, access);
    let want = Options {
        stateless_fallback: true,
        proxy_protocol: true,
        toa: true,
        mss: Some(1400),
        syn_proxy: SynProxy::Above(7),
        drain_s: Some(60),
        move_udp: true,
    };
    assert_eq!(all.options, want);
    assert_eq!(all.engine, Some(Engine::Sip));
    let persistence = all.persistence.unwrap();
    assert_eq!(persistence.timeout_s.get(), 5);
    assert_eq!(persistence.netmask, Some(Netmask::V4(Ipv4Addr::new(255, 255, 0, 0))));

    let plain = service("  - {name: a, vip: 10.0.0.1, port: 443}\n");
    assert_eq!((plain.options, plain.persistence, plain.one_packet), (Options::default(), None, false));
    assert_eq!((plain.engine, plain.access), (None, Access::default()));
    for (text, want) in [("off", SynProxy::Off), ("always", SynProxy::Always)] {
        let service = service(&format!("  - {{name: a, vip: 10.0.0.1, port: 1, syn_proxy: {text}}}\n"));
        assert_eq!(service.options.syn_proxy, want);
    }
}

#[test]
fn netmasks_are_prefix_lengths_or_masks() {
    for (family, text, want, bits) in [
        ("ipv4", "24", Netmask::V4(Ipv4Addr::new(255, 255, 255, 0)), 0xffff_ff00),
        ("ipv4", "0", Netmask::V4(Ipv4Addr::UNSPECIFIED), 0),
        ("ipv4", "32", Netmask::V4(Ipv4Addr::BROADCAST), 0xffff_ffff),
        ("ipv4", "255.0.255.0", Netmask::V4(Ipv4Addr::new(255, 0, 255, 0)), 0xff00_ff00),
        ("ipv6", "64", Netmask::V6(64), !0 << 64),
        ("ipv6", "128", Netmask::V6(128), !0),
    ] {
        let text = format!("  - {{name: a, mark: 1, family: {family}, persistence: {{netmask: {text}}}}}\n");
        let netmask = service(&text).persistence.unwrap().netmask.unwrap();
        assert_eq!((netmask, netmask.bits()), (want, bits), "{text}");
    }
}

#[test]
fn backends_take_from_their_service_what_they_do_not_say() {
    let addr = Unicast::new([10, 1, 0, 1].into()).unwrap();
    let (own, services) = (Port::new(8080), Port::new(80));
    let tunnel = |port, checksum| Tunnel { port, checksum };
    let gue =
        Backend { tunnel: tunnel(6080, TunnelChecksum::Full), ..Backend::new(addr, services, Mode::Gue) };
    let on_80 = "vip: 10.0.0.1, port: 80";
    for (reach, backend, want) in [
        (on_80, "", gue),
        (on_80, ", tunnel: {port: 1}", Backend { tunnel: tunnel(1, TunnelChecksum::None), ..gue }),
        (on_80, ", mode: nat", Backend::new(addr, services, Mode::Nat)),
        (on_80, ", mode: nat, port: 8080", Backend::new(addr, own, Mode::Nat)),
        (on_80, ", mode: nat, port: 0", Backend::new(addr, None, Mode::Nat)),
        (on_80, ", mode: ipip, upper_threshold: 5, lower_threshold: 4", {
            Backend { upper: 5, lower: 4, ..Backend::new(addr, services, Mode::Ipip) }
        }),
        ("mark: 5", ", mode: dr", Backend::new(addr, None, Mode::Dr)),
        ("mark: 5", ", mode: nat, port: 8080", Backend::new(addr, own, Mode::Nat)),
        ("vip: 10.0.0.1, port: 0, persistence: {}", ", mode: nat", Backend::new(addr, None, Mode::Nat)),
    ] {
        let text = format!(
            "  - {{name: a, {reach}, mode: gue, tunnel: {{port: 6080, checksum: full}}, backends: [{{address: 10.1.0.1{backend}}}]}}\n"
        );
        assert_eq!(*service(&text).backends, [want], "{text}");
    }
}

#[test]
fn services_say_what_leads_to_them() {
    let vip =
        service("  - {name: a, vips: [10.0.0.1, 10.0.0.2], port: 0, protocol: sctp, persistence: {}}\n");
    assert_eq!((vip.port(), vip.protocol(), vip.family()), (None, Some(Protocol::Sctp), Family::V4));
    assert!(vip.keys().all(|key| key.port == 0 && key.proto == 132) && vip.keys().count() == 2);
    assert!(vip.mark().is_none() && vip.keeps_ports());
    let mark = service("  - {name: a, mark: 4294967295, family: ipv6}\n");
    assert_eq!((mark.port(), mark.protocol(), mark.family()), (None, None, Family::V6));
    assert!(mark.mark().unwrap().v6 && mark.keys().next().is_none() && !mark.keeps_ports());
    assert_ne!(vip.identity(), mark.identity());
}

#[test]
fn services_that_no_file_has_are_written_as_comments() {
    let text = "interfaces: [{name: eth1}]\nnode_addresses: [192.0.2.1]\nservices:\n  \
                - {name: a, vip: 10.0.0.1, port: 80, node_port: 30080}\n  - {name: b, vip: 10.0.0.2, port: 80}\n  \
                - {name: c, vip: 10.0.0.3, port: 80}\n";
    let config = parse("f", text).unwrap();
    let mut draft = config.desired.draft().clone();
    for (service, change) in draft.services.iter_mut().zip(0..) {
        let Reach::Vips(vips) = &mut service.reach else { panic!("no VIPs") };
        match change {
            0 => vips.addresses.clear(),
            1 => service.origin = Origin::Kubernetes,
            _ => {}
        }
    }
    let written = write(&config.settings, &config.kubernetes, &DesiredState::new(draft).unwrap());
    for reason in ["it has no VIP", "it is from Kubernetes"] {
        assert!(written.contains(&format!("# not read again: {reason}\n")), "{written}");
    }
    let again = parse("f", &written).unwrap_or_else(|faults| panic!("{faults}\n{written}"));
    let names: Vec<_> = again.desired.services().map(|service| &*service.name).collect();
    assert_eq!(names, ["c"]);
}
