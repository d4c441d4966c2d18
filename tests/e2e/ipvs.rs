//! `weir replay` beside the kernel's IPVS, where this kernel has it: what IPVS was sent goes through the engine, and what
//! becomes of each packet has to be the same, to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dataplane::io::pcap;
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket,
    TransportSlice,
};
use serde::Deserialize;
use testbed::topology::{ETH, Family, LAN, WAN, veth};
use testbed::{Namespace, Raw, run};

use crate::commands::Desk;
use crate::{LIMIT, can_run};

/// The gateway's MAC address on both sides, which is also the one that `weir replay` imagines, and everybody else's.
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ETHERNET: usize = 14;
const PORT: u16 = 80;
/// Flows to a service.
const FLOWS: u16 = 24;

/// How services choose: options of `ipvsadm -A` and keys of the configuration. `twos` draws at random, so it is not here.
const CHOICES: [(&str, &str); 20] = [
    ("-s rr", "scheduler: rr"),
    ("-s wrr", "scheduler: wrr"),
    ("-s lc", "scheduler: lc"),
    ("-s wlc", "scheduler: wlc"),
    ("-s sed", "scheduler: sed"),
    ("-s nq", "scheduler: nq"),
    ("-s fo", "scheduler: fo"),
    ("-s ovf", "scheduler: ovf"),
    ("-s sh", "scheduler: sh"),
    ("-s sh -b sh-port", "scheduler: sh, scheduler_flags: [sh-port]"),
    ("-s sh -b sh-port,sh-fallback", "scheduler: sh, scheduler_flags: [sh-port, sh-fallback]"),
    ("-s mh", "scheduler: mh"),
    ("-s mh -b mh-port", "scheduler: mh, scheduler_flags: [mh-port]"),
    ("-s mh -b mh-port,mh-fallback", "scheduler: mh, scheduler_flags: [mh-port, mh-fallback]"),
    ("-s lblc", "scheduler: lblc"),
    ("-s lblcr", "scheduler: lblcr"),
    ("-s wrr -p 300", "scheduler: wrr, persistence: {timeout_s: 300}"),
    // By the destination, which is another one for each service.
    ("-s dh", "scheduler: dh"),
    ("-s dh", "scheduler: dh"),
    ("-s dh", "scheduler: dh"),
];

/// Backends of each service: weight, and the flows from which on it takes no new ones. One drains.
const BACKENDS: [(u16, u16); 4] = [(3, 0), (1, 0), (2, 6), (0, 0)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// A service that IPVS and Weir have.
#[derive(Clone, Copy, Debug)]
struct Service {
    family: Family,
    protocol: Protocol,
    /// One of [`CHOICES`], and which.
    choice: (&'static str, &'static str),
    number: u16,
}

impl Service {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let of = |(number, choice)| Self { family, protocol, choice, number };
                all.extend((0..).zip(CHOICES).map(of));
            }
        }
        all
    }

    fn addr(self) -> SocketAddr {
        SocketAddr::new(host(self.family, VIPS, 1 + self.number), PORT)
    }

    /// The backend with this number. Each service has a port of its own there, so that flows of several may have one client.
    fn backend(self, number: u16) -> SocketAddr {
        SocketAddr::new(host(self.family, SERVERS, 11 + number), 8000 + self.number)
    }

    /// The client of a flow; some have several.
    fn client(self, flow: u16) -> SocketAddr {
        SocketAddr::new(host(self.family, CLIENTS, 7 + flow % 17 * 263), 30_000 + flow * 37)
    }

    /// Commands for `ipvsadm -R`.
    fn ipvsadm(self) -> String {
        let option = if self.protocol == Protocol::Tcp { "-t" } else { "-u" };
        let service = format!("{option} {}", self.addr());
        let mut lines = format!("-A {service} {}\n", self.choice.0);
        for (number, (weight, upper)) in (0..).zip(BACKENDS) {
            lines += &format!("-a {service} -r {} -m -w {weight} -x {upper}\n", self.backend(number));
        }
        lines
    }

    /// The same for Weir's configuration.
    fn yaml(self) -> String {
        let (addr, name) = (self.addr(), self.name());
        let protocol = if self.protocol == Protocol::Tcp { "tcp" } else { "udp" };
        let mut backends = String::new();
        for (number, (weight, upper)) in (0..).zip(BACKENDS) {
            let backend = self.backend(number);
            let (ip, port) = (backend.ip(), backend.port());
            backends +=
                &format!("{{address: \"{ip}\", port: {port}, weight: {weight}, upper_threshold: {upper}}}, ");
        }
        format!(
            "  - {{name: \"{name}\", vip: \"{}\", port: {PORT}, protocol: {protocol}, {}, backends: [{backends}]}}\n",
            addr.ip(),
            self.choice.1
        )
    }

    fn name(self) -> String {
        format!("{}/{:?}/{}", self.addr(), self.protocol, self.choice.0.replace(' ', ""))
    }
}

