//! The way back: a section as the text that says it.

use std::fmt::Write as _;

use super::{PROFILES, Section};
use crate::config::services::{MODES, WHEN_EMPTY};
use crate::config::write::{quoted, quoted_all};
use crate::model::Scheduling;
use crate::source::kubernetes::settings::{DetectLocal, ExternalIps, LoadBalancerClass, NodePortAddresses};

/// The section as lines; none where there is no section.
pub(in crate::config) fn write(text: &mut String, section: &Section) {
    let Some(enabled) = section.enabled else { return };
    text.push_str("kubernetes:\n");
    let mut put = |key: &str, value: String| {
        let _ = writeln!(text, "  {key}: {value}");
    };
    put("enabled", enabled.to_string());
    for (key, value) in [
        ("kubeconfig", section.kubeconfig.as_ref().map(|path| path.to_string_lossy().into_owned())),
        ("master", section.master.clone()),
        ("node_name", section.node_name.as_ref().map(|name| name.to_string())),
        ("snat_pool", section.snat_pool.as_ref().map(|name| name.to_string())),
        ("service_proxy_name", section.service_proxy_name.as_ref().map(|name| name.to_string())),
    ] {
        if let Some(value) = value {
            put(key, quoted(&value));
        }
    }
    if let Some(profile) = section.profile {
        put("profile", word(&PROFILES, &profile));
    }
    for (key, value) in section.scheduling.iter().flat_map(scheduling) {
        put(key, value);
    }
    put("mode", word(&MODES, &section.mode));
    if let Some(all) = section.masquerade_all {
        put("masquerade_all", all.to_string());
    }
    match &section.local {
        None => {}
        Some(DetectLocal::Unknown) => put("cluster_cidrs", "[]".to_owned()),
        Some(DetectLocal::ClusterCidr(networks)) => put("cluster_cidrs", list(networks)),
        Some(DetectLocal::NodeCidr) => put("node_cidr", "true".to_owned()),
    }
    if let Some(addresses) = &section.node_port_addresses {
        put("node_port_addresses", node_ports(addresses));
    }
    if let LoadBalancerClass::Of(classes) = &section.load_balancer_class {
        put("load_balancer_classes", list(sorted(classes)));
    }
    match &section.external_ips {
        None => {}
        Some(ExternalIps::Deny) => put("external_ips", "deny".to_owned()),
        Some(ExternalIps::Allow(networks)) => put("external_ips", list(networks)),
    }
    put("skip_services", list(sorted(&section.skip)));
    if let Some(networks) = &section.exclude {
        put("exclude_cidrs", list(networks));
    }
    put("when_empty", word(&WHEN_EMPTY, &section.when_empty));
    put("drop_unallocated", section.drop_unallocated.to_string());
    put("announce", section.announce.to_string());
    for (key, number) in [
        ("drain_s", section.drain_s.map(u128::from)),
        ("min_sync_ms", section.min_sync_period.map(|period| period.as_millis())),
        ("sync_s", section.sync_period.map(|period| period.as_secs().into())),
    ] {
        if let Some(number) = number {
            put(key, number.to_string());
        }
    }
}

/// The word that stands for a value.
fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> String {
    words.iter().find(|(_, known)| known == value).map(|(word, _)| (*word).to_owned()).unwrap_or_default()
}

fn list<T: ToString>(entries: impl IntoIterator<Item = T>) -> String {
    format!("[{}]", quoted_all(entries))
}

fn sorted<T: Ord>(set: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut entries: Vec<_> = set.into_iter().collect();
    entries.sort_unstable();
    entries
}

fn scheduling(scheduling: &Scheduling) -> Vec<(&'static str, String)> {
    let flags: Vec<_> = scheduling.flags.names(scheduling.kind).collect();
    let mut lines = vec![("scheduler", scheduling.kind.to_string())];
    if !flags.is_empty() {
        lines.push(("scheduler_flags", format!("[{}]", flags.join(", "))));
    }
    lines
}

fn node_ports(addresses: &NodePortAddresses) -> String {
    match addresses {
        NodePortAddresses::All => "[all]".to_owned(),
        NodePortAddresses::Primary => "[primary]".to_owned(),
        NodePortAddresses::Networks { networks, primary } => {
            let primary = primary.then(|| "primary".to_owned());
            list(primary.into_iter().chain(networks.iter().map(ToString::to_string)))
        }
    }
}
