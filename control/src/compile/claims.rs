//! What of the frames on the wire services claim for Weir, in the words of the XDP program.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::flow::key;
use dataplane::snapshot::marks::Prefix;
use dataplane::snapshot::{FTP, Mark, MarkRule, Mode};
use ipnet::IpNet;
use xdp_prog::{Claim, Endpoint, Proto, Rule};

use crate::model::{AddressRange, Backend, Draft, Family, Identity, MatchRule, Protocol, Service, Unicast};

/// What a service claims, with `around` beside it; some of it more than once.
pub(super) fn of_service(service: &Service, around: &Draft) -> Vec<Claim> {
    let mut claims = Vec::with_capacity(2 + service.backends.len());
    if let Some(proto) = service.protocol().map(proto) {
        let vips = service.keys().zip(service.vips());
        claims.extend(vips.map(|(key, vip)| Claim::Vip(Endpoint { addr: vip.ip(), port: key.port, proto })));
        claims.extend(service.node_port.map(|port| Claim::NodePort(proto, port.number())));
    }
    claims.extend(owned(service, around).map(Claim::Owned));
    let protocols = protocols(service, around);
    // Replies come from the port that the client asked for, where that was kept; data of FTP from any.
    let any_port = service.keeps_ports() || is_ftp(service);
    for backend in &*service.backends {
        claims.extend(of_backend(backend, &protocols, any_port));
    }
    claims
}

fn of_backend(backend: &Backend, protocols: &[Protocol], any_port: bool) -> impl Iterator<Item = Claim> {
    let (addr, is_nat) = (backend.addr.ip(), backend.mode == Mode::Nat);
    let port = if any_port { 0 } else { backend.port_number() };
    let endpoint = move |protocol: &Protocol| Endpoint { addr, port, proto: proto(*protocol) };
    let replies = protocols.iter().filter(move |_| is_nat).map(endpoint).map(Claim::NatBackend);
    replies.chain(tunnel(backend))
}

/// What a backend of the service claims once it was removed, as long as flows count on it: their replies still have to
/// come back.
pub(super) fn of_removed(service: &Service, backend: &Backend) -> Vec<Claim> {
    let (protocols, any_port) = match service.identity() {
        Some(Identity::Vip(vip, _)) => (vec![service.protocol()], vip.port == 0 || vip.port == FTP),
        Some(Identity::Node { protocol, .. }) => (vec![Some(protocol)], false),
        Some(Identity::Mark(_)) | None => (Protocol::ALL.map(Some).to_vec(), true),
    };
    let protocols: Vec<_> = protocols.into_iter().flatten().collect();
    of_backend(backend, &protocols, any_port).collect()
}

/// What is claimed besides services: the node's addresses, where there are node ports, and those of SNAT pools.
pub(super) fn of_around(around: &Draft, has_node_ports: bool) -> HashSet<Claim> {
    let node = around.node_addresses.iter().filter(|_| has_node_ports);
    let mut claims: HashSet<_> = node.map(|addr| Claim::NodeAddress(addr.ip())).collect();
    for pool in &around.pools {
        let (low, high) = (pool.low.number(), pool.high.number());
        for addr in pool.ranges.iter().flat_map(AddressRange::iter) {
            claims.extend([Claim::Snat(addr, low, high), Claim::Owned(addr)]);
        }
    }
    claims
}

/// The virtual addresses that Weir answers for because of a service.
fn owned(service: &Service, around: &Draft) -> impl Iterator<Item = IpAddr> {
    let of_mark = service.mark().filter(|_| service.announce).map(|mark| single(mark, around));
    let vips = service.vips().iter().filter(|_| service.announce).copied();
    let is_the_nodes = |addr: &Unicast| around.node_addresses.contains(addr);
    let all = vips.chain(of_mark.into_iter().flatten()).filter(move |addr| !is_the_nodes(addr));
    all.map(Unicast::ip).filter(|addr| Unicast::new(*addr).is_ok())
}

