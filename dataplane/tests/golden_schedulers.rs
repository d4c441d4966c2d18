//! The schedulers against recordings of the kernel's IPVS: every choice and every count has to be the same.
//!
//! `setup` of a recording holds the ipvsadm commands that made the service; `steps` what followed: `open` a TCP
//! connection, established and held; `close` its orderly end by the client; `udp` one datagram; `ipvsadm` a change
//! in between; `state` the backends with their weights, active and inactive connections.

#![allow(
    clippy::disallowed_macros,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says why"
)]

#[path = "golden/mod.rs"]
mod golden;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane::flow::directory::Directory;
use dataplane::flow::key::{TCP, UDP, VipKey, bits};
use dataplane::frame::Frame;
use dataplane::ids::{BackendId, HopId, PortId, WorkerId};
use dataplane::pipeline::{Engine, Setup};
use dataplane::schedule::{Compiler, Flags, Kind, carry};
use dataplane::snapshot::marks::{Mark, MarkRule, Prefix, Protocols};
use dataplane::snapshot::net::{Hop, Link, Neighbour, Net, Path, Port, Route};
use dataplane::snapshot::{Backend, Mode, Persistence, Service, Services, Settings, Snapshot};
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::time::Tick;
use dataplane::verdict::Verdict;
use dataplane::wanted::Wanted;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use serde_json::Value;

/// The port towards clients and the one towards backends.
const SIDES: [PortId; 2] = [PortId(0), PortId(1)];
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// What lies behind the port towards backends.
const BACKENDS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 1, 0, 0), 16);
/// Who forwards to everybody on either side.
const GATEWAYS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 254), Ipv4Addr::new(10, 1, 0, 254)];

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[test]
fn the_schedulers_choose_as_the_kernel_did() {
    golden::check("schedulers", |_, recording| replay(recording));
}

/// Replays a recording; the error names the step that differs.
fn replay(recording: &Value) -> Result<(), String> {
    let steps = recording["steps"].as_array().unwrap();
    let mut balancer = Balancer::new(steps.iter().filter_map(|step| address(&step["dst"])).collect());
    for command in recording["setup"].as_array().unwrap() {
        balancer.ipvsadm(command.as_str().unwrap());
    }
    for (number, step) in steps.iter().enumerate() {
        let differs = |got: &dyn std::fmt::Debug| Err(format!("step {number} {step}: got {got:?}"));
        balancer.now = Tick(balancer.now.0 + 1);
        match step["op"].as_str().unwrap() {
            "open" | "udp" => {
                let chosen = balancer.open(step);
                let name = |end: Option<SocketAddrV4>| end.map(|end| balancer.name(end));
                if name(chosen) != name(address(&step["chosen"])) {
                    return differs(&chosen);
                }
            }
            "close" => balancer.close(step["id"].as_u64().unwrap()),
            "ipvsadm" => balancer.ipvsadm(step["cmd"].as_str().unwrap()),
            "state" => {
                let counts = balancer.counts();
                if counts != recorded_counts(&step["dests"]) {
                    return differs(&counts);
                }
            }
            other => panic!("unknown step {other}"),
        }
    }
    Ok(())
}

/// Weight, active and inactive connections by backend.
type Counts = BTreeMap<SocketAddrV4, (u32, u32, u32)>;

fn recorded_counts(dests: &Value) -> Counts {
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let count =
        |dest: &Value| (address(&dest[0]).unwrap(), (number(&dest[2]), number(&dest[3]), number(&dest[4])));
    dests.as_array().unwrap().iter().map(count).collect()
}

fn address(value: &Value) -> Option<SocketAddrV4> {
    value.as_str().map(|text| text.parse().unwrap())
}

/// One engine with one service, changed by commands, and the connections through it.
struct Balancer {
    engine: Engine,
    state: Arc<State>,
    now: Tick,
    tables: Snapshot,
    service: Service,
    flags: Flags,
    compiler: Compiler,
    /// What clients connect to: a mark stands for these.
    reached: BTreeSet<SocketAddrV4>,
    /// Ids are for good: the kernel, too, finds the counts again when a backend comes back.
    ids: HashMap<SocketAddrV4, BackendId>,
    /// By the step's id: client, VIP, backend.
    opened: HashMap<u64, [SocketAddrV4; 3]>,
}

impl Balancer {
    fn new(reached: BTreeSet<SocketAddrV4>) -> Self {
        let state = Arc::new(State::new(1, 256));
        let setup = Setup {
            worker: WorkerId(0),
            workers: 1,
            flow_limit: 4096,
            state: Arc::clone(&state),
            directory: Arc::new(Directory::new(4096, 1)),
            stats: Arc::new(WorkerStats::new(1, 256)),
            wanted: Arc::new(Wanted::new(16)),
            seed: 1,
        };
        let settings = Settings { drop_removed: true, ..Settings::default() };
        Self {
            engine: Engine::new(setup),
            state,
            now: Tick(0),
            tables: Snapshot { net: Arc::new(net()), settings, ..Snapshot::default() },
            service: Service { name: "recorded".into(), ..Service::default() },
            flags: Flags::default(),
            compiler: Compiler::default(),
            reached,
            ids: HashMap::new(),
            opened: HashMap::new(),
        }
    }

