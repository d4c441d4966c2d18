//! From the API's JSON to reduced objects. Unknown fields are skipped without being kept.

mod node;
mod service;
mod slice;

use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::lenient::{Keep, Many, Part, Scalar, Short, Texts};
use super::{Faults, Key, PREFIX, Undecodable, sloppy};
use crate::model::{Port, Protocol};

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// How long a name of the API may be; longer ones are not of the API.
const NAME_MAX: usize = 253;

/// A kind of object that is read.
pub trait Reduced: Sized + Clone + Debug + Send + 'static {
    /// Its kind.
    const KIND: &'static str;
    /// Its API group.
    const GROUP: &'static str;
    /// Its version.
    const VERSION: &'static str;
    /// Its name in addresses.
    const PLURAL: &'static str;
    /// Whether it is in a namespace.
    type Scope;
    /// It, as far as it was readable.
    type Raw: DeserializeOwned + Default;

    /// Takes what is needed.
    fn reduce(raw: Self::Raw) -> Result<Self, Undecodable>;
    /// Its metadata.
    fn metadata(raw: &Self::Raw) -> &Metadata;
}

/// An object as a list or a watch hands it over: reduced, with as much metadata as watching needs. Reading it fails on
/// bad JSON only.
#[derive(Clone, Debug)]
pub struct Watched<T> {
    meta: ObjectMeta,
    /// The object.
    pub object: Result<T, Undecodable>,
}

impl<'de, T: Reduced> Deserialize<'de> for Watched<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (raw, _) = Part::<T::Raw>::deserialize(from)?.take();
        let meta = T::metadata(&raw).watched();
        Ok(Self { meta, object: T::reduce(raw) })
    }
}

impl<T: Reduced> kube::Resource for Watched<T> {
    type DynamicType = ();
    type Scope = T::Scope;

    fn kind((): &()) -> std::borrow::Cow<'_, str> {
        T::KIND.into()
    }

    fn group((): &()) -> std::borrow::Cow<'_, str> {
        T::GROUP.into()
    }

    fn version((): &()) -> std::borrow::Cow<'_, str> {
        T::VERSION.into()
    }

    fn plural((): &()) -> std::borrow::Cow<'_, str> {
        T::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    name: Scalar,
    namespace: Scalar,
    uid: Scalar,
    resource_version: Scalar,
    creation_timestamp: Scalar,
    deletion_timestamp: Scalar,
    labels: Texts<KeptLabels>,
    annotations: Texts<KeptAnnotations>,
}

#[derive(Debug, Default)]
struct KeptLabels;

impl Keep for KeptLabels {
    fn keep(key: &str) -> bool {
        matches!(key, PROXY_NAME | HEADLESS | slice::SERVICE_NAME | node::ZONE)
    }
}

#[derive(Debug, Default)]
struct KeptAnnotations;

impl Keep for KeptAnnotations {
    fn keep(key: &str) -> bool {
        key.starts_with(PREFIX) || key == slice::TRIGGERED
    }
}

impl Metadata {
    fn watched(&self) -> ObjectMeta {
        ObjectMeta {
            name: text(&self.name).map(Into::into),
            namespace: text(&self.namespace).map(Into::into),
            resource_version: text(&self.resource_version).map(Into::into),
            ..ObjectMeta::default()
        }
    }

    fn name(&self, kind: &'static str) -> Result<Arc<str>, Undecodable> {
        let namespace = text(&self.namespace).unwrap_or_default();
        let name = text(&self.name).filter(|name| !name.is_empty() && name.len() <= NAME_MAX);
        name.map(Arc::from)
            .ok_or_else(|| Undecodable { kind, namespace: Short(namespace).to_string().into() })
    }

    /// Objects of a manifest need not have a namespace: they get the one that a client gives them.
    fn key(&self, kind: &'static str) -> Result<Key, Undecodable> {
        let name = self.name(kind)?;
        let namespace = text(&self.namespace).filter(|namespace| !namespace.is_empty());
        let namespace = namespace.unwrap_or("default");
        if namespace.len() > NAME_MAX {
            return Err(Undecodable { kind, namespace: Short(namespace).to_string().into() });
        }
        Ok(Key { namespace: namespace.into(), name })
    }

    fn label(&self, key: &str) -> Option<&str> {
        value(&self.labels.entries, key)
    }

    fn time(scalar: &Scalar, field: &str, faults: &mut Faults) -> Option<Timestamp> {
        match scalar {
            Scalar::None => None,
            Scalar::Text(text) => timestamp(text, field, faults),
            other => {
                faults.add(field, format_args!("{other} is no time"));
                None
            }
        }
    }
}

fn timestamp(text: &str, field: &str, faults: &mut Faults) -> Option<Timestamp> {
    let time = text.parse().ok();
    if time.is_none() {
        faults.add(field, format_args!("`{}` is no time as RFC 3339 has it", Short(text)));
    }
    time
}

fn value<'a>(entries: &'a [(Box<str>, Box<str>)], key: &str) -> Option<&'a str> {
    entries.iter().find(|(name, _)| **name == *key).map(|(_, value)| &**value)
}

