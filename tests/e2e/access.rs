//! Who may use a service, who is shown to its backends, where clients inside get to, and what is for no service.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::protocol::{Drops, Flows};
use testbed::echo::{Echo, socket};
use testbed::servers::{FROM_PATH, HTTP_PORT, Servers, backend_name};
use testbed::topology::{Family, Topology};
use testbed::{Service, Weir};

use crate::get::{Got, PATIENCE, get};
use crate::{can_run, eventually, weir};

const LIMIT: Duration = Duration::from_secs(10);

/// The network with its servers, and a Weir that has more to say than its services.
struct Net {
    weir: Weir,
    _servers: Servers,
    topology: Topology,
}

impl Net {
    fn start(services: &[Service], rest: &str) -> Result<Option<Self>> {
        if !can_run() {
            return Ok(None);
        }
        let topology = Topology::build()?;
        let servers = Servers::start(&topology)?;
        let config = testbed::config(&topology, services) + rest;
        let weir = Weir::start(&topology, weir(), &config)?;
        Ok(Some(Self { weir, _servers: servers, topology }))
    }

    /// What the outside client gets of a service.
    fn ask(&self, to: SocketAddr, path: &str) -> Result<Got> {
        get(&self.topology.client, None, to, path)
    }

    /// Whether packets were dropped for this reason.
    fn dropped(&self, reason: &str) -> Result<bool> {
        let drops: Drops = serde_json::from_value(self.weir.show("drops")?)?;
        Ok(drops.drops.iter().any(|row| row.name == reason && row.count > 0))
    }
}

fn name(family: Family) -> &'static str {
    if family == Family::V4 { "v4" } else { "v6" }
}

/// A service on its own port of the routed VIP, whose backends are web servers.
fn http(family: Family, port: u16) -> Service {
    Service { port, ..Service::http(family.routed_vip()) }
}

fn flat(services: impl Fn(Family) -> Vec<Service>) -> Vec<Service> {
    Family::BOTH.into_iter().flat_map(services).collect()
}

#[test]
fn only_clients_of_the_source_ranges_are_served() -> Result<()> {
    let services = flat(|family| {
        let range = |net: IpAddr| format!("source_ranges: [\"{net}\"]");
        vec![http(family, 81).key(range(family.client())), http(family, 82).key(range(family.backend(1)))]
    });
    let Some(net) = Net::start(&services, "")? else { return Ok(()) };
    for family in Family::BOTH {
        let [allowed, other] = [81, 82].map(|port| SocketAddr::new(family.routed_vip(), port));
        assert!(matches!(net.ask(allowed, "")?, Got::Page(_)), "{}", name(family));
        assert_eq!(net.ask(other, "")?, Got::Nothing, "{}", name(family));
        let backend = &net.topology.backends[0];
        assert!(matches!(get(backend, None, other, "")?, Got::Page(_)), "{}, who may", name(family));
    }
    assert!(net.dropped("source_range")?);
    Ok(())
}

#[test]
fn backends_see_the_clients_that_they_are_shown() -> Result<()> {
    let services = flat(|family| {
        let nat = |port| http(family, port).mode("nat").key("snat_pool: pool");
        vec![
            nat(81),
            nat(82).key("masquerade: not-local"),
            nat(83).key("masquerade: always"),
            // The only backend is the client.
            nat(84).one_backend(),
        ]
    });
    let local = |nets: [IpAddr; 2]| format!("local_networks: [\"{}\", \"{}\"]\n", nets[0], nets[1]);
    let clients = Family::BOTH.map(Family::client);
    let Some(net) = Net::start(&services, &local(clients))? else { return Ok(()) };
    let elsewhere = testbed::config(&net.topology, &services) + &local(Family::BOTH.map(Family::gateway));
    for (is_local, ports) in
        [(true, [(81, false), (82, false), (83, true)]), (false, [(81, false), (82, true), (83, true)])]
    {
        if !is_local {
            net.weir.reload(&elsewhere)?;
        }
        for family in Family::BOTH {
            for (port, hidden) in ports {
                let seen = if hidden { family.snat() } else { family.client() };
                let got = net.ask(SocketAddr::new(family.routed_vip(), port), FROM_PATH)?;
                assert_eq!(got, Got::Page(seen.to_string()), "{} {port} local: {is_local}", name(family));
            }
        }
    }
    for family in Family::BOTH {
        let own = SocketAddr::new(family.routed_vip(), 84);
        let got = get(&net.topology.backends[0], None, own, FROM_PATH)?;
        assert_eq!(got, Got::Page(family.snat().to_string()), "{}, by way of itself", name(family));
    }
    Ok(())
}

#[test]
fn clients_inside_get_to_other_backends_than_those_outside() -> Result<()> {
    let services = flat(|family| {
        let outside = http(family, 80).one_backend();
        let mut inside = http(family, 80).key("clients: inside");
        inside.backends.drain(..1);
        inside.backends.truncate(1);
        vec![outside, inside]
    });
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let servers = Servers::start(&topology)?;
    let mut config = testbed::config(&topology, &services);
    for family in Family::BOTH {
        let name = format!("name: \"{}/80/tcp\"", family.routed_vip());
        let second = config.rfind(&name).context("the service inside")?;
        config.replace_range(second..second + name.len(), &format!("name: inside-{}", self::name(family)));
    }
    let [v4, v6] = Family::BOTH.map(|family| family.backend(3));
    config += &format!("local_networks: [\"{v4}\", \"{v6}\"]\n");
    let net = Net { weir: Weir::start(&topology, weir(), &config)?, _servers: servers, topology };
    let pod = net.topology.backends.last().context("a backend")?;
    for family in Family::BOTH {
        let to = SocketAddr::new(family.routed_vip(), HTTP_PORT);
        for _ in 0..3 {
            assert_eq!(net.ask(to, "")?, Got::Page(backend_name(1)), "{}, outside", name(family));
            assert_eq!(get(pod, None, to, "")?, Got::Page(backend_name(2)), "{}, inside", name(family));
        }
    }
    Ok(())
}

