//! Rules that give packets their firewall mark.

use std::net::IpAddr;
use std::num::NonZeroU32;

use dataplane::ids::PortId;
use ipnet::IpNet;

use super::desired::indexed;
use super::reader::{Field, Map};
use super::services::PROTOCOLS;
use super::settings::InterfaceName;
use crate::model::{Interface, MatchRule, PortRange};

/// Entries of one list of a rule at most.
const ENTRIES_MAX: usize = 1024;

pub(super) fn read_rule(field: &Field<'_, '_>, interfaces: &[InterfaceName]) -> Option<MatchRule> {
    let map = field.map(&[
        "mark",
        "sources",
        "destinations",
        "protocols",
        "destination_ports",
        "source_ports",
        "interface",
    ])?;
    let mark = map.required("mark").and_then(|field| read_mark(&field));
    let rule = MatchRule {
        sources: read_list(&map, "sources", read_prefix),
        destinations: read_list(&map, "destinations", read_prefix),
        protocols: read_list(&map, "protocols", |field| field.word(&PROTOCOLS)),
        destination_ports: read_list(&map, "destination_ports", read_port_range),
        source_ports: read_list(&map, "source_ports", read_port_range),
        interface: map.optional("interface").and_then(|field| read_interface(&field, interfaces)),
        ..MatchRule::new(mark?)
    };
    Some(rule)
}

pub(super) fn read_mark(field: &Field<'_, '_>) -> Option<NonZeroU32> {
    NonZeroU32::new(field.number(1..=u32::MAX)?)
}

/// What is not there matches everything; so an empty list, which looks as if it matched nothing, is a fault.
pub(super) fn read_list<T>(
    map: &Map<'_, '_>,
    key: &'static str,
    read: impl Fn(&Field<'_, '_>) -> Option<T>,
) -> Vec<T> {
    let Some(list) = map.optional(key) else { return Vec::new() };
    if list.is_empty_list() {
        list.refuse("the list is empty: leave it out to match everything");
    }
    indexed(&list, ENTRIES_MAX, read).1
}

/// `a` or `a/length`.
pub(super) fn read_prefix(field: &Field<'_, '_>) -> Option<IpNet> {
    if !field.text()?.contains('/') {
        return field.parse::<IpAddr>().map(IpNet::from);
    }
    let net = field.parse::<IpNet>()?;
    if net.addr() != net.network() {
        field.refuse(format_args!("{net} has bits set behind its prefix: did you mean {}?", net.trunc()));
        return None;
    }
    Some(net)
}

/// A port or `first-last`.
fn read_port_range(field: &Field<'_, '_>) -> Option<PortRange> {
    if field.is_number() {
        let port = field.number(0..=u16::MAX)?;
        return PortRange::new(port, port);
    }
    let text = field.text()?;
    let ends = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    let range = ends.and_then(|(low, high)| PortRange::new(low, high));
    if range.is_none() {
        field.refuse(format_args!("{text:?} is neither a port nor a range of ports such as 8000-8999"));
    }
    range
}

fn read_interface(field: &Field<'_, '_>, interfaces: &[InterfaceName]) -> Option<Interface> {
    let text = field.text()?;
    let found = (0..).map(PortId).zip(interfaces).find(|(_, name)| name.as_str() == text);
    if found.is_none() {
        field.refuse(format_args!("{text} is none of the interfaces"));
    }
    found.map(|(id, name)| Interface { id, name: name.as_str().into() })
}
