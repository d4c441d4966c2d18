use std::net::IpAddr;
use std::num::NonZeroU32;

use super::command::{
    Command, Forward, Key, Netmask, Protocol, Refusal, SchedulerFlags, Server, Service, SyncRole, Timeouts,
    TunnelChecksum, TunnelKind,
};
use super::{Room, Table};
use crate::config::{self, Section};
use crate::model::{DesiredState, Draft};

const WEB: Key = Key::Address {
    protocol: Protocol::Tcp,
    addr: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100)),
    port: 80,
};

const ROOM: Room = Room { services: 10, servers: 20 };

fn mark(number: u32) -> Key {
    Key::Mark { mark: NonZeroU32::new(number).unwrap(), v6: false }
}

fn service(key: Key) -> Service {
    Service {
        key,
        scheduler: "rr".into(),
        flags: SchedulerFlags::default(),
        persistent_s: None,
        netmask: Netmask::V4([255; 4].into()),
        one_packet: false,
        engine: String::new(),
    }
}

fn server(addr: &str, port: u16) -> Server {
    let addr = addr.parse().unwrap();
    Server { addr, port, forward: Forward::Masq, weight: 1, upper: 0, lower: 0 }
}

/// A table of nothing on a machine that has 10.0.0.7 itself.
fn empty() -> Table {
    Table::new(Draft::default(), [IpAddr::from([10, 0, 0, 7])].into_iter().collect(), ROOM)
}

/// The state after the commands; those before the last are carried out.
fn run(table: &mut Table, commands: &[Command]) -> Result<(), Refusal> {
    let (last, before) = commands.split_last().unwrap();
    for command in before {
        table.run(command).unwrap_or_else(|refusal| panic!("{command:?}: {refusal:?}"));
    }
    table.run(last)
}

#[test]
fn commands_are_refused_with_the_kernels_errors() {
    let add = Command::AddService(service(WEB));
    let add_server = Command::AddServer(WEB, server("10.1.0.1", 80));
    let unknown = Service { scheduler: "nosuch".into(), ..service(WEB) };
    let with_engine = |engine: &str| Command::AddService(Service { engine: engine.into(), ..service(WEB) });
    let over = |upper, lower| Server { upper, lower, ..server("10.1.0.2", 80) };
    let gue = Forward::Tunnel { kind: TunnelKind::Gue, port: 0, checksum: TunnelChecksum::None };
    for (name, commands, want) in [
        ("a service twice", vec![add.clone(), add.clone()], Err(Refusal::Exists)),
        ("no such scheduler", vec![Command::AddService(unknown.clone())], Err(Refusal::NoEntry)),
        (
            "what exists comes before its scheduler",
            vec![add.clone(), Command::AddService(unknown.clone())],
            Err(Refusal::Exists),
        ),
        ("no such engine", vec![with_engine("nosuch")], Err(Refusal::NoEntry)),
        ("an engine without persistence", vec![with_engine("sip")], Ok(())),
        ("edit of nothing", vec![Command::EditService(unknown.clone())], Err(Refusal::NoService)),
        ("edit with no scheduler", vec![add.clone(), Command::EditService(unknown)], Err(Refusal::NoEntry)),
        ("delete of nothing", vec![Command::DeleteService(WEB)], Err(Refusal::NoService)),
        ("server of nothing", vec![add_server.clone()], Err(Refusal::NoService)),
        ("server twice", vec![add.clone(), add_server.clone(), add_server.clone()], Err(Refusal::Exists)),
        (
            "server with another port",
            vec![add.clone(), add_server.clone(), Command::AddServer(WEB, server("10.1.0.1", 81))],
            Ok(()),
        ),
        (
            "edit of no server",
            vec![add.clone(), Command::EditServer(WEB, server("10.1.0.1", 80))],
            Err(Refusal::NoEntry),
        ),
        (
            "delete of no server",
            vec![add.clone(), Command::DeleteServer(WEB, ("10.1.0.1".parse().unwrap(), 80))],
            Err(Refusal::NoEntry),
        ),
        (
            "lower threshold above the upper",
            vec![add.clone(), Command::AddServer(WEB, over(10, 11))],
            Err(Refusal::Range),
        ),
        (
            "lower threshold alone",
            vec![add.clone(), Command::AddServer(WEB, over(0, 5))],
            Err(Refusal::Range),
        ),
        (
            "multicast server",
            vec![add.clone(), Command::AddServer(WEB, server("224.0.0.1", 80))],
            Err(Refusal::Invalid),
        ),
        (
            "server of the other family",
            vec![add.clone(), Command::AddServer(WEB, server("fd00::1", 80))],
            Err(Refusal::Invalid),
        ),
        (
            "gue without a port",
            vec![add.clone(), Command::AddServer(WEB, Server { forward: gue, ..server("10.1.0.1", 80) })],
            Err(Refusal::Invalid),
        ),
        ("zeroing nothing", vec![Command::Zero(Some(WEB))], Err(Refusal::NoService)),
        ("zeroing all of nothing", vec![Command::Zero(None)], Ok(())),
        ("stopping no daemon", vec![Command::StopDaemon(SyncRole::Backup)], Err(Refusal::NoService)),
        ("flushing nothing", vec![Command::Flush], Ok(())),
        ("deleted, then made again", vec![add.clone(), Command::DeleteService(WEB), add.clone()], Ok(())),
        ("flushed, then made again", vec![add.clone(), Command::Flush, add.clone()], Ok(())),
        ("both a mark and an address", vec![add.clone(), Command::AddService(service(mark(7)))], Ok(())),
    ] {
        assert_eq!(run(&mut empty(), &commands), want, "{name}");
    }
}