fn text(scalar: &Scalar) -> Option<&str> {
    match scalar {
        Scalar::Text(text) => Some(text),
        _ => None,
    }
}

/// Notes what is wrong with the fields of one object.
#[derive(Default)]
struct Reader {
    faults: Faults,
}

impl Reader {
    fn part<T: Default>(&mut self, part: Part<T>, field: impl fmt::Display) -> T {
        let (part, wrong) = part.take();
        if wrong {
            self.faults.add(field, "is not a mapping");
        }
        part
    }

    fn list<T>(&mut self, list: Many<T>, field: impl fmt::Display) -> Vec<T> {
        if list.wrong {
            self.faults.add(field, "is not a list");
        }
        list.items
    }

    /// Text that is not empty.
    fn text(&mut self, scalar: Scalar, field: impl fmt::Display) -> Option<Box<str>> {
        match scalar {
            Scalar::None => None,
            Scalar::Text(text) => (!text.is_empty()).then_some(text),
            other => {
                self.faults.add(field, format_args!("{other} is not text"));
                None
            }
        }
    }

    fn flag(&mut self, scalar: &Scalar, default: bool, field: impl fmt::Display) -> bool {
        match scalar {
            Scalar::None => default,
            Scalar::Bool(value) => *value,
            other => {
                self.faults.add(field, format_args!("{other} is neither true nor false"));
                default
            }
        }
    }

    /// One of `known`; what is not there or unknown is the default.
    fn choice<T: Copy + Default>(&mut self, scalar: &Scalar, known: &[(&str, T)], field: &str) -> T {
        match scalar {
            Scalar::None => T::default(),
            Scalar::Text(text) if text.is_empty() => T::default(),
            other => {
                let chosen = text(other).and_then(|text| known.iter().find(|(name, _)| *name == text));
                chosen.map(|(_, value)| *value).unwrap_or_else(|| {
                    self.faults.add(field, format_args!("{other} is unknown"));
                    T::default()
                })
            }
        }
    }

    /// A port; 0 and nothing are none.
    fn port(&mut self, scalar: &Scalar, field: impl fmt::Display) -> Option<Port> {
        match scalar {
            Scalar::None | Scalar::Number(0) => return None,
            Scalar::Number(number) => {
                if let Some(port) = u16::try_from(*number).ok().and_then(Port::new) {
                    return Some(port);
                }
            }
            _ => {}
        }
        self.faults.add(field, format_args!("{scalar} is no port (1 to 65535)"));
        None
    }

    /// TCP where there is nothing; `None` where it is none that is served.
    fn protocol(&mut self, scalar: &Scalar, field: impl fmt::Display) -> Option<Protocol> {
        let protocol = match scalar {
            Scalar::None => return Some(Protocol::Tcp),
            Scalar::Text(text) if text.is_empty() => return Some(Protocol::Tcp),
            Scalar::Text(text) => match &**text {
                "TCP" => Some(Protocol::Tcp),
                "UDP" => Some(Protocol::Udp),
                "SCTP" => Some(Protocol::Sctp),
                _ => None,
            },
            _ => None,
        };
        if protocol.is_none() {
            self.faults.add(field, format_args!("{scalar} is none of TCP, UDP and SCTP"));
        }
        protocol
    }

    fn address(&mut self, scalar: &Scalar, field: impl fmt::Display) -> Option<IpAddr> {
        let addr = text(scalar).and_then(sloppy::address);
        if addr.is_none() {
            self.faults.add(field, format_args!("{scalar} is no IP address"));
        }
        addr
    }

    fn addresses(&mut self, list: Many<Scalar>, field: &str) -> Vec<IpAddr> {
        let items = self.list(list, field);
        let items = items.iter().enumerate();
        items.filter_map(|(index, item)| self.address(item, format_args!("{field}[{index}]"))).collect()
    }

    fn networks(&mut self, list: Many<Scalar>, field: &str) -> (Vec<IpNet>, u32) {
        let mut bad = 0;
        let mut networks = Vec::new();
        for (index, item) in self.list(list, field).iter().enumerate() {
            match text(item).and_then(sloppy::network) {
                Some(network) => networks.push(network),
                None => {
                    bad += 1;
                    let field = format_args!("{field}[{index}]");
                    self.faults.add(field, format_args!("{item} is no network (address/length)"));
                }
            }
        }
        (networks, bad)
    }
}

fn metadata(part: &Part<Metadata>) -> &Metadata {
    static EMPTY: Metadata = Metadata {
        name: Scalar::None,
        namespace: Scalar::None,
        uid: Scalar::None,
        resource_version: Scalar::None,
        creation_timestamp: Scalar::None,
        deletion_timestamp: Scalar::None,
        labels: Texts { entries: Vec::new(), keep: PhantomData },
        annotations: Texts { entries: Vec::new(), keep: PhantomData },
    };
    match part {
        Part::Some(metadata) => metadata,
        Part::None | Part::Wrong => &EMPTY,
    }
}
