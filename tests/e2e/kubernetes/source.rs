//! Kubernetes beside the file and `ipvsadm`, and an API server that comes and goes.

use anyhow::{Result, ensure};
use testbed::Service;
use testbed::apiserver::{Cut, Fault};

use super::*;

fn objects() -> Vec<Value> {
    vec![service("web", 1, |_| {}), slice("web", &[endpoint(1, true)])]
}

#[test]
fn losing_the_api_server_takes_nothing_away_and_is_told_once() -> Result<()> {
    let Some((net, _servers)) = Net::with_servers(objects(), "")? else { return Ok(()) };
    net.until_served_by(outside(), web(cluster_ip(1)), &[1])?;
    net.api.faults().set(None, None, Fault::Status(503));
    net.api.faults().cut(Cut::End);
    let trouble = |net: &Net| -> Result<Value> {
        let status = net.weir.show("status")?;
        Ok(status["kubernetes"]["resources"][0]["trouble"].clone())
    };
    eventually(LIMIT, || {
        let told = trouble(&net)?;
        ensure!(told.as_str().is_some_and(|text| text.contains("HTTP 503")), "{told}");
        Ok(())
    })?;
    // Many attempts later.
    std::thread::sleep(Duration::from_secs(3));
    ensure!(matches!(net.ask(outside(), web(cluster_ip(1)), "")?, Got::Page(_)), "it still works");
    let lines = |net: &Net, what: &str| net.weir.log().lines().filter(|line| line.contains(what)).count();
    ensure!(lines(&net, "HTTP 503") == 1, "one line: {}", net.weir.log());
    let Net { weir, api, topology } = net;
    api.faults().clear();
    let api = topology.gateway.enter(move || api.restart())??;
    let net = Net { weir, api, topology };
    net.put(slice("web", &[endpoint(2, false)]))?;
    net.until_served_by(outside(), web(cluster_ip(1)), &[2])?;
    eventually(LIMIT, || {
        let told = trouble(&net)?;
        ensure!(told.is_null(), "{told}");
        Ok(())
    })?;
    let table = net.weir.table("status")?;
    ensure!(table.contains("in sync, node gateway, https://127.0.0.1:"), "{table}");
    Ok(())
}

#[test]
fn services_of_the_file_and_of_ipvsadm_stand_beside_kubernetes_s() -> Result<()> {
    let Some((net, _servers)) = Net::with_servers(objects(), "")? else { return Ok(()) };
    net.until_served_by(outside(), web(cluster_ip(1)), &[1])?;
    let config = std::fs::read_to_string(net.weir.config_path())?;
    let with = testbed::config(&net.topology, &[Service::http(Family::V4.vip())]);
    let (_, section) = config.split_once("kubernetes:").context("the section")?;
    net.weir.reload(&format!("{with}kubernetes:{section}"))?;
    net.until_served_by(outside(), web(Family::V4.vip()), &[1, 2, 3])?;
    net.until_served_by(outside(), web(cluster_ip(1)), &[1])?;
    net.put(slice("web", &[endpoint(2, true)]))?;
    net.until_served_by(outside(), web(cluster_ip(1)), &[2])?;
    net.until_served_by(outside(), web(Family::V4.vip()), &[1, 2, 3])?;
    net.weir.reload(&config)?;
    net.until_served_by(outside(), web(cluster_ip(1)), &[2])?;
    net.until(outside(), web(Family::V4.vip()), "", &Got::Nothing)?;

    let ipvsadm = |args: &[&str]| {
        let mut command = std::process::Command::new(weir());
        command.env("WEIR_SOCKET", net.weir.socket()).arg("ipvsadm").args(args);
        let output = command.output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok::<_, anyhow::Error>((output.status.success(), text(&output.stdout), text(&output.stderr)))
    };
    let listed = ipvsadm(&["-Ln"])?;
    ensure!(listed.1.contains("10.9.1.1:80") && listed.1.contains("10.2.0.12:80"), "{listed:?}");
    let refused = ipvsadm(&["-d", "-t", "10.9.1.1:80", "-r", "10.2.0.12:80"])?;
    ensure!(!refused.0 && refused.2.contains("this service is Kubernetes's"), "{refused:?}");
    let zeroed = ipvsadm(&["-Z", "-t", "10.9.1.1:80"])?;
    ensure!(zeroed.0, "{zeroed:?}");
    let flushed = ipvsadm(&["-C"])?;
    ensure!(flushed.0, "{flushed:?}");
    net.until_served_by(outside(), web(cluster_ip(1)), &[2])
}

#[test]
fn a_pod_s_environment_is_enough() -> Result<()> {
    const USER: &str = "system:serviceaccount:kube-system:weir";
    let Some(net) = Net::start(objects(), "")? else { return Ok(()) };
    let Net { weir: other, api, topology } = net;
    let config = std::fs::read_to_string(other.config_path())?;
    other.stop()?;
    let config = config.lines().filter(|line| !line.contains("kubeconfig:")).collect::<Vec<_>>().join("\n");
    let file = topology.scratch().join("pod.yaml");
    std::fs::write(&file, config)?;
    let account = topology.scratch().join("serviceaccount");
    api.access().allow_token("pod", USER);
    api.access().write_service_account(&account, "pod\n")?;
    // `ip netns exec` has mounts of its own, which go with the process.
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && \
         cp -r {} /run/secrets/kubernetes.io/serviceaccount && exec {} run --config {}",
        account.display(),
        weir().display(),
        file.display()
    );
    let mut command = topology.gateway.command("sh");
    command.env("KUBERNETES_SERVICE_HOST", api.addr().ip().to_string());
    command.env("KUBERNETES_SERVICE_PORT", api.addr().port().to_string());
    command.args(["-c", &script]);
    let pod = testbed::Process::spawn("weir", command, topology.scratch().join("pod.log"))?;
    eventually(LIMIT, || {
        let asked = api.requests();
        let by_pod = asked.iter().any(|request| {
            request.user.as_deref() == Some(USER)
                && request.uri.contains("/services?")
                && request.status == 200
        });
        ensure!(by_pod, "{asked:?}\n{}", pod.log());
        Ok(())
    })?;
    let servers = Servers::start(&topology)?;
    eventually(LIMIT, || {
        let got = get(&topology.client, Some(outside()), web(cluster_ip(1)), "")?;
        ensure!(matches!(got, Got::Page(_)), "{got:?}\n{}", pod.log());
        Ok(())
    })?;
    drop((servers, pod));
    Ok(())
}
