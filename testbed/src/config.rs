//! Configurations of Weir for this network.

use std::net::{IpAddr, SocketAddr};

use crate::servers::{DNS_PORT, HTTP_PORT, IPERF_PORT};
use crate::topology::{BACKENDS, Family, LAN, Topology, WAN};

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address and port.
    pub addr: SocketAddr,
    /// Its share of new flows; 0 drains.
    pub weight: u16,
}

/// A service of the configuration.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its VIP.
    pub vip: IpAddr,
    /// Its port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// How backends are chosen.
    pub scheduler: &'static str,
    /// How backends get their packets.
    pub mode: &'static str,
    /// The backends.
    pub backends: Vec<Backend>,
    /// Further keys, one YAML line each.
    pub keys: Vec<String>,
}

impl Service {
    /// A service by `rr` and `fullnat` over all backends, at the same port there.
    pub fn new(vip: IpAddr, port: u16, protocol: &'static str) -> Self {
        let family = if vip.is_ipv4() { Family::V4 } else { Family::V6 };
        let backend = |number| Backend { addr: SocketAddr::new(family.backend(number), port), weight: 1 };
        let backends = (1..=BACKENDS).map(backend).collect();
        Self { vip, port, protocol, scheduler: "rr", mode: "fullnat", backends, keys: Vec::new() }
    }

    /// The web servers.
    pub fn http(vip: IpAddr) -> Self {
        Self::new(vip, HTTP_PORT, "tcp")
    }

    /// The DNS servers, over UDP.
    pub fn dns(vip: IpAddr) -> Self {
        Self::new(vip, DNS_PORT, "udp")
    }

    /// The iperf3 servers. One test is several connections that must meet at one backend, so `sh` chooses it by the
    /// client's address.
    pub fn iperf3(vip: IpAddr) -> Self {
        Self { scheduler: "sh", ..Self::new(vip, IPERF_PORT, "tcp") }
    }

    /// Where clients reach it.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.vip, self.port)
    }

    /// The same with another forwarding mode.
    #[must_use]
    pub fn mode(self, mode: &'static str) -> Self {
        Self { mode, ..self }
    }

    /// The same with another scheduler.
    #[must_use]
    pub fn scheduler(self, scheduler: &'static str) -> Self {
        Self { scheduler, ..self }
    }

    /// The same with one more key of the configuration, such as `one_packet: true`.
    #[must_use]
    pub fn key(mut self, line: impl Into<String>) -> Self {
        self.keys.push(line.into());
        self
    }

    /// The same with the first backend alone.
    #[must_use]
    pub fn one_backend(mut self) -> Self {
        self.backends.truncate(1);
        self
    }

    /// The same with the backends' addresses of another family.
    #[must_use]
    pub fn backends_of(mut self, family: Family) -> Self {
        for (number, backend) in (1..).zip(&mut self.backends) {
            backend.addr.set_ip(family.backend(number));
        }
        self
    }

    /// The same with every backend at another port.
    #[must_use]
    pub fn backend_port(mut self, port: u16) -> Self {
        self.backends.iter_mut().for_each(|backend| backend.addr.set_port(port));
        self
    }

    /// The same with another weight of the last backend.
    #[must_use]
    pub fn last_weight(mut self, weight: u16) -> Self {
        self.backends.iter_mut().rev().take(1).for_each(|backend| backend.weight = weight);
        self
    }

    /// The same without backends.
    #[must_use]
    pub fn without_backends(self) -> Self {
        Self { backends: Vec::new(), ..self }
    }

    fn yaml(&self) -> String {
        let Self { vip, port, protocol, scheduler, mode, .. } = self;
        let pool = if *mode == "fullnat" { "    snat_pool: pool\n" } else { "" };
        let line = |Backend { addr, weight }: &Backend| {
            format!("      - {{address: \"{}\", port: {}, weight: {weight}}}\n", addr.ip(), addr.port())
        };
        let backends = match self.backends.as_slice() {
            [] => " []\n".to_owned(),
            some => "\n".to_owned() + &some.iter().map(line).collect::<String>(),
        };
        let keys: String = self.keys.iter().map(|line| format!("    {line}\n")).collect();
        format!(
            "  - name: \"{vip}/{port}/{protocol}\"\n    vip: \"{vip}\"\n    port: {port}\n    protocol: {protocol}\n    \
             scheduler: {scheduler}\n    mode: {mode}\n{pool}{keys}    backends:{backends}"
        )
    }
}

/// What [`config`] has for network cards without native XDP.
pub const GENERIC: &str = "xdp: {mode: generic-allowed}\n";

/// A configuration for a Weir in the gateway: both interfaces, a worker a queue, a SNAT pool, and `services`.
pub fn config(topology: &Topology, services: &[Service]) -> String {
    let socket = topology.scratch().join("weir.sock");
    let (v4, v6) = (Family::V4.snat(), Family::V6.snat());
    let services = match services {
        [] => "[]\n".to_owned(),
        some => "\n".to_owned() + &some.iter().map(Service::yaml).collect::<String>(),
    };
    let xdp = if topology.card.is_some_and(|card| card.xdp() == "generic") { GENERIC } else { "" };
    format!(
        "interfaces:\n  - name: {WAN}\n  - name: {LAN}\nworkers: {{count: {}}}\nflows: {{limit: 65536}}\n{xdp}\
         admin: {{socket: \"{}\"}}\n\
         snat_pools:\n  - name: pool\n    addresses: [\"{v4}\", \"{v6}\"]\n    ports: 20000-59999\n\
         services: {services}",
        topology.queues(),
        socket.display(),
    )
}
