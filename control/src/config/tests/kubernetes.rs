//! The `kubernetes` section.

use std::num::NonZeroU8;

use super::*;
use crate::config::kube_proxy::{Flags, KubeProxy, settings as settings_of};
use crate::source::kubernetes::settings::{DetectLocal, ExternalIps, LoadBalancerClass, NodePortAddresses};

const POOL: &str = "..\nsnat_pools: [{name: a, addresses: [10.9.0.1]}]\n";

#[test]
fn a_section_that_cannot_be_is_refused_at_its_places() {
    let with = |section: &str| format!("{POOL}kubernetes: {section}\n");
    let rows: [(&str, String, &[&str]); 15] = [
        ("nothing said", with("{}"), &[]),
        (
            "no pool to masquerade from",
            "..\nkubernetes: {}\n".to_owned(),
            &["2:13: kubernetes: flows to node ports, load balancers and external addresses are masqueraded, and there is \
               no pool in snat_pools to take sources from"],
        ),
        ("switched off it needs none", "..\nkubernetes: {enabled: false}\n".to_owned(), &[]),
        ("nor where backends answer themselves", "..\nkubernetes: {mode: dr}\n".to_owned(), &[]),
        (
            "one of two pools",
            "..\nsnat_pools: [{name: a, addresses: [10.9.0.1]}, {name: b, addresses: [10.9.0.2]}]\nkubernetes: {}\n"
                .to_owned(),
            &["3:13: kubernetes: flows are masqueraded: \"snat_pool\" has to be one of a, b"],
        ),
        ("another pool", with("{snat_pool: b}"), &["3:25: kubernetes.snat_pool: there is no SNAT pool b"]),
        (
            "a pool with faults is not also missing",
            "..\nsnat_pools: [{name: a, addresses: [x]}]\nkubernetes: {snat_pool: a}\n".to_owned(),
            &["2:36: snat_pools[0].addresses[0]: \"x\": invalid IP address syntax"],
        ),
        (
            "an unknown key",
            with("{schedular: rr}"),
            &["3:14: kubernetes.schedular: unknown key (did you mean \"scheduler\"?)"],
        ),
        (
            "a scheduler and flags of none",
            with("{scheduler_flags: [sh-port]}"),
            &["3:31: kubernetes.scheduler_flags: flags are those of a scheduler: name it with \"scheduler\""],
        ),
        (
            "two ways to tell pods",
            with("{cluster_cidrs: [10.0.0.0/8], node_cidr: true}"),
            &["3:54: kubernetes.node_cidr: pods are told by \"cluster_cidrs\" or by \"node_cidr\", not both"],
        ),
        (
            "networks",
            with("{cluster_cidrs: [10.0.0.1/8], external_ips: [x], exclude_cidrs: [1], node_port_addresses: [any]}"),
            &[
                "3:30: kubernetes.cluster_cidrs[0]: 10.0.0.1/8 has bits set behind its prefix: did you mean 10.0.0.0/8?",
                "3:58: kubernetes.external_ips[0]: \"x\": invalid IP address syntax",
                "3:78: kubernetes.exclude_cidrs[0]: expected a string, found a number: put it in quotes",
                "3:104: kubernetes.node_port_addresses[0]: \"any\": invalid IP address syntax",
            ],
        ),
        ("external addresses", with("{external_ips: allow}"), &[
            "3:28: kubernetes.external_ips: \"allow\" is not one of deny",
        ]),
        ("names", with("{node_name: ' ', skip_services: [dns, a/b/c], service_proxy_name: a b}"), &[
            "3:25: kubernetes.node_name: a Node's name has 1 to 253 characters",
            "3:46: kubernetes.skip_services[0]: \"dns\" is not a Service such as kube-system/kube-dns",
            "3:51: kubernetes.skip_services[1]: \"a/b/c\" is not a Service such as kube-system/kube-dns",
            "3:79: kubernetes.service_proxy_name: \"a b\" cannot be a label's value",
        ]),
        ("words", with("{mode: direct, profile: iptables, when_empty: ignore}"), &[
            "3:20: kubernetes.mode: \"direct\" is not one of nat, fullnat, dr, ipip, gue, gre",
            "3:37: kubernetes.profile: \"iptables\" is not one of ipvs, nftables",
            "3:59: kubernetes.when_empty: \"ignore\" is not one of reject, drop",
        ]),
        ("numbers", with("{drain_s: -1, sync_s: 0, min_sync_ms: 60001}"), &[
            "3:23: kubernetes.drain_s: -1 is below 0",
            "3:35: kubernetes.sync_s: 0 is below 1",
            "3:51: kubernetes.min_sync_ms: 60001 is above 60000",
        ]),
    ];
    let rows: Vec<_> = rows.iter().map(|(name, text, want)| (*name, text.as_str(), *want)).collect();
    assert_faults(&rows);
}

#[test]
fn kube_proxys_file_in_the_place_of_weirs_own_is_told_as_such() {
    for (kind, name) in [("KubeProxyConfiguration", "a configuration"), ("ConfigMap", "a ConfigMap")] {
        let text = format!("apiVersion: x\nkind: {kind}\nmode: ipvs\n");
        let want = format!(
            "2:7: kind: this is a {kind}: give it by --kube-proxy-config; Weir's own file is another"
        );
        assert_faults(&[(name, &text, &[&want])]);
    }
}

#[test]
fn kubernetes_switched_on_by_the_command_line_needs_a_pool_too() {
    let checked = |text: &str| parse("f", text).unwrap().check_kubernetes();
    assert!(checked(&POOL.replace("..", "interfaces: [{name: a}]")).is_ok());
    assert_eq!(
        checked("interfaces: [{name: a}]\n").unwrap_err().to_string(),
        "f: kubernetes: flows to node ports, load balancers and external addresses are masqueraded, and there is no pool \
         in snat_pools to take sources from"
    );
}

