//! Objects from files, YAML or JSON: what `kubectl get -o yaml` prints, or what it is given. Only for commands that work
//! without a cluster.

use std::collections::HashMap;
use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::Value;
use thiserror::Error;

use super::object::{EndpointSlice, Faults, Node, Reduced, Service, ServiceCidr, Watched};

/// Bytes of a file at most.
const FILE_MAX: u64 = 256 << 20;
/// Nodes (mappings, lists, scalars) of one document at most: a list of some 100,000 EndpointSlices.
const NODES_MAX: usize = 20_000_000;
/// Documents of a file at most.
const DOCUMENTS_MAX: usize = 1_000_000;
/// Nodes that aliases may stand for, all together.
const ALIASED_MAX: usize = 100_000;

/// An object.
#[derive(Clone, Debug)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    Slice(EndpointSlice),
    /// A Node.
    Node(Node),
    /// A ServiceCIDR.
    Cidr(ServiceCidr),
}

impl Object {
    /// What was left out of it.
    pub fn faults(&self) -> &Faults {
        match self {
            Self::Service(service) => &service.faults,
            Self::Slice(slice) => &slice.faults,
            Self::Node(node) => &node.faults,
            Self::Cidr(cidr) => &cidr.faults,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(Service { key, .. }) => write!(f, "Service {key}"),
            Self::Slice(EndpointSlice { key, .. }) => write!(f, "EndpointSlice {key}"),
            Self::Node(Node { name, .. }) => write!(f, "Node {name}"),
            Self::Cidr(ServiceCidr { name, .. }) => write!(f, "ServiceCIDR {name}"),
        }
    }
}

/// Where something is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<str>,
    /// Which of its documents, from 1; 0 for the file as a whole.
    pub document: usize,
    /// Which item of a list, from 0.
    pub item: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.document > 0 {
            write!(f, ": document {}", self.document)?;
        }
        self.item.map_or(Ok(()), |item| write!(f, ", items[{item}]"))
    }
}

/// An object that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {reason}")]
pub struct Unreadable {
    /// Where it would be.
    pub place: Place,
    /// Why.
    pub reason: String,
    /// Whether it is the text that cannot be read, and not the object in it.
    pub is_text: bool,
}

/// What files hold.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// The objects that matter here.
    pub objects: Vec<(Place, Object)>,
    /// How many others there are.
    pub others: usize,
    /// What cannot be had.
    pub unreadable: Vec<Unreadable>,
}

impl Manifests {
    /// Reads a file and adds what it holds.
    pub fn read(&mut self, path: &Path) {
        let file: Arc<str> = path.display().to_string().into();
        match read_file(path) {
            Ok(text) => self.parse(&file, &text),
            Err(error) => self.refuse_text(Place { file, document: 0, item: None }, error.to_string()),
        }
    }

    /// Adds what `text` holds. `file` is for messages alone.
    pub fn parse(&mut self, file: &Arc<str>, text: &str) {
        let place = |document| Place { file: Arc::clone(file), document, item: None };
        // Every JSON text should be YAML, too, but for the size of some and tabs in others.
        if text.trim_start().starts_with('{') {
            let documents: Result<Vec<Value>, _> =
                serde_json::Deserializer::from_str(text).into_iter().take(DOCUMENTS_MAX).collect();
            if let Ok(documents) = documents {
                for (document, value) in (1..).zip(documents) {
                    self.take(place(document), value);
                }
                return;
            }
        }
        for (document, value) in (1..).zip(serde_saphyr::read_with_options(&mut text.as_bytes(), options())) {
            match value {
                Ok(value) => self.take(place(document), value),
                Err(error) => self.refuse_text(place(document), one_line(&error)),
            }
        }
    }

    fn refuse(&mut self, place: Place, reason: impl Into<String>) {
        self.unreadable.push(Unreadable { place, reason: reason.into(), is_text: false });
    }

    fn refuse_text(&mut self, place: Place, reason: String) {
        self.unreadable.push(Unreadable { place, reason, is_text: true });
    }

