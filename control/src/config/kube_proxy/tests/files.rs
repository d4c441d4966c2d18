//! Whole files: kubeadm's ConfigMap, JSON, strict then lenient, and what is no configuration at all.

use std::time::Duration;

use proptest::prelude::*;

use super::super::*;
use super::HEAD;
use crate::config::Section;
use crate::source::kubernetes::settings::{DetectLocal, NodePortAddresses, Profile};

const KUBEADM: &str = include_str!("kubeadm.yaml");

fn read(text: &str) -> Result<KubeProxy, Faults> {
    parse("f", text, &Flags::default())
}

/// What is displayed of faults, or of warnings where there are no faults.
fn told(text: &str) -> Vec<String> {
    let told = match read(text) {
        Ok(read) => read.warnings().to_string(),
        Err(faults) => format!("fault: {faults}"),
    };
    told.lines().map(str::to_owned).collect()
}

#[test]
fn the_config_map_of_kubeadm_loads_without_a_word() {
    let read = read(KUBEADM).unwrap();
    assert_eq!(read.warnings().to_string(), "");
    let settings = settings(&read, &Section::default(), " Node-A ").unwrap();
    assert_eq!(&*settings.node, "node-a");
    assert_eq!(settings.local, DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]));
    assert_eq!(settings.node_port_addresses, NodePortAddresses::All);
    assert_eq!((settings.profile, settings.masquerade_all), (Profile::Ipvs, false));
    assert_eq!(settings.sync_period, Duration::from_secs(30));
    assert_eq!(settings.min_sync_period, Duration::ZERO);
    assert_eq!(
        read.client(),
        Client {
            kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
            master: None,
            qps: Some(5.0),
            burst: 10,
        }
    );
    let listen = read.listen();
    assert_eq!(listen.health, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(listen.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!((read.oom_score_adj(), read.flow_limit(8)), (Some(-999), None));
}

#[test]
fn faults_in_a_config_map_have_the_places_of_its_own_text() {
    for (name, old, new, want) in [
        (
            "a wrong value",
            "bindAddress: 0.0.0.0",
            "bindAddress: x",
            "fault: f:5:18: bindAddress: \"x\" is not an IP address",
        ),
        (
            "a wrong type deep inside",
            "      burst: 0",
            "      burst: many",
            "fault: f:9:14: clientConnection.burst: expected a whole number of 32 bits, found a string",
        ),
        (
            "an unknown key",
            "    clusterCIDR:",
            "    clusterCidr:",
            "f:13:5: clusterCidr: unknown key (did you mean \"clusterCIDR\"?)",
        ),
        (
            "another kind inside",
            "kind: KubeProxyConfiguration",
            "kind: KubeletConfiguration",
            "fault: f:45:11: kind: \
         \"KubeletConfiguration\" is not KubeProxyConfiguration",
        ),
        (
            "no configuration",
            "  config.conf: |-",
            "  other.conf: |-",
            "fault: f:3:3: data: the ConfigMap has no key config.conf",
        ),
        (
            "text that is not YAML",
            "    configSyncPeriod: 0s",
            "    configSyncPeriod: 0s: x",
            "fault: f:14:25: data[\"config.conf\"]: not YAML: mapping values are not allowed in this context",
        ),
    ] {
        let text = KUBEADM.replacen(old, new, 1);
        assert_ne!(text, KUBEADM, "{name}");
        let told = told(&text);
        assert!(told.iter().any(|line| line == want), "{name}: {told:#?}");
    }
    let quoted = format!("kind: ConfigMap\ndata:\n  config.conf: {:?}\n", format!("{HEAD}mode: x\n"));
    assert_eq!(told(&quoted), ["fault: f:3:16: mode: \"x\" is not one of iptables, ipvs, nftables"]);
}

#[test]
fn what_is_written_is_the_document_with_its_defaults_and_is_read_again() {
    let whole = read(KUBEADM).unwrap();
    let written = whole.document().to_yaml().unwrap();
    assert_eq!(written, include_str!("defaulted.yaml"));
    let again = read(&written).unwrap();
    assert_eq!(again.document(), whole.document());
    assert_eq!(again.document().to_yaml().unwrap(), written);
    let text = format!(
        "{HEAD}mode: ipvs\nfeatureGates: {{A: true}}\nnodePortAddresses: ['::/0', primary]\nhostnameOverride: 'yes'\n\
         logging: {{vmodule: [{{filePattern: '*', verbosity: 3}}]}}\nconntrack: {{udpTimeout: 1500us}}\n"
    );
    let first = read(&text).unwrap();
    assert_eq!(read(&first.document().to_yaml().unwrap()).unwrap().document(), first.document());
}

#[test]
fn json_is_read_like_yaml() {
    let text = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "ipvs", "ipvs": {"scheduler": "wlc", "excludeCIDRs": ["10.9.0.0/16"]}, "oomScoreAdj": null}"#;
    let read = read(text).unwrap();
    assert_eq!((read.mode(), read.document().ipvs.scheduler.as_str()), (ProxyMode::Ipvs, "wlc"));
}

