//! What a changed KubeProxyConfiguration asks for.

use serde_json::Value;

use super::KubeProxy;

/// What it takes to get from one configuration to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: they say the same.
    None,
    /// New settings of the source, new timeouts, another level of the log: while Weir runs. The fields that differ.
    Live(Vec<String>),
    /// Another process. The fields that only one can change.
    RestartNeeded(Vec<String>),
}

/// Fields, or blocks of them, that are used once, at start.
const AT_START: [&str; 9] = [
    "bindAddressHardFail",
    "clientConnection",
    "conntrack.maxPerCore",
    "conntrack.min",
    "healthzBindAddress",
    "hostnameOverride",
    "logging.format",
    "metricsBindAddress",
    "oomScoreAdj",
];

/// What it takes to get from `old` to `new`.
pub fn change(old: &KubeProxy, new: &KubeProxy) -> Change {
    let mut fields = Vec::new();
    let values = [old, new].map(|proxy| serde_json::to_value(&proxy.document).unwrap_or_default());
    let [was, is] = &values;
    differences("", was, is, &mut fields);
    let said = [old, new].iter().any(|proxy| proxy.says_flows());
    // Without effect they need no restart.
    let idle = |field: &str| !said && matches!(field, "conntrack.maxPerCore" | "conntrack.min");
    let of = |field: &str, block: &str| {
        field.strip_prefix(block).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let at_start = |field: &&String| AT_START.iter().any(|block| of(field, block)) && !idle(field);
    let fixed: Vec<_> = fields.iter().filter(at_start).cloned().collect();
    match (fields.is_empty(), fixed.is_empty()) {
        (true, _) => Change::None,
        (false, true) => Change::Live(fields),
        (false, false) => Change::RestartNeeded(fixed),
    }
}

/// Adds the paths of the values that differ; a list is one value.
fn differences(path: &str, old: &Value, new: &Value, fields: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(was), Value::Object(is)) => {
            let keys: std::collections::BTreeSet<_> = was.keys().chain(is.keys()).collect();
            for key in keys {
                let deeper = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let value = |map: &serde_json::Map<_, _>| map.get(key).cloned().unwrap_or_default();
                differences(&deeper, &value(was), &value(is), fields);
            }
        }
        _ if old == new => {}
        _ => fields.push(path.to_owned()),
    }
}