    /// A document, or an item of a list.
    fn take(&mut self, place: Place, mut value: Value) {
        let text = |value: &Value, key| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, version) = (text(&value, "kind"), text(&value, "apiVersion"));
        if kind.is_empty() {
            return self.refuse(place, "is no object: `kind` is missing");
        }
        if let Some(of) = kind.strip_suffix("List").filter(|_| value.get("items").is_some()) {
            if place.item.is_some() {
                return self.refuse(place, "is a list in a list");
            }
            let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else {
                return self.refuse(place, format!("{kind}: items is not a list"));
            };
            for (item, mut value) in items.into_iter().enumerate() {
                // Items of typed lists have no kind of their own.
                if let (Value::Object(fields), false) = (&mut value, of.is_empty()) {
                    fields.entry("kind").or_insert_with(|| of.into());
                    fields.entry("apiVersion").or_insert_with(|| version.as_str().into());
                }
                self.take(Place { item: Some(item), ..place.clone() }, value);
            }
            return;
        }
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let object = match (group, kind.as_str()) {
            (Service::GROUP, Service::KIND) => reduced(&value).map(Object::Service),
            (Node::GROUP, Node::KIND) => reduced(&value).map(Object::Node),
            (ServiceCidr::GROUP, ServiceCidr::KIND) => reduced(&value).map(Object::Cidr),
            (EndpointSlice::GROUP, EndpointSlice::KIND) if version.ends_with("/v1") => {
                reduced(&value).map(Object::Slice)
            }
            (EndpointSlice::GROUP, EndpointSlice::KIND) => {
                Err(format!("an EndpointSlice of {version}: only {}/v1 is read", EndpointSlice::GROUP))
            }
            _ => {
                self.others += 1;
                return;
            }
        };
        match object {
            Ok(object) => self.objects.push((place, object)),
            Err(reason) => self.refuse(place, reason),
        }
    }

    /// Every fault that a field was left out for, as a message.
    pub fn faults(&self) -> impl Iterator<Item = String> {
        self.objects.iter().flat_map(|(place, object)| {
            let faults = object.faults();
            let more = faults.count() - faults.iter().count();
            let more = (more > 0).then(|| format!("{place}: {object}: and {more} more"));
            faults.iter().map(move |fault| format!("{place}: {object}: {fault}")).chain(more)
        })
    }

    /// Objects that are there twice, as messages: the later one counts.
    pub fn doubles(&self) -> Vec<String> {
        let mut seen = HashMap::new();
        let mut doubles = Vec::new();
        for (place, object) in &self.objects {
            let name = object.to_string();
            if let Some(first) = seen.insert(name.clone(), place) {
                doubles.push(format!("{place}: {name}: is already at {first}; this one counts"));
            }
        }
        doubles
    }
}

fn read_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_MAX {
        return Err(std::io::Error::other(format!("larger than {} MiB", FILE_MAX >> 20)));
    }
    Ok(text)
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: NODES_MAX * 2,
            max_nodes: NODES_MAX,
            max_documents: DOCUMENTS_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIASED_MAX,
        },
        with_snippet: false,
    }
}

