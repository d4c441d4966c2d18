//! Single fields: what is refused, and what Weir makes of the rest.

use std::fmt::Write as _;
use std::time::Duration;

use dataplane::schedule::Kind;
use dataplane::snapshot::Timeouts;

use super::super::*;
use super::{read, read_with};
use crate::config::Section;
use crate::source::kubernetes::settings::{DetectLocal, NodePortAddresses, Profile, Settings};

fn settings_of(fields: &str) -> Settings {
    settings(&read(fields).unwrap(), &Section::default(), "host").unwrap()
}

#[test]
fn values_that_kube_proxy_refuses_are_refused() {
    let mut wrong = String::new();
    for (fields, want) in [
        (
            "mode: kernelspace",
            "mode: \"kernelspace\" is not one of iptables, ipvs, nftables: that is the mode of Windows",
        ),
        (
            "mode: userspace",
            "mode: \"userspace\" is not one of iptables, ipvs, nftables: Kubernetes 1.26 removed it",
        ),
        ("mode: IPVS", "mode: \"IPVS\" is not one of iptables, ipvs, nftables"),
        ("iptables: {masqueradeBit: -1}", "iptables.masqueradeBit: not from 0 to 31"),
        ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit: not from 0 to 31"),
        ("mode: ipvs\niptables: {masqueradeBit: 32}", "iptables.masqueradeBit: not from 0 to 31"),
        ("nftables: {masqueradeBit: 32}", ""),
        ("mode: nftables\nnftables: {masqueradeBit: 32}", "nftables.masqueradeBit: not from 0 to 31"),
        (
            "iptables: {syncPeriod: -1s}",
            "iptables.syncPeriod: -1s is not above 0\niptables.syncPeriod: -1s is shorter than minSyncPeriod, 1s",
        ),
        ("iptables: {minSyncPeriod: -1s}", "iptables.minSyncPeriod: -1s is negative"),
        (
            "mode: ipvs\niptables: {minSyncPeriod: 31s}",
            "iptables.syncPeriod: 30s is shorter than minSyncPeriod, 31s",
        ),
        ("ipvs: {syncPeriod: -1s}", ""),
        (
            "mode: ipvs\nipvs: {syncPeriod: -1s}",
            "ipvs.syncPeriod: -1s is not above 0\nipvs.syncPeriod: -1s is shorter than minSyncPeriod, 0s",
        ),
        (
            "mode: ipvs\nipvs: {minSyncPeriod: 1h}",
            "ipvs.syncPeriod: 30s is shorter than minSyncPeriod, 1h0m0s",
        ),
        ("mode: nftables\nnftables: {minSyncPeriod: -1ms}", "nftables.minSyncPeriod: -1ms is negative"),
        ("mode: ipvs\nipvs: {tcpTimeout: -1s}", "ipvs.tcpTimeout: -1s is negative"),
        ("mode: ipvs\nipvs: {tcpFinTimeout: -1s}", "ipvs.tcpFinTimeout: -1s is negative"),
        ("mode: ipvs\nipvs: {udpTimeout: -1s}", "ipvs.udpTimeout: -1s is negative"),
        ("ipvs: {udpTimeout: -1s, scheduler: x, excludeCIDRs: [x]}", ""),
        (
            "mode: ipvs\nipvs: {scheduler: random}",
            "ipvs.scheduler: unknown scheduler \"random\": known are rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, \
             ovf, mh, twos",
        ),
        (
            "mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, 10.0.0.1]}",
            "ipvs.excludeCIDRs[1]: \"10.0.0.1\" is not a network such as 10.0.0.0/8",
        ),
        ("conntrack: {maxPerCore: -1}", "conntrack.maxPerCore: is negative"),
        ("conntrack: {min: -1}", "conntrack.min: is negative"),
        ("conntrack: {tcpEstablishedTimeout: -1s}", "conntrack.tcpEstablishedTimeout: -1s is negative"),
        ("conntrack: {tcpCloseWaitTimeout: -1s}", "conntrack.tcpCloseWaitTimeout: -1s is negative"),
        ("conntrack: {udpTimeout: -1s}", "conntrack.udpTimeout: -1s is negative"),
        ("conntrack: {udpStreamTimeout: -1s}", "conntrack.udpStreamTimeout: -1s is negative"),
        ("oomScoreAdj: -1001", "oomScoreAdj: not from -1000 to 1000"),
        ("oomScoreAdj: 1000", ""),
        ("configSyncPeriod: -1s", "configSyncPeriod: -1s is not above 0"),
        ("bindAddress: localhost", "bindAddress: \"localhost\" is not an IP address"),
        ("healthzBindAddress: localhost:10256", "healthzBindAddress: \"localhost\" is not an IP address"),
        ("metricsBindAddress: 127.0.0.1:0", "metricsBindAddress: \"0\" is not a port from 1 to 65535"),
        ("clusterCIDR: 10.0.0.0", "clusterCIDR: \"10.0.0.0\" is not a network such as 10.244.0.0/16"),
        (
            "clusterCIDR: 10.0.0.0/8,10.1.0.0/16",
            "clusterCIDR: two networks have to be one of IPv4 and one of IPv6",
        ),
        ("clusterCIDR: 'fd00::/8,10.1.0.0/16'", ""),
        (
            "clusterCIDR: '10.0.0.0/8,fd00::/8,fd01::/16'",
            "clusterCIDR: more than one network of IPv4 and one of IPv6",
        ),
        ("detectLocalMode: NodeCIDR\nclusterCIDR: x", ""),
        (
            "detectLocalMode: nodecidr",
            "detectLocalMode: \"nodecidr\" is not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
        ),
        (
            "detectLocalMode: BridgeInterface",
            "detectLocal.bridgeInterface: is empty: detectLocalMode needs it",
        ),
        ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: a-name-of-16-ch}", ""),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: a-name-of-16-cha}",
            "detectLocal.bridgeInterface: \"a-name-of-16-cha\" cannot be an interface's name",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: a/b}",
            "detectLocal.interfaceNamePrefix: \"a/b\" cannot be an interface's name",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix",
            "detectLocal.interfaceNamePrefix: is empty: detectLocalMode needs it",
        ),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", ""),
        (
            "nodePortAddresses: [10.0.0.0/8, 10.0.0.1]",
            "nodePortAddresses[1]: \"10.0.0.1\" is neither a network such as 10.0.0.0/8 nor primary, localhost or all",
        ),
        ("hostnameOverride: ' '", "hostnameOverride: is blank"),
        ("portRange: 1-x", "portRange: \"1-x\" is not a range of ports"),
        ("portRange: 2000-1000", "portRange: \"2000-1000\" is not a range of ports"),
        ("portRange: 1000+20", ""),
        ("clientConnection: {burst: -1}", "clientConnection.burst: is negative"),
        ("clientConnection: {qps: -1}", ""),
        ("clientConnection: {qps: 1e60}", "clientConnection.qps: is out of range"),
        ("logging: {format: xml}", "logging.format: \"xml\" is not one of text, json"),
        (
            "logging: {verbosity: -1}",
            "logging.verbosity: expected a whole number of 32 bits that is not negative, found -1",
        ),
        ("logging: {verbosity: 4294967295}", "logging.verbosity: 4294967295 is above 2147483647"),
        (
            "logging: {format: json, vmodule: [{filePattern: a, verbosity: 1}]}",
            "logging.vmodule: only the format text has it",
        ),
        (
            "logging: {vmodule: [{filePattern: 'a=b'}]}",
            "logging.vmodule[0]: filePattern is empty or has a = or , in it",
        ),
        ("featureGates: {A: 1}", "featureGates.A: expected true or false, found a number"),
    ] {
        let faults = read(fields).map_or_else(|faults| faults.to_string(), |_| String::new());
        let faults: Vec<_> =
            faults.lines().map(|line| line.splitn(4, ':').nth(3).unwrap_or(line).trim()).collect();
        if faults.join("\n") != want {
            writeln!(wrong, "{fields}\n  found  {}\n  wanted {want}", faults.join("\n")).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn listeners_follow_the_bind_address_and_get_their_port() {
    for (fields, health, metrics) in [
        ("", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("bindAddress: 192.0.2.1", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("bindAddress: '::'", "[::]:10256", "[::1]:10249"),
        ("bindAddress: 'fd00::1'", "[::]:10256", "[::1]:10249"),
        ("healthzBindAddress: 10.0.0.1", "10.0.0.1:10256", "127.0.0.1:10249"),
        ("metricsBindAddress: 0.0.0.0", "0.0.0.0:10256", "0.0.0.0:10249"),
        ("metricsBindAddress: '::'", "0.0.0.0:10256", "[::]:10249"),
        ("metricsBindAddress: '[::]:80'", "0.0.0.0:10256", "[::]:80"),
    ] {
        let listen = read(fields).unwrap().listen();
        let found = [listen.health, listen.metrics].map(|addr| addr.unwrap().to_string());
        assert_eq!(found, [health, metrics], "{fields}");
    }
}

#[test]
fn the_mode_selects_whose_periods_and_masquerading_count() {
    let blocks = "iptables: {syncPeriod: 10s, minSyncPeriod: 2s, masqueradeAll: true}\n\
                  ipvs: {syncPeriod: 20s, minSyncPeriod: 3s}\nnftables: {syncPeriod: 40s, minSyncPeriod: 4s}";
    for (mode, profile, sync, min, all) in [
        ("", Profile::Ipvs, 10, 2, true),
        ("iptables", Profile::Ipvs, 10, 2, true),
        ("ipvs", Profile::Ipvs, 20, 3, true),
        ("nftables", Profile::Nftables, 40, 4, false),
    ] {
        let settings = settings_of(&format!("mode: '{mode}'\n{blocks}"));
        assert_eq!((settings.profile, settings.masquerade_all), (profile, all), "{mode}");
        assert_eq!(settings.sync_period, Duration::from_secs(sync), "{mode}");
        assert_eq!(settings.min_sync_period, Duration::from_secs(min), "{mode}");
    }
}

#[test]
fn changes_are_gathered_only_where_a_period_is_said() {
    for (fields, min_ms) in [
        ("mode: ipvs", 0),
        ("mode: iptables", 0),
        ("mode: nftables", 0),
        ("mode: nftables\nnftables: {minSyncPeriod: 0s}", 0),
        ("mode: nftables\niptables: {minSyncPeriod: 1s}", 0),
        ("mode: nftables\nnftables: {minSyncPeriod: 1s}", 1000),
        ("mode: iptables\niptables: {minSyncPeriod: 100ms}", 100),
    ] {
        assert_eq!(settings_of(fields).min_sync_period, Duration::from_millis(min_ms), "{fields}");
    }
}

#[test]
fn schedulers_count_in_mode_ipvs_alone() {
    for (fields, kind, by_port) in [
        ("mode: ipvs", Kind::Rr, false),
        ("mode: ipvs\nipvs: {scheduler: wlc}", Kind::Wlc, false),
        ("mode: ipvs\nipvs: {scheduler: sh}", Kind::Sh, false),
        ("mode: ipvs\nipvs: {scheduler: mh}", Kind::Mh, true),
        ("ipvs: {scheduler: wlc}", Kind::Rr, false),
    ] {
        let scheduling = settings_of(fields).scheduling;
        assert_eq!((scheduling.kind, scheduling.flags.port), (kind, by_port), "{fields}");
    }
}

#[test]
fn node_port_addresses_are_all_primary_or_networks() {
    let networks = |texts: &[&str], primary| NodePortAddresses::Networks {
        networks: texts.iter().map(|text| text.parse().unwrap()).collect(),
        primary,
    };
    for (fields, want) in [
        ("", NodePortAddresses::All),
        ("mode: ipvs\nnodePortAddresses: []", NodePortAddresses::All),
        ("mode: nftables", NodePortAddresses::Primary),
        ("mode: nftables\nnodePortAddresses: []", NodePortAddresses::Primary),
        ("nodePortAddresses: [primary]", NodePortAddresses::Primary),
        ("nodePortAddresses: [all, primary]", NodePortAddresses::All),
        ("nodePortAddresses: [10.1.2.3/8]", networks(&["10.0.0.0/8", "::/0"], false)),
        ("nodePortAddresses: ['fd00::/8', 10.0.0.0/8]", networks(&["fd00::/8", "10.0.0.0/8"], false)),
        ("nodePortAddresses: [0.0.0.0/0]", networks(&["0.0.0.0/0", "::/0"], false)),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", networks(&["10.0.0.0/8"], true)),
        ("nodePortAddresses: [localhost]", networks(&[], false)),
    ] {
        assert_eq!(settings_of(fields).node_port_addresses, want, "{fields}");
    }
}

#[test]
fn pods_are_told_by_networks_or_not_at_all() {
    let nets =
        |texts: &[&str]| DetectLocal::ClusterCidr(texts.iter().map(|text| text.parse().unwrap()).collect());
    for (fields, want) in [
        ("", DetectLocal::Unknown),
        ("clusterCIDR: 10.244.0.0/16", nets(&["10.244.0.0/16"])),
        ("clusterCIDR: '10.244.0.0/16,fd00::/64'", nets(&["10.244.0.0/16", "fd00::/64"])),
        ("clusterCIDR: 10.244.0.0/16\ndetectLocalMode: NodeCIDR", DetectLocal::NodeCidr),
        (
            "clusterCIDR: 10.244.0.0/16\ndetectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            nets(&["10.244.0.0/16"]),
        ),
        (
            "clusterCIDR: x\ndetectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}",
            DetectLocal::Unknown,
        ),
    ] {
        assert_eq!(settings_of(fields).local, want, "{fields}");
    }
}

#[test]
fn gates_switch_off_what_they_are_for() {
    let all = settings_of("").gates;
    for (gate, node, zone, mode, drain, external) in [
        ("PreferSameTrafficDistribution", false, true, true, true, true),
        ("TopologyAwareHints", true, false, true, true, true),
        ("ServiceTrafficDistribution", true, false, true, true, true),
        ("LoadBalancerIPMode", true, true, false, true, true),
        ("KubeProxyDrainingTerminatingNodes", true, true, true, false, true),
        ("AllowServiceExternalIPs", true, true, true, true, false),
        ("SomethingElse", true, true, true, true, true),
    ] {
        let gates = settings_of(&format!("featureGates: {{{gate}: false}}")).gates;
        let found = (
            gates.node_hints,
            gates.zone_hints,
            gates.load_balancer_ip_mode,
            gates.draining_nodes,
            gates.external_ips,
        );
        assert_eq!(found, (node, zone, mode, drain, external), "{gate}");
        assert_eq!(settings_of(&format!("featureGates: {{{gate}: true}}")).gates, all, "{gate}");
    }
}

#[test]
fn the_nodes_name_is_that_of_the_flag_the_section_the_file_or_the_host() {
    let section = Section { node_name: Some("section".into()), ..Section::default() };
    for (flag, with_section, file, want) in [
        (Some(" Flag "), true, "hostnameOverride: File", "flag"),
        (None, true, "hostnameOverride: File", "section"),
        (None, false, "hostnameOverride: ' File '", "file"),
        (Some(""), false, "hostnameOverride: File", "file"),
        (None, false, "", "host"),
    ] {
        let flags: Vec<_> = flag.map(|name| ("hostname-override", name.to_owned())).into_iter().collect();
        let proxy = read_with(file, &Flags::parse(&flags, None).unwrap()).unwrap();
        let section = if with_section { section.clone() } else { Section::default() };
        assert_eq!(&*settings(&proxy, &section, " HOST\n").unwrap().node, want);
    }
    let proxy = read("").unwrap();
    assert_eq!(settings(&proxy, &Section::default(), " "), Err(NoNodeName));
}

#[test]
fn idle_times_are_ipvs_own_or_those_of_connection_tracking() {
    let of = |fields: &str| {
        let mut timeouts = Timeouts::default();
        for (timeout, seconds) in read(fields).unwrap().timeouts() {
            timeout.set(&mut timeouts, seconds);
        }
        (timeouts.tcp_s[1], timeouts.tcp_s[4], timeouts.tcp_s[7], timeouts.udp_s)
    };
    let conntrack = "conntrack: {tcpEstablishedTimeout: 2h, tcpCloseWaitTimeout: 90s, udpTimeout: 30s}";
    for (fields, established, fin_wait, close_wait, udp) in [
        ("", 86_400, 120, 3600, 300),
        ("conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}", 900, 120, 60, 300),
        (conntrack, 7200, 120, 90, 30),
        (&format!("{conntrack}\nmode: ipvs"), 900, 120, 60, 300),
        ("conntrack: {udpTimeout: 30s, udpStreamTimeout: 3m}", 86_400, 120, 3600, 180),
        ("mode: ipvs\nipvs: {tcpTimeout: 1h, tcpFinTimeout: 1500ms, udpTimeout: 5m}", 3600, 2, 60, 300),
        ("mode: ipvs\nipvs: {tcpTimeout: 10000h}", 2_678_400, 120, 60, 300),
    ] {
        assert_eq!(of(fields), (established, fin_wait, close_wait, udp), "{fields}");
    }
}

#[test]
fn flow_tables_take_their_size_from_connection_tracking_only_where_the_file_says_it() {
    for (fields, cores, want) in [
        ("", 64, None),
        ("conntrack: {maxPerCore: null, min: null}", 64, None),
        ("conntrack: {maxPerCore: 1000000}", 4, Some(4_000_000)),
        ("conntrack: {maxPerCore: 1000, min: 500000}", 4, Some(500_000)),
        ("conntrack: {min: 500000}", 4, Some(500_000)),
        ("conntrack: {maxPerCore: 0, min: 500000}", 4, None),
    ] {
        assert_eq!(read(fields).unwrap().flow_limit(cores), want, "{fields}");
    }
}

#[test]
fn what_nobody_has_said_is_what_kube_proxy_does_in_mode_nftables_without_its_timeouts() {
    let proxy = KubeProxy::without_file(&Flags::default()).unwrap();
    let settings = settings(&proxy, &Section::default(), "host").unwrap();
    assert_eq!(settings.profile, Profile::Nftables);
    assert_eq!(settings.node_port_addresses, NodePortAddresses::Primary);
    assert_eq!((proxy.timeouts(), proxy.flow_limit(64), proxy.oom_score_adj()), (Vec::new(), None, None));
}
