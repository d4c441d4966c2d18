//! The part of the configuration that a reload can change: services, SNAT pools, rules that give marks, node addresses,
//! timeouts, what IPVS has as sysctls.

use std::sync::Arc;

use ipnet::IpNet;

use super::pools::read_pool;
use super::reader::{Field, Map};
use super::rules::{read_list, read_prefix, read_rule};
use super::services::read_service;
use super::settings::{InterfaceName, NODE_ADDRESSES_MAX};
use super::sysctls::{read_settings, read_timeouts};
use crate::model::{Draft, Unicast};
use dataplane::snapshot::marks::MARK_RULES_MAX;

/// SNAT pools at most.
const POOLS_MAX: usize = 256;
const NAME_MAX: usize = 253;

/// Where in the file the parts of a draft stand: parts with faults of their own are not in the draft, so its positions
/// are not the file's.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// The index in `services` of each service, and in its `backends` of each backend.
    pub services: Vec<(usize, Vec<usize>)>,
    /// The index in `snat_pools` of each pool, and in its `addresses` of each range.
    pub pools: Vec<(usize, Vec<usize>)>,
    /// The index in `node_addresses` of each.
    pub node_addresses: Vec<usize>,
    /// The index in `match_rules` of each.
    pub rules: Vec<usize>,
    /// Whether all pools and node addresses of the file are in the draft: where not, what a service misses may just be
    /// faulty.
    pub complete: bool,
}

/// What the document says, with faults noted and what has them left out or set to a default. Each of the `workers`
/// needs a port of every SNAT pool; rules name `interfaces`.
pub(super) fn read(document: &Map<'_, '_>, workers: u8, interfaces: &[InterfaceName]) -> (Draft, Sources) {
    let mut draft =
        Draft { timeouts: read_timeouts(document), settings: read_settings(document), ..Draft::default() };
    let mut sources = Sources::default();
    let faults = document.faults();
    if let Some(list) = document.optional("node_addresses") {
        (sources.node_addresses, draft.node_addresses) = indexed(&list, NODE_ADDRESSES_MAX, read_unicast);
    }
    if let Some(list) = document.optional("snat_pools") {
        let (indices, pools) = indexed(&list, POOLS_MAX, |field| read_pool(field, workers));
        let (entries, pools): (Vec<_>, _) = pools.into_iter().unzip();
        sources.pools = indices.into_iter().zip(entries).collect();
        draft.pools = pools;
    }
    draft.local = read_list(document, "local_networks", read_prefix);
    draft.virtual_networks = read_list(document, "virtual_networks", read_virtual);
    sources.complete = document.faults() == faults;
    if let Some(list) = document.optional("match_rules") {
        (sources.rules, draft.rules) = indexed(&list, MARK_RULES_MAX, |field| read_rule(field, interfaces));
    }
    if let Some(list) = document.optional("services") {
        let (indices, services) = indexed(&list, usize::MAX, read_service);
        let (backends, services): (Vec<_>, _) = services.into_iter().unzip();
        sources.services = indices.into_iter().zip(backends).collect();
        draft.services = services;
    }
    (draft, sources)
}

/// The entries that `read` can make sense of, with their indices in the file.
pub(super) fn indexed<T>(
    list: &Field<'_, '_>,
    most: usize,
    read: impl Fn(&Field<'_, '_>) -> Option<T>,
) -> (Vec<usize>, Vec<T>) {
    list.list(most).enumerate().filter_map(|(index, field)| Some((index, read(&field)?))).unzip()
}

/// A network that services have to themselves.
fn read_virtual(field: &Field<'_, '_>) -> Option<IpNet> {
    let net = read_prefix(field)?;
    if net.prefix_len() == 0 {
        field.refuse("every address would be one of services");
        return None;
    }
    Some(net)
}

pub(super) fn read_name(map: &Map<'_, '_>) -> Option<Arc<str>> {
    let field = map.required("name")?;
    let name = field.text()?;
    if name.len() > NAME_MAX {
        field.refuse(format_args!("a name has at most {NAME_MAX} bytes"));
    } else if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        field.refuse("a name has no blanks and is not empty");
    } else {
        return Some(name.into());
    }
    None
}

pub(super) fn read_unicast(field: &Field<'_, '_>) -> Option<Unicast> {
    Unicast::new(field.parse()?).map_err(|error| field.refuse(error)).ok()
}