#[test]
fn what_strict_decoding_refuses_is_warned_of_and_what_lenient_decoding_refuses_is_a_fault() {
    for (name, text, want) in [
        ("an unknown key", "zzz: 1\n", &["f:3:1: zzz: unknown key, known are"][..]),
        (
            "an unknown key in a block",
            "ipvs: {shceduler: rr}\n",
            &["f:3:8: ipvs.shceduler: unknown key (did you mean \"scheduler\"?)"],
        ),
        (
            "a key twice",
            "clusterCIDR: x\nclusterCIDR: 10.0.0.0/8\n",
            &["f:4:1: clusterCIDR: the key is already at 3:1"],
        ),
        (
            "a gate twice",
            "featureGates: {LoadBalancerIPMode: true, LoadBalancerIPMode: false}\n",
            &["f:3:42: featureGates.LoadBalancerIPMode: the key is already at 3:36"],
        ),
        (
            "a number for a string",
            "clusterCIDR: 10\n",
            &["fault: f:3:14: clusterCIDR: expected a string, found a number: put it in quotes"],
        ),
        (
            "a string for a number",
            "oomScoreAdj: \"1\"\n",
            &["fault: f:3:14: oomScoreAdj: expected a whole number of 32 bits, found a string"],
        ),
        (
            "a number that is too large",
            "oomScoreAdj: 2147483648\n",
            &["fault: f:3:14: oomScoreAdj: expected a whole number of 32 bits, found 2147483648"],
        ),
        (
            "a string for a boolean",
            "enableProfiling: \"true\"\n",
            &["fault: f:3:18: enableProfiling: expected true or false, found a string"],
        ),
        ("a list for a mapping", "ipvs: []\n", &["fault: f:3:7: ipvs: expected a mapping, found a list"]),
        (
            "a string for a list",
            "nodePortAddresses: primary\n",
            &["fault: f:3:20: nodePortAddresses: expected a list, found a string"],
        ),
        (
            "a number for a duration",
            "configSyncPeriod: 5\n",
            &["fault: f:3:19: configSyncPeriod: expected a duration in quotes with a unit, such as \"30s\""],
        ),
        (
            "no duration",
            "configSyncPeriod: 5d\n",
            &["fault: f:3:19: configSyncPeriod: \"5d\": not a duration such as 30s, 1m30s or 1h"],
        ),
    ] {
        let found =
            told(&format!("{HEAD}clientConnection: {{}}\n{text}").replace("clientConnection: {}\n", ""));
        let found: Vec<_> =
            found.iter().filter(|line| !line.contains("pods' addresses cannot be told")).collect();
        assert_eq!(found.len(), want.len(), "{name}: {found:?}");
        for (found, want) in found.iter().zip(want) {
            assert!(found.starts_with(want), "{name}: {found}");
        }
    }
}

