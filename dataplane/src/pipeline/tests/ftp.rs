//! FTP: data connections that a control connection announces, and the addresses that it names.

use std::net::SocketAddr;
use std::sync::Arc;

use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};

use super::super::fixture::{LAN, SNAT4, UPLINK, backend, engines, net, vip};
use super::super::*;
use super::{Wire, at};
use crate::flow::entry::Way;
use crate::flow::key::{TCP, VipKey, bits};
use crate::ids::PoolId;
use crate::schedule::{Flags, Kind as Scheduling, Scheduler};
use crate::snapshot::{Backend, Persistence, Service, Services, SnatPool};
use crate::time::TICKS_PER_SECOND;
use crate::wire::tcp::{ACK, PSH, SYN};

/// FTP on the VIP with the backends 2 and 3, chosen in this order, their control port being 2121.
fn tables(mode: Mode, v6: bool, persistent: bool) -> Snapshot {
    let (addr, v6) = bits(vip(v6));
    let new = |n: u8| Backend::new(BackendId(n.into()), backend(n, v6), 2121, 1, mode);
    let backends = [new(2), new(3)];
    let service = Service {
        vips: vec![VipKey { addr, port: 21, proto: TCP, v6 }],
        scheduler: Scheduler::compile(Scheduling::Rr, Flags::default(), &backends),
        backends: backends.into(),
        pool: Some(PoolId(0)),
        persistence: persistent.then_some(Persistence { timeout_s: 60, mask: u128::MAX }),
        ..Service::default()
    };
    let pool =
        SnatPool { name: "pool".into(), v4: vec![SNAT4.to_bits()], v6: vec![], low: 1024, high: u16::MAX };
    let services = Services::new(vec![service], vec![pool], [vip(false), vip(true)]);
    Snapshot { services: Arc::new(services), net: Arc::new(net()), ..Snapshot::default() }
}

/// A segment, as it is sent or as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
    numbers: (u32, u32),
    sack: Option<(u32, u32)>,
    text: String,
}

impl Segment {
    fn new(from: SocketAddr, to: SocketAddr, flags: u8, numbers: (u32, u32), text: &str) -> Self {
        Self { from, to, flags, numbers, sack: None, text: text.to_owned() }
    }

    fn frame(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
        let ip = match (self.from, self.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => link.ipv4(from.ip().octets(), to.ip().octets(), 64),
            (SocketAddr::V6(from), SocketAddr::V6(to)) => link.ipv6(from.ip().octets(), to.ip().octets(), 64),
            _ => panic!("families differ"),
        };
        let mut tcp = ip.tcp(self.from.port(), self.to.port(), self.numbers.0, 5000);
        if self.flags & SYN != 0 {
            tcp = tcp.syn();
        }
        if self.flags & ACK != 0 {
            tcp = tcp.ack(self.numbers.1);
        }
        if self.flags & PSH != 0 {
            tcp = tcp.psh();
        }
        if let Some(edges) = self.sack {
            let sack = TcpOptionElement::SelectiveAcknowledgement(edges, [None; 3]);
            tcp = tcp.options(&[sack]).unwrap();
        }
        let mut bytes = Vec::new();
        tcp.write(&mut bytes, self.text.as_bytes()).unwrap();
        bytes
    }

    /// What left, its checksums and lengths being right.
    fn read(wire: &Wire) -> Self {
        let (from, to, _) = wire.seen();
        let packet = SlicedPacket::from_ethernet(wire.bytes()).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("TCP") };
        let flags = [(tcp.syn(), SYN), (tcp.ack(), ACK), (tcp.psh(), PSH)];
        let sack = tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::SelectiveAcknowledgement(edges, _)) => Some(edges),
            _ => None,
        });
        Self {
            from,
            to,
            flags: flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, bit)| bit).sum(),
            numbers: (tcp.sequence_number(), tcp.acknowledgment_number()),
            sack,
            text: String::from_utf8(tcp.payload().to_vec()).unwrap(),
        }
    }
}

/// What becomes of a segment.
fn go(engine: &mut Engine, tables: &Snapshot, way: Way, segment: &Segment) -> Result<Segment, Verdict> {
    go_at(engine, tables, way, segment, Tick(0))
}