    /// One command on the service or its list of backends: `-A -E` and `-a -e -d`.
    fn ipvsadm(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let option = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let number = |name: &str| option(name).map(|value| value.parse::<u32>().unwrap());
        let Some(command) = words.first().filter(|word| **word != "#") else { return };
        let vip = option("-t").or(option("-u")).map(|vip| vip.parse::<SocketAddrV4>().unwrap());
        let before = self.service.clone();
        let mut backends = before.backends.to_vec();
        let mut kind = before.scheduler.kind();
        match *command {
            "-A" | "-E" => {
                kind = option("-s").map_or(Kind::Wlc, |name| name.parse().unwrap());
                self.flags =
                    option("-b").map_or(Flags::default(), |names| Flags::parse(kind, names).unwrap());
                let proto = if option("-u").is_some() { UDP } else { TCP };
                self.service.vips = vip.iter().map(|vip| vip_key(*vip, proto)).collect();
                let mark = number("-f").and_then(NonZeroU32::new);
                self.service.mark = mark.map(|value| Mark { value, v6: false });
                let mask = option("-M").map_or(u32::MAX, |mask| mask.parse::<Ipv4Addr>().unwrap().to_bits());
                self.service.persistence =
                    number("-p").map(|timeout_s| Persistence { timeout_s, mask: mask.into() });
                self.service.one_packet = words.contains(&"-o");
            }
            command => {
                let addr = real_server(option("-r").unwrap(), vip.map_or(0, |vip| vip.port()));
                let next = BackendId(u32::try_from(self.ids.len()).unwrap());
                let id = *self.ids.entry(addr).or_insert(next);
                let weight = number("-w").unwrap_or(1);
                let mut backend = Backend::new(id, (*addr.ip()).into(), addr.port(), weight, Mode::Nat);
                (backend.upper, backend.lower) = (number("-x").unwrap_or(0), number("-y").unwrap_or(0));
                let place = backends.iter().position(|backend| backend.id == id);
                if let (Some(before), 0) = (place, weight) {
                    backend.last_weight = backends[before].last_weight;
                }
                self.state.backend(id).unwrap().set_thresholds(backend.upper, backend.lower);
                match (command, place) {
                    ("-a", None) => backends.insert(0, backend),
                    ("-e", Some(place)) => backends[place] = backend,
                    ("-d", Some(place)) => _ = backends.remove(place),
                    _ => panic!("{line}: not now"),
                }
            }
        }
        let service = &mut self.service;
        service.scheduler = self.compiler.compile(service.id, kind, self.flags, &backends, None);
        service.backends = backends.into();
        // An edit of the service alone leaves a scheduler of the same kind as it is.
        if !["-A", "-E"].contains(command) || before.scheduler.kind() != kind {
            carry(&before, service, self.state.service(service.id).unwrap());
        }
        self.tables.generation += 1;
        let rules = service
            .mark
            .into_iter()
            .flat_map(|mark| self.reached.iter().map(move |to| rule(*to, mark.value)));
        let services = Services::new(vec![service.clone()], Vec::new(), []).with_rules(rules.collect());
        self.tables.services = Arc::new(services);
    }

    /// A connection or a datagram: the backend that it reaches.
    fn open(&mut self, step: &Value) -> Option<SocketAddrV4> {
        let [client, vip] = ["src", "dst"].map(|field| address(&step[field]).unwrap());
        let first = if step["op"] == "udp" { None } else { Some(SYN) };
        let [_, backend] = self.pass(0, [client, vip], first)?;
        if first.is_some() {
            assert_eq!(self.pass(1, [backend, client], Some(SYN | ACK)), Some([vip, client]));
            assert_eq!(self.pass(0, [client, vip], Some(ACK)), Some([client, backend]));
        }
        self.opened.extend(step["id"].as_u64().map(|id| (id, [client, vip, backend])));
        Some(backend)
    }

    /// What a client sends to a backend that was removed is dropped; the counts tell what came of it.
    fn close(&mut self, id: u64) {
        let [client, vip, backend] = self.opened[&id];
        self.pass(0, [client, vip], Some(FIN | ACK));
        assert_eq!(self.pass(1, [backend, client], Some(FIN | ACK)), Some([vip, client]));
        self.pass(0, [client, vip], Some(ACK));
    }