/// The networks of virtual addresses, of clients and of backends.
const VIPS: u8 = 9;
const CLIENTS: u8 = 1;
const SERVERS: u8 = 2;

fn host(family: Family, net: u8, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(10, net, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, host).into(),
    }
}

/// The gateway with the kernel's balancer, between two ends that nobody answers at.
struct Kernel {
    gateway: Namespace,
    client: Namespace,
    server: Namespace,
}

impl Kernel {
    /// The namespaces; `None` where there is no IPVS, which it says.
    fn start() -> Result<Option<Self>> {
        if !can_run() {
            return Ok(None);
        }
        let kernel = Self {
            gateway: Namespace::of_role("ipvs-gateway")?,
            client: Namespace::of_role("ipvs-client")?,
            server: Namespace::of_role("ipvs-server")?,
        };
        // It loads the module.
        let has_ipvs = run(kernel.gateway.command("ipvsadm").arg("-Ln"), LIMIT).is_ok_and(|said| {
            said.status.success() && std::fs::exists("/proc/net/ip_vs").unwrap_or_default()
        });
        if !has_ipvs {
            println!(
                "did not run: this kernel has no IPVS, or ipvsadm is not installed; make test-vm has both"
            );
            return Ok(None);
        }
        kernel.connect()?;
        Ok(Some(kernel))
    }

    fn connect(&self) -> Result<()> {
        for end in [&self.client, &self.server] {
            end.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        }
        veth(&self.gateway, WAN, &self.client, ETH, 1)?;
        veth(&self.gateway, LAN, &self.server, ETH, 1)?;
        self.gateway.sysctl("net/ipv4/ip_forward", "1")?;
        self.gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        // An error for each packet that is refused.
        self.gateway.sysctl("net/ipv4/icmp_ratemask", "0")?;
        self.gateway.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        let mut lines = String::new();
        for (link, net) in [(WAN, CLIENTS), (LAN, SERVERS)] {
            writeln!(lines, "link set {link} address {}", mac(GATEWAY_MAC))?;
            for (family, subnet, all) in [(Family::V4, 30, 16), (Family::V6, 126, 64)] {
                let (own, next) = (host(family, net, 1), host(family, net, 2));
                // Everybody on a side is behind one router.
                writeln!(lines, "address add {own}/{subnet} dev {link}")?;
                writeln!(lines, "neighbour add {next} lladdr {} dev {link}", mac(OTHER_MAC))?;
                writeln!(lines, "route add {}/{all} via {next}", host(family, net, 0))?;
            }
        }
        for vip in Service::all().iter().map(|service| service.addr().ip()).collect::<BTreeSet<_>>() {
            writeln!(lines, "address add {vip} dev lo")?;
        }
        self.gateway.ip(&lines)
    }

    fn restore(&self, commands: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), commands)?;
        let mut shell = self.gateway.command("sh");
        let said = run(shell.args(["-c", "ipvsadm -R <\"$1\"", "sh"]).arg(file.path()), LIMIT)?;
        ensure!(said.status.success() && said.err.is_empty(), "ipvsadm -R: {}{}", said.out, said.err);
        Ok(())
    }
}

fn mac(addr: [u8; 6]) -> String {
    addr.map(|byte| format!("{byte:02x}")).join(":")
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// It went on to the other side, from its IP header on.
    Sent(Vec<u8>),
    /// Its sender was told that nobody takes it.
    Refused,
}

/// A packet that the kernel was sent.
struct Passed {
    service: Service,
    time_ns: u64,
    frame: Vec<u8>,
    fate: Fate,
    /// Where it went, or came from.
    backend: Option<SocketAddr>,
}

impl Passed {
    /// Whether it is what a replay made of the packet.
    fn is_same(&self, verdict: &Line, frame: &[u8]) -> bool {
        match &self.fate {
            Fate::Sent(packet) => {
                let backend = self.backend.map(|backend| backend.to_string());
                verdict.verdict == "forward"
                    && verdict.service == Some(self.service.name())
                    && verdict.backend == backend
                    && frame.get(ETHERNET..) == Some(packet)
            }
            Fate::Refused => {
                verdict.verdict == "reply"
                    && verdict.reason.as_deref() == Some("no_backend")
                    && is_refusal(frame)
            }
        }
    }
}

/// Sends the kernel packets, one after the other, and keeps what it did.
struct Wire {
    client: Raw,
    server: Raw,
    began: Instant,
    passed: Vec<Passed>,
}