#[test]
fn what_the_section_says_counts_and_the_rest_is_that_of_kube_proxy() {
    let head = "interfaces: [{name: a}]\nsnat_pools: [{name: p, addresses: [10.9.0.1]}]\nkubernetes:\n";
    let proxy = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n\
                 ipvs: {scheduler: lc, excludeCIDRs: [10.8.0.0/16]}\nclusterCIDR: 10.0.0.0/8\n";
    let proxy = crate::config::kube_proxy::parse("p", proxy, &Flags::default()).unwrap();
    let of = |section: &str| {
        let section = parse("f", &format!("{head}  {section}\n")).unwrap().kubernetes;
        settings_of(&proxy, &section, "host").unwrap()
    };
    let plain = of("enabled: true");
    assert_eq!((plain.snat_pool.as_deref(), plain.mode), (Some("p"), Mode::Nat));
    assert_eq!(
        (plain.external_ips.clone(), plain.drop_unallocated, plain.announce),
        (ExternalIps::Deny, true, false)
    );
    assert_eq!(plain.load_balancer_class, LoadBalancerClass::Any);
    assert_eq!(plain.scheduling.kind, Kind::Lc);
    assert_eq!(plain.exclude.len(), 1);

    let said = of(
        "{scheduler: sh, scheduler_flags: [sh-port], exclude_cidrs: [], cluster_cidrs: [], min_sync_ms: 5, \
         node_port_addresses: [primary], load_balancer_classes: ['', x.io/y], drain_s: 0}",
    );
    assert_eq!((said.scheduling.kind, said.scheduling.flags.port), (Kind::Sh, true));
    assert_eq!((said.exclude.len(), said.local), (0, DetectLocal::Unknown));
    assert_eq!((said.min_sync_period, said.sync_period), (Duration::from_millis(5), Duration::from_secs(30)));
    assert_eq!((said.node_port_addresses, said.drain_s), (NodePortAddresses::Primary, Some(0)));
    let classes = ["", "x.io/y"].map(Into::into).into_iter().collect();
    assert_eq!(said.load_balancer_class, LoadBalancerClass::Of(classes));
}

#[test]
fn kube_proxys_timeouts_and_flows_fill_in_what_the_file_leaves_out() {
    let proxy = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                 conntrack: {maxPerCore: 100000, tcpEstablishedTimeout: 2h, udpStreamTimeout: 9s}\n";
    let proxy = Arc::new(crate::config::kube_proxy::parse("p", proxy, &Flags::default()).unwrap());
    let filled = |rest: &str| {
        let mut config = parse("f", &format!("interfaces: [{{name: a}}]\n{rest}")).unwrap();
        config.fill_in(&proxy, 4);
        let timeouts = config.desired.timeouts();
        (config.settings.flow_limit, timeouts.tcp_s[1], timeouts.udp_s)
    };
    let mut listens = parse("f", "interfaces: [{name: a}]\nhealth: {listen: '10.0.0.1:80'}\n").unwrap();
    listens.fill_in(&proxy, 4);
    assert_eq!(listens.settings.health, Some("10.0.0.1:80".parse().unwrap()));
    assert_eq!(listens.settings.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(filled(""), (400_000, 7200, 9));
    assert_eq!(filled("workers: {count: 3}\n"), (133_334, 7200, 9));
    assert_eq!(filled("flows: {limit: 5000}\ntimeouts: {udp_s: 300}\n"), (5000, 7200, 300));
    assert_eq!(filled("timeouts: {tcp: {established_s: 900}}\n"), (400_000, 900, 9));
    let mut config = parse("f", "interfaces: [{name: a}]\n").unwrap();
    let mut reloaded = config.clone();
    config.fill_in(&proxy, 4);
    let filled_in = ["flows.limit", "limits.services", "limits.backends", "health.listen", "metrics.listen"];
    assert_eq!(reloaded.restart_needed(&config), filled_in);
    reloaded.fill_in_like(&config);
    assert_eq!((reloaded.restart_needed(&config), &reloaded.desired), (Vec::new(), &config.desired));

    let mut config = parse("f", "interfaces: [{name: a}]\n").unwrap();
    let before = config.clone();
    config.fill_in(&Arc::new(KubeProxy::without_file(&Flags::default()).unwrap()), 4);
    assert_eq!(config.desired, before.desired);
    assert_eq!(config.settings.flow_limit, before.settings.flow_limit);
}

#[test]
fn a_reload_cannot_change_the_section() {
    let of = |section: &str| {
        let text =
            format!("interfaces: [{{name: a}}]\nsnat_pools: [{{name: p, addresses: [10.9.0.1]}}]\n{section}");
        parse("f", &text).unwrap()
    };
    let on = of("kubernetes: {scheduler: rr}\n");
    assert_eq!(
        of("kubernetes: {scheduler: lc, drain_s: 5}\n").restart_needed(&on),
        ["kubernetes.scheduler", "kubernetes.drain_s"]
    );
    assert_eq!(of("").restart_needed(&on), ["kubernetes.enabled", "kubernetes.scheduler"]);
    let other_pool =
        parse("f", "interfaces: [{name: a}]\nsnat_pools: [{name: q, addresses: [10.9.0.1]}]\n").unwrap();
    assert_eq!(other_pool.restart_needed(&of("")), Vec::<String>::new());
    assert_eq!(on.settings.workers.count, NonZeroU8::MIN);
}
