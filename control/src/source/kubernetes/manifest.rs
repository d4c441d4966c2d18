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
            Err(error) => self.refuse(Place { file, document: 0, item: None }, error.to_string()),
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
                Err(error) => self.refuse(place(document), one_line(&error)),
            }
        }
    }

    fn refuse(&mut self, place: Place, reason: impl Into<String>) {
        self.unreadable.push(Unreadable { place, reason: reason.into() });
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