#[test]
fn of_a_key_that_stands_twice_the_last_one_counts() {
    let read = read(&format!("{HEAD}mode: ipvs\nmode: nftables\n")).unwrap();
    assert_eq!(read.mode(), ProxyMode::Nftables);
}

#[test]
fn the_kind_and_its_version_have_to_be_the_known_ones() {
    for (text, want) in [
        ("", "f: the file is empty"),
        ("- a\n", "f:1:1: expected a mapping, found a list"),
        (
            "kind: KubeProxyConfiguration\n",
            "f:1:1: \"apiVersion\" is missing: expected kubeproxy.config.k8s.io/v1alpha1",
        ),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n",
            "f:1:1: \"kind\" is missing: expected KubeProxyConfiguration",
        ),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration\n",
            "f:1:13: apiVersion: \"kubeproxy.config.k8s.io/v1alpha2\" is not kubeproxy.config.k8s.io/v1alpha1",
        ),
        ("kind: ConfigMap\n", "f:1:1: data: the ConfigMap has no key config.conf"),
        ("kind: ConfigMap\ndata: {config.conf: [a]}\n", "f:2:21: data: config.conf is not a text"),
    ] {
        assert_eq!(read(text).unwrap_err().to_string(), want, "{text}");
    }
}

#[test]
fn several_faults_are_told_at_once_and_by_position() {
    let text = format!("{HEAD}mode: x\nbindAddress: y\nipvs: {{syncPeriod: z}}\noomScoreAdj: 2000\n");
    assert_eq!(
        read(&text).unwrap_err().to_string(),
        "f:3:7: mode: \"x\" is not one of iptables, ipvs, nftables\n\
         f:4:14: bindAddress: \"y\" is not an IP address\n\
         f:5:20: ipvs.syncPeriod: \"z\": not a duration such as 30s, 1m30s or 1h\n\
         f:6:14: oomScoreAdj: not from -1000 to 1000"
    );
}

/// Text that looks like a configuration.
fn near_yaml() -> impl Strategy<Value = String> {
    let keys = prop::sample::select(vec![
        "apiVersion",
        "kind",
        "data",
        "config.conf",
        "mode",
        "ipvs",
        "logging",
        "vmodule",
        "featureGates",
        "conntrack",
        "nodePortAddresses",
        "clusterCIDR",
        "syncPeriod",
        "bindAddress",
        "healthzBindAddress",
        "options",
        "json",
    ]);
    let values = prop::sample::select(vec![
        "",
        "~",
        "ConfigMap",
        "KubeProxyConfiguration",
        "ipvs",
        "1h",
        "-1s",
        "[primary, 10.0.0.0/8]",
        "{a: true}",
        "|",
        "0",
        "-1",
        "1e99",
        "[::]:1",
        "10.0.0.0/8,fd00::/8",
        "99999999999999999999",
        "'x",
        "[[[",
        "{}",
        "\u{1F980}",
    ]);
    let line =
        ("[ ]{0,6}", keys, values).prop_map(|(indent, key, value)| format!("{indent}{key}: {value}\n"));
    (any::<bool>(), prop::collection::vec(line, 0..20)).prop_map(|(head, lines)| {
        let head = if head { HEAD } else { "" };
        format!("{head}{}", lines.concat())
    })
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "\\PC{0,200}") {
        let _ = read(&text);
        let _ = read(&format!("{HEAD}{text}"));
    }

    #[test]
    fn no_text_that_looks_like_a_configuration_makes_reading_panic(text in near_yaml()) {
        if let Ok(read) = read(&text) {
            let _ = settings(&read, &Section::default(), "n");
            let _ = (read.timeouts(), read.client(), read.listen(), read.flow_limit(64));
        }
    }
}
