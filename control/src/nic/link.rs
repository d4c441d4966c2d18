//! What the kernel tells of a link itself, by rtnetlink.

use std::pin::pin;

use futures_util::StreamExt as _;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
};

use super::{Attached, Master, Nic, Peer, Queues, ReadError, device};

/// What one link says, before names are put in for what it refers to.
struct Raw {
    nic: Nic,
    master: Option<(u32, String)>,
    /// The link below, or the other end of a pair, if it is in the same namespace.
    other: Option<u32>,
}

/// All links, by index.
pub(super) fn read_all() -> Result<Vec<Nic>, ReadError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ReadError::Runtime)?;
    let mut raw = runtime.block_on(async {
        let (requests, handle, _) = rtnetlink::new_connection().map_err(ReadError::Open)?;
        tokio::spawn(requests);
        let mut links = pin!(handle.link().get().execute());
        let mut raw = Vec::new();
        while let Some(message) = links.next().await {
            raw.extend(read(&message.map_err(ReadError::Links)?));
        }
        Ok(raw)
    })?;
    raw.sort_by_key(|raw: &Raw| raw.nic.ifindex);
    Ok(resolve(raw))
}

fn read(message: &LinkMessage) -> Option<Raw> {
    let header = &message.header;
    let mut nic = Nic {
        ifindex: header.index,
        ethernet: header.link_layer_type == LinkLayerType::Ether,
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        ..Nic::default()
    };
    let (mut master, mut port_kind, mut other, mut elsewhere) = (None, None, None, false);
    let (mut bus, mut parent) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => nic.name.clone_from(name),
            LinkAttribute::Address(bytes) => nic.address = colon_separated(bytes),
            LinkAttribute::Mtu(mtu) => nic.mtu = *mtu,
            LinkAttribute::NumRxQueues(count) => nic.queues.rx = Some(*count),
            LinkAttribute::NumTxQueues(count) => nic.queues.tx = Some(*count),
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::ParentDevBusName(name) => bus = Some(name),
            LinkAttribute::ParentDevName(name) => parent = Some(name),
            LinkAttribute::Xdp(attributes) => nic.programs = programs(attributes),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => nic.kind = Some(kind.to_string()),
                        LinkInfo::PortKind(kind) => port_kind = Some(kind.to_string()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if nic.kind.is_some() {
        // Queues that a virtual link was made with need not be in use.
        nic.queues = Queues::default();
    }
    if let (Some(bus), Some(parent)) = (bus, parent) {
        (nic.driver, nic.numa_node) = device::driver_and_node(bus, parent);
    }
    let master = master.map(|index| (index, port_kind.unwrap_or_default()));
    (!nic.name.is_empty()).then_some(Raw { nic, master, other: other.filter(|_| !elsewhere) })
}

fn colon_separated(bytes: &[u8]) -> String {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

/// The programs on a link. With one of them the kernel names it and its mode; with several, one a mode.
fn programs(attributes: &[LinkXdp]) -> Vec<Attached> {
    let of_mode = |attribute: &LinkXdp| match attribute {
        LinkXdp::DrvProgId(program) => Some(Attached { program: *program, mode: "native" }),
        LinkXdp::SkbProgId(program) => Some(Attached { program: *program, mode: "generic" }),
        LinkXdp::HwProgId(program) => Some(Attached { program: *program, mode: "offloaded" }),
        _ => None,
    };
    attributes.iter().filter_map(of_mode).collect()
}

/// Puts names in for indices.
fn resolve(raw: Vec<Raw>) -> Vec<Nic> {
    let names: Vec<_> = raw.iter().map(|raw| (raw.nic.ifindex, raw.nic.name.clone())).collect();
    let name_of = |index| names.iter().find(|(known, _)| *known == index).map(|(_, name)| name.clone());
    let is_vlan = |raw: &Raw| raw.nic.kind.as_deref() == Some("vlan");
    let vlans: Vec<_> = raw
        .iter()
        .filter(|raw| is_vlan(raw))
        .filter_map(|raw| Some((raw.other?, raw.nic.name.clone())))
        .collect();
    let named = |Raw { mut nic, master, other }: Raw| {
        nic.member_of = master
            .map(|(index, kind)| Master { name: name_of(index).unwrap_or_else(|| index.to_string()), kind });
        if nic.kind.as_deref() == Some("veth") {
            let peer = other.and_then(|ifindex| Some((ifindex, name_of(ifindex)?)));
            nic.peer = peer.map(|(ifindex, name)| Peer { name, ifindex, tx_queues: None });
        }
        let above = vlans.iter().filter(|(below, _)| *below == nic.ifindex);
        nic.vlans = above.map(|(_, name)| name.clone()).collect();
        nic
    };
    raw.into_iter().map(named).collect()
}
