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

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;

use dataplane::flow::key::{self, FlowKey, TCP, UDP};
use dataplane::ids::BackendId;
use dataplane::schedule::{Flags, Kind, Scheduler, carry, schedule};
use dataplane::snapshot::{Backend, Mode, Service};
use dataplane::state::{BackendState, State};
use serde_json::Value;

#[test]
fn the_schedulers_choose_as_the_kernel_did() {
    golden::check("schedulers", |_, recording| replay(recording));
}

/// Replays a recording; the error names the step that differs.
fn replay(recording: &Value) -> Result<(), String> {
    let mut balancer = Balancer::new();
    for command in recording["setup"].as_array().unwrap() {
        balancer.ipvsadm(command.as_str().unwrap());
    }
    for (number, step) in recording["steps"].as_array().unwrap().iter().enumerate() {
        let differs = |got: &dyn std::fmt::Debug| Err(format!("step {number} {step}: got {got:?}"));
        match step["op"].as_str().unwrap() {
            "open" | "udp" => {
                let chosen = balancer.open(step);
                if chosen != address(&step["chosen"]) {
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
type Counts = BTreeMap<SocketAddr, (u32, u32, u32)>;

fn recorded_counts(dests: &Value) -> Counts {
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let count =
        |dest: &Value| (address(&dest[0]).unwrap(), (number(&dest[2]), number(&dest[3]), number(&dest[4])));
    dests.as_array().unwrap().iter().map(count).collect()
}

fn address(value: &Value) -> Option<SocketAddr> {
    value.as_str().map(|text| text.parse().unwrap())
}

/// One service, changed by commands, and the connections through it.
struct Balancer {
    vip: Option<SocketAddr>,
    service: Service,
    flags: Flags,
    state: State,
    /// Ids are for good: the kernel, too, finds the counts again when a backend comes back.
    ids: HashMap<SocketAddr, BackendId>,
    /// By client and protocol: the backend and whether the connection is active.
    flows: HashMap<(SocketAddr, u8), (Backend, bool)>,
    opened: HashMap<u64, SocketAddr>,
}

impl Balancer {
    fn new() -> Self {
        let scheduler = Scheduler::compile(Kind::Wlc, Flags::default(), &[]).unwrap();
        Self {
            vip: None,
            service: Service { name: "recorded".into(), scheduler, ..Service::default() },
            flags: Flags::default(),
            state: State::new(1, 256),
            ids: HashMap::new(),
            flows: HashMap::new(),
            opened: HashMap::new(),
        }
    }

    /// One command on the service or its list of backends: `-A -E` and `-a -e -d`.
    fn ipvsadm(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let option = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1]);
        let vip = option("-t").or(option("-u")).unwrap().parse().unwrap();
        assert_eq!(*self.vip.get_or_insert(vip), vip, "one service a recording");
        let mut backends = self.service.backends.to_vec();
        let mut kind = self.service.scheduler.kind();
        match words[0] {
            "-A" | "-E" => {
                kind = option("-s").map_or(Kind::Wlc, |name| name.parse().unwrap());
                self.flags = option("-b").map_or(Flags::default(), |names| names.parse().unwrap());
            }
            command => {
                let addr = real_server(option("-r").unwrap(), vip.port());
                let weight = option("-w").map_or(1, |weight| weight.parse().unwrap());
                let next = BackendId(u32::try_from(self.ids.len()).unwrap());
                let id = *self.ids.entry(addr).or_insert(next);
                let backend = Backend::new(id, addr.ip(), addr.port(), weight, Mode::Nat);
                let place = backends.iter().position(|backend| backend.id == id);
                match (command, place) {
                    ("-a", None) => backends.insert(0, backend),
                    ("-e", Some(place)) => backends[place] = backend,
                    ("-d", Some(place)) => _ = backends.remove(place),
                    _ => panic!("{line}: not now"),
                }
            }
        }
        let scheduler = Scheduler::compile(kind, self.flags, &backends).unwrap();
        let next = Service { scheduler, backends: backends.into(), ..self.service.clone() };
        carry(&self.service, &next, self.state.service(next.id).unwrap());
        self.service = next;
    }

    /// A first packet: the backend chosen for it, or that of the connection it belongs to.
    fn open(&mut self, step: &Value) -> Option<SocketAddr> {
        let [client, vip] = ["src", "dst"].map(|field| address(&step[field]).unwrap());
        if self.vip != Some(vip) {
            return None;
        }
        let proto = if step["op"] == "udp" { UDP } else { TCP };
        if let Some((backend, active)) = self.flows.get(&(client, proto)).cloned() {
            if proto == UDP {
                return Some(SocketAddr::new(backend.addr, backend.port));
            }
            // A new connection on the client port of one that has ended replaces it.
            assert!(!active, "{client} is in use");
            self.count(&backend).inactive.fetch_sub(1, Relaxed);
            self.flows.remove(&(client, proto));
        }
        let backend = schedule(&self.service, &self.state, &flow_key(client, vip, proto))?.clone();
        let counts = self.count(&backend);
        if proto == TCP { &counts.active } else { &counts.inactive }.fetch_add(1, Relaxed);
        let addr = SocketAddr::new(backend.addr, backend.port);
        self.flows.insert((client, proto), (backend, proto == TCP));
        self.opened.extend(step["id"].as_u64().map(|id| (id, client)));
        Some(addr)
    }

    fn close(&mut self, id: u64) {
        let client = self.opened[&id];
        let (backend, active) = self.flows.get_mut(&(client, TCP)).unwrap();
        assert!(std::mem::take(active), "closed once");
        let backend = backend.clone();
        self.count(&backend).active.fetch_sub(1, Relaxed);
        self.count(&backend).inactive.fetch_add(1, Relaxed);
    }

    fn count(&self, backend: &Backend) -> &BackendState {
        self.state.backend(backend.id).unwrap()
    }

    fn counts(&self) -> Counts {
        let count = |backend: &Backend| {
            let (active, inactive) = self.count(backend).counts();
            (SocketAddr::new(backend.addr, backend.port), (backend.weight, active, inactive))
        };
        self.service.backends.iter().map(count).collect()
    }
}

/// An address with or without a port, which then is the service's.
fn real_server(text: &str, port: u16) -> SocketAddr {
    text.parse().unwrap_or_else(|_| SocketAddr::new(text.parse::<IpAddr>().unwrap(), port))
}

fn flow_key(client: SocketAddr, vip: SocketAddr, proto: u8) -> FlowKey {
    let ((src, v6), (dst, _)) = (key::bits(client.ip()), key::bits(vip.ip()));
    FlowKey { src, dst, sport: client.port(), dport: vip.port(), proto, v6 }
}