/// The single addresses that rules with a mark have as destinations.
fn single(mark: Mark, around: &Draft) -> Vec<Unicast> {
    let family = if mark.v6 { Family::V6 } else { Family::V4 };
    let rules = around.rules.iter().filter(|rule| rule.mark == mark.value);
    let nets = rules.flat_map(|rule| &rule.destinations);
    let single = nets.filter(|net| net.prefix_len() == net.max_prefix_len());
    let addresses = single.filter_map(|net| Unicast::new(net.addr()).ok());
    addresses.filter(|addr| addr.family() == family).collect()
}

/// Whether rules tell of the service.
pub(super) fn has_rules(service: &Service) -> bool {
    service.mark().is_some() || is_ftp(service)
}

/// All rules, with `services` those of which [`has_rules`] says so.
pub(super) fn rules<'s>(around: &Draft, services: impl Iterator<Item = &'s Arc<Service>>) -> Vec<Rule> {
    let services: Vec<_> = services.collect();
    let taken: HashSet<Mark, ahash::RandomState> =
        services.iter().filter_map(|service| service.mark()).collect();
    let mut rules = of_marks(around, &taken);
    rules.extend(services.iter().filter(|service| is_ftp(service)).flat_map(|service| ftp_data(service)));
    rules.extend(virtual_networks(around));
    rules
}

/// Whether clients reach FTP by the service, whose data connections have ports of their own.
fn is_ftp(service: &Service) -> bool {
    service.protocol() == Some(Protocol::Tcp) && service.keys().any(|key| key.port == FTP)
}

/// What may be data of FTP for a service: active, answers to port 20; passive, to ports that any process may listen on
/// (`ip_vs_service_find`).
fn ftp_data(service: &Service) -> impl Iterator<Item = Rule> {
    let vips = service.keys().zip(service.vips()).filter(|(key, _)| key.port == FTP);
    let ports = |vip: IpAddr| {
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
    vips.map(|(_, vip)| vip.ip()).flat_map(ports)
}

/// What is for no service in networks of virtual addresses, but for addresses there that are the node's own or of SNAT
/// pools: these have ports that are the kernel's.
fn virtual_networks(around: &Draft) -> impl Iterator<Item = Rule> {
    let networks = IpNet::aggregate(&around.virtual_networks);
    let node = around.node_addresses.iter().copied().map(Unicast::ip);
    let pools = around.pools.iter().flat_map(|pool| &pool.ranges).flat_map(AddressRange::iter);
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
fn protocols(service: &Service, around: &Draft) -> Vec<Protocol> {
    let (Some(mark), family) = (service.mark(), service.family()) else {
        return service.protocol().into_iter().collect();
    };
    let rules = around.rules.iter().filter(|rule| rule.mark == mark.value && rule.has_family(family));
    let rules: Vec<_> = rules.collect();
    let matches = |protocol: &Protocol| rules.iter().any(|rule| rule.has_protocol(*protocol));
    Protocol::ALL.into_iter().filter(matches).collect()
}

/// The rules that give marks, of which services have `taken` some.
fn of_marks(around: &Draft, taken: &HashSet<Mark, ahash::RandomState>) -> Vec<Rule> {
    let block = |prefix: Prefix| (key::address(prefix.addr, prefix.v6), prefix.len);
    let spread = around.rules.iter().flat_map(MatchRule::spread);
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
fn tunnel(backend: &Backend) -> Option<Claim> {
    backend.mode.is_tunnel().then_some(Claim::Tunnel(backend.addr.ip(), backend.tunnel.port))
}

fn proto(protocol: Protocol) -> Proto {
    match protocol {
        Protocol::Tcp => Proto::Tcp,
        Protocol::Udp => Proto::Udp,
        Protocol::Sctp => Proto::Sctp,
    }
}
