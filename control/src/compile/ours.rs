//! What the XDP program takes for Weir.

use std::collections::HashSet;
use std::net::IpAddr;

use dataplane::flow::key;
use dataplane::snapshot::marks::Prefix;
use dataplane::snapshot::{FTP, Mark, MarkRule, Mode};
use ipnet::IpNet;
use xdp_prog::{Endpoint, Ours, Proto, Rule};

use super::{IdTable, owned};
use crate::model::{AddressRange, Backend, DesiredState, Identity, MatchRule, Protocol, Service, Unicast};

/// What belongs to Weir with these tables. `nat` backends that were removed belong to it as long as `ids` holds a slot
/// for them: replies of their last flows still have to come back.
pub fn ours(desired: &DesiredState, ids: &IdTable) -> Ours {
    let mut ours = Ours { owned: owned(desired).collect(), ..Ours::default() };
    for service in desired.services() {
        if let Some(proto) = service.protocol().map(proto) {
            let vips = service.keys().zip(service.vips());
            ours.vips.extend(vips.map(|(key, vip)| Endpoint { addr: vip.ip(), port: key.port, proto }));
            ours.node_ports.extend(service.node_port.map(|port| (proto, port.number())));
        }
        for nat in service.backends.iter().filter(|backend| backend.mode == Mode::Nat) {
            // Replies come from the port that the client asked for, where that was kept; data of FTP from any.
            let any = service.keeps_ports() || is_ftp(service);
            let port = if any { 0 } else { nat.port_number() };
            let endpoint = |proto| Endpoint { addr: nat.addr.ip(), port, proto };
            ours.nat_backends.extend(protocols(service, desired).into_iter().map(proto).map(endpoint));
        }
    }
    ours.rules = rules(desired);
    ours.rules.extend(desired.services().iter().filter(|service| is_ftp(service)).flat_map(ftp_data));
    ours.rules.extend(virtual_networks(desired));
    ours.tunnels =
        desired.services().iter().flat_map(|service| &*service.backends).filter_map(tunnel).collect();
    ours.tunnels.extend(ids.removed().filter_map(|removed| removed.tunnel));
    for removed in ids.removed().filter(|removed| removed.mode == Mode::Nat) {
        let (protos, port) = match removed.service {
            Identity::Vip(vip, _) if vip.port != 0 && vip.port != FTP => (of_number(vip.proto), removed.port),
            Identity::Vip(vip, _) => (of_number(vip.proto), 0),
            Identity::Node { protocol, .. } => (vec![protocol], removed.port),
            Identity::Mark(_) => (Protocol::ALL.to_vec(), 0),
        };
        let endpoint = |protocol| Endpoint { addr: removed.addr, port, proto: proto(protocol) };
        ours.nat_backends.extend(protos.into_iter().map(endpoint));
    }
    if !ours.node_ports.is_empty() {
        ours.node_addresses = desired.node_addresses().iter().map(|addr| addr.ip()).collect();
    }
    for pool in desired.pools() {
        let ports = pool.low.number()..=pool.high.number();
        for addr in pool.ranges.iter().flat_map(|range| range.iter()) {
            ours.snat.insert(addr, ports.clone());
            ours.owned.insert(addr);
        }
    }
    ours
}

/// Whether clients reach FTP by the service, whose data connections have ports of their own.
fn is_ftp(service: &Service) -> bool {
    service.protocol() == Some(Protocol::Tcp) && service.keys().any(|key| key.port == FTP)
}

/// What may be data of FTP for a service: active, answers to port 20; passive, to ports that any process may listen on
/// (`ip_vs_service_find`).
fn ftp_data(service: &Service) -> impl Iterator<Item = Rule> {
    let vips = service.keys().zip(service.vips()).filter(|(key, _)| key.port == FTP);
    let ports = |(_, vip): (_, IpAddr)| {
        [FTP - 1..=FTP - 1, 1024..=u16::MAX].map(|dports| Rule {
            src: None,
            dst: Some((vip, if vip.is_ipv6() { 128 } else { 32 })),
            protos: vec![Proto::Tcp],
            dports,
            sports: 0..=u16::MAX,
            port: None,
            ours: [!vip.is_ipv6(), vip.is_ipv6()],
        })
    };
    vips.map(|(key, vip)| (key, vip.ip())).flat_map(ports)
}