#[test]
fn what_is_for_no_service_is_refused_where_there_is_one_and_dropped_where_there_is_none() -> Result<()> {
    let services = flat(|family| vec![http(family, 80)]);
    let networks = "virtual_networks: [10.9.0.0/24, \"fd00:9::/64\"]\n";
    let Some(net) = Net::start(&services, networks)? else { return Ok(()) };
    for family in Family::BOTH {
        let vip = family.routed_vip();
        let other: IpAddr = match vip {
            IpAddr::V4(vip) => std::net::Ipv4Addr::from_bits(vip.to_bits() + 1).into(),
            IpAddr::V6(vip) => std::net::Ipv6Addr::from_bits(vip.to_bits() + 1).into(),
        };
        for (to, path, want) in [
            (SocketAddr::new(vip, 81), "no such port", Got::Refused),
            (SocketAddr::new(other, 80), "no such address", Got::Nothing),
        ] {
            assert_eq!(net.ask(to, "")?, want, "{} {path}", name(family));
        }
        assert!(matches!(net.ask(SocketAddr::new(vip, 80), "")?, Got::Page(_)), "{}", name(family));
        let udp = eventually(LIMIT, || socket(&net.topology.client, SocketAddr::new(family.client(), 0)))?;
        udp.set_read_timeout(Some(PATIENCE))?;
        udp.connect(SocketAddr::new(vip, 80))?;
        udp.send(b"anybody?")?;
        let kind = udp.recv(&mut [0; 64]).err().map(|error| error.kind());
        assert_eq!(kind, Some(std::io::ErrorKind::ConnectionRefused), "{} UDP", name(family));
    }
    assert!(net.dropped("no_service_port")? && net.dropped("unallocated_address")?);
    Ok(())
}

#[test]
fn a_service_without_backends_refuses_or_says_nothing() -> Result<()> {
    let services = flat(|family| {
        let empty = |port| http(family, port).without_backends();
        vec![empty(81), empty(82).key("when_empty: reject"), empty(83).key("when_empty: drop")]
    });
    let Some(net) = Net::start(&services, "")? else { return Ok(()) };
    for family in Family::BOTH {
        for (port, want) in [(81, Got::Refused), (82, Got::Refused), (83, Got::Nothing)] {
            let got = net.ask(SocketAddr::new(family.routed_vip(), port), "")?;
            assert_eq!(got, want, "{} {port}", name(family));
        }
    }
    assert!(net.dropped("no_backend")? && net.dropped("no_local_backend")?);
    Ok(())
}

#[test]
fn a_udp_flow_goes_to_another_backend_when_its_own_is_taken_out() -> Result<()> {
    const PORT: u16 = 7007;
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let services = |keep: bool| {
        flat(|family| {
            ["move_udp: true", "move_udp: false"]
                .into_iter()
                .zip([PORT, PORT + 1])
                .map(|(key, port)| {
                    let mut service =
                        Service::new(family.routed_vip(), port, "udp").backend_port(PORT).key(key);
                    service.backends.retain(|backend| {
                        let first = backend.addr.ip() == family.backend(1);
                        first == keep && backend.addr.ip() != family.backend(3)
                    });
                    service
                })
                .collect()
        })
    };
    let mut echoes = Vec::new();
    for (number, backend) in (1..=2).zip(&topology.backends) {
        for family in Family::BOTH {
            echoes.push(Echo::start(backend, family.backend(number), PORT)?);
        }
    }
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services(true)))?;
    let exchange = |socket: &std::net::UdpSocket| {
        eventually(LIMIT, || {
            socket.send(b"who?")?;
            let mut answer = [0; 16];
            let got = socket.recv(&mut answer)?;
            ensure!(answer.get(..got) == Some(b"who?".as_slice()), "another answer");
            Ok(())
        })
    };
    let mut sockets = Vec::new();
    for family in Family::BOTH {
        for port in [PORT, PORT + 1] {
            let client = socket(&topology.client, SocketAddr::new(family.client(), 0))?;
            client.set_read_timeout(Some(PATIENCE / 4))?;
            client.connect(SocketAddr::new(family.routed_vip(), port))?;
            exchange(&client)?;
            sockets.push((family, port, client));
        }
    }
    weir.reload(&testbed::config(&topology, &services(false)))?;
    for (_, _, client) in &sockets {
        exchange(client)?;
    }
    let flows: Flows = serde_json::from_value(weir.show("flows")?)?;
    for (family, port, client) in &sockets {
        let from = client.local_addr()?.to_string();
        let row = flows.flows.iter().find(|row| row.client == from);
        let number = if *port == PORT { 2 } else { 1 };
        let want = SocketAddr::new(family.backend(number), PORT).to_string();
        assert_eq!(row.map(|row| &*row.backend), Some(&*want), "{} {port}", name(*family));
    }
    Ok(())
}