fn one_line(error: &serde_saphyr::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn reduced<T: Reduced>(value: &Value) -> Result<T, String> {
    let watched = Watched::<T>::deserialize(value).map_err(|error| format!("{}: {error}", T::KIND))?;
    watched.object.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Manifests {
        let mut manifests = Manifests::default();
        manifests.parse(&"f".into(), text);
        manifests
    }

    fn names(manifests: &Manifests) -> Vec<String> {
        manifests.objects.iter().map(|(place, object)| format!("{place}: {object}")).collect()
    }

    #[test]
    fn objects_are_read_from_yaml_and_json_alike() {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n";
        let json =
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}}"#;
        let typed = r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
            "items": [{"metadata": {"name": "s"}}, {"metadata": {"name": "t"}}]}"#;
        let list = format!("apiVersion: v1\nkind: List\nitems:\n- {json}\n- {{apiVersion: v1, kind: Pod}}\n");
        for (name, text, want, others) in [
            ("one", service.to_owned(), &["f: document 1: Service shop/web"][..], 0),
            (
                "documents, an empty one among them",
                format!("---\n{service}---\n---\n{service}"),
                &["f: document 1: Service shop/web", "f: document 2: Service shop/web"],
                0,
            ),
            ("JSON", json.to_owned(), &["f: document 1: Service shop/web"], 0),
            (
                "JSON one after the other, tabs between",
                format!("{json}\n\t{json}"),
                &["f: document 1: Service shop/web", "f: document 2: Service shop/web"],
                0,
            ),
            ("a list", list, &["f: document 1, items[0]: Service shop/web"], 1),
            (
                "a typed list",
                typed.to_owned(),
                &[
                    "f: document 1, items[0]: EndpointSlice default/s",
                    "f: document 1, items[1]: EndpointSlice default/t",
                ],
                0,
            ),
            ("other kinds", "apiVersion: apps/v1\nkind: Service\n".to_owned(), &[], 1),
            ("nothing", String::new(), &[], 0),
        ] {
            let manifests = parse(&text);
            assert_eq!(names(&manifests), want, "{name}");
            assert_eq!(manifests.others, others, "{name}");
            assert!(manifests.unreadable.is_empty(), "{name}: {:?}", manifests.unreadable);
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_place_and_the_rest_is_read() {
        let good = "{apiVersion: v1, kind: Service, metadata: {name: web}}";
        for (name, text, want, is_text) in [
            ("no kind", "a: b", "f: document 1: is no object: `kind` is missing", false),
            ("no mapping", "[1]", "f: document 1: is no object: `kind` is missing", false),
            (
                "no name",
                "{apiVersion: v1, kind: Service, metadata: {namespace: shop}}",
                "f: document 1: a Service without a usable metadata.name (namespace `shop`)",
                false,
            ),
            (
                "an old version",
                "{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice}",
                "f: document 1: an EndpointSlice of discovery.k8s.io/v1beta1: only discovery.k8s.io/v1 is read",
                false,
            ),
            (
                "items that are none",
                "{apiVersion: v1, kind: List, items: 7}",
                "f: document 1: List: items is not a list",
                false,
            ),
            (
                "a key twice",
                "{kind: Service, kind: Service}",
                "f: document 1: duplicate mapping key: kind",
                true,
            ),
        ] {
            let manifests = parse(&format!("{text}\n---\n{good}\n"));
            let [unreadable] = &*manifests.unreadable else { panic!("{name}: {:?}", manifests.unreadable) };
            assert!(unreadable.to_string().starts_with(want), "{name}: {unreadable}");
            assert_eq!(unreadable.is_text, is_text, "{name}");
            assert_eq!(names(&manifests), ["f: document 2: Service default/web"], "{name}");
        }
    }

    #[test]
    fn hostile_text_is_refused_within_bounds() {
        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, before) in ('b'..='j').zip('a'..) {
            bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 10].join(", "));
        }
        let deep = "[".repeat(100_000);
        let deep_json = format!("{{\"kind\": {}", "[".repeat(100_000));
        for (name, text) in
            [("aliases", &*bomb), ("depth", &*deep), ("depth of JSON", &*deep_json), ("a bracket", "a: [")]
        {
            let manifests = parse(text);
            assert!(manifests.objects.is_empty(), "{name}");
            assert!(manifests.unreadable.iter().all(|unreadable| unreadable.is_text), "{name}");
            assert_eq!(manifests.unreadable.len(), 1, "{name}: {:?}", manifests.unreadable);
        }
    }

    #[test]
    fn faults_name_file_document_object_and_field() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 70000}]}\n";
        let manifests = parse(&format!("{text}---\n{text}"));
        let want = "f: document 1: Service default/web: spec.ports[0].port: 70000 is no port (1 to 65535)";
        assert_eq!(manifests.faults().next().as_deref(), Some(want));
        let want = "f: document 2: Service default/web: is already at f: document 1; this one counts";
        assert_eq!(manifests.doubles(), [want]);
    }
}