fn go_at(
    engine: &mut Engine,
    tables: &Snapshot,
    way: Way,
    segment: &Segment,
    now: Tick,
) -> Result<Segment, Verdict> {
    engine.sweep(now, tables);
    let port = if way == Way::Forward { UPLINK } else { LAN };
    let mut wire = Wire::new(&segment.frame(), port);
    match wire.through(engine, tables, now) {
        Verdict::Tx(_) => Ok(Segment::read(&wire)),
        other => Err(other),
    }
}

struct Control {
    client: SocketAddr,
    vip: SocketAddr,
    server: SocketAddr,
    /// The client as the backend sees it.
    peer: SocketAddr,
}

/// A control connection: the client's data start at 1001, the backend's at 9001.
fn login(engine: &mut Engine, tables: &Snapshot, client: SocketAddr) -> Control {
    let vip = at(vip(client.is_ipv6()), 21);
    let syn = Segment::new(client, vip, SYN, (1000, 0), "");
    let Segment { from: peer, to: server, .. } = go(engine, tables, Way::Forward, &syn).unwrap();
    let control = Control { client, vip, server, peer };
    let answer = Segment::new(server, peer, SYN | ACK, (9000, 1001), "");
    assert!(go(engine, tables, Way::Reply, &answer).is_ok());
    let ack = Segment::new(client, vip, ACK, (1001, 9001), "");
    assert!(go(engine, tables, Way::Forward, &ack).is_ok());
    control
}

impl Control {
    fn said(&self, numbers: (u32, u32), text: &str) -> Segment {
        Segment::new(self.client, self.vip, ACK | PSH, numbers, text)
    }

    fn answered(&self, numbers: (u32, u32), text: &str) -> Segment {
        Segment::new(self.server, self.peer, ACK | PSH, numbers, text)
    }
}

fn client() -> SocketAddr {
    "172.16.0.9:40000".parse().unwrap()
}

#[test]
fn a_passive_data_connection_reaches_the_backend_that_announced_it() {
    for (mode, persistent) in [(Mode::Nat, false), (Mode::Nat, true), (Mode::FullNat, false)] {
        let tables = tables(mode, false, persistent);
        let mut engine = engines(1, 64).remove(0);
        let control = login(&mut engine, &tables, client());
        let other = login(&mut engine, &tables, "172.16.0.10:40000".parse().unwrap());
        assert_eq!((control.server.ip(), other.server.ip()), (backend(2, false), backend(3, false)));
        let Control { client, vip, server, peer } = control;

        let asked = go(&mut engine, &tables, Way::Forward, &control.said((1001, 9001), "PASV\r\n")).unwrap();
        assert_eq!(asked, Segment::new(peer, server, ACK | PSH, (1001, 9001), "PASV\r\n"));

        // The backend is 10.1.0.2, the VIP 10.0.0.100: the text becomes two bytes longer.
        let (said, told) = (
            "227 Entering Passive Mode (10,1,0,2,195,80).\r\n",
            "227 Entering Passive Mode (10,0,0,100,195,80).\r\n",
        );
        let reply = control.answered((9001, 1007), said);
        let want = Segment::new(vip, client, ACK | PSH, (9001, 1007), told);
        assert_eq!(go(&mut engine, &tables, Way::Reply, &reply), Ok(want.clone()));
        // Once more, as it was not acknowledged.
        assert_eq!(go(&mut engine, &tables, Way::Reply, &reply), Ok(want));
        let (end, end_told) = (9001 + said.len() as u32, 9001 + told.len() as u32);
        assert_eq!(end_told - end, 2);

        // Acknowledgements, also selective ones, and what follows are shifted.
        let mut ack = Segment::new(client, vip, ACK, (1007, end_told), "");
        ack.sack = Some((end_told + 10, end_told + 20));
        let mut want = Segment::new(peer, server, ACK, (1007, end), "");
        want.sack = Some((end + 10, end + 20));
        assert_eq!(go(&mut engine, &tables, Way::Forward, &ack), Ok(want));
        let old = Segment::new(client, vip, ACK, (1007, 9001), "");
        assert_eq!(go(&mut engine, &tables, Way::Forward, &old).unwrap().numbers, (1007, 9001));
        let more =
            go(&mut engine, &tables, Way::Reply, &control.answered((end, 1007), "150 Here\r\n")).unwrap();
        assert_eq!(more, Segment::new(vip, client, ACK | PSH, (end_told, 1007), "150 Here\r\n"));

        // The data connection.
        let data = at(vip.ip(), 195 << 8 | 80);
        let from = at(client.ip(), 41_000);
        let stranger = Segment::new(at("172.16.0.77".parse().unwrap(), 41_000), data, SYN, (5, 0), "");
        let strange = go(&mut engine, &tables, Way::Forward, &stranger);
        assert!(persistent == strange.is_ok(), "{strange:?}");
        let opened =
            go(&mut engine, &tables, Way::Forward, &Segment::new(from, data, SYN, (5, 0), "")).unwrap();
        assert_eq!(opened.to, at(server.ip(), data.port()));
        let answer = Segment::new(opened.to, opened.from, SYN | ACK, (7, 6), "");
        assert_eq!(go(&mut engine, &tables, Way::Reply, &answer).unwrap().from, data);
        if !persistent {
            // Once.
            let again = Segment::new(at(client.ip(), 41_001), data, SYN, (5, 0), "");
            assert_eq!(go(&mut engine, &tables, Way::Forward, &again), Err(Verdict::Kernel));
        }

        // A second announcement shifts on.
        let reply = control.answered((end + 10, 1013), said);
        assert_eq!(go(&mut engine, &tables, Way::Reply, &reply).unwrap().numbers, (end_told + 10, 1013));
        let next = end + 10 + said.len() as u32;
        let more =
            go(&mut engine, &tables, Way::Reply, &control.answered((next, 1013), "226 Done\r\n")).unwrap();
        assert_eq!(more.numbers, (next + 4, 1013));
        let ack = Segment::new(client, vip, ACK, (1013, next + 4), "");
        assert_eq!(go(&mut engine, &tables, Way::Forward, &ack).unwrap().numbers, (1013, next));
    }
}