impl Wire {
    fn open(kernel: &Kernel) -> Result<Self> {
        Ok(Self {
            client: Raw::open(&kernel.client, ETH)?,
            server: Raw::open(&kernel.server, ETH)?,
            began: Instant::now(),
            passed: Vec::new(),
        })
    }

    /// Sends a packet and waits for what becomes of it.
    fn pass(&mut self, service: Service, from_client: bool, frame: Vec<u8>) -> Result<Fate> {
        const LOOK: Duration = Duration::from_millis(5);
        let (near, far) =
            if from_client { (&self.client, &self.server) } else { (&self.server, &self.client) };
        let time_ns = u64::try_from(self.began.elapsed().as_nanos())?;
        near.send(&frame)?;
        let deadline = Instant::now() + LIMIT;
        let fate = loop {
            if let Some(mut frame) = far.receive(LOOK)?
                && ends(&frame).is_some()
            {
                break Fate::Sent(frame.split_off(ETHERNET));
            }
            if near.receive(Duration::from_micros(1))?.is_some_and(|frame| is_refusal(&frame)) {
                break Fate::Refused;
            }
            ensure!(
                Instant::now() < deadline,
                "{}: the kernel let {:?} disappear",
                service.name(),
                ends(&frame)
            );
        };
        let backend = match &fate {
            Fate::Sent(packet) if from_client => ends_of_packet(packet).map(|(_, to)| to),
            Fate::Sent(_) => ends(&frame).map(|(from, _)| from),
            Fate::Refused => None,
        };
        self.passed.push(Passed { service, time_ns, frame, fate: fate.clone(), backend });
        Ok(fate)
    }

    /// Opens a flow; the backend that the kernel chose, unless it refused. Every fourth flow over TCP stays half-open.
    fn begin(&mut self, service: Service, flow: u16) -> Result<Option<SocketAddr>> {
        let (client, vip) = (service.client(flow), service.addr());
        let mut say =
            |from_client, from, to, say| self.pass(service, from_client, segment(service, from, to, say)?);
        let Fate::Sent(opened) = say(true, client, vip, Say::Syn)? else { return Ok(None) };
        let (_, backend) = ends_of_packet(&opened).context("a packet to a backend")?;
        let rest = match service.protocol {
            Protocol::Tcp if flow % 4 == 3 => &[][..],
            Protocol::Tcp => &[(false, Say::SynAck), (true, Say::Ack), (true, Say::Data), (false, Say::Data)],
            Protocol::Udp => &[(false, Say::Data), (true, Say::Data)],
        };
        for (from_client, what) in rest {
            let (from, to) = if *from_client { (client, vip) } else { (backend, client) };
            say(*from_client, from, to, *what)?;
        }
        Ok(Some(backend))
    }

    /// Closes a flow over TCP, in turn from either end.
    fn end(&mut self, service: Service, flow: u16, backend: SocketAddr) -> Result<()> {
        let first = flow.is_multiple_of(2);
        for (from_client, what) in [(first, Say::Fin), (!first, Say::Fin), (first, Say::Ack)] {
            let (client, vip) = (service.client(flow), service.addr());
            let (from, to) = if from_client { (client, vip) } else { (backend, client) };
            self.pass(service, from_client, segment(service, from, to, what)?)?;
        }
        Ok(())
    }

    /// All flows to a service: some end while others are opened.
    fn flows(&mut self, service: Service) -> Result<()> {
        let mut open = BTreeMap::new();
        for flow in 0..FLOWS {
            if let Some(backend) = self.begin(service, flow)? {
                open.insert(flow, backend);
            }
            if service.protocol == Protocol::Tcp
                && flow % 3 == 2
                && let Some(backend) = open.remove(&(flow - 2))
                && (flow - 2) % 4 != 3
            {
                self.end(service, flow - 2, backend)?;
            }
        }
        Ok(())
    }
}

/// What a packet says. A datagram is always [`Say::Data`].
#[derive(Clone, Copy, Debug)]
enum Say {
    Syn,
    SynAck,
    Ack,
    Data,
    Fin,
}

