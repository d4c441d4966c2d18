//! Kubernetes feeds Weir: objects of an API server, packets of real clients.
//!
//! The gateway is the own Node. The client has two addresses: one is outside of the cluster, one is a pod's.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

mod policies;
mod rolling;
mod source;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::protocol::BackendRow;
use serde_json::{Value, json};
use testbed::Weir;
use testbed::apiserver::objects::{self, Endpoint};
use testbed::apiserver::{Access, ApiServer, Cluster, Options};
use testbed::servers::{FROM_PATH, HTTP_PORT, Servers};
use testbed::topology::{BACKENDS, ETH, Family, Topology};

use crate::get::{Got, PATIENCE, get};
use crate::{can_run, eventually, weir};

/// The own Node.
const NODE: &str = "gateway";
/// Another one.
const OTHER: &str = "other";
const TOKEN: &str = "secret";
/// What comes of a change is there after this, or never.
const LIMIT: Duration = Duration::from_secs(30);
/// The client's address that is a pod's.
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 66));
const PODS: &str = "10.1.0.64/26";
/// Ranges of addresses that nobody has: the client's way to them is the gateway.
const CLUSTER_IPS: &str = "10.9.1.0/24";

/// The cluster address with this number.
fn cluster_ip(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 9, 1, number).into()
}

/// An address outside of the cluster's with this number.
fn balancer_ip(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 9, 2, number).into()
}

fn web(addr: IpAddr) -> SocketAddr {
    SocketAddr::new(addr, HTTP_PORT)
}

/// The network, an API server in the gateway, and a Weir that it feeds.
struct Net {
    // Dropped in this order: who uses something goes before it.
    weir: Weir,
    api: ApiServer,
    topology: Topology,
}

impl Net {
    /// Builds it over `objects`, without servers; `keys` are more lines of the section. `None` where that cannot be.
    fn start(objects: Vec<Value>, keys: &str) -> Result<Option<Self>> {
        if !can_run() {
            return Ok(None);
        }
        let topology = Topology::build()?;
        topology.client.ip(&format!("address add {POD}/24 dev {ETH}\n"))?;
        let cluster = Arc::new(Cluster::default());
        cluster.put(objects::node(NODE, &[Family::V4.gateway()], &[PODS]))?;
        cluster.put(objects::service_cidr("kubernetes", &[CLUSTER_IPS]))?;
        for object in objects {
            cluster.put(object)?;
        }
        let listener = topology.gateway.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let access = Arc::new(Access::new(false)?);
        access.allow_token(TOKEN, "system:kube-proxy");
        let api = ApiServer::start_at(listener, Options::default(), cluster, access, Arc::default())?;
        let kubeconfig = topology.scratch().join("kubeconfig.conf");
        std::fs::write(&kubeconfig, api.kubeconfig(TOKEN))?;
        let config = testbed::config(&topology, &[])
            + &format!(
                "kubernetes:\n  kubeconfig: \"{}\"\n  node_name: {NODE}\n  cluster_cidrs: [\"{PODS}\"]\n{keys}",
                kubeconfig.display()
            );
        let weir = Weir::start(&topology, weir(), &config)?;
        let net = Self { weir, api, topology };
        eventually(LIMIT, || {
            let status = net.weir.show("status")?;
            ensure!(status["kubernetes"]["synced"] == true, "{status}\n{}", net.weir.log());
            Ok(())
        })?;
        Ok(Some(net))
    }

    /// As [`Net::start`], with the web servers of all backends.
    fn with_servers(objects: Vec<Value>, keys: &str) -> Result<Option<(Self, Servers)>> {
        let Some(net) = Self::start(objects, keys)? else { return Ok(None) };
        let servers = Servers::start(&net.topology)?;
        Ok(Some((net, servers)))
    }

    fn put(&self, object: Value) -> Result<()> {
        self.api.cluster().put(object).map(drop)
    }

    /// What a client with this address gets.
    fn ask(&self, from: IpAddr, to: SocketAddr, path: &str) -> Result<Got> {
        get(&self.topology.client, Some(from), to, path)
    }

    /// Waits until a client gets this.
    fn until(&self, from: IpAddr, to: SocketAddr, path: &str, want: &Got) -> Result<()> {
        eventually(LIMIT, || {
            let got = self.ask(from, to, path)?;
            ensure!(got == *want, "{from} gets {got:?} of {to}, not {want:?}");
            Ok(())
        })
    }

    /// Waits until this holds of the weights of the web servers that Weir has as backends.
    fn until_backends(&self, holds: impl Fn(&BTreeMap<u8, u32>) -> bool) -> Result<()> {
        eventually(LIMIT, || {
            let rows: Vec<BackendRow> = serde_json::from_value(self.weir.show("backends")?)?;
            let number = |row: &BackendRow| {
                (1..=BACKENDS).find(|number| web(Family::V4.backend(*number)).to_string() == row.address)
            };
            let weights = rows.iter().filter_map(|row| Some((number(row)?, row.weight))).collect();
            ensure!(holds(&weights), "{weights:?}");
            Ok(())
        })
    }

    /// Waits until each of so many requests is answered by one of these backends, and all of them answer some.
    fn until_served_by(&self, from: IpAddr, to: SocketAddr, backends: &[u8]) -> Result<()> {
        let want: Vec<_> =
            backends.iter().map(|number| Got::Page(testbed::servers::backend_name(*number))).collect();
        eventually(LIMIT, || {
            let requests = 3 * usize::from(BACKENDS);
            let got = (0..requests).map(|_| self.ask(from, to, "")).collect::<Result<Vec<_>>>()?;
            let is_right =
                got.iter().all(|page| want.contains(page)) && want.iter().all(|page| got.contains(page));
            ensure!(is_right, "{from} gets {got:?} of {to}, not {want:?}");
            Ok(())
        })
    }
}

/// Backend `number`, ready, on the own Node or the other one.
fn endpoint(number: u8, is_local: bool) -> Endpoint {
    Endpoint::ready(Family::V4.backend(number), if is_local { NODE } else { OTHER })
}

/// A Service on the web servers' port, changed by `edit`.
fn service(name: &str, number: u8, edit: impl FnOnce(&mut Value)) -> Value {
    let mut service = objects::service("shop", name, cluster_ip(number), &[("http", HTTP_PORT, "TCP")]);
    edit(&mut service);
    service
}

/// The same as one of type LoadBalancer at [`balancer_ip`].
fn balanced(name: &str, number: u8, policy: &str, edit: impl FnOnce(&mut Value)) -> Value {
    service(name, number, |service| {
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["externalTrafficPolicy"] = json!(policy);
        service["status"]["loadBalancer"] =
            json!({"ingress": [{"ip": balancer_ip(number), "ipMode": "VIP"}]});
        edit(service);
    })
}

fn slice(service: &str, endpoints: &[Endpoint]) -> Value {
    let ports = [("http", HTTP_PORT, "TCP")];
    objects::slice("shop", service, &format!("{service}-abcde"), &ports, endpoints)
}

/// The page that says who asks.
fn seen_as(addr: IpAddr) -> Got {
    Got::Page(addr.to_string())
}

fn outside() -> IpAddr {
    Family::V4.client()
}

fn context(what: &str, done: Result<()>) -> Result<()> {
    done.context(what.to_owned())
}
