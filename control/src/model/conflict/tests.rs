//! Conflicts that no configuration file can have.

use super::*;
use crate::config;
use crate::model::{Clients, DesiredState, Masquerade, Reach};

/// The draft of a file, with each of its services changed.
fn draft(services: &str, change: impl Fn(&mut Service)) -> Draft {
    let text = format!(
        "interfaces: [{{name: eth1}}]\nnode_addresses: [192.0.2.1]\n\
         snat_pools: [{{name: p, addresses: [10.9.0.1]}}, {{name: p6, addresses: [\"fd00::9\"]}}]\nservices:\n{services}"
    );
    let mut draft = config::parse("f", &text).unwrap_or_else(|faults| panic!("{faults}")).desired.draft();
    draft.services.iter_mut().for_each(change);
    draft
}

fn reasons(draft: Draft) -> Vec<(Place, String)> {
    let conflicts = DesiredState::new(draft).err().unwrap_or_default();
    conflicts.into_iter().map(|conflict| (conflict.at, conflict.to_string())).collect()
}

/// Both services of a pair have this reach: whether by VIP or by node port alone, and for whom.
fn pair(vip: bool, clients: [Clients; 2]) -> Vec<(Place, String)> {
    let text = "  - {name: a, vip: 10.0.0.1, port: 80, node_port: 30080}\n  \
                - {name: b, vip: 10.0.0.2, port: 80, node_port: 30081}\n";
    let mut draft = draft(text, |_| {});
    let first = draft.services[0].clone();
    for (service, clients) in draft.services.iter_mut().zip(clients) {
        service.reach = first.reach.clone();
        service.node_port = first.node_port.filter(|_| !vip);
        let Reach::Vips(vips) = &mut service.reach else { panic!("no VIPs") };
        vips.clients = clients;
        if !vip {
            vips.addresses.clear();
        }
    }
    reasons(draft)
}

#[test]
fn an_address_or_node_port_has_one_service_for_all_and_one_for_clients_inside() {
    use Clients::{All, Inside};
    let taken = |place, addr: &str| vec![(place, format!("{addr}/tcp is already used by service a"))];
    for (name, vip, clients, want) in [
        ("a VIP, for all and inside", true, [All, Inside], vec![]),
        ("a VIP, for all twice", true, [All, All], taken(Place::Vip(1, 0), "10.0.0.1:80")),
        ("a VIP, inside twice", true, [Inside, Inside], taken(Place::Vip(1, 0), "10.0.0.1:80")),
        ("a node port alone, inside and for all", false, [Inside, All], vec![]),
        ("a node port alone, for all twice", false, [All, All], taken(Place::NodePort(1), "192.0.2.1:30080")),
        (
            "a node port alone, inside twice",
            false,
            [Inside, Inside],
            taken(Place::NodePort(1), "192.0.2.1:30080"),
        ),
    ] {
        assert_eq!(pair(vip, clients), want, "{name}");
    }
}

#[test]
fn a_service_that_nothing_leads_to_is_refused() {
    let nowhere = draft("  - {name: a, vip: 10.0.0.1, port: 80}\n", |service| {
        if let Reach::Vips(vips) = &mut service.reach {
            vips.addresses.clear();
        }
    });
    assert_eq!(reasons(nowhere), [(Place::Service(0), "a service needs at least one VIP".to_owned())]);
}

#[test]
fn who_masquerades_nat_backends_needs_a_pool_of_their_family() {
    use Masquerade::{Always, Hairpin, NotLocal};
    let no_pool = "service a masquerades and has no SNAT pool: set snat_pool";
    let no_family = "SNAT pool p6 has no IPv4 address, which fullnat needs here";
    for (name, mode, pool, masquerade, want) in [
        ("hairpin needs none", "nat", None, Hairpin, None),
        ("always", "nat", None, Always, Some((Place::Option(0, "masquerade"), no_pool))),
        ("not local", "nat", None, NotLocal, Some((Place::Option(0, "masquerade"), no_pool))),
        ("with a pool", "nat", Some("p"), Always, None),
        ("with a pool of the other family", "nat", Some("p6"), Always, Some((Place::PoolOf(0), no_family))),
        ("backends that see clients anyhow", "dr", None, Always, None),
    ] {
        let text = format!(
            "  - {{name: a, vip: 10.0.0.1, port: 80, mode: {mode}, backends: [{{address: 10.1.0.1}}]}}\n"
        );
        let found = reasons(draft(&text, |service| {
            service.access.masquerade = masquerade;
            service.pool = pool.map(Into::into);
        }));
        let want: Vec<_> = want.into_iter().map(|(place, text)| (place, text.to_owned())).collect();
        assert_eq!(found, want, "{name}");
    }
    let empty =
        draft("  - {name: a, vip: 10.0.0.1, port: 80}\n", |service| service.access.masquerade = Always);
    assert_eq!(reasons(empty), [], "nobody is there to be hidden from");
}