/// What is for no service in networks of virtual addresses, but for addresses there that are the node's own or of SNAT
/// pools: these have ports that are the kernel's.
fn virtual_networks(desired: &DesiredState) -> impl Iterator<Item = Rule> {
    let networks = IpNet::aggregate(&desired.virtual_networks().to_vec());
    let node = desired.node_addresses().iter().copied().map(Unicast::ip);
    let pools = desired.pools().iter().flat_map(|pool| &pool.ranges).flat_map(AddressRange::iter);
    let within = |addr: &IpAddr| networks.iter().any(|net| net.contains(addr));
    let others: Vec<_> = node.chain(pools).filter(within).map(IpNet::from).collect();
    let rule = |net: IpNet, ours: bool| Rule {
        src: None,
        dst: Some((net.network(), net.prefix_len())),
        protos: vec![Proto::Tcp, Proto::Udp, Proto::Sctp],
        dports: 0..=u16::MAX,
        sports: 0..=u16::MAX,
        port: None,
        ours: [ours; 2],
    };
    let others: Vec<_> = IpNet::aggregate(&others).into_iter().map(|net| rule(net, false)).collect();
    others.into_iter().chain(networks.into_iter().map(move |net| rule(net, true)))
}

/// The protocols that packets of the service can have.
fn protocols(service: &Service, desired: &DesiredState) -> Vec<Protocol> {
    let (Some(mark), family) = (service.mark(), service.family()) else {
        return service.protocol().into_iter().collect();
    };
    let rules = desired.rules().iter().filter(|rule| rule.mark == mark.value && rule.has_family(family));
    let rules: Vec<_> = rules.collect();
    let matches = |protocol: &Protocol| rules.iter().any(|rule| rule.has_protocol(*protocol));
    Protocol::ALL.into_iter().filter(matches).collect()
}

/// The rules that give marks, of which services take some.
fn rules(desired: &DesiredState) -> Vec<Rule> {
    let taken: HashSet<Mark, ahash::RandomState> =
        desired.services().iter().filter_map(Service::mark).collect();
    let block = |prefix: Prefix| (key::address(prefix.addr, prefix.v6), prefix.len);
    let spread = desired.rules().iter().flat_map(MatchRule::spread);
    let rule = |rule: MarkRule| Rule {
        src: rule.src.map(block),
        dst: rule.dst.map(block),
        protos: Protocol::ALL
            .into_iter()
            .filter(|protocol| rule.protocols.contains(protocol.number()))
            .map(proto)
            .collect(),
        dports: rule.dports,
        sports: rule.sports,
        port: rule.port.map(|port| port.0),
        ours: [false, true].map(|v6| taken.contains(&Mark { value: rule.mark, v6 })),
    };
    // Marks that no service has are the kernel's from first to last.
    if taken.is_empty() { Vec::new() } else { spread.map(rule).collect() }
}

/// A backend at the other end of a tunnel, with the UDP port of that.
pub(super) fn tunnel(backend: &Backend) -> Option<(IpAddr, u16)> {
    backend.mode.is_tunnel().then_some((backend.addr.ip(), backend.tunnel.port))
}

fn of_number(number: u8) -> Vec<Protocol> {
    Protocol::ALL.into_iter().filter(|protocol| protocol.number() == number).collect()
}

fn proto(protocol: Protocol) -> Proto {
    match protocol {
        Protocol::Tcp => Proto::Tcp,
        Protocol::Udp => Proto::Udp,
        Protocol::Sctp => Proto::Sctp,
    }
}