#[test]
fn an_active_data_connection_comes_from_the_vip() {
    for (v6, command) in [(false, "PORT 172,16,0,9,160,40\r\n"), (true, "EPRT |2|fd22::9|41000|\r\n")] {
        let tables = tables(Mode::Nat, v6, false);
        let mut engine = engines(1, 64).remove(0);
        let client = if v6 { "[fd22::9]:40000".parse().unwrap() } else { client() };
        let control = login(&mut engine, &tables, client);
        let sent = go(&mut engine, &tables, Way::Forward, &control.said((1001, 9001), command)).unwrap();
        assert_eq!(sent.text, command);
        let mut records = Vec::with_capacity(8);
        engine.dump(0, 100, Tick(0), &mut records);
        assert!(
            records.iter().any(|flow| (flow.state, flow.client.1, flow.expires_s) == ("LISTEN", 41_000, 120))
        );

        let (data, from) = (at(client.ip(), 41_000), at(control.server.ip(), 2120));
        let seen = at(control.vip.ip(), 20);
        let opened =
            go(&mut engine, &tables, Way::Reply, &Segment::new(from, data, SYN, (3, 0), "")).unwrap();
        assert_eq!((opened.from, opened.to), (seen, data));
        let answer = Segment::new(data, seen, SYN | ACK, (70, 4), "");
        assert_eq!(go(&mut engine, &tables, Way::Forward, &answer).unwrap().to, from);
        let ack = Segment::new(from, data, ACK, (4, 71), "");
        assert_eq!(go(&mut engine, &tables, Way::Reply, &ack).unwrap().from, seen);
        assert_eq!(engine.flows(), 2);
    }
}

#[test]
fn an_extended_passive_connection_is_announced_without_an_address() {
    for v6 in [false, true] {
        let tables = tables(Mode::Nat, v6, false);
        let mut engine = engines(1, 64).remove(0);
        let client = if v6 { "[fd22::9]:40000".parse().unwrap() } else { client() };
        let control = login(&mut engine, &tables, client);
        let text = "229 Entering Extended Passive Mode (|||6446|)\r\n";
        assert_eq!(
            go(&mut engine, &tables, Way::Reply, &control.answered((9001, 1001), text)).unwrap().text,
            text
        );
        let data = at(control.vip.ip(), 6446);
        let opened = Segment::new(at(client.ip(), 41_000), data, SYN, (5, 0), "");
        let opened = go(&mut engine, &tables, Way::Forward, &opened).unwrap();
        assert_eq!(opened.to, at(control.server.ip(), 6446));
    }
}

