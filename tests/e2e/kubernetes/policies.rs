//! What kube-proxy does with packets: by which addresses, to which endpoints, from whom, and what becomes of the others.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testbed::apiserver::objects;
use testbed::echo::{Echo, socket};
use testbed::servers::HTTP_PORT;
use testbed::topology::Family;

use super::*;
use crate::KeptAlive;

#[test]
fn traffic_from_outside_is_masqueraded_and_local_traffic_is_not() -> Result<()> {
    let objects = vec![
        balanced("cluster", 1, "Cluster", |_| {}),
        slice("cluster", &[endpoint(1, true), endpoint(2, false)]),
        balanced("local", 2, "Local", |service| service["spec"]["healthCheckNodePort"] = json!(30002)),
        slice("local", &[endpoint(1, true), endpoint(2, false)]),
        balanced("elsewhere", 3, "Local", |_| {}),
        slice("elsewhere", &[endpoint(3, false)]),
    ];
    let Some((net, _servers)) = Net::with_servers(objects, "")? else { return Ok(()) };
    let pool = seen_as(Family::V4.snat());
    // Who asks, by which address; what backends see of him; which backends.
    for (what, from, to, seen, backends) in [
        ("outside, cluster address", outside(), cluster_ip(1), pool.clone(), &[1, 2][..]),
        ("pod, cluster address", POD, cluster_ip(1), seen_as(POD), &[1, 2]),
        ("outside, Cluster", outside(), balancer_ip(1), pool.clone(), &[1, 2]),
        ("pod, Cluster", POD, balancer_ip(1), pool, &[1, 2]),
        ("outside, Local", outside(), balancer_ip(2), seen_as(outside()), &[1]),
        ("pod, Local", POD, balancer_ip(2), seen_as(POD), &[1, 2]),
        ("outside, cluster address of Local", POD, cluster_ip(2), seen_as(POD), &[1, 2]),
        ("pod, Local without a local endpoint", POD, balancer_ip(3), seen_as(POD), &[3]),
    ] {
        context(what, net.until(from, web(to), FROM_PATH, &seen))?;
        context(what, net.until_served_by(from, web(to), backends))?;
    }
    // Backends are elsewhere: who comes from outside is not to hear of it.
    net.until(outside(), web(balancer_ip(3)), "", &Got::Nothing)?;
    net.until_served_by(POD, web(cluster_ip(3)), &[3])
}

#[test]
fn without_endpoints_clients_are_refused_and_with_terminating_ones_served() -> Result<()> {
    let node_port = |service: &mut Value| service["spec"]["ports"][0]["nodePort"] = json!(30001);
    let objects = vec![balanced("web", 1, "Cluster", node_port)];
    let Some((net, _servers)) = Net::with_servers(objects, "")? else { return Ok(()) };
    let node = SocketAddr::new(Family::V4.gateway(), 30001);
    let all = [web(cluster_ip(1)), web(balancer_ip(1)), node];
    let each = |want: &Got| all.iter().try_for_each(|to| net.until(outside(), *to, "", want));
    each(&Got::Refused)?;
    net.put(slice("web", &[endpoint(1, true), endpoint(2, false)]))?;
    all.iter().try_for_each(|to| net.until_served_by(outside(), *to, &[1, 2]))?;
    net.put(slice("web", &[endpoint(1, true).terminating(), endpoint(2, false)]))?;
    all.iter().try_for_each(|to| net.until_served_by(outside(), *to, &[2]))?;
    net.put(slice("web", &[endpoint(1, true).terminating()]))?;
    all.iter().try_for_each(|to| net.until_served_by(outside(), *to, &[1]))?;
    net.put(slice("web", &[]))?;
    each(&Got::Refused)?;
    // Another port of a cluster address is nobody's, and an address without a Service even less.
    net.until(outside(), SocketAddr::new(cluster_ip(1), 81), "", &Got::Refused)?;
    net.until(outside(), web(cluster_ip(77)), "", &Got::Nothing)
}

#[test]
fn source_ranges_node_ports_and_external_addresses_are_as_said() -> Result<()> {
    let objects = vec![
        balanced("ranged", 1, "Cluster", |service| {
            service["spec"]["loadBalancerSourceRanges"] = json!([" 10.1.0.64/26"]);
            service["spec"]["ports"][0]["nodePort"] = json!(30001);
        }),
        slice("ranged", &[endpoint(1, true)]),
        service("external", 2, |service| service["spec"]["externalIPs"] = json!([balancer_ip(2)])),
        slice("external", &[endpoint(2, true)]),
        service("denied", 3, |service| service["spec"]["externalIPs"] = json!(["10.9.3.3"])),
        slice("denied", &[endpoint(3, true)]),
    ];
    let allowed = "  external_ips: [\"10.9.2.0/24\"]\n";
    let Some((net, _servers)) = Net::with_servers(objects, allowed)? else { return Ok(()) };
    net.until_served_by(POD, web(balancer_ip(1)), &[1])?;
    net.until(outside(), web(balancer_ip(1)), "", &Got::Nothing)?;
    // Ranges are for the load balancer's address alone.
    net.until_served_by(outside(), SocketAddr::new(Family::V4.gateway(), 30001), &[1])?;
    net.until_served_by(outside(), web(cluster_ip(1)), &[1])?;
    net.until_served_by(outside(), web(balancer_ip(2)), &[2])?;
    let denied = SocketAddr::new([10, 9, 3, 3].into(), HTTP_PORT);
    ensure!(!matches!(net.ask(outside(), denied, "")?, Got::Page(_)), "an address that is not allowed");
    Ok(())
}

