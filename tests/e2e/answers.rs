//! What Weir answers itself: ARP, neighbour discovery, echo, and refusals.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, PacketBuilderStep, VlanHeader, VlanId,
};
use testbed::clients;
use testbed::topology::{ETH, Family, LAN, WAN, has_nics};
use testbed::{Namespace, Process, Raw, Service, run};

use crate::{LIMIT, Setup, both, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// The MAC address that the kernel of the namespace found for a neighbour.
fn neighbour(namespace: &Namespace, addr: IpAddr) -> Result<Option<String>> {
    let said = run(namespace.command("ip").args(["neighbour", "show", &addr.to_string()]), LIMIT)?;
    let mut words = said.out.split_whitespace().skip_while(|word| *word != "lladdr").skip(1);
    Ok(words.next().map(str::to_owned))
}

#[test]
fn arp_neighbour_discovery_and_echo_are_answered_for_vips_and_snat_addresses() -> Result<()> {
    let Some(setup) = Setup::start(&both(|family| Service::http(family.vip())))? else { return Ok(()) };
    let (client, gateway) = (&setup.topology.client, &setup.topology.gateway);
    let backend = setup.topology.backends.first().context("a backend")?;
    for family in Family::BOTH {
        for (asker, interface, addr) in [(client, WAN, family.vip()), (backend, LAN, family.snat())] {
            assert!(clients::ping(asker, addr)?, "{addr}");
            let mac = gateway.mac(interface)?.map(|octet| format!("{octet:02x}")).join(":");
            assert_eq!(neighbour(asker, addr)?, Some(mac), "{addr}");
        }
        assert!(!clients::ping(client, family.shared_vip())?, "an address of no service is not answered for");
    }
    Ok(())
}

#[test]
fn a_vip_behind_the_gateway_answers_echo() -> Result<()> {
    let Some(setup) = Setup::start(&both(|family| Service::http(family.routed_vip())))? else {
        return Ok(());
    };
    for family in Family::BOTH {
        assert!(clients::ping(&setup.topology.client, family.routed_vip())?);
    }
    Ok(())
}

#[test]
fn without_a_backend_tcp_is_reset_and_udp_unreachable() -> Result<()> {
    let services: Vec<Service> = Family::BOTH
        .into_iter()
        .flat_map(|family| {
            [
                Service::http(family.vip()).without_backends(),
                Service::dns(family.vip()).last_weight(0).without_backends(),
            ]
        })
        .collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        let started = Instant::now();
        let error = match service.protocol {
            "tcp" => {
                setup.topology.client.enter(|| TcpStream::connect_timeout(&service.addr(), SECOND).err())?
            }
            _ => udp_error(&setup.topology.client, service.addr())?,
        };
        let kind = error.map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{}/{}", service.addr(), service.protocol);
        assert!(started.elapsed() < SECOND / 2, "at once, not by a timeout: {:?}", started.elapsed());
    }
    let drops = setup.weir.show("drops")?;
    assert!(drops.to_string().contains("no_backend"), "{drops}");
    Ok(())
}

/// Sends a datagram; what the socket hears of it within a second.
fn udp_error(client: &Namespace, server: SocketAddr) -> Result<Option<std::io::Error>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    client.enter(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(SECOND))?;
        socket.connect(server)?;
        socket.send(b"anybody?")?;
        Ok(socket.recv(&mut [0; 64]).err())
    })?
}

#[test]
fn a_backends_port_unreachable_reaches_the_client_as_the_vips() -> Result<()> {
    const CLOSED: u16 = 9;
    for mode in ["fullnat", "nat"] {
        let services = both(|family| Service::dns(family.vip()).mode(mode).backend_port(CLOSED));
        let Some(setup) = Setup::start(&services)? else { return Ok(()) };
        for service in &services {
            // A connected socket takes an error only about its own addresses and ports.
            let kind = udp_error(&setup.topology.client, service.addr())?.map(|error| error.kind());
            assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{} {mode}", service.addr());
        }
    }
    Ok(())
}

/// The `ip` command that makes an interface of VLAN 7.
fn vlan_7(link: &str) -> String {
    format!("link add link {link} name {link}.7 type vlan id 7\n")
}

/// A frame of VLAN 7 from the client to the gateway.
fn tagged(from: [u8; 6], to: [u8; 6]) -> PacketBuilderStep<VlanHeader> {
    PacketBuilder::ethernet2(from, to).single_vlan(VlanId::try_new(7).unwrap_or_default())
}