#[test]
fn nobody_announces_an_address_that_is_not_his() {
    let tables = tables(Mode::Nat, false, false);
    let mut engine = engines(1, 64).remove(0);
    let control = login(&mut engine, &tables, client());
    for (way, text) in [
        (Way::Forward, "PORT 172,16,0,77,160,40\r\n"),
        (Way::Forward, "EPRT |1|10.1.0.3|22|\r\n"),
        (Way::Forward, "227 Entering Passive Mode (10,1,0,2,195,80).\r\n"),
        (Way::Reply, "227 Entering Passive Mode (10,1,0,3,195,80).\r\n"),
        (Way::Reply, "PORT 172,16,0,9,160,40\r\n"),
        (Way::Reply, "220 227 Entering Passive Mode (10,1,0,2,195,80).\r\n"),
        (Way::Reply, "227 Entering Passive Mode (10,1,0,2,195,80)."),
    ] {
        let segment = if way == Way::Forward {
            control.said((1001, 9001), text)
        } else {
            control.answered((9001, 1001), text)
        };
        assert_eq!(go(&mut engine, &tables, way, &segment).unwrap().text, text);
        assert_eq!((engine.flows(), engine.templates()), (1, 0), "{text}");
    }
}

#[test]
fn what_nobody_comes_for_is_forgotten() {
    let tables = tables(Mode::Nat, false, false);
    let mut engine = engines(1, 64).remove(0);
    let control = login(&mut engine, &tables, client());
    let place = control.answered((9001, 1001), "227 Passive (10,1,0,2,195,80)\r\n");
    go(&mut engine, &tables, Way::Reply, &place).unwrap();
    let command = control.said((1001, 9001), "PORT 172,16,0,9,160,40\r\n");
    go(&mut engine, &tables, Way::Forward, &command).unwrap();
    assert_eq!((engine.flows(), engine.templates()), (2, 1));
    let mut records = Vec::with_capacity(8);
    let next = engine.dump(0, 100, Tick(0), &mut records).unwrap();
    engine.dump(next, 100, Tick(0), &mut records);
    let awaited = records.iter().find(|record| record.client.1 == 0).unwrap();
    assert_eq!(
        (awaited.proto, awaited.vip.1, awaited.state, awaited.expires_s),
        (TCP, 50_000, "LISTEN", 120)
    );
    let late = Segment::new(at(client().ip(), 41_000), at(vip(false), 50_000), SYN, (5, 0), "");
    let now = Tick(121 * TICKS_PER_SECOND);
    assert_eq!(go_at(&mut engine, &tables, Way::Forward, &late, now), Err(Verdict::Kernel));
    for seconds in [132, 143] {
        engine.sweep(Tick(seconds * TICKS_PER_SECOND), &tables);
    }
    assert_eq!((engine.flows(), engine.templates()), (1, 0));
    let counts = engine.core.setup.state.backend(BackendId(2)).unwrap();
    assert_eq!(counts.counts(), (1, 0));
}

#[test]
fn a_data_connection_finds_the_worker_of_its_control_connection() {
    let tables = tables(Mode::Nat, false, false);
    let mut engines = engines(2, 64);
    let control = login(&mut engines[0], &tables, client());
    let place = control.answered((9001, 1001), "227 Passive (10,1,0,2,195,80)\r\n");
    go(&mut engines[0], &tables, Way::Reply, &place).unwrap();
    let from = Segment::new(at(client().ip(), 41_000), at(vip(false), 50_000), SYN, (5, 0), "");
    let handed = Err(Verdict::Handoff(WorkerId(0)));
    assert_eq!(go(&mut engines[1], &tables, Way::Forward, &from), handed);
    let mut wire = Wire::new(&from.frame(), UPLINK);
    wire.handed_over = true;
    assert_eq!(wire.through(&mut engines[0], &tables, Tick(0)), Verdict::Tx(LAN));
    let command = control.said((1001, 9001), "PORT 172,16,0,9,160,41\r\n");
    go(&mut engines[0], &tables, Way::Forward, &command).unwrap();
    let active = Segment::new(at(control.server.ip(), 2120), at(client().ip(), 41_001), SYN, (3, 0), "");
    assert_eq!(go(&mut engines[1], &tables, Way::Reply, &active), handed);
    assert!(go(&mut engines[0], &tables, Way::Reply, &active).is_ok());
}
