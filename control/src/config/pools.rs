//! SNAT pools.

use std::net::IpAddr;

use ipnet::IpNet;

use super::desired::{indexed, read_name};
use super::reader::Field;
use crate::model::{AddressRange, POOL_ADDRESSES_MAX, Port, SnatPool};

/// A pool, and the index of each of its ranges.
pub(super) fn read_pool(field: &Field<'_, '_>, workers: u8) -> Option<(Vec<usize>, SnatPool)> {
    let map = field.map(&["name", "addresses", "ports"])?;
    let name = read_name(&map);
    let addresses = map.required("addresses");
    let (entries, ranges): (Vec<_>, Vec<_>) =
        addresses.as_ref().map(|list| indexed(list, POOL_ADDRESSES_MAX, read_range)).unwrap_or_default();
    if let Some(list) = addresses {
        let count: usize = ranges.iter().map(AddressRange::count).sum();
        if list.is_empty_list() {
            list.refuse("a SNAT pool needs at least one address");
        } else if count > POOL_ADDRESSES_MAX {
            list.refuse(format_args!("{count} addresses are more than {POOL_ADDRESSES_MAX}"));
        }
    }
    let (low, high) = match map.optional("ports") {
        None => (1024, u16::MAX),
        Some(field) => read_ports(&field, workers)?,
    };
    Some((entries, SnatPool { name: name?, ranges, low: Port::new(low)?, high: Port::new(high)? }))
}

fn read_ports(field: &Field<'_, '_>, workers: u8) -> Option<(u16, u16)> {
    let text = field.text()?;
    let ends = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    let Some((low, high)) = ends.filter(|(low, _)| *low > 0) else {
        field.refuse(format_args!("{text:?} is not a range of ports such as 1024-65535"));
        return None;
    };
    let count = u32::from(high) + 1;
    let count = count.saturating_sub(u32::from(low));
    if low <= high && count < u32::from(workers) {
        field.refuse(format_args!("{count} ports are too few: each of the {workers} workers needs one"));
    }
    Some((low, high))
}

/// `a`, `a-b` or `a/length`.
fn read_range(field: &Field<'_, '_>) -> Option<AddressRange> {
    let text = field.text()?;
    let parse = |addr: &str| {
        addr.parse::<IpAddr>().map_err(|error| field.refuse(format_args!("{addr:?}: {error}"))).ok()
    };
    let (first, last) = if let Some((first, last)) = text.split_once('-') {
        (parse(first.trim())?, parse(last.trim())?)
    } else if text.contains('/') {
        let net = field.parse::<IpNet>()?;
        if net.addr() != net.network() {
            field.refuse(format_args!("{net} has bits set behind its prefix: did you mean {}?", net.trunc()));
            return None;
        }
        (net.network(), net.broadcast())
    } else {
        let addr = parse(text)?;
        (addr, addr)
    };
    AddressRange::new(first, last).map_err(|error| field.refuse(error)).ok()
}
