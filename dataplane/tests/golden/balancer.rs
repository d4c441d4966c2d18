//! An engine with what lies around it in the recordings: clients on one side, servers on the other, services made by
//! ipvsadm commands, and the kernel behind it.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use dataplane::flow::directory::Directory;
use dataplane::flow::key::{SCTP, TCP, UDP, VipKey, bits};
use dataplane::frame::Frame;
use dataplane::ids::{BackendId, HopId, PortId, ServiceId, WorkerId};
use dataplane::packet;
use dataplane::pipeline::{Engine, Setup};
use dataplane::rewrite::{answer, split};
use dataplane::schedule::{Compiler, Flags, Kind, carry};
use dataplane::snapshot::net::{Hop, Link, Neighbour, Net, Path, Port, Route};
use dataplane::snapshot::{
    Backend, Defence, Mode, Persistence, Service, Services, Settings, Snapshot, Tunnel, TunnelChecksum,
};
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::time::Tick;
use dataplane::verdict::Verdict;
use dataplane::wanted::Wanted;
use serde_json::Value;

const SIDES: [PortId; 2] = [PortId(0), PortId(1)];
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Of clients and of the servers, whose addresses end in 77 and 78.
const NEIGHBOURS: [(&str, [u8; 6]); 3] =
    [("client", [2, 0, 0, 0, 1, 1]), ("server", [2, 0, 0, 0, 2, 77]), ("server2", [2, 0, 0, 0, 2, 78])];
const SERVICES: usize = 16;
const BACKENDS: usize = 64;
/// The balancer's own addresses towards servers.
const OWN: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 254)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0xfe)),
];

/// A packet that left.
pub(crate) struct Sent {
    pub(crate) side: String,
    pub(crate) packet: Vec<u8>,
    /// Whether the balancer made its IP header itself.
    pub(crate) made: bool,
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex: String = self.packet.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(f, "{} {hex}", self.side)
    }
}

impl Sent {
    /// Whether it is the recorded packet.
    pub(crate) fn is(&self, recorded: &Self) -> bool {
        let form = |packet: &[u8]| {
            let packet = if self.made { varying(packet) } else { packet.to_vec() };
            if crate::golden::allows("packets", QUOTED_CHECKSUM) {
                without_quoted_checksum(packet)
            } else {
                packet
            }
        };
        self.side == recorded.side
            && (self.packet == recorded.packet || form(&self.packet) == form(&recorded.packet))
    }
}

/// What the list of exceptions may leave out of every comparison of ICMP errors.
const QUOTED_CHECKSUM: &str = "quoted-checksum";

/// An ICMP error without the transport checksum of the packet that it quotes, and so without its own.
fn without_quoted_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let (icmp, quote) = match packet[0] >> 4 {
        4 if packet[9] == ICMP && packet.len() >= 48 && matches!(packet[20], 3 | 4 | 5 | 11 | 12) => (20, 28),
        6 if packet[6] == ICMPV6 && packet.len() >= 88 && packet[40] < 128 => (40, 48),
        _ => return packet,
    };
    let (transport, proto) = match packet[quote] >> 4 {
        4 => (quote + usize::from(packet[quote] & 0xf) * 4, packet[quote + 9]),
        _ => (quote + 40, packet[quote + 6]),
    };
    let field = transport + if proto == UDP { 6 } else { 16 };
    if matches!(proto, TCP | UDP) && field + 2 <= packet.len() {
        packet[field..field + 2].fill(0);
        packet[icmp + 2..icmp + 4].fill(0);
    }
    packet
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// An IPv4 packet without its identification, header checksum, and the source port of GUE.
fn varying(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 28 && packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
        if packet[9] == UDP {
            packet[20..22].fill(0);
        }
    }
    packet
}

/// The engine, and what its tables are made from.
pub(crate) struct Balancer {
    engine: Engine,
    state: Arc<State>,
    now: Tick,
    tables: Snapshot,
    services: Vec<Service>,
    compiler: Compiler,
    /// Ids are for good: the kernel, too, finds the counts again when a backend comes back.
    ids: HashMap<(VipKey, SocketAddr), BackendId>,
    /// The kernel's own: every VIP that ever was.
    own: BTreeSet<IpAddr>,
    /// Of the path to servers.
    mtu: Option<u16>,
    /// Fragments that came before their first one, with the side.
    early: Vec<(usize, Vec<u8>)>,
}

