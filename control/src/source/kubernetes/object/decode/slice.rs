//! EndpointSlices.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use serde::Deserialize;

use super::{HEADLESS, Metadata, PROXY_NAME, Reader, Reduced, metadata, timestamp, value};
use crate::model::Family;
use crate::source::kubernetes::object::lenient::{Many, Part, Scalar};
use crate::source::kubernetes::object::{
    Conditions, Endpoint, EndpointSlice, Extra, FaultKind, SlicePort, Undecodable,
};

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RawSlice {
    metadata: Part<Metadata>,
    address_type: Scalar,
    ports: Many<Part<RawSlicePort>>,
    endpoints: Many<Part<RawEndpoint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawSlicePort {
    name: Scalar,
    protocol: Scalar,
    port: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawEndpoint {
    addresses: Many<Scalar>,
    conditions: Part<RawConditions>,
    node_name: Scalar,
    hostname: Scalar,
    hints: Part<RawHints>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawConditions {
    ready: Scalar,
    serving: Scalar,
    terminating: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawHints {
    for_zones: Many<Part<RawHint>>,
    for_nodes: Many<Part<RawHint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawHint {
    name: Scalar,
}

impl Reduced for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    const GROUP: &'static str = "discovery.k8s.io";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "endpointslices";
    type Scope = NamespaceResourceScope;
    type Raw = RawSlice;

    fn metadata(raw: &RawSlice) -> &Metadata {
        metadata(&raw.metadata)
    }

    fn reduce(raw: RawSlice) -> Result<Self, Undecodable> {
        let mut reader = Reader::default();
        let meta = reader.part(raw.metadata, "metadata");
        let key = meta.key(Self::KIND)?;
        let families = [("IPv4", Some(Family::V4)), ("IPv6", Some(Family::V6)), ("FQDN", None)];
        let family = reader.choice(&raw.address_type, &families, "addressType");
        let field = "metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]";
        let triggered = value(&meta.annotations.entries, TRIGGERED);
        Ok(Self {
            service: meta.label(SERVICE_NAME).filter(|name| !name.is_empty()).map(Into::into),
            proxy_name: meta.label(PROXY_NAME).map(Into::into),
            headless_label: meta.label(HEADLESS).is_some(),
            triggered: triggered.and_then(|text| timestamp(text, field, &mut reader.faults)),
            family,
            ports: slice_ports(&mut reader, raw.ports).into(),
            endpoints: family
                .map(|family| endpoints(&mut reader, raw.endpoints, family))
                .unwrap_or_default()
                .into(),
            key,
            faults: reader.faults,
        })
    }
}

fn slice_ports(reader: &mut Reader, list: Many<Part<RawSlicePort>>) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (index, item) in reader.list(list, "ports").into_iter().enumerate() {
        let field = format!("ports[{index}]");
        let item = reader.part(item, &field);
        let Scalar::Text(name) = item.name else {
            let reason = "is missing (the API server makes it \"\" where it is left out)";
            reader.faults.add(format_args!("{field}.name"), reason);
            continue;
        };
        // Nothing and 0 stand for every port, which no Service can have.
        let Some(port) = reader.port(&item.port, format_args!("{field}.port")) else { continue };
        if let Some(protocol) = reader.protocol(&item.protocol, format_args!("{field}.protocol")) {
            ports.push(SlicePort { name: name.into(), protocol, port });
        }
    }
    ports
}

fn endpoints(reader: &mut Reader, list: Many<Part<RawEndpoint>>, family: Family) -> Vec<Endpoint> {
    let items = reader.list(list, "endpoints");
    let mut endpoints = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let field = format_args!("endpoints[{index}]");
        let item = reader.part(item, field);
        let addresses = reader.list(item.addresses, format_args!("{field}.addresses"));
        let Some(first) = addresses.first() else {
            reader.faults.add(format_args!("{field}.addresses"), "is empty");
            continue;
        };
        let Some(addr) = reader.address(first, format_args!("{field}.addresses[0]")) else { continue };
        if Family::of(addr) != family {
            let reason = format_args!("{addr} is not of the slice's addressType");
            reader.faults.push(FaultKind::WrongFamily, format_args!("{field}.addresses[0]"), reason);
            continue;
        }
        let conditions = reader.part(item.conditions, format_args!("{field}.conditions"));
        let mut flag = |scalar: &Scalar, default, name| {
            reader.flag(scalar, default, format_args!("{field}.conditions.{name}"))
        };
        let conditions = Conditions {
            ready: flag(&conditions.ready, true, "ready"),
            serving: flag(&conditions.serving, true, "serving"),
            terminating: flag(&conditions.terminating, false, "terminating"),
        };
        let node = reader.text(item.node_name, format_args!("{field}.nodeName")).map(Into::into);
        let hostname = reader.text(item.hostname, format_args!("{field}.hostname"));
        let hints = reader.part(item.hints, format_args!("{field}.hints"));
        let zones = hinted(reader, hints.for_zones, format_args!("{field}.hints.forZones"));
        let nodes = hinted(reader, hints.for_nodes, format_args!("{field}.hints.forNodes"));
        let plain = hostname.is_none() && zones.is_empty() && nodes.is_empty();
        let extra = (!plain).then(|| Arc::new(Extra { hostname, zones, nodes }));
        endpoints.push(Endpoint { node, extra, addr, conditions });
    }
    endpoints
}

fn hinted(reader: &mut Reader, list: Many<Part<RawHint>>, field: fmt::Arguments<'_>) -> Box<[Box<str>]> {
    let items = reader.list(list, field);
    items
        .into_iter()
        .enumerate()
        .filter_map(|(index, hint)| {
            let name = reader.part(hint, format_args!("{field}[{index}]")).name;
            reader.text(name, format_args!("{field}[{index}].name"))
        })
        .collect()
}
