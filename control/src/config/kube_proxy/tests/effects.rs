//! What is told of fields, and what a change of them takes.

use std::collections::BTreeSet;

use super::super::*;
use super::read;
use crate::config::Section;

/// All paths of values that are not mappings.
fn leaves(path: &str, value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) if !path.starts_with("logging.options.") => {
            for (key, value) in map {
                let deeper = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(&deeper, value, found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn every_field_of_the_document_is_told_about_once() {
    for fields in ["", "mode: ipvs", "mode: nftables\nlogging: {vmodule: [{filePattern: a, verbosity: 1}]}"] {
        let proxy = read(fields).unwrap();
        let mut known = BTreeSet::new();
        leaves("", &serde_json::to_value(proxy.document()).unwrap(), &mut known);
        known.remove("apiVersion");
        known.remove("kind");
        known.insert("logging.vmodule".to_owned());
        let told: Vec<_> = proxy.effects(&Section::default()).into_iter().map(|field| field.field).collect();
        assert_eq!(told, known.into_iter().collect::<Vec<_>>(), "{fields}");
    }
}

#[test]
fn the_documentation_has_every_field_and_every_flag() {
    let documentation = include_str!("../../../../../docs/kube-proxy-config.md");
    let proxy = read("").unwrap();
    let fields = proxy.effects(&Section::default()).into_iter().map(|field| field.field);
    let flags = crate::config::kube_proxy::flags::FLAGS.iter().map(|flag| format!("--{}", flag.name));
    let missing: Vec<_> =
        fields.chain(flags).filter(|name| !documentation.contains(&format!("`{name}`"))).collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn what_is_said_and_has_no_effect_is_warned_of() {
    for (fields, want) in [
        ("windowsRunAsService: false\nportRange: ''\nipvs: {strictARP: false}", ""),
        (
            "clientConnection: {contentType: application/json}",
            "clientConnection.contentType: no effect: Weir asks for JSON",
        ),
        ("ipvs: {scheduler: lc}", "ipvs.scheduler: no effect: the mode is iptables"),
        ("mode: ipvs\nipvs: {scheduler: lc}", ""),
        ("mode: ipvs\niptables: {syncPeriod: 10s}", "iptables.syncPeriod: no effect: the mode is ipvs"),
        ("mode: ipvs\niptables: {masqueradeAll: true}", ""),
        (
            "mode: nftables\niptables: {masqueradeAll: true}",
            "iptables.masqueradeAll: no effect: the mode is nftables",
        ),
        ("iptables: {masqueradeBit: 15}", "iptables.masqueradeBit: no effect: Weir marks no packets"),
        (
            "mode: ipvs\nipvs: {strictARP: true}",
            "ipvs.strictARP: no effect: no interface of the kernel has the virtual addresses; kubernetes.announce says \
             who answers for them",
        ),
        (
            "mode: ipvs\nconntrack: {tcpEstablishedTimeout: 1h}",
            "conntrack.tcpEstablishedTimeout: no effect: in mode ipvs the block ipvs has the timeouts",
        ),
        ("conntrack: {tcpBeLiberal: true}", ""),
        (
            "conntrack: {udpTimeout: 1s, udpStreamTimeout: 2s}",
            "conntrack.udpTimeout: no effect: Weir has one time for UDP: udpStreamTimeout is it",
        ),
        ("featureGates: {LoadBalancerIPMode: false}", ""),
        (
            "featureGates: {Other: true}",
            "featureGates.Other: no effect: Weir has nothing that this gate switches",
        ),
        (
            "configSyncPeriod: 5m",
            "configSyncPeriod: no effect: what is watched is not gone through again on a timer",
        ),
        ("enableProfiling: true", "enableProfiling: no effect: Weir serves no profiles"),
        ("winkernel: {sourceVip: 10.0.0.1}", "winkernel.sourceVip: no effect: of Windows"),
        (
            "nodePortAddresses: [localhost]",
            "nodePortAddresses[0]: node ports are not served on loopback addresses",
        ),
        (
            "nodePortAddresses: [127.0.0.0/8]",
            "nodePortAddresses[0]: node ports are not served on loopback addresses",
        ),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            "detectLocal.bridgeInterface: no effect: Weir tells pods by their addresses, not by interfaces",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\nclusterCIDR: ''",
            "detectLocalMode: no effect: Weir tells pods by their addresses, not by interfaces: say clusterCIDR, or \
             kubernetes.cluster_cidrs\n\
             detectLocal.interfaceNamePrefix: no effect: Weir tells pods by their addresses, not by interfaces\n\
             clusterCIDR: the key is already at 3:1",
        ),
        ("udpIdleTimeout: 250ms", "udpIdleTimeout: no effect: of a proxy mode that is no more"),
        (
            "configSyncPeriod: ''",
            "configSyncPeriod: an empty duration counts as left out; kube-proxy does not start with it",
        ),
    ] {
        let proxy = read(&format!("clusterCIDR: 10.244.0.0/16\n{fields}")).unwrap();
        let warnings: Vec<_> =
            proxy.warnings().iter().map(|warning| format!("{}: {}", warning.path, warning.reason)).collect();
        assert_eq!(warnings.join("\n"), want, "{fields}");
        assert!(proxy.warnings().iter().all(|warning| warning.at.is_some()), "{fields}");
    }
}

#[test]
fn the_section_of_weirs_own_configuration_takes_the_place_of_fields() {
    let proxy = read("mode: ipvs\nipvs: {scheduler: lc}\nclusterCIDR: 10.0.0.0/8").unwrap();
    let text = "interfaces: [{name: a}]\nsnat_pools: [{name: p, addresses: [10.9.0.1]}]\n\
                kubernetes: {scheduler: mh, cluster_cidrs: [10.1.0.0/16], node_port_addresses: [primary], sync_s: 7, \
                masquerade_all: true, profile: nftables, node_name: n, kubeconfig: /k, exclude_cidrs: [], min_sync_ms: 1}";
    let section = crate::config::parse("f", text).unwrap().kubernetes;
    let overruled: Vec<_> = proxy
        .effects(&section)
        .into_iter()
        .filter(|field| field.overruled)
        .map(|field| field.field)
        .collect();
    assert_eq!(
        overruled,
        [
            "clientConnection.kubeconfig",
            "clusterCIDR",
            "detectLocalMode",
            "hostnameOverride",
            "iptables.masqueradeAll",
            "iptables.minSyncPeriod",
            "iptables.syncPeriod",
            "ipvs.excludeCIDRs",
            "ipvs.minSyncPeriod",
            "ipvs.scheduler",
            "ipvs.syncPeriod",
            "mode",
            "nftables.masqueradeAll",
            "nftables.minSyncPeriod",
            "nftables.syncPeriod",
            "nodePortAddresses",
        ]
    );
}

#[test]
fn of_fields_that_do_not_count_beside_the_section_nothing_is_warned() {
    let proxy = read("nodePortAddresses: [127.0.0.0/8]\nportRange: 1-2").unwrap();
    let paths = |text: &str| -> Vec<String> {
        let text = format!("interfaces: [{{name: a}}]\n{text}");
        let section = crate::config::parse("f", &text).unwrap().kubernetes;
        proxy.warnings_beside(&section).map(|warning| warning.path.clone()).collect()
    };
    assert_eq!(paths(""), ["clusterCIDR", "nodePortAddresses[0]", "portRange"]);
    assert_eq!(
        paths("kubernetes: {mode: dr, node_cidr: true, node_port_addresses: [primary]}"),
        ["portRange"]
    );
}

#[test]
fn a_change_is_live_unless_a_field_is_used_at_start() {
    let live = |fields: &[&str]| Change::Live(fields.iter().map(|field| (*field).to_owned()).collect());
    let restart =
        |fields: &[&str]| Change::RestartNeeded(fields.iter().map(|field| (*field).to_owned()).collect());
    for (old, new, want) in [
        ("", "# nothing\n", Change::None),
        ("", "bindAddress: 0.0.0.0", Change::None),
        ("", "clusterCIDR: 10.0.0.0/8", live(&["clusterCIDR"])),
        ("mode: ipvs\nipvs: {scheduler: rr}", "mode: ipvs\nipvs: {scheduler: lc}", live(&["ipvs.scheduler"])),
        ("", "mode: nftables", live(&["mode", "nodePortAddresses"])),
        ("", "logging: {verbosity: 5}", live(&["logging.verbosity"])),
        ("featureGates: {A: true}", "featureGates: {A: false}", live(&["featureGates.A"])),
        ("", "clientConnection: {qps: 50}\nclusterCIDR: 10.0.0.0/8", restart(&["clientConnection.qps"])),
        ("", "bindAddress: '::'", restart(&["healthzBindAddress", "metricsBindAddress"])),
        ("", "hostnameOverride: a", restart(&["hostnameOverride"])),
        ("", "conntrack: {maxPerCore: 5}", restart(&["conntrack.maxPerCore"])),
        ("conntrack: {maxPerCore: 5}", "", restart(&["conntrack.maxPerCore"])),
        ("", "oomScoreAdj: 0\nlogging: {format: json}", restart(&["logging.format", "oomScoreAdj"])),
    ] {
        assert_eq!(change(&read(old).unwrap(), &read(new).unwrap()), want, "{old} -> {new}");
    }
}