impl Balancer {
    /// With the services, settings and path of a recording.
    pub(crate) fn new(recording: &Value) -> Self {
        let state = Arc::new(State::new(SERVICES, BACKENDS));
        let setup = Setup {
            worker: WorkerId(0),
            workers: 1,
            flow_limit: 4096,
            state: Arc::clone(&state),
            directory: Arc::new(Directory::new(4096, 1)),
            stats: Arc::new(WorkerStats::new(SERVICES, BACKENDS)),
            wanted: Arc::new(Wanted::new(16)),
            seed: 1,
        };
        let note = recording["note"].as_str().unwrap_or_default();
        let mtu = note.split_once("MTU ").map(|(_, rest)| {
            let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap();
            digits.parse().unwrap()
        });
        let settings = Settings { drop_removed: true, ..Settings::default() };
        let mut balancer = Self {
            engine: Engine::new(setup),
            state,
            now: Tick(0),
            tables: Snapshot { settings, ..Snapshot::default() },
            services: Vec::new(),
            compiler: Compiler::default(),
            ids: HashMap::new(),
            own: BTreeSet::new(),
            mtu,
            early: Vec::new(),
        };
        let lines = |field: &str| recording[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        lines("sysctl").for_each(|setting| balancer.sysctl(setting));
        lines("setup").for_each(|command| balancer.ipvsadm(command));
        balancer
    }

    /// A setting, as `net.ipv4.vs.name=value`.
    pub(crate) fn sysctl(&mut self, setting: &str) {
        let (name, value) = setting.split_once('=').unwrap();
        let value: u32 = value.trim().parse().unwrap();
        let defence = match value {
            0 => Defence::Off,
            1 => Defence::Automatic,
            2 => Defence::Engaged,
            _ => Defence::Always,
        };
        let settings = &mut self.tables.settings;
        match name.trim().trim_start_matches("net.ipv4.vs.") {
            "expire_nodest_conn" => settings.expire_nodest_conn = value != 0,
            "expire_quiescent_template" => settings.expire_quiescent_template = value != 0,
            "conn_reuse_mode" => settings.conn_reuse_mode = u8::try_from(value).unwrap(),
            "sloppy_tcp" => settings.sloppy_tcp = value != 0,
            "sloppy_sctp" => settings.sloppy_sctp = value != 0,
            "secure_tcp" => settings.secure_tcp = defence,
            "drop_packet" => settings.drop_packet = defence,
            "drop_entry" => settings.drop_entry = defence,
            "am_droprate" => settings.am_droprate = value,
            "amemthresh" => settings.amemthresh = value,
            "lblc_expiration" => settings.lblc_expiration_s = value,
            "lblcr_expiration" => settings.lblcr_expiration_s = value,
            // About the kernel's own connection tracking, which is not there.
            "conntrack" => {}
            other => panic!("sysctl {other}"),
        }
        self.wait(0);
    }

    /// Lets time pass.
    pub(crate) fn wait(&mut self, seconds: u32) {
        for _ in 0..=seconds {
            while self.engine.sweep(self.now, &self.tables) {}
            self.now = self.now.after_seconds(u32::from(seconds > 0));
        }
    }

    /// One command: `-A -E -D` on services, `-a -e -d` on backends, `--set`.
    pub(crate) fn ipvsadm(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let option = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let Some(command) = words.first().copied() else { return };
        if command == "--set" {
            let seconds = |place: usize| words[place].parse::<u32>().unwrap();
            let timeouts = &mut self.tables.timeouts;
            let [tcp, fin, udp] = [1, 2, 3].map(seconds);
            timeouts.tcp_s[1] = if tcp > 0 { tcp } else { timeouts.tcp_s[1] };
            timeouts.tcp_s[4] = if fin > 0 { fin } else { timeouts.tcp_s[4] };
            timeouts.udp_s = if udp > 0 { udp } else { timeouts.udp_s };
            return;
        }
        let protocols = [("-t", TCP), ("-u", UDP), ("--sctp-service", SCTP)];
        let (vip, proto) =
            protocols.into_iter().find_map(|(name, proto)| Some((option(name)?, proto))).unwrap();
        let vip: SocketAddr = vip.parse().unwrap();
        let key = vip_key(vip, proto);
        let place = self.services.iter().position(|service| service.vips == [key]);
        match (command, place) {
            ("-A", None) => {
                let id = ServiceId(u32::try_from(self.services.len()).unwrap());
                self.services.push(Service { id, vips: vec![key], ..Service::default() });
                self.edit(self.services.len() - 1, &words);
            }
            ("-E", Some(place)) => self.edit(place, &words),
            ("-D", Some(place)) => _ = self.services.remove(place),
            (_, Some(place)) => self.backend(place, vip, &words),
            (_, None) => panic!("{line}: no service"),
        }
        self.publish();
    }

    fn edit(&mut self, place: usize, words: &[&str]) {
        let option = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let service = &mut self.services[place];
        let kind: Kind = option("-s").map_or(Kind::Wlc, |name| name.parse().unwrap());
        let flags = option("-b").map_or(Flags::default(), |names| Flags::parse(kind, names).unwrap());
        let timeout = option("-p").map(|seconds| seconds.parse().unwrap_or(300));
        let whole = u128::MAX >> (96 * u32::from(!service.vips[0].v6));
        let mask = option("-M").map_or(whole, |mask| match mask.parse::<Ipv4Addr>() {
            Ok(mask) => mask.to_bits().into(),
            Err(_) => mask.parse::<u32>().map(|len| !u128::MAX.checked_shr(len).unwrap_or(0)).unwrap(),
        });
        service.persistence = timeout.map(|timeout_s| Persistence { timeout_s, mask });
        service.one_packet = words.contains(&"-o");
        let backends = service.backends.to_vec();
        service.scheduler = self.compiler.compile(service.id, kind, flags, &backends, None);
    }

    fn backend(&mut self, place: usize, vip: SocketAddr, words: &[&str]) {
        let option = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let number = |name: &str| option(name).map(|value| value.parse::<u32>().unwrap());
        let before = self.services[place].clone();
        let mut addr = real_server(option("-r").unwrap(), vip.port());
        let mode = match () {
            () if words.contains(&"-m") => Mode::Nat,
            () if words.contains(&"-i") => match option("--tun-type") {
                Some("gue") => Mode::Gue,
                Some("gre") => Mode::Gre,
                _ => Mode::Ipip,
            },
            () => Mode::Dr,
        };
        if mode != Mode::Nat && words[0] != "-d" {
            addr.set_port(vip.port());
        }
        let next = BackendId(u32::try_from(self.ids.len()).unwrap());
        let id = *self.ids.entry((before.vips[0], addr)).or_insert(next);
        let mut backend = Backend::new(id, addr.ip(), addr.port(), number("-w").unwrap_or(1), mode);
        let checksum = match () {
            () if words.contains(&"--tun-csum") => TunnelChecksum::Full,
            () if words.contains(&"--tun-remcsum") => TunnelChecksum::Remote,
            () => TunnelChecksum::None,
        };
        let port = number("--tun-port").map_or(0, |port| u16::try_from(port).unwrap());
        backend.tunnel = Tunnel { port, checksum };
        (backend.upper, backend.lower) = (number("-x").unwrap_or(0), number("-y").unwrap_or(0));
        self.state.backend(id).unwrap().set_thresholds(backend.upper, backend.lower);
        let mut backends = before.backends.to_vec();
        let at = backends.iter().position(|backend| backend.id == id);
        if let (Some(at), 0) = (at, backend.weight) {
            backend.last_weight = backends[at].last_weight;
        }
        match (words[0], at) {
            ("-a", None) => backends.insert(0, backend),
            ("-e", Some(at)) => backends[at] = backend,
            ("-d", Some(at)) => _ = backends.remove(at),
            _ => panic!("{words:?}: not now"),
        }
        let service = &mut self.services[place];
        let (kind, flags) = (before.scheduler.kind(), Flags::default());
        service.scheduler = self.compiler.compile(service.id, kind, flags, &backends, None);
        service.backends = backends.into();
        carry(&before, service, self.state.service(service.id).unwrap());
    }

    fn publish(&mut self) {
        let vips = self.services.iter().map(|service| {
            let key = service.vips[0];
            dataplane::flow::key::address(key.addr, key.v6)
        });
        let owned: Vec<_> = vips.collect();
        self.own.extend(&owned);
        self.tables.generation += 1;
        self.tables.net = Arc::new(self.net());
        self.tables.services = Arc::new(Services::new(self.services.clone(), Vec::new(), owned));
        while self.engine.sweep(self.now, &self.tables) {}
    }

    /// Every backend that ever was is on the servers' link; all others are clients.
    fn net(&self) -> Net {
        let mut net = Net { epoch: 1, ..Net::default() };
        for ((place, mac), name) in MACS.into_iter().enumerate().zip(["clients", "servers"]) {
            let link = u32::try_from(place).unwrap() + 1;
            let over = Link { port: SIDES[place], vlans: Default::default(), mtu: 1500 };
            net.ports.push(Port {
                name: name.into(),
                ifindex: link,
                mac,
                mtu: 1500,
                partial_checksums: false,
            });
            net.links.insert(link, over);
        }
        for (place, (_, mac)) in NEIGHBOURS.into_iter().enumerate() {
            let link = if place == 0 { 1 } else { 2 };
            net.hops.push(Some(Hop::new(&net.links[&link], MACS[usize::from(place > 0)], mac)));
        }
        let gateways: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        for gateway in gateways {
            net.neighbours.insert(Neighbour { link: 1, addr: gateway }, HopId(0));
            let via = Route::Via(vec![Path::new(1, Some(gateway))]);
            match gateway {
                IpAddr::V4(_) => _ = net.routes4.insert((0, 0), via),
                IpAddr::V6(_) => _ = net.routes6.insert((0, 0), via),
            }
        }
        for (_, server) in self.ids.keys() {
            let addr = server.ip();
            let second = addr.to_string().ends_with("78");
            net.neighbours.insert(Neighbour { link: 2, addr }, HopId(1 + u32::from(second)));
            let source = Some(OWN[usize::from(addr.is_ipv6())]);
            let on_link = Route::Via(vec![Path { source, mtu: self.mtu, ..Path::new(2, None) }]);
            match addr {
                IpAddr::V4(v4) => _ = net.routes4.insert((v4.to_bits(), 32), on_link),
                IpAddr::V6(v6) => _ = net.routes6.insert((v6.to_bits(), 128), on_link),
            }
        }
        net
    }

    /// An IP packet comes in from a side. What leaves.
    pub(crate) fn inject(&mut self, from: &str, packet: &[u8]) -> Vec<Sent> {
        let side = usize::from(from != "client");
        let (_, mac) = NEIGHBOURS.into_iter().find(|(name, _)| *name == from).unwrap();
        let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let mut sent = Vec::new();
        self.process(side, [&MACS[side][..], &mac, &ethertype, packet].concat(), &mut sent);
        // What came before the first fragment of its packet is tried again.
        for (side, frame) in std::mem::take(&mut self.early) {
            self.process(side, frame, &mut sent);
        }
        sent
    }

    fn process(&mut self, side: usize, original: Vec<u8>, sent: &mut Vec<Sent>) {
        let room = vec![0; 256];
        let mut chunk = [&room[..], &original, &room].concat();
        let mut frames = [Frame::new(&mut chunk, room.len(), original.len(), SIDES[side]).unwrap()];
        let mut verdicts = [Verdict::Kernel];
        self.engine.process(&mut frames, &mut verdicts, self.now, &self.tables);
        let is_tunnel = |service: &Service| service.backends.iter().any(|backend| backend.mode.is_tunnel());
        let made = matches!(verdicts[0], Verdict::Reply(_)) || self.services.iter().any(is_tunnel);
        match verdicts[0] {
            Verdict::Tx(_) | Verdict::Reply(_) => {
                sent.extend(split::departing(&frames[0]).iter().map(|frame| leave(frame, made)));
            }
            Verdict::Kernel => self.kernel(&mut frames[0], sent),
            Verdict::Early => self.early.push((side, original)),
            Verdict::Drop(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// What the kernel behind the balancer does: it answers for its own addresses and routes what is for others.
    fn kernel(&self, frame: &mut Frame<'_>, sent: &mut Vec<Sent>) {
        let packet = packet::parse(frame.bytes()).unwrap();
        let mac = MACS[frame.port.index()];
        // An ICMP error bears the key of the packet that it quotes.
        let bytes = frame.bytes();
        let to: IpAddr = match packet.key.v6 {
            false => IpAddr::from(<[u8; 4]>::try_from(&bytes[30..34]).unwrap()),
            true => IpAddr::from(<[u8; 16]>::try_from(&bytes[38..54]).unwrap()),
        };
        if self.own.contains(&to) {
            let made = match packet.key.proto {
                TCP => answer::reset(frame, &packet, mac),
                _ => answer::port_unreachable(frame, &packet, mac),
            };
            sent.extend(made.ok().map(|()| leave(frame.bytes(), true)));
            return;
        }
        dataplane::rewrite::nat::pass(frame.bytes_mut(), &packet).unwrap();
        let (hop, _) = self.tables.net.way_to(to, 0).unwrap();
        frame.bytes_mut()[..6].copy_from_slice(&self.tables.net.hop(hop).unwrap().header[..6]);
        sent.push(leave(frame.bytes(), false));
    }

    /// A TCP segment with these flags between the client port and the only service, from either side.
    pub(crate) fn segment(&mut self, from: &str, port: u16, flags: &str) -> Vec<Sent> {
        let (service, backend) = (&self.services[0].vips[0], &self.services[0].backends[0]);
        let vip = SocketAddr::new(dataplane::flow::key::address(service.addr, service.v6), service.port);
        let client = SocketAddr::new("10.0.5.5".parse().unwrap(), port);
        let server = SocketAddr::new(backend.addr, backend.port);
        let [src, dst] = if from == "client" { [client, vip] } else { [server, client] };
        let (IpAddr::V4(src_ip), IpAddr::V4(dst_ip)) = (src.ip(), dst.ip()) else { panic!("IPv4 only") };
        let mut header = etherparse::TcpHeader::new(src.port(), dst.port(), 1000, 64_000);
        for flag in flags.chars() {
            match flag {
                'S' => header.syn = true,
                'A' => header.ack = true,
                'F' => header.fin = true,
                'R' => header.rst = true,
                'P' => header.psh = true,
                other => panic!("flag {other}"),
            }
        }
        let ip = etherparse::PacketBuilder::ipv4(src_ip.octets(), dst_ip.octets(), 64);
        let mut packet = Vec::new();
        ip.tcp_header(header).write(&mut packet, &[]).unwrap();
        self.inject(from, &packet)
    }

    /// Protocol, state, seconds left, client, VIP and backend of each flow, `after` seconds from now.
    pub(crate) fn connections(&self, after: u32) -> BTreeSet<[String; 6]> {
        let mut records = Vec::with_capacity(4096);
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            cursor = self.engine.dump(from, usize::MAX >> 1, self.now.after_seconds(after), &mut records);
        }
        let text = |(addr, port): (IpAddr, u16)| SocketAddr::new(addr, port).to_string();
        let protocol = |proto| match proto {
            TCP => "TCP".to_owned(),
            UDP => "UDP".to_owned(),
            SCTP => "SCTP".to_owned(),
            other => other.to_string(),
        };
        let rows = records.iter().map(|record| {
            let ends = [record.client, record.vip, record.backend].map(text);
            let [client, vip, backend] = ends;
            let expires = record.expires_s.to_string();
            [protocol(record.proto), record.state.to_owned(), expires, client, vip, backend]
        });
        rows.collect()
    }

    /// Address, forwarding, weight, active and inactive flows of each backend.
    pub(crate) fn destinations(&self) -> BTreeSet<[String; 5]> {
        let backends = self.services.iter().flat_map(|service| &*service.backends);
        let rows = backends.map(|backend| {
            let (active, inactive) = self.state.backend(backend.id).unwrap().counts();
            let forward = match backend.mode {
                Mode::Nat | Mode::FullNat => "Masq",
                Mode::Dr => "Route",
                Mode::Ipip | Mode::Gue | Mode::Gre => "Tunnel",
            };
            let addr = SocketAddr::new(backend.addr, backend.port).to_string();
            [addr, forward.to_owned(), backend.weight.to_string(), active.to_string(), inactive.to_string()]
        });
        rows.collect()
    }

    /// Active and inactive flows of all backends.
    pub(crate) fn counts_of_all(&self) -> [i64; 2] {
        let count = |id: &BackendId| self.state.backend(*id).unwrap().counts();
        let sum = |[all_active, all_inactive]: [i64; 2], (active, inactive): (u32, u32)| {
            [all_active + i64::from(active), all_inactive + i64::from(inactive)]
        };
        self.ids.values().map(count).fold([0; 2], sum)
    }
}

/// The IP packet of a frame, and the side that it is addressed to.
fn leave(frame: &[u8], made: bool) -> Sent {
    let side = NEIGHBOURS.into_iter().find(|(_, mac)| frame[..6] == *mac).unwrap().0.to_owned();
    Sent { side, packet: frame[14..].to_vec(), made }
}

/// An address with or without a port, which then is the service's.
fn real_server(text: &str, port: u16) -> SocketAddr {
    text.parse().unwrap_or_else(|_| {
        SocketAddr::new(text.trim_start_matches('[').trim_end_matches(']').parse().unwrap(), port)
    })
}

fn vip_key(vip: SocketAddr, proto: u8) -> VipKey {
    let (addr, v6) = bits(vip.ip());
    VipKey { addr, port: vip.port(), proto, v6 }
}
