//! Alerts and dashboard: what they ask for exists.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::{has, repository};

/// The names in an expression that look like metrics of Weir.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| ["weir_", "kubeproxy_", "process_"].iter().any(|prefix| word.starts_with(prefix)))
}

/// The metrics of the documentation, which a test of its own compares with what a running Weir tells.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(repository("docs/metrics.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut all = BTreeSet::new();
    for (name, rest) in rows {
        all.insert(name.to_owned());
        if rest.starts_with("histogram") {
            all.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        }
    }
    all
}

fn assert_known(expression: &str) {
    let known = documented();
    let mut count = 0;
    for name in metrics(expression) {
        assert!(known.contains(name), "{name} of {expression} is not in docs/metrics.md");
        count += 1;
    }
    assert!(count > 0, "{expression} asks for nothing of Weir's");
}

#[test]
fn alerts_ask_for_metrics_that_there_are() {
    let text = fs::read_to_string(repository("deploy/observability/alerts.yaml")).unwrap();
    let rules: Value = serde_saphyr::from_str(&text).unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > 5);
    for rule in rules {
        assert_known(rule["expr"].as_str().unwrap());
    }
}

#[test]
fn prometheus_takes_the_alerts() {
    if has("promtool", "prometheus") {
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "rules"]).arg(repository("deploy/observability/alerts.yaml"));
        assert!(promtool.status().unwrap().success());
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let text = fs::read_to_string(repository("deploy/observability/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 5);
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            assert_known(target["expr"].as_str().unwrap());
        }
    }
}
