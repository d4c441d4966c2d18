//! Whatever changes: the tables are those that the result compiles to, and tables of before stay what they were.

use std::num::NonZeroU32;

use super::*;
use crate::model::{
    Change, Clients, Common, Family, Origin, Persistence, Port, Protocol, Reach, Scheduling, Unicast, Vips,
};
use dataplane::snapshot::Mode;

/// A service: name, group, VIPs (a port 21 is FTP), node port, for clients inside, backends with weight, announced.
#[derive(Clone, Debug)]
struct Recipe {
    name: u8,
    group: Option<u8>,
    vips: Vec<u8>,
    ftp: bool,
    node_port: bool,
    inside: bool,
    backends: Vec<(u8, u8)>,
    announce: bool,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let lists =
        (prop::collection::btree_set(0..5_u8, 0..3), prop::collection::btree_map(0..5_u8, 0..2_u8, 0..4));
    let flags = any::<(bool, bool, bool, bool)>();
    (0..6_u8, prop::option::of(0..2_u8), lists, flags).prop_map(
        |(name, group, (vips, backends), (ftp, node_port, inside, announce))| Recipe {
            name,
            group,
            vips: vips.into_iter().collect(),
            ftp,
            node_port: node_port && !ftp,
            inside,
            backends: backends.into_iter().collect(),
            announce,
        },
    )
}

fn unicast(addr: [u8; 4]) -> Unicast {
    Unicast::new(addr.into()).unwrap()
}

/// Each name has node ports and, but for the first two VIPs, addresses of its own, so that most changes go through.
fn service(recipe: &Recipe) -> model::Service {
    let Recipe { name, group, vips, ftp, node_port, inside, backends, announce } = recipe;
    let vip = |vip: &u8| unicast(if *vip < 2 { [10, 0, 0, *vip + 1] } else { [10, 0, *name + 1, *vip] });
    let reach = Reach::Vips(Vips {
        family: Family::V4,
        addresses: vips.iter().map(vip).collect(),
        port: Port::new(if *ftp { 21 } else { 80 }),
        protocol: Protocol::Tcp,
        clients: if *inside { Clients::Inside } else { Clients::All },
    });
    let scheduling = Scheduling { kind: Kind::Wrr, flags: schedule::Flags::default() };
    let mut service = model::Service::new(format!("s{name}").into(), reach, scheduling);
    service.origin = Origin::Kubernetes;
    service.group = group.map(|group| format!("g{group}").into());
    service.node_port = node_port.then(|| Port::new(30_000 + u16::from(*name)).unwrap());
    service.announce = *announce;
    service.persistence = Some(Persistence { timeout_s: NonZeroU32::MIN, netmask: None });
    let backend = |(host, weight): &(u8, u8)| model::Backend {
        weight: model::Weight((*weight).into()),
        ..model::Backend::new(unicast([10, 1, 0, *host + 1]), Port::new(8080), Mode::Nat)
    };
    service.backends = backends.iter().map(backend).collect();
    service
}

/// All that can be told of tables, but for ids and the order of backends, in which there is history.
fn told(tables: &Services) -> String {
    let mut lines = Vec::new();
    for service in tables.iter() {
        let mut backends: Vec<_> = service
            .backends
            .iter()
            .map(|backend| {
                // Which service stands for it, and which others share it.
                let stands =
                    tables.backend(backend.id).map(|(of, backend)| (of.name.clone(), backend.weight));
                let mut others: Vec<_> = tables
                    .iter()
                    .filter(|of| tables.backend_in(of, backend.id).is_some())
                    .map(|of| of.name.clone())
                    .collect();
                others.sort();
                format!("{} {} {} {stands:?} {others:?}", backend.addr, backend.port, backend.weight)
            })
            .collect();
        backends.sort();
        let found = |vip: &VipKey| {
            let of = |of: Option<&snapshot::Service>| of.map(|of| of.name.clone());
            (of(tables.exact(vip)), of(tables.exact_inside(vip)))
        };
        let vips: Vec<_> = service.vips.iter().map(|vip| (*vip, found(vip))).collect();
        let group = service.group;
        lines.push(format!("{} {vips:?} {:?} {group:?} {backends:?}", service.name, service.clients));
    }
    lines.sort();
    let owned: BTreeSet<_> = tables.owned().collect();
    let node = tables.locality().node.contains(u128::from(0xc000_0201_u32), false);
    format!("{lines:#?} {owned:?} {} {node}", tables.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tables_after_any_changes_are_those_of_the_result(
        changes in prop::collection::vec(
            (
                prop::collection::vec(0..6_u8, 0..2),
                prop::collection::vec(recipe(), 0..3),
                prop::option::weighted(0.2, any::<bool>()),
                any::<bool>(),
            ),
            1..12,
        ),
        busy in prop::collection::vec(any::<bool>(), 64),
    ) {
        let mut history = History { state: State::new(16, 64), ..History::new() };
        history.compiler = Compiler::new(&history.state);
        let mut copies = Vec::new();
        for (remove, put, node, all_end) in changes {
            let mut names = HashSet::new();
            let common = node.map(|node| Common {
                node_addresses: node.then(|| unicast([192, 0, 2, 1])).into_iter().collect(),
                ..Common::default()
            });
            let change = Change {
                remove: remove.iter().map(|name| format!("s{name}").into()).collect(),
                put: put.iter().filter(|recipe| names.insert(recipe.name)).map(service).collect(),
                common,
            };
            let Ok(applied) = history.desired.follow(change) else { continue };
            if applied.is_empty() {
                continue;
            }
            copies.push((history.services.clone(), told(&history.services)));
            // A plan that is given up is as if it had not been made.
            history.compiler.plan(&history.desired, &applied, &history.services, 9).unwrap();
            let before = history.services.clone();
            let tables = history.carry_out(applied).unwrap();
            tables.prepare(&before, &history.state, Tick::default());
            for (slot, busy) in (0..).zip(&busy) {
                history.flows(BackendId(slot), u32::from(*busy && !all_end), 0);
            }
            history.reclaim();
            let fresh = compiled_in(&history.desired);
            prop_assert_eq!(told(&tables.services), told(&fresh.services));
            prop_assert_eq!(&history.rules, &fresh.ours.rules);
            if all_end {
                let ours = history.ours();
                prop_assert_eq!(ours, fresh.ours, "nothing is left of what was removed");
                prop_assert_eq!(history.compiler.removed(), 0);
                let in_use: BTreeSet<_> = tables.services.iter().flat_map(|of| of.backends.iter().map(|b| b.id)).collect();
                prop_assert_eq!(history.compiler.in_use(), (tables.services.len(), in_use.len()));
            } else {
                let ours = history.ours();
                prop_assert!(fresh.ours.nat_backends.is_subset(&ours.nat_backends));
                prop_assert_eq!((ours.vips, ours.owned, ours.node_ports), (fresh.ours.vips, fresh.ours.owned, fresh.ours.node_ports));
            }
        }
        for (tables, before) in copies {
            prop_assert_eq!(told(&tables), before);
        }
    }
}

/// What the desired state comes to where there was nothing before.
fn compiled_in(desired: &DesiredState) -> Compiled {
    let mut history = History { state: State::new(16, 64), desired: desired.clone(), ..History::new() };
    history.compiler = Compiler::new(&history.state);
    history.carry_out(Applied::all(desired)).unwrap()
}