#[test]
fn answers_to_tagged_frames_have_the_tag() -> Result<()> {
    let (service, refused) =
        (Service::http(Family::V4.vip()), Service::dns(Family::V6.vip()).without_backends());
    let Some(setup) = Setup::start(&[service.clone(), refused.clone()])? else { return Ok(()) };
    let client = &setup.topology.client;
    if has_nics() {
        // Their filter lets in frames of those VLANs alone that there is an interface for.
        setup.topology.gateway.ip(&vlan_7(WAN))?;
    }
    let mut command = client.command("tcpdump");
    command.args(["-i", ETH, "-n", "-e", "-l", "--immediate-mode", "--direction=in", "vlan", "7"]);
    let mut capture = Process::spawn("tcpdump", command, setup.topology.scratch().join("tcpdump.log"))?;
    let log = capture.log_path().to_owned();
    capture.wait_until(LIMIT, || Ok(std::fs::read_to_string(&log)?.contains("listening on")))?;

    let (own, gateway) = (client.mac(ETH)?, setup.topology.gateway.mac(WAN)?);
    let (IpAddr::V4(from), IpAddr::V4(vip)) = (Family::V4.client(), service.vip) else { panic!("IPv4") };
    let (IpAddr::V6(from6), IpAddr::V6(vip6)) = (Family::V6.client(), refused.vip) else { panic!("IPv6") };
    let question = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &own,
        &from.octets(),
        &[0; 6],
        &vip.octets(),
    )?;
    let arp = written(|frame| tagged(own, [0xff; 6]).arp(question).write(frame))?;
    let echo = tagged(own, gateway).ipv4(from.octets(), vip.octets(), 64).icmpv4_echo_request(1, 1);
    let echo = written(|frame| echo.write(frame, b"tagged"))?;
    let datagram = tagged(own, gateway).ipv6(from6.octets(), vip6.octets(), 64).udp(4000, refused.port);
    let datagram = written(|frame| datagram.write(frame, b"tagged"))?;

    let raw = Raw::open(client, ETH)?;
    for (frame, answer) in [
        (arp, format!("Reply {vip} is-at")),
        (echo, format!("{vip} > {from}: ICMP echo reply")),
        (datagram, format!("{vip6} > {from6}: ICMP6, destination unreachable, unreachable port")),
    ] {
        raw.send(&frame)?;
        eventually(SECOND * 5, || {
            let seen = capture.log();
            ensure!(
                seen.lines().any(|line| line.contains("vlan 7,") && line.contains(&answer)),
                "{answer}: {seen}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn written<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Vec<u8>, E> {
    let mut frame = Vec::new();
    write(&mut frame).map(|()| frame)
}

#[test]
fn tagged_traffic_is_served_with_its_tag() -> Result<()> {
    let Some(setup) = Setup::start(&both(|family| Service::http(family.vip())))? else { return Ok(()) };
    let (client, gateway) = (&setup.topology.client, &setup.topology.gateway);
    if let Err(error) = client.ip(&vlan_7(ETH)) {
        println!("did not run: this kernel has no VLAN interfaces: {error:#}");
        return Ok(());
    }
    // Otherwise veth carries the tag beside the frame, where an XDP program does not see it, and a network card takes it off.
    run(client.command("ethtool").args(["-K", ETH, "txvlan", "off"]), LIMIT)?;
    run(gateway.command("ethtool").args(["-K", WAN, "rxvlan", "off"]), LIMIT)?;
    gateway.ip(&vlan_7(WAN))?;
    // The addresses move to the tagged interfaces at both ends, so nothing can go untagged.
    for (namespace, name, own) in
        [(client, ETH, Family::BOTH.map(Family::client)), (gateway, WAN, Family::BOTH.map(Family::gateway))]
    {
        namespace.ip(&format!("address flush dev {name} scope global\nlink set {name}.7 up\n"))?;
        for addr in own {
            let prefix = if addr.is_ipv4() { 24 } else { 64 };
            namespace.ip(&format!("address add {addr}/{prefix} dev {name}.7\n"))?;
        }
    }
    for family in Family::BOTH {
        let addr = SocketAddr::new(family.vip(), 80);
        eventually(SECOND * 20, || clients::curl(client, addr, 1).map(drop))?;
        assert!(clients::ping(client, family.vip())?);
        assert!(clients::download(client, addr)? == testbed::servers::blob());
        let load = testbed::load(client, addr, 100, 4)?;
        assert!(load.failures.is_empty(), "{:?}", load.failures);
    }
    Ok(())
}
