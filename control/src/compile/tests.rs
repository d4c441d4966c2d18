//! What stays the same from generation to generation, and what the XDP program is told.

mod access;
mod changes;
mod reach;

use std::sync::atomic::Ordering::Relaxed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dataplane::flow::key;
use dataplane::ids::ServiceId;
use dataplane::snapshot::{Backend, Settings, Timeouts};
use proptest::prelude::*;
use xdp_prog::{Endpoint, Ours, Proto, Rule};

use super::*;
use crate::config::parse;

const SERVICES: usize = 8;
const BACKENDS: usize = 12;

fn state() -> State {
    State::new(SERVICES, BACKENDS)
}

/// The state that a file with these services, pools and node addresses asks for.
fn desired(text: &str) -> DesiredState {
    parse("f", &format!("interfaces: [{{name: eth1}}]\n{text}")).unwrap().desired
}

/// Services, each `vip: backend backend`; a backend is the last byte of its address, with `/mode` and `*weight`.
fn services(lines: &[&str]) -> DesiredState {
    let mut text = "snat_pools: [{name: p, addresses: [10.9.0.1]}]\nservices:\n".to_owned();
    for line in lines {
        let (vip, backends) = line.split_once(':').unwrap();
        let name = format!("{{name: s{vip}, vip: 10.0.0.{vip}, port: 80, snat_pool: p, backends: [");
        text.push_str(&format!("  - {name}"));
        for backend in backends.split_whitespace() {
            let (backend, weight) = backend.split_once('*').unwrap_or((backend, "1"));
            let (host, mode) = backend.split_once('/').unwrap_or((backend, "nat"));
            text.push_str(&format!("{{address: 10.1.0.{host}, port: 80, weight: {weight}, mode: {mode}}}, "));
        }
        text.push_str("]}\n");
    }
    desired(&text)
}

fn service(tables: &Compiled, vip: u8) -> &snapshot::Service {
    let key = VipKey { addr: u128::from(0x0a00_0000 + u32::from(vip)), port: 80, proto: key::TCP, v6: false };
    tables.services.exact(&key).unwrap()
}

/// The backends of a service by the last byte of their addresses, in the order of the table.
fn order(tables: &Compiled, vip: u8) -> Vec<u8> {
    let last = |backend: &Backend| match backend.addr {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => unreachable!(),
    };
    service(tables, vip).backends.iter().map(last).collect()
}

fn id(tables: &Compiled, vip: u8, host: u8) -> BackendId {
    let addr = IpAddr::from([10, 1, 0, host]);
    service(tables, vip).backends.iter().find(|backend| backend.addr == addr).unwrap().id
}

/// What a desired state came to.
#[derive(Debug)]
struct Compiled {
    services: Services,
    /// All that is claimed.
    ours: Ours,
    fresh: Fresh,
    built: Built,
    timeouts: Timeouts,
    settings: Settings,
}

impl Compiled {
    fn prepare(&self, old: &Services, state: &State, now: Tick) {
        self.built.prepare(old, &self.services, state, now);
    }
}

/// Compiles one desired state after the other, each published and seen by all workers.
struct History {
    state: State,
    compiler: Compiler,
    desired: DesiredState,
    services: Services,
    claims: BTreeMap<Claim, usize>,
    rules: Vec<Rule>,
    generation: u64,
}

impl History {
    fn new() -> Self {
        let state = state();
        Self {
            compiler: Compiler::new(&state),
            state,
            desired: DesiredState::default(),
            services: Services::default(),
            claims: BTreeMap::new(),
            rules: Vec::new(),
            generation: 0,
        }
    }

    fn next(&mut self, desired: &DesiredState) -> Result<Compiled, CompileError> {
        let applied = self.desired.configure(desired).unwrap();
        self.carry_out(applied)
    }