#[test]
fn affinity_hairpin_and_internal_policy_are_as_said() -> Result<()> {
    let all = [endpoint(1, true), endpoint(2, false), endpoint(3, false)];
    let objects = vec![
        service("sticky", 1, |service| service["spec"]["sessionAffinity"] = json!("ClientIP")),
        slice("sticky", &all),
        service("self", 2, |_| {}),
        slice("self", &[endpoint(1, true)]),
        service("inside", 3, |service| service["spec"]["internalTrafficPolicy"] = json!("Local")),
        slice("inside", &all),
        service("nowhere", 4, |service| service["spec"]["internalTrafficPolicy"] = json!("Local")),
        slice("nowhere", &all[1..]),
    ];
    let Some((net, _servers)) = Net::with_servers(objects, "")? else { return Ok(()) };
    let first = eventually(LIMIT, || match net.ask(outside(), web(cluster_ip(1)), "")? {
        page @ Got::Page(_) => Ok(page),
        other => Err(anyhow::anyhow!("{other:?}")),
    })?;
    for _ in 0..8 {
        ensure!(net.ask(outside(), web(cluster_ip(1)), "")? == first, "a client stays with its endpoint");
    }
    // The endpoint asks for its own Service, and gets to itself.
    let endpoint = &net.topology.backends[0];
    let got = eventually(LIMIT, || match get(endpoint, None, web(cluster_ip(2)), FROM_PATH)? {
        Got::Page(page) => Ok(page),
        other => Err(anyhow::anyhow!("{other:?}")),
    })?;
    ensure!(got == Family::V4.snat().to_string(), "it is not to see itself as its client: {got}");
    net.until_served_by(POD, web(cluster_ip(3)), &[1])?;
    net.until(POD, web(cluster_ip(4)), "", &Got::Nothing)
}

#[test]
fn datagrams_of_a_fixed_port_move_at_once_when_their_endpoint_goes() -> Result<()> {
    const PORT: u16 = 7777;
    let ports = [("echo", PORT, "UDP")];
    let service = objects::service("shop", "echo", cluster_ip(1), &ports);
    let slice = |number| objects::slice("shop", "echo", "echo-abcde", &ports, &[endpoint(number, true)]);
    let Some(net) = Net::start(vec![service, slice(1)], "")? else { return Ok(()) };
    let echoes = [1, 2].map(|number| {
        let namespace = &net.topology.backends[usize::from(number) - 1];
        Echo::start(namespace, Family::V4.backend(number), PORT)
    });
    let client = socket(&net.topology.client, SocketAddr::new(POD, 5555))?;
    client.set_read_timeout(Some(PATIENCE / 4))?;
    let to = SocketAddr::new(cluster_ip(1), PORT);
    let flows = |backend: u8| -> Result<bool> {
        let flows = net.weir.show("flows")?;
        let backend = SocketAddr::new(Family::V4.backend(backend), PORT).to_string();
        let flows = flows["flows"].as_array().cloned().unwrap_or_default();
        Ok(flows.iter().any(|flow| flow["backend"] == backend.as_str()))
    };
    let echoed = |backend: u8| {
        eventually(LIMIT, || {
            client.send_to(b"ping", to)?;
            let mut datagram = [0; 16];
            let (len, from) = client.recv_from(&mut datagram)?;
            ensure!((len, from) == (4, to), "{len} bytes from {from}");
            ensure!(flows(backend)?, "not by way of backend {backend}");
            Ok(())
        })
    };
    echoed(1)?;
    net.put(slice(2))?;
    echoed(2)?;
    drop(echoes);
    Ok(())
}

/// T23: what an endpoint that went had to do is done to the end, and should it return before, it is the same backend.
#[test]
fn a_connection_outlives_its_endpoint() -> Result<()> {
    let objects = |number: u8| slice("web", &[endpoint(number, true)]);
    let Some((net, _servers)) = Net::with_servers(vec![service("web", 1, |_| {}), objects(1)], "")? else {
        return Ok(());
    };
    let vip = web(cluster_ip(1));
    let only = |number: u8| net.until_backends(|weights| weights.keys().eq(&[number]));
    let flows_to = |number: u8| -> Result<usize> {
        let flows = net.weir.show("flows")?;
        let backend = web(Family::V4.backend(number)).to_string();
        let flows = flows["flows"].as_array().context("no list")?;
        Ok(flows.iter().filter(|flow| flow["backend"] == *backend && flow["state"] == "ESTABLISHED").count())
    };
    only(1)?;
    let mut kept = KeptAlive::open(&net.topology.client, vip)?;
    assert_eq!(kept.ask()?, testbed::servers::backend_name(1));
    for number in [2, 1, 3] {
        net.put(objects(number))?;
        only(number)?;
        net.until_served_by(outside(), vip, &[number])?;
        assert_eq!(kept.ask()?, testbed::servers::backend_name(1));
        assert_eq!(flows_to(1)?, 1);
    }
    drop(kept);
    eventually(LIMIT, || {
        ensure!(flows_to(1)? == 0, "still established");
        Ok(())
    })
}
