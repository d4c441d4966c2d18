//! The manifests, rendered by kustomize and read as the API server would read them.

use std::fs;
use std::process::Command;

use control::config;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{has, repository};

/// What Weir needs, and nothing else.
pub(crate) const CAPABILITIES: [&str; 5] = ["NET_ADMIN", "NET_RAW", "BPF", "PERFMON", "IPC_LOCK"];
const OVERLAYS: [(&str, &str); 2] =
    [("gateway-daemonset", "DaemonSet"), ("gateway-deployment", "Deployment")];

/// The objects of an overlay.
fn rendered(overlay: &str) -> Vec<Value> {
    let folder = repository("deploy/kubernetes/overlays").join(overlay);
    let output = Command::new("kubectl").arg("kustomize").arg(folder).output().unwrap();
    assert!(output.status.success(), "{overlay}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The object as its type has it. A field that the type does not know would be gone after a round trip.
fn strictly<T: DeserializeOwned + Serialize>(object: &Value) -> T {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    assert_eq!(&serde_json::to_value(&typed).unwrap(), object, "a field that the schema does not have");
    typed
}

fn named<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn pod(objects: &[Value], kind: &str) -> PodSpec {
    let object = named(objects, kind);
    let spec = match kind {
        "DaemonSet" => strictly::<DaemonSet>(object).spec.unwrap().template.spec,
        _ => strictly::<Deployment>(object).spec.unwrap().template.spec,
    };
    spec.unwrap()
}

#[test]
fn every_object_is_of_its_schema() {
    if !has("kubectl", "kubernetes-client") {
        return;
    }
    for (overlay, kind) in OVERLAYS {
        let objects = rendered(overlay);
        for object in &objects {
            match object["kind"].as_str().unwrap() {
                "Namespace" => drop(strictly::<Namespace>(object)),
                "ServiceAccount" => drop(strictly::<ServiceAccount>(object)),
                "ClusterRole" => drop(strictly::<ClusterRole>(object)),
                "ClusterRoleBinding" => drop(strictly::<ClusterRoleBinding>(object)),
                "ConfigMap" => drop(strictly::<ConfigMap>(object)),
                found if found == kind => drop(pod(&objects, kind)),
                other => panic!("{overlay}: {other}"),
            }
        }
        assert_eq!(objects.len(), 6, "{overlay}");
    }
}

#[test]
fn the_pod_has_the_capabilities_that_weir_needs_and_can_get_no_others() {
    if !has("kubectl", "kubernetes-client") {
        return;
    }
    for (overlay, kind) in OVERLAYS {
        let pod = pod(&rendered(overlay), kind);
        assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (Some(true), None, None), "{overlay}");
        let security = pod.containers[0].security_context.as_ref().unwrap();
        let capabilities = security.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop.as_deref().unwrap(), ["ALL"], "{overlay}");
        assert_eq!(capabilities.add.as_deref().unwrap(), CAPABILITIES, "{overlay}");
        assert_eq!(security.privileged, Some(false), "{overlay}");
        assert_eq!(security.allow_privilege_escalation, Some(false), "{overlay}");
        assert_eq!(security.read_only_root_filesystem, Some(true), "{overlay}");
        for volume in pod.volumes.as_ref().unwrap() {
            assert!(volume.host_path.is_none(), "{overlay}: {}", volume.name);
        }
        let path = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
            probe.as_ref().unwrap().http_get.as_ref().unwrap().path.clone().unwrap()
        };
        let container = &pod.containers[0];
        assert_eq!(path(&container.liveness_probe), "/livez", "{overlay}");
        assert_eq!(path(&container.readiness_probe), "/healthz", "{overlay}");
    }
}

#[test]
fn weir_may_read_what_it_watches_and_write_events_and_nothing_else() {
    if !has("kubectl", "kubernetes-client") {
        return;
    }
    let role: ClusterRole = strictly(named(&rendered(OVERLAYS[0].0), "ClusterRole"));
    let mut may: Vec<_> = role
        .rules
        .unwrap()
        .into_iter()
        .flat_map(|rule| {
            let verbs = rule.verbs.join(" ");
            rule.resources.unwrap().into_iter().map(move |resource| (resource, verbs.clone()))
        })
        .collect();
    may.sort();
    let may: Vec<_> = may.iter().map(|(resource, verbs)| (&**resource, &**verbs)).collect();
    assert_eq!(
        may,
        [
            ("endpointslices", "list watch"),
            ("events", "create patch"),
            ("nodes", "list watch"),
            ("servicecidrs", "list watch"),
            ("services", "list watch"),
        ]
    );
}

#[test]
fn weir_reads_the_configurations_of_the_config_map() {
    let text = fs::read_to_string(repository("deploy/kubernetes/base/weir.yaml")).unwrap();
    config::parse("weir.yaml", &text).unwrap_or_else(|faults| panic!("{faults}"));
}