    fn carry_out(&mut self, applied: Applied) -> Result<Compiled, CompileError> {
        let mut plan = match self.compiler.plan(&self.desired, &applied, &self.services, self.generation + 1)
        {
            Ok(plan) => plan,
            Err(error) => {
                self.desired.undo(applied);
                return Err(error);
            }
        };
        self.generation += 1;
        let (delta, fresh) = (std::mem::take(&mut plan.delta), plan.fresh.clone());
        let (services, built) = self.compiler.build(&self.desired, plan, &delta, &self.services);
        self.services = services.clone();
        self.follow(delta);
        let (timeouts, settings) = (self.desired.timeouts(), self.desired.settings());
        Ok(Compiled { services, ours: self.ours(), fresh, built, timeouts, settings })
    }

    fn follow(&mut self, delta: Delta) {
        for claim in delta.gone {
            let count = self.claims.get_mut(&claim).expect("what goes was claimed");
            *count -= 1;
            if *count == 0 {
                self.claims.remove(&claim);
            }
        }
        for claim in delta.new {
            *self.claims.entry(claim).or_default() += 1;
        }
        if let Some(rules) = delta.rules {
            self.rules = rules;
        }
    }

    /// All that is claimed.
    fn ours(&self) -> Ours {
        let mut ours = Ours { rules: self.rules.clone(), ..Ours::default() };
        for claim in self.claims.keys() {
            match *claim {
                Claim::Vip(at) => _ = ours.vips.insert(at),
                Claim::NatBackend(at) => _ = ours.nat_backends.insert(at),
                Claim::NodeAddress(addr) => _ = ours.node_addresses.insert(addr),
                Claim::NodePort(proto, port) => _ = ours.node_ports.insert((proto, port)),
                Claim::Snat(addr, low, high) => _ = ours.snat.insert(addr, low..=high),
                Claim::Tunnel(addr, port) => _ = ours.tunnels.insert((addr, port)),
                Claim::Owned(addr) => _ = ours.owned.insert(addr),
            }
        }
        ours
    }

    fn reclaim(&mut self) -> usize {
        self.reclaim_seen(self.generation)
    }

    /// [`Self::reclaim`], with workers that have seen no later generation than this one.
    fn reclaim_seen(&mut self, last: u64) -> usize {
        let gone = self.compiler.reclaim(&self.state, |generation| generation <= last);
        self.follow(Delta { gone, ..Delta::default() });
        self.compiler.removed()
    }

    fn flows(&self, id: BackendId, active: u32, inactive: u32) {
        let slot = self.state.backend(id).unwrap();
        slot.clear();
        (0..active + inactive).for_each(|_| slot.opened());
        (0..active).for_each(|_| slot.moved(true));
    }
}

/// What a desired state comes to where there was nothing before.
fn compiled(desired: &DesiredState) -> Compiled {
    History::new().next(desired).unwrap()
}

#[test]
fn backends_lie_newest_first_and_keep_their_places() {
    let mut history = History::new();
    for (name, line, want) in [
        ("the first list is turned round", "1: 1 2 3", vec![3, 2, 1]),
        ("another order in the file changes nothing", "1: 3 1 2", vec![3, 2, 1]),
        ("new ones go to the head, wherever they stand in the file", "1: 8 1 9 2 3", vec![9, 8, 3, 2, 1]),
        ("another weight keeps the place", "1: 8 1*7 9 2 3*0", vec![9, 8, 3, 2, 1]),
        ("another mode keeps the place", "1: 8 1 9/fullnat 2 3/fullnat", vec![9, 8, 3, 2, 1]),
        ("removed ones leave no gap", "1: 1 9 3", vec![9, 3, 1]),
        ("one that returns is new", "1: 2 1 9 3", vec![2, 9, 3, 1]),
    ] {
        assert_eq!(order(&history.next(&services(&[line])).unwrap(), 1), want, "{name}");
    }
}