fn segment(service: Service, from: SocketAddr, to: SocketAddr, say: Say) -> Result<Vec<u8>> {
    const WINDOW: u16 = 64_000;
    const DATA: &[u8] = b"what is balanced";
    let ethernet = PacketBuilder::ethernet2(OTHER_MAC, GATEWAY_MAC);
    let ip: PacketBuilderStep<IpHeaders> = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => anyhow::bail!("{from} and {to} are of two families"),
    };
    let mut frame = Vec::new();
    if service.protocol == Protocol::Udp {
        ip.udp(from.port(), to.port()).write(&mut frame, DATA)?;
        return Ok(frame);
    }
    // Numbers go on by what each end has said: its SYN and, before its FIN, as many bytes of data.
    let data = u32::try_from(DATA.len())?;
    let (number, other) = match say {
        Say::Syn | Say::SynAck => (1000, 1001),
        Say::Ack | Say::Data => (1001, 1001),
        Say::Fin => (1001 + data, 1001 + data),
    };
    let tcp = ip.tcp(from.port(), to.port(), number, WINDOW);
    match say {
        Say::Syn => tcp.syn().write(&mut frame, &[])?,
        Say::SynAck => tcp.syn().ack(other).write(&mut frame, &[])?,
        Say::Ack => tcp.ack(other).write(&mut frame, &[])?,
        Say::Data => tcp.psh().ack(other).write(&mut frame, DATA)?,
        Say::Fin => tcp.fin().ack(other).write(&mut frame, &[])?,
    }
    Ok(frame)
}

/// Source and destination of a frame over TCP or UDP.
fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    ends_of_packet(frame.get(ETHERNET..)?)
}

fn ends_of_packet(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (from, to): (IpAddr, IpAddr) = match sliced.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let (from_port, to_port) = match sliced.transport? {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        _ => return None,
    };
    Some((SocketAddr::new(from, from_port), SocketAddr::new(to, to_port)))
}

/// Whether it is an ICMP error about a destination.
fn is_refusal(frame: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ethernet(frame).ok();
    match sliced.and_then(|sliced| sliced.transport) {
        Some(TransportSlice::Icmpv4(icmp)) => {
            matches!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(_))
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            matches!(icmp.icmp_type(), Icmpv6Type::DestinationUnreachable(_))
        }
        _ => false,
    }
}

/// The configuration, and what the kernel was sent as a capture.
fn desk(services: &[Service], passed: &[Passed]) -> Result<Desk> {
    let entries: String = services.iter().map(|service| service.yaml()).collect();
    let desk = Desk::new(&format!("interfaces: [{{name: {WAN}}}, {{name: {LAN}}}]\nservices:\n{entries}"))?;
    let mut capture = pcap::Writer::create(desk.path("in.pcap"))?;
    for Passed { time_ns, frame, .. } in passed {
        capture.write(*time_ns, frame)?;
    }
    capture.finish()?;
    Ok(desk)
}

/// What `weir replay` says of a packet, as far as it is compared.
#[derive(Debug, Deserialize)]
struct Line {
    verdict: String,
    reason: Option<String>,
    service: Option<String>,
    backend: Option<String>,
}

/// What `weir replay` makes of it: a verdict for each packet, with the frame that it sends.
fn replayed(desk: &Desk) -> Result<Vec<(Line, Option<Vec<u8>>)>> {
    let output = desk.weir(&[
        "replay",
        "--config",
        "weir.yaml",
        "--in",
        "in.pcap",
        "--out",
        "sent.pcap",
        "--verdicts",
        "verdicts.jsonl",
    ])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut sent = pcap::Reader::open(desk.path("sent.pcap"))?;
    let mut all = Vec::new();
    for line in std::fs::read_to_string(desk.path("verdicts.jsonl"))?.lines() {
        let verdict: Line = serde_json::from_str(line)?;
        let is_sent = verdict.verdict == "forward" || verdict.verdict == "reply";
        let packet = if is_sent { sent.next()? } else { None };
        all.push((verdict, packet.map(|packet| packet.bytes.to_vec())));
    }
    ensure!(sent.next()?.is_none(), "more frames were sent than packets came");
    Ok(all)
}

#[test]
fn what_ipvs_did_with_each_packet_is_what_a_replay_does() -> Result<()> {
    let Some(kernel) = Kernel::start()? else { return Ok(()) };
    let services = Service::all();
    kernel.restore(&services.iter().map(|service| service.ipvsadm()).collect::<String>())?;
    let mut wire = Wire::open(&kernel)?;
    for service in &services {
        wire.flows(*service)?;
    }
    let replayed = replayed(&desk(&services, &wire.passed)?)?;
    assert_eq!(replayed.len(), wire.passed.len());
    let refused = wire.passed.iter().filter(|passed| passed.fate == Fate::Refused).count();
    ensure!(refused > 0, "no packet was refused for want of a backend");
    let mut differ = Vec::new();
    for ((number, passed), (verdict, frame)) in (1..).zip(&wire.passed).zip(&replayed) {
        if !passed.is_same(verdict, frame.as_deref().unwrap_or_default()) {
            let Passed { service, backend, fate, .. } = passed;
            let name = service.name();
            differ.push(format!(
                "{name}: packet {number}: {backend:?} {fate:02x?}; replayed: {verdict:?} {frame:02x?}"
            ));
        }
    }
    println!("{} packets as IPVS had them, {refused} of them refused", replayed.len());
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
    Ok(())
}
