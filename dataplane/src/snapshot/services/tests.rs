//! Edited tables are what tables made anew are, and those that they were copied from stay what they were.

use proptest::prelude::*;

use super::*;
use crate::schedule::{self, Kind, Scheduler};
use crate::snapshot::Options;

/// What a service is made of: few values each, so that services meet.
#[derive(Clone, Debug)]
struct Recipe {
    id: u32,
    /// Host, port and protocol of each.
    vips: Vec<(u8, u16, u8)>,
    inside: bool,
    mark: Option<u8>,
    /// Id, host and weight of each.
    backends: Vec<(u8, u8, u8)>,
    steady: bool,
    nat: bool,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let vip =
        (0..3_u8, prop_oneof![Just(21_u16), Just(80), Just(0)], prop_oneof![Just(key::TCP), Just(key::UDP)]);
    let backend = (0..6_u8, 0..3_u8, 0..2_u8);
    let lists = (proptest::collection::vec(vip, 0..3), proptest::collection::vec(backend, 0..4));
    (0..6_u32, lists, any::<bool>(), proptest::option::of(1..3_u8), any::<bool>(), any::<bool>()).prop_map(
        |(id, (vips, mut backends), inside, mark, steady, nat)| {
            backends.sort_unstable();
            backends.dedup_by_key(|(id, ..)| *id);
            let steady = steady && id < 2;
            Recipe { id, vips, inside, mark, backends, steady, nat }
        },
    )
}

fn vip(host: u8, port: u16, proto: u8) -> VipKey {
    VipKey { addr: 0x0a00_0000 + u128::from(host), port, proto, v6: false }
}

fn service(recipe: &Recipe) -> Service {
    let mode = if recipe.nat { Mode::Nat } else { Mode::Dr };
    let backend = |(id, host, weight): &(u8, u8, u8)| {
        // Shared by services whose ids have this bit in common.
        let id = BackendId(u32::from(*id) * 2 + recipe.id % 2);
        Backend::new(id, IpAddr::from([10, 1, 0, *host]), 80, (*weight).into(), mode)
    };
    let backends: Arc<[Backend]> = recipe.backends.iter().map(backend).collect();
    let mut compiler = schedule::Compiler::default();
    let steady = recipe.steady.then(|| compiler.steady(Kind::Rr, schedule::Flags::default(), &backends));
    Service {
        id: ServiceId(recipe.id),
        name: format!("{recipe:?}").into(),
        vips: recipe.vips.iter().map(|(host, port, proto)| vip(*host, *port, *proto)).collect(),
        clients: if recipe.inside { Clients::Inside } else { Clients::All },
        mark: recipe.mark.map(|mark| Mark {
            value: std::num::NonZeroU32::from(std::num::NonZeroU8::new(mark).unwrap()),
            v6: false,
        }),
        scheduler: Scheduler::compile(Kind::Rr, schedule::Flags::default(), &backends),
        steady,
        backends,
        options: Options { move_udp: recipe.id == 0, ..Options::default() },
        ..Service::default()
    }
}

/// Leaves out what another service has already, as control would have refused it.
fn without_conflicts(recipes: &[Recipe]) -> Vec<Recipe> {
    let (mut vips, mut marks) = (HashSet::new(), HashSet::new());
    let mut kept = recipes.to_vec();
    for recipe in &mut kept {
        recipe.vips.retain(|vip| vips.insert((*vip, recipe.inside)));
        recipe.mark = recipe.mark.filter(|mark| marks.insert(*mark));
    }
    kept
}