#[test]
fn ids_stay_with_their_owners() {
    let mut history = History::new();
    let first = history.next(&services(&["1: 1 2", "2: 1"])).unwrap();
    assert_ne!(id(&first, 1, 1), id(&first, 2, 1), "the same address in two services has two ids");
    let second = history.next(&services(&["3: 1", "2: 1*5", "1: 7 2 1"])).unwrap();
    for (vip, host) in [(1, 1), (1, 2), (2, 1)] {
        assert_eq!(id(&first, vip, host), id(&second, vip, host), "{vip} {host}");
    }
    assert_eq!(service(&first, 1).id, service(&second, 1).id);
    assert_eq!(second.fresh.services, [service(&second, 3).id]);
    assert_eq!(second.fresh.backends, [id(&second, 3, 1), id(&second, 1, 7)]);
    let third = history.next(&services(&["1: 7 2 1/fullnat"])).unwrap();
    assert_eq!(third.fresh.backends, [id(&third, 1, 1)], "another mode is another backend");
}

#[test]
fn a_removed_backend_gets_its_id_back_while_it_has_flows() {
    let mut history = History::new();
    let first = history.next(&services(&["1: 1 2"])).unwrap();
    history.flows(id(&first, 1, 1), 1, 0);
    history.next(&services(&["1: 2"])).unwrap();
    assert_eq!(history.reclaim(), 1);
    let back = history.next(&services(&["1: 2 1"])).unwrap();
    assert_eq!(id(&back, 1, 1), id(&first, 1, 1));
    assert_eq!(back.fresh, Fresh::default());
    assert_eq!(history.reclaim(), 0);
}

#[test]
fn a_removed_service_and_its_backends_get_their_ids_back_while_there_are_flows() {
    let mut history = History::new();
    let first = history.next(&services(&["1: 1", "2: 1"])).unwrap();
    history.flows(id(&first, 1, 1), 0, 1);
    history.next(&services(&["2: 1"])).unwrap();
    assert_eq!(history.reclaim(), 2, "the service and its backend");
    let back = history.next(&services(&["2: 1", "1: 1"])).unwrap();
    assert_eq!((service(&back, 1).id, id(&back, 1, 1)), (service(&first, 1).id, id(&first, 1, 1)));
}

#[test]
fn slots_are_free_only_without_flows_and_out_of_every_snapshot() {
    let all: Vec<String> = (1..=BACKENDS).map(|host| host.to_string()).collect();
    let full = format!("1: {}", all.join(" "));
    let removed = full.replacen(" 1 ", " ", 1);
    let other = format!("{removed} 99");
    let full_error = CompileError::Backends { limit: 12, removed: 1 };
    let mut history = History::new();
    let first = history.next(&services(&[&full])).unwrap();
    let old = id(&first, 1, 1);
    history.flows(old, 0, 1);
    history.next(&services(&[&removed])).unwrap();

    assert_eq!(history.next(&services(&[&other])).unwrap_err(), full_error, "not reclaimed yet");
    assert_eq!(history.reclaim(), 1, "a flow still counts on it");
    assert_eq!(history.next(&services(&[&other])).unwrap_err(), full_error);

    history.flows(old, 0, 0);
    assert_eq!(history.reclaim_seen(0), 1, "a worker may still use it");
    assert_eq!(history.next(&services(&[&other])).unwrap_err(), full_error);

    assert_eq!(history.reclaim(), 0);
    let reused = history.next(&services(&[&other])).unwrap();
    assert_eq!((id(&reused, 1, 99), &*reused.fresh.backends), (old, &[old][..]));
}

#[test]
fn what_was_planned_and_not_carried_out_has_changed_nothing() {
    let mut history = History::new();
    let first = history.next(&services(&["1: 1"])).unwrap();
    let applied = history.desired.configure(&services(&["2: 1"])).unwrap();
    history.compiler.plan(&history.desired, &applied, &history.services, 2).unwrap();
    history.desired.undo(applied);
    assert_eq!(history.reclaim(), 0);
    let again = history.next(&services(&["1: 1 2"])).unwrap();
    assert_eq!(id(&again, 1, 1), id(&first, 1, 1));
    assert_eq!(again.fresh.backends, [BackendId(1)], "the next id after the first");
}