    /// A packet with these TCP flags, without any a datagram, comes in from a side. Its addresses when it leaves on
    /// the other; `None` where it does not.
    fn pass(
        &mut self,
        side: usize,
        [from, to]: [SocketAddrV4; 2],
        flags: Option<u8>,
    ) -> Option<[SocketAddrV4; 2]> {
        let builder = PacketBuilder::ethernet2(MACS[1 - side], MACS[side]).ipv4(
            from.ip().octets(),
            to.ip().octets(),
            64,
        );
        let mut chunk = Vec::new();
        match flags {
            Some(flags) => {
                let mut header = TcpHeader::new(from.port(), to.port(), 1, 1000);
                (header.fin, header.syn, header.ack) = (flags & FIN != 0, flags & SYN != 0, flags & ACK != 0);
                builder.tcp_header(header).write(&mut chunk, &[]).unwrap();
            }
            None => builder.udp(from.port(), to.port()).write(&mut chunk, b"hello").unwrap(),
        }
        let len = chunk.len();
        let mut frames = [Frame::new(&mut chunk, 0, len, SIDES[side]).unwrap()];
        let mut verdicts = [Verdict::Kernel];
        self.engine.process(&mut frames, &mut verdicts, self.now, &self.tables);
        match verdicts[0] {
            Verdict::Tx(port) if port == SIDES[1 - side] => Some(ends(frames[0].bytes())),
            Verdict::Reply(Some(_)) | Verdict::Drop(_) | Verdict::Kernel => None,
            other => panic!("{from} to {to}: {other:?}"),
        }
    }

    /// A backend's address: where a service has every port, the recordings give each backend one port.
    fn name(&self, end: SocketAddrV4) -> SocketAddrV4 {
        let every_port = self.service.backends.iter().any(|backend| backend.port == 0);
        if every_port { SocketAddrV4::new(*end.ip(), 0) } else { end }
    }

    fn counts(&self) -> Counts {
        let count = |backend: &Backend| {
            let (active, inactive) = self.state.backend(backend.id).unwrap().counts();
            let IpAddr::V4(addr) = backend.addr else { panic!("the recordings are of IPv4") };
            (SocketAddrV4::new(addr, backend.port), (backend.weight, active, inactive))
        };
        self.service.backends.iter().map(count).collect()
    }
}

/// An address with or without a port, which then is the service's.
fn real_server(text: &str, port: u16) -> SocketAddrV4 {
    text.parse().unwrap_or_else(|_| SocketAddrV4::new(text.parse().unwrap(), port))
}

fn vip_key(vip: SocketAddrV4, proto: u8) -> VipKey {
    let (addr, v6) = bits((*vip.ip()).into());
    VipKey { addr, port: vip.port(), proto, v6 }
}

/// Packets to this address bear the mark.
fn rule(to: SocketAddrV4, mark: NonZeroU32) -> MarkRule {
    let (addr, v6) = bits((*to.ip()).into());
    MarkRule {
        src: None,
        dst: Some(Prefix { addr, len: 32, v6 }),
        protocols: Protocols::ALL,
        dports: 0..=u16::MAX,
        sports: 0..=u16::MAX,
        port: None,
        mark,
    }
}

/// Source and destination of a frame.
fn ends(frame: &[u8]) -> [SocketAddrV4; 2] {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("no IPv4 packet") };
    let ports = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => [tcp.source_port(), tcp.destination_port()],
        Some(TransportSlice::Udp(udp)) => [udp.source_port(), udp.destination_port()],
        other => panic!("{other:?}"),
    };
    let header = ip.header();
    [
        SocketAddrV4::new(header.source_addr(), ports[0]),
        SocketAddrV4::new(header.destination_addr(), ports[1]),
    ]
}

/// Everybody is reached through the gateway of his side.
fn net() -> Net {
    let mut net = Net { epoch: 1, ..Net::default() };
    for (place, mac) in MACS.into_iter().enumerate() {
        let link = u32::try_from(place).unwrap() + 1;
        let (port, gateway) = (SIDES[place], IpAddr::V4(GATEWAYS[place]));
        let name = if place == 0 { "clients" } else { "backends" };
        net.ports.push(Port { name: name.into(), ifindex: link, mac, mtu: 1500, partial_checksums: false });
        let over = Link { port, vlans: Default::default(), mtu: 1500 };
        net.hops.push(Some(Hop::new(&over, mac, MACS[1 - place])));
        net.links.insert(link, over);
        net.neighbours.insert(Neighbour { link, addr: gateway }, HopId(u32::try_from(place).unwrap()));
        let via = Route::Via(vec![Path::new(link, Some(gateway))]);
        let (addr, len) = if place == 0 { (Ipv4Addr::UNSPECIFIED, 0) } else { BACKENDS };
        net.routes4.insert((addr.to_bits(), len), via);
    }
    net
}