#[test]
fn what_commands_make_is_a_desired_state_that_the_configuration_can_say() {
    let mut table = empty();
    let v6 = Key::Address { protocol: Protocol::Sctp, addr: "fd00::100".parse().unwrap(), port: 9 };
    let nobodys = Key::Address { protocol: Protocol::Tcp, addr: [0; 4].into(), port: 80 };
    let tunnel = |kind, port, checksum| Forward::Tunnel { kind, port, checksum };
    let gue = tunnel(TunnelKind::Gue, 6080, TunnelChecksum::Remote);
    let every_port = Key::Address { protocol: Protocol::Udp, addr: [10, 0, 0, 7].into(), port: 0 };
    run(
        &mut table,
        &[
            Command::AddService(Service {
                flags: SchedulerFlags { third: true, ..Default::default() },
                ..service(WEB)
            }),
            Command::AddServer(
                WEB,
                Server { weight: 65536, upper: 10, lower: 5, ..server("10.1.0.1", 8080) },
            ),
            Command::AddServer(WEB, Server { forward: gue, ..server("fd00:1::1", 80) }),
            Command::AddServer(WEB, Server { forward: Forward::Route, ..server("10.1.0.3", 80) }),
            Command::AddService(Service {
                scheduler: "mh".into(),
                persistent_s: Some(100),
                netmask: Netmask::V6(64),
                ..service(v6)
            }),
            Command::AddService(Service {
                persistent_s: Some(60),
                netmask: Netmask::V4([255, 255, 0, 255].into()),
                one_packet: true,
                engine: "sip".into(),
                ..service(every_port)
            }),
            Command::AddService(Service { engine: "sip".into(), ..service(mark(7)) }),
            Command::AddServer(mark(7), server("10.1.0.1", 0)),
            Command::AddService(service(nobodys)),
            Command::SetTimeouts(Timeouts { tcp_s: 100, tcp_fin_s: 0, udp_s: 30 }),
        ],
    )
    .unwrap();
    assert!(table.is_changed());
    let (draft, _) = table.finish();
    let announced: Vec<_> = draft.services.iter().map(|service| (&*service.name, service.announce)).collect();
    assert_eq!(
        announced,
        [
            ("tcp-10.0.0.100-80", true),
            ("sctp-fd00::100-9", true),
            ("udp-10.0.0.7-0", false),
            ("mark-7", true),
            ("tcp-0.0.0.0-80", false),
        ],
        "Weir answers for no address that is the machine's or nobody's"
    );
    assert_eq!((draft.timeouts.tcp_s[1], draft.timeouts.tcp_s[4], draft.timeouts.udp_s), (100, 120, 30));

    let settings = config::parse("test.yaml", "interfaces: [{name: eth1}]\n").unwrap().settings;
    let text = config::write(&settings, &Section::default(), &DesiredState::new(draft.clone()).unwrap());
    let again = config::parse("written.yaml", &text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
    let mut without = draft;
    without.services.pop();
    assert_eq!(again.desired.draft(), without, "all but the service of 0.0.0.0\n{text}");
    assert_eq!(again.settings, settings);
    assert!(text.contains("# vip: \"0.0.0.0\""), "{text}");
}

#[test]
fn a_service_with_several_addresses_is_several_services() {
    let text = "interfaces: [{name: eth1}]\nnode_addresses: [10.0.0.7]\nservices:\n\
        - {name: web, vips: [10.0.0.100, 10.0.0.101], port: 80, node_port: 30080, backends: [{address: 10.1.0.1}]}\n";
    let draft = config::parse("test.yaml", text).unwrap().desired.draft();
    let table = || Table::new(draft.clone(), Default::default(), ROOM);
    let names = |table: Table| -> Vec<(String, Vec<String>, usize)> {
        let (draft, _) = table.finish();
        let state = DesiredState::new(draft).unwrap();
        let services = state.services();
        services
            .map(|service| {
                let vips = service.vips().iter().map(|vip| vip.ip().to_string()).collect();
                (service.name.to_string(), vips, service.backends.len())
            })
            .collect()
    };
    let mut changed = table();
    changed.run(&Command::AddServer(WEB, server("10.1.0.2", 80))).unwrap();
    let want = [
        ("web".to_owned(), vec!["10.0.0.101".to_owned()], 1),
        ("tcp-10.0.0.100-80".to_owned(), vec!["10.0.0.100".to_owned()], 2),
    ];
    assert_eq!(names(changed), want);

    let mut smaller = table();
    smaller.run(&Command::DeleteService(WEB)).unwrap();
    assert_eq!(smaller.run(&Command::DeleteService(WEB)), Err(Refusal::NoService));
    smaller.run(&Command::AddService(service(WEB))).unwrap();
    assert_eq!(names(smaller).len(), 2);

    let node = Key::Address { protocol: Protocol::Tcp, addr: [10, 0, 0, 7].into(), port: 30080 };
    let mut on_node = table();
    assert_eq!(on_node.run(&Command::AddService(service(node))), Err(Refusal::Exists));
    assert!(matches!(on_node.run(&Command::DeleteService(node)), Err(Refusal::Weir(_))));
    on_node.run(&Command::Flush).unwrap();
    on_node.run(&Command::AddService(service(node))).unwrap();
}

#[test]
fn the_whole_configuration_survives_being_written_and_read() {
    let text = include_str!("../../tests/every-key.yaml");
    let first = config::parse("every-key.yaml", text).unwrap_or_else(|faults| panic!("{faults}"));
    let written = config::write(&first.settings, &first.kubernetes, &first.desired);
    let second =
        config::parse("written.yaml", &written).unwrap_or_else(|faults| panic!("{faults}\n{written}"));
    assert_eq!(second.settings, first.settings, "{written}");
    assert_eq!(second.kubernetes, first.kubernetes, "{written}");
    assert_eq!(second.desired, first.desired, "{written}");
    assert_eq!(config::write(&second.settings, &second.kubernetes, &second.desired), written);
}

#[test]
fn there_is_room_for_so_many_and_what_is_deleted_makes_room() {
    let other = |port| Key::Address { protocol: Protocol::Tcp, addr: [10, 0, 0, 100].into(), port };
    let mut table = Table::new(Draft::default(), Default::default(), Room { services: 2, servers: 1 });
    run(&mut table, &[Command::AddService(service(other(80))), Command::AddService(service(other(81)))])
        .unwrap();
    assert_eq!(table.run(&Command::AddService(service(other(82)))), Err(Refusal::NoMemory));
    run(
        &mut table,
        &[
            Command::AddServer(other(80), server("10.1.0.1", 80)),
            Command::DeleteService(other(80)),
            Command::AddService(service(other(82))),
            Command::AddServer(other(81), server("10.1.0.1", 80)),
        ],
    )
    .unwrap();
    assert_eq!(table.run(&Command::AddServer(other(82), server("10.1.0.1", 80))), Err(Refusal::NoMemory));
    run(
        &mut table,
        &[
            Command::DeleteServer(other(81), ("10.1.0.1".parse().unwrap(), 80)),
            Command::AddServer(other(82), server("10.1.0.1", 80)),
            Command::Flush,
            Command::AddService(service(other(80))),
            Command::AddServer(other(80), server("10.1.0.1", 80)),
        ],
    )
    .unwrap();
}