#[test]
fn what_goes_is_reclaimed_once_the_workers_have_seen_it_go() {
    let mut history = History::new();
    history.next(&services(&["1: 1"])).unwrap();
    history.next(&services(&["2: 1"])).unwrap();
    for (seen, left) in [(0, 2), (1, 2), (2, 0)] {
        assert_eq!(history.reclaim_seen(seen), left, "{seen}");
    }
}

#[test]
fn more_than_the_slabs_hold_is_refused() {
    let mut history = History::new();
    let lines: Vec<String> = (1..=SERVICES + 1).map(|vip| format!("{vip}: ")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert!(history.next(&services(&lines[1..])).is_ok());
    assert_eq!(history.next(&services(&lines)).unwrap_err(), CompileError::Services { limit: 8 });
}

#[test]
fn new_owners_find_their_slots_empty_and_others_find_them_as_they_were() {
    let mut history = History::new();
    // All slots are somebody's; then the last service's and its backends' are free.
    let stay = ["1: 1 2 3", "2: ", "3: ", "4: ", "5: ", "6: ", "7: "];
    let full: Vec<_> = stay.into_iter().chain(["8: 1 2 3 4 5 6 7 8 9"]).collect();
    history.next(&services(&full)).unwrap();
    let first = history.next(&services(&stay)).unwrap();
    assert_eq!(history.reclaim(), 0);
    for (slot, used) in (0..).zip(5..13) {
        history.state.service(ServiceId(slot)).unwrap().cursor.store(used, Relaxed);
        history.state.service(ServiceId(slot)).unwrap().aux.store(used, Relaxed);
    }
    (0..12).for_each(|slot| history.flows(BackendId(slot), 7, 8));
    let all: Vec<_> = stay.into_iter().chain(["9: 1"]).collect();
    let second = history.next(&services(&all)).unwrap();
    second.prepare(&first.services, &history.state, Tick::default());
    let position = |slot| history.state.service(ServiceId(slot)).unwrap().cursor.load(Relaxed);
    assert_eq!((service(&second, 9).id, position(0), position(7)), (ServiceId(7), 5, 0));
    let counts = |vip| history.state.backend(id(&second, vip, 1)).unwrap().counts();
    assert_eq!((counts(1), counts(9)), ((7, 8), (0, 0)));
}

#[test]
fn schedulers_go_on_where_they_were_when_backends_change() {
    let mut history = History::new();
    let packet = key::FlowKey::default();
    let mut tables = history.next(&services(&["1: 1 2 3"])).unwrap();
    let pick = |tables: &Compiled, state: &State| {
        let backend =
            schedule::schedule(service(tables, 1), &tables.settings, state, &packet, Tick::default())
                .unwrap();
        match backend.addr {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        }
    };
    assert_eq!([(); 2].map(|()| pick(&tables, &history.state)), [3, 2]);
    for (line, want) in [("1: 1 2 3 4", [1, 4]), ("1: 1 2 3", [3, 2]), ("1: 1 3", [1, 3])] {
        let next = history.next(&services(&[line])).unwrap();
        next.prepare(&tables.services, &history.state, Tick::default());
        tables = next;
        assert_eq!([(); 2].map(|()| pick(&tables, &history.state)), want, "{line}");
    }
}

const EVERYTHING: &str = "
node_addresses: [192.0.2.1, \"2001:db8::1\"]
snat_pools:
  - {name: p, addresses: [10.9.0.1-10.9.0.2, \"fd00:9::1\"], ports: 2000-2999}
services:
  - name: web
    vips: [10.0.0.1, 192.0.2.1]
    port: 80
    node_port: 30080
    snat_pool: p
    backends: [{address: 10.1.0.1, port: 8080}, {address: 10.1.0.2, port: 8080, mode: fullnat}]
  - {name: dns, vip: \"fd00::1\", port: 53, protocol: udp, backends: [{address: \"fd00:1::1\", port: 5353}]}
  - {name: quiet, vip: 10.0.0.2, port: 80, mode: dr, announce: false, backends: [{address: 10.1.0.3, port: 80}]}
";

fn addresses<'a>(list: impl IntoIterator<Item = &'a str>) -> BTreeSet<IpAddr> {
    list.into_iter().map(|addr| addr.parse().unwrap()).collect()
}

#[test]
fn services_are_found_by_vips_and_by_node_ports_of_their_family() {
    let tables = compiled(&desired(EVERYTHING));
    let name = |addr: &str, proto| {
        let addr: SocketAddr = addr.parse().unwrap();
        let (bits, v6) = key::bits(addr.ip());
        tables.services.exact(&VipKey { addr: bits, port: addr.port(), proto, v6 }).map(|found| &*found.name)
    };
    for (addr, proto, want) in [
        ("10.0.0.1:80", key::TCP, Some("web")),
        ("192.0.2.1:80", key::TCP, Some("web")),
        ("192.0.2.1:30080", key::TCP, Some("web")),
        ("10.0.0.1:30080", key::TCP, None),
        ("10.0.0.1:80", key::UDP, None),
        ("[2001:db8::1]:30080", key::TCP, None),
        ("[fd00::1]:53", key::UDP, Some("dns")),
    ] {
        assert_eq!(name(addr, proto), want, "{addr}");
    }
    let pool = tables.services.snat_pool(0x0a09_0002, false).unwrap();
    assert_eq!((&*pool.name, pool.v4.len(), pool.v6.len(), pool.low, pool.high), ("p", 2, 1, 2000, 2999));
    let web = tables.services.iter().next().unwrap();
    assert_eq!(web.pool, Some(PoolId(0)));
}

#[test]
fn weir_answers_for_announced_vips_and_snat_addresses_but_not_for_the_nodes_own() {
    let want = addresses(["10.0.0.1", "fd00::1", "10.9.0.1", "10.9.0.2", "fd00:9::1"]);
    let tables = compiled(&desired(EVERYTHING));
    assert_eq!(tables.services.owned().collect::<BTreeSet<_>>(), want);
    assert_eq!(tables.ours.owned.iter().copied().collect::<BTreeSet<_>>(), want);
}

#[test]
fn the_xdp_program_is_told_all_that_belongs_to_weir() {
    let ours = compiled(&desired(EVERYTHING)).ours;
    let endpoint = |(addr, proto): (&str, Proto)| {
        let addr: SocketAddr = addr.parse().unwrap();
        Endpoint { addr: addr.ip(), port: addr.port(), proto }
    };
    let vips = [("10.0.0.1:80", Proto::Tcp), ("192.0.2.1:80", Proto::Tcp), ("10.0.0.2:80", Proto::Tcp)];
    let mut want: Vec<_> = vips.into_iter().chain([("[fd00::1]:53", Proto::Udp)]).map(endpoint).collect();
    let mut found: Vec<_> = ours.vips.into_iter().collect();
    want.sort();
    found.sort();
    assert_eq!(found, want);
    let nat = [("10.1.0.1:8080", Proto::Tcp), ("[fd00:1::1]:5353", Proto::Udp)].map(endpoint);
    assert_eq!(ours.nat_backends, nat.into_iter().collect(), "neither fullnat nor dr");
    assert_eq!(ours.node_ports, [(Proto::Tcp, 30080)].into_iter().collect());
    assert_eq!(
        ours.node_addresses.into_iter().collect::<BTreeSet<_>>(),
        addresses(["192.0.2.1", "2001:db8::1"])
    );
    let snat: BTreeMap<IpAddr, _> = ours.snat.into_iter().collect();
    assert_eq!(
        snat.keys().copied().collect::<BTreeSet<_>>(),
        addresses(["10.9.0.1", "10.9.0.2", "fd00:9::1"])
    );
    assert!(snat.values().all(|ports| *ports == (2000..=2999)));
}

#[test]
fn data_connections_of_ftp_are_taken_on_both_sides() {
    let ftp = "services: [{name: f, vip: 10.0.0.1, port: 21, backends: [{address: 10.1.0.1, port: 2121}]}]";
    let ours = compiled(&desired(ftp)).ours;
    let any = Endpoint { addr: [10, 1, 0, 1].into(), port: 0, proto: Proto::Tcp };
    assert_eq!(ours.nat_backends, [any].into_iter().collect());
    let rule = |rule: &Rule| (rule.dst, rule.protos.clone(), rule.dports.clone(), rule.ours);
    let data = |ports| (Some(([10, 0, 0, 1].into(), 32)), vec![Proto::Tcp], ports, [true, false]);
    let want = [data(20..=20), data(1024..=u16::MAX)];
    assert_eq!(ours.rules.iter().map(rule).collect::<Vec<_>>(), want);
}

#[test]
fn replies_of_a_removed_nat_backend_are_taken_until_its_last_flow_has_ended() {
    let mut history = History::new();
    let first = history.next(&services(&["1: 1 2/fullnat"])).unwrap();
    let gone = Endpoint { addr: [10, 1, 0, 1].into(), port: 80, proto: Proto::Tcp };
    assert_eq!(first.ours.nat_backends, [gone].into_iter().collect());
    history.flows(id(&first, 1, 1), 1, 0);
    let nothing = services(&[]);
    let second = history.next(&nothing).unwrap();
    assert_eq!(second.ours.nat_backends, [gone].into_iter().collect());
    history.flows(id(&first, 1, 1), 0, 0);
    history.reclaim();
    assert!(history.ours().nat_backends.is_empty());
}

proptest! {
    /// Whatever changes: no id has two owners, what stays keeps id and order, and slots are not lost.
    #[test]
    fn ids_are_unique_and_stable(
        steps in prop::collection::vec(prop::collection::vec(prop::collection::btree_set(1..6_u8, 0..4), 0..4), 1..20),
        busy in prop::collection::vec(any::<bool>(), BACKENDS),
    ) {
        let mut history = History::new();
        let mut before: Option<Compiled> = None;
        for step in steps {
            let line = |(vip, hosts): (u8, &BTreeSet<u8>)| {
                let hosts: Vec<_> = hosts.iter().map(u8::to_string).collect();
                format!("{vip}: {}", hosts.join(" "))
            };
            let lines: Vec<String> = (1..).zip(&step).map(line).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            // Too many backends still have flows: refused, and nothing has changed.
            let Ok(tables) = history.next(&services(&lines)) else { continue };
            let all: Vec<_> = tables.services.iter().flat_map(|s| s.backends.iter().map(|b| b.id)).collect();
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            if let Some(before) = &before {
                for old in before.services.iter() {
                    let Some(new) = tables.services.exact(&old.vips[0]) else { continue };
                    prop_assert_eq!(old.id, new.id);
                    let stays = |a: &[Backend], b: &[Backend]| {
                        let addr = |x: &Backend| (x.addr, x.id);
                        a.iter().map(addr).filter(|a| b.iter().any(|b| b.addr == a.0)).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(stays(&old.backends, &new.backends), stays(&new.backends, &old.backends));
                }
            }
            for (slot, busy) in (0..).zip(&busy) {
                history.flows(BackendId(slot), u32::from(*busy), 0);
            }
            history.reclaim();
            before = Some(tables);
        }
        (0..).take(BACKENDS).for_each(|slot| history.flows(BackendId(slot), 0, 0));
        history.next(&services(&[])).unwrap();
        history.reclaim();
        prop_assert!(history.next(&services(&["1: 1 2 3 4 5 6 7 8 9 10 11 12"])).is_ok(), "a slot was lost");
    }
}

#[test]
fn equal_input_gives_equal_tables() {
    let desired = desired(EVERYTHING);
    let [a, b] = [(); 2].map(|()| compiled(&desired));
    let lists = |tables: &Compiled| {
        let list = |service: &snapshot::Service| (service.id, service.vips.clone(), service.backends.clone());
        tables.services.iter().map(list).collect::<Vec<_>>()
    };
    assert_eq!(lists(&a), lists(&b));
    assert_eq!((a.ours, a.fresh), (b.ours, b.fresh));
}