/// All that can be looked up.
fn seen(tables: &Services) -> Vec<String> {
    let name = |service: Option<&Service>| service.map(|service| service.name.to_string());
    let both = |found: Option<(&Service, &Backend)>| {
        found.map(|(service, backend)| (name(Some(service)), backend.clone()))
    };
    let mut seen = vec![format!(
        "{} {} {:?}",
        tables.len(),
        tables.has_ftp(),
        tables.iter().map(|service| &*service.name).collect::<Vec<_>>()
    )];
    for host in 0..4 {
        seen.push(format!("{}", tables.is_virtual(vip(host, 0, 0).addr, false)));
        for port in [0, 20, 21, 80, 2000] {
            for proto in [key::TCP, key::UDP] {
                let vip = vip(host, port, proto);
                seen.push(format!("{:?} {:?}", name(tables.exact(&vip)), name(tables.exact_inside(&vip))));
                for src in [1, 2] {
                    let key = FlowKey { src, dst: vip.addr, sport: 9, dport: port, proto, v6: false };
                    seen.push(format!("{:?}", name(tables.find(&key, PortId(0)))));
                }
            }
        }
        let real = VipKey { addr: 0x0a01_0000 + u128::from(host), port: 80, proto: key::TCP, v6: false };
        seen.push(format!("{:?}", both(tables.behind(&real))));
    }
    for id in 0..14 {
        seen.push(format!("{:?}", both(tables.backend(BackendId(id)))));
        let own = tables.iter().map(|service| tables.backend_in(service, BackendId(id)));
        seen.push(format!("{:?}", own.collect::<Vec<_>>()));
        seen.push(format!("{}", tables.moves(ServiceId(0), BackendId(id))));
        let of = (0..7).map(|service| both(tables.backend_of(ServiceId(service), BackendId(id))));
        seen.push(format!("{:?} {:?}", of.collect::<Vec<_>>(), name(tables.service(ServiceId(id)))));
    }
    seen.extend((1..3).map(|mark| {
        let value = std::num::NonZeroU32::new(mark).unwrap();
        format!("{:?}", name(tables.marked(Mark { value, v6: false })))
    }));
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn edited_tables_are_those_made_anew_and_leave_the_old_ones_as_they_were(
        changes in proptest::collection::vec(
            (proptest::collection::vec(0..6_u32, 0..3), proptest::collection::vec(recipe(), 0..4)), 1..12,
        ),
    ) {
        let locality = Locality { local: super::super::Networks::new([(1, 1)], []), ..Locality::default() };
        let mut tables = Services::default().with_locality(locality.clone());
        let mut present: Vec<Recipe> = Vec::new();
        let mut copies = Vec::new();
        for (gone, put) in changes {
            copies.push((tables.clone(), seen(&tables)));
            let mut next: Vec<_> = present.clone();
            next.retain(|old| !gone.contains(&old.id) && put.iter().all(|new| new.id != old.id));
            let mut put_ids = HashSet::new();
            next.extend(put.into_iter().filter(|new| put_ids.insert(new.id)));
            next.sort_by_key(|recipe| recipe.id);
            let next = without_conflicts(&next);
            // Services that share backends change together: those of even ids, and those of odd ones.
            let changed: HashSet<u32> = next.iter().chain(&present).filter(|recipe| {
                let of = |list: &[Recipe]| list.iter().find(|other| other.id == recipe.id).map(|recipe| format!("{recipe:?}"));
                of(&next) != of(&present)
            }).map(|recipe| recipe.id % 2).collect();
            let gone: Vec<_> = present
                .iter()
                .filter(|old| next.iter().all(|new| new.id != old.id))
                .map(|old| ServiceId(old.id))
                .collect();
            let put = next.iter().filter(|new| changed.contains(&(new.id % 2))).map(service).collect();
            tables.change(&gone, put);
            let anew = Services::new(next.iter().map(service).collect(), Vec::new(), []);
            prop_assert_eq!(seen(&tables), seen(&anew.with_locality(locality.clone())));
            present = next;
        }
        for (copy, before) in copies {
            prop_assert_eq!(seen(&copy), before);
        }
    }
}

#[test]
fn an_address_is_owned_as_long_as_there_is_a_reason() {
    let addr = IpAddr::from([10, 0, 0, 1]);
    let mut tables = Services::default();
    for (own, want) in [(true, 1), (true, 1), (false, 1), (false, 0), (false, 0)] {
        if own {
            tables.own(addr)
        } else {
            tables.disown(addr)
        }
        assert_eq!(tables.owned().count(), want);
    }
}

#[test]
fn the_first_service_that_does_not_drain_a_backend_stands_for_it() {
    for (weights, want) in [
        (vec![1, 1], 0),
        (vec![0, 1], 1),
        (vec![1, 0], 0),
        (vec![0, 0, 0], 0),
        (vec![0, 1, 1], 1),
        (vec![0, 0, 1], 2),
    ] {
        let of = |(id, weight): (u32, &u32)| Service {
            id: ServiceId(id),
            backends: [Backend::new(BackendId(3), [10, 1, 0, 1].into(), 80, *weight, Mode::Nat)].into(),
            ..Service::default()
        };
        let list: Vec<_> = (0..).zip(&weights).map(of).collect();
        let stands = |tables: &Services| tables.backend(BackendId(3)).map(|(service, _)| service.id.0);
        let mut tables = Services::new(list.clone(), Vec::new(), []);
        assert_eq!(stands(&tables), Some(want), "{weights:?}");
        tables.change(&[], list);
        assert_eq!(stands(&tables), Some(want), "{weights:?}, once more");
        tables.change(&(0..3).map(ServiceId).collect::<Vec<_>>(), Vec::new());
        assert_eq!(stands(&tables), None);
    }
}
