//! kube-proxy's flags, alone and beside a file.

use std::collections::BTreeSet;

use super::super::flags::{FLAGS, Kind};
use super::super::*;
use super::read_with;
use crate::config::Section;

fn flags(said: &[(&'static str, &str)]) -> Result<Flags, Faults> {
    let said: Vec<_> = said.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Flags::parse(&said, None)
}

fn alone(said: &[(&'static str, &str)]) -> Result<KubeProxy, Faults> {
    KubeProxy::without_file(&flags(said)?)
}

#[test]
fn every_flag_stands_for_a_field_that_is_told_about() {
    let told: BTreeSet<_> = alone(&[("proxy-mode", "ipvs")])
        .unwrap()
        .effects(&Section::default())
        .into_iter()
        .map(|field| field.field)
        .collect();
    for flag in FLAGS {
        assert!(told.contains(flag.path) || flag.path == "featureGates", "{}", flag.name);
    }
    let names: BTreeSet<_> = FLAGS.iter().map(|flag| flag.name).collect();
    assert_eq!(names.len(), FLAGS.len());
}

#[test]
fn every_flag_sets_its_field() {
    for flag in FLAGS.iter().filter(|flag| flag.kind != Kind::Port) {
        let (value, want) = match (flag.kind, flag.name) {
            (_, "proxy-mode") => ("ipvs", serde_json::json!("ipvs")),
            (_, "detect-local-mode") => ("NodeCIDR", serde_json::json!("NodeCIDR")),
            (_, "bind-address") => ("192.0.2.1", serde_json::json!("192.0.2.1")),
            (_, "cluster-cidr") => ("10.0.0.0/8", serde_json::json!("10.0.0.0/8")),
            (_, "proxy-port-range") => ("1-2", serde_json::json!("1-2")),
            (_, "logging-format") => ("text", serde_json::json!("text")),
            (_, "healthz-bind-address" | "metrics-bind-address") => {
                ("10.0.0.1:80", serde_json::json!("10.0.0.1:80"))
            }
            (_, "kube-api-qps") => ("2.5", serde_json::json!(2.5)),
            (Kind::Text, _) => ("lc", serde_json::json!("lc")),
            (Kind::Number, _) => ("7", serde_json::json!(7)),
            (Kind::Duration, _) => ("10s", serde_json::json!("10s")),
            (Kind::Switch, _) => ("true", serde_json::json!(true)),
            (Kind::List, _) => ("10.0.0.0/8,fd00::/8", serde_json::json!(["10.0.0.0/8", "fd00::/8"])),
            (Kind::Gates, _) => ("A=true,B=false", serde_json::json!({"A": true, "B": false})),
            (Kind::Modules, _) => ("a=1", serde_json::json!([{"filePattern": "a", "verbosity": 1}])),
            (Kind::Port, _) => continue,
        };
        let proxy = alone(&[(flag.name, value)]).unwrap();
        let document = serde_json::to_value(proxy.document()).unwrap();
        let found = flag.path.split('.').fold(&document, |value, key| &value[key]);
        assert_eq!(*found, want, "{}", flag.name);
    }
}

#[test]
fn flags_that_make_no_sense_are_refused_by_their_names() {
    for (said, want) in [
        (
            &[("cluster-cidr", "x")][..],
            "command line: --cluster-cidr: \"x\" is not a network such as 10.244.0.0/16",
        ),
        (
            &[("nodeport-addresses", "10.0.0.0/8,x")],
            "command line: --nodeport-addresses[1]: \"x\" is neither a network \
            such as 10.0.0.0/8 nor primary, localhost or all",
        ),
        (
            &[("masquerade-all", "maybe")],
            "command line: --masquerade-all: expected true or false, found a string",
        ),
        (
            &[("oom-score-adj", "low")],
            "command line: --oom-score-adj: expected a whole number of 32 bits, found a string",
        ),
        (
            &[("feature-gates", "A")],
            "command line: --feature-gates: \"A\" is not Gate=true with commas between",
        ),
        (
            &[("feature-gates", "A=x")],
            "command line: --feature-gates: expected true or false, found a string",
        ),
        (
            &[("vmodule", "a=b")],
            "command line: --vmodule[0].verbosity: expected a whole number of 32 bits that is not \
            negative, found a string",
        ),
        (&[("healthz-port", "x")], "command line: --healthz-port: \"x\" is not a port"),
        (
            &[("proxy-mode", "kernelspace")],
            "command line: --proxy-mode: \"kernelspace\" is not one of iptables, ipvs, \
            nftables: that is the mode of Windows",
        ),
        (&[("hostname-override", " ")], "command line: --hostname-override: is blank"),
    ] {
        assert_eq!(alone(said).unwrap_err().to_string(), want);
    }
}

#[test]
fn kube_proxys_defaults_count_once_a_flag_says_what_becomes_of_packets() {
    for (said, mode) in [
        (&[][..], ProxyMode::Nftables),
        (
            &[("kubeconfig", "/k"), ("v", "4"), ("hostname-override", "n"), ("healthz-bind-address", "::")],
            ProxyMode::Nftables,
        ),
        (&[("cluster-cidr", "10.0.0.0/8")], ProxyMode::Iptables),
        (&[("masquerade-all", "")], ProxyMode::Iptables),
        (&[("proxy-mode", "ipvs")], ProxyMode::Ipvs),
    ] {
        let said: Vec<_> = said
            .iter()
            .map(|(name, value)| match *name {
                "masquerade-all" => (*name, "t"),
                _ => (*name, *value),
            })
            .collect();
        let proxy = alone(&said).unwrap();
        assert_eq!(proxy.mode(), mode, "{said:?}");
        assert_eq!(
            proxy.timeouts().is_empty(),
            said.iter().all(|(name, _)| NEUTRAL.contains(name) || *name == "proxy-mode")
        );
    }
}

const NEUTRAL: [&str; 4] = ["kubeconfig", "v", "hostname-override", "healthz-bind-address"];

#[test]
fn flags_of_the_mode_iptables_count_in_nftables_too() {
    let said = [
        ("proxy-mode", "nftables"),
        ("masquerade-all", "1"),
        ("iptables-sync-period", "5s"),
        ("iptables-min-sync-period", "2s"),
    ];
    let settings = settings(&alone(&said).unwrap(), &Section::default(), "host").unwrap();
    assert!(settings.masquerade_all);
    assert_eq!((settings.sync_period.as_secs(), settings.min_sync_period.as_secs()), (5, 2));
}

#[test]
fn listeners_take_their_ports_from_deprecated_flags_and_none_from_empty_ones() {
    for (said, health, metrics) in [
        (&[][..], Some("0.0.0.0:10256"), Some("127.0.0.1:10249")),
        (&[("healthz-port", "1"), ("metrics-port", "2")], Some("0.0.0.0:1"), Some("127.0.0.1:2")),
        (&[("healthz-port", "0"), ("metrics-port", "0")], None, None),
        (
            &[("healthz-bind-address", "10.0.0.1"), ("healthz-port", "1")],
            Some("10.0.0.1:1"),
            Some("127.0.0.1:10249"),
        ),
        (
            &[("healthz-bind-address", "10.0.0.1:5"), ("healthz-port", "1")],
            Some("10.0.0.1:5"),
            Some("127.0.0.1:10249"),
        ),
        (&[("metrics-bind-address", "")], Some("0.0.0.0:10256"), None),
        (&[("bind-address", "::1"), ("metrics-port", "2")], Some("[::]:10256"), Some("[::1]:2")),
    ] {
        let listen = alone(said).unwrap().listen();
        assert_eq!(listen.health, health.map(|addr| addr.parse().unwrap()), "{said:?}");
        assert_eq!(listen.metrics, metrics.map(|addr| addr.parse().unwrap()), "{said:?}");
    }
}

#[test]
fn beside_a_file_only_names_and_logging_count() {
    let said = [
        ("cluster-cidr", "10.0.0.0/8"),
        ("proxy-mode", "ipvs"),
        ("healthz-port", "0"),
        ("hostname-override", "flag"),
        ("v", "4"),
        ("vmodule", "a=1"),
        ("logging-format", "text"),
    ];
    let flags = flags(&said).unwrap();
    let file = "hostnameOverride: file\nlogging: {verbosity: 2, vmodule: [{filePattern: b, verbosity: 2}]}";
    let proxy = read_with(file, &flags).unwrap();
    let document = proxy.document();
    assert_eq!((document.hostname_override.as_str(), document.logging.verbosity), ("flag", 4));
    let modules: Vec<_> =
        document.logging.vmodule.iter().map(|module| module.file_pattern.as_str()).collect();
    assert_eq!(modules, ["a", "b"]);
    assert_eq!((proxy.mode(), document.cluster_cidr.as_str()), (ProxyMode::Iptables, ""));
    assert!(proxy.listen().health.is_some());
    assert_eq!(flags.ignored().collect::<Vec<_>>(), ["cluster-cidr", "proxy-mode", "healthz-port"]);
}

#[test]
fn the_server_of_the_command_line_counts_with_a_file_and_without() {
    let flags = Flags::parse(&[], Some("https://192.0.2.1:6443".to_owned())).unwrap();
    for proxy in [read_with("", &flags).unwrap(), KubeProxy::without_file(&flags).unwrap()] {
        assert_eq!(proxy.client().master.as_deref(), Some("https://192.0.2.1:6443"));
    }
}
