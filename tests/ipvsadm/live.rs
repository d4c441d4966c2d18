//! Changes by commands beside a configuration file.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::network::Network;
use crate::traffic::Traffic;
use crate::{can_run, run};

/// What a command that has to succeed prints.
fn said(network: &Network, command: &str, input: &str) -> Result<String> {
    let outcome = run(network, command, input)?;
    ensure!(outcome.status == 0, "{command}: status {}\n{}", outcome.status, outcome.err);
    Ok(outcome.out)
}

const RULES: &str = "\
-A -t 10.0.0.100:80 -s rr
-a -t 10.0.0.100:80 -r 10.1.0.1:80 -m -w 1
-a -t 10.0.0.100:80 -r 10.1.0.2:80 -m -w 5
-A -u 10.0.0.100:53 -s sh -p 60 -M 255.255.255.0 -b sh-port
-a -u 10.0.0.100:53 -r 10.1.0.1:53 -i -w 1 --tun-type gue --tun-port 6080 --tun-remcsum
-A -t [fd00:ff::100]:80 -s mh
-a -t [fd00:ff::100]:80 -r [fd00:1::1]:80 -m -w 1
-A -f 7 -s wlc -o
-a -f 7 -r 10.1.0.3:0 -m -w 0
-A -f 7 -6 -s fo
";

#[test]
fn what_commands_made_is_saved_restored_shown_as_a_configuration_and_replaced_by_the_file() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut network = Network::build()?;
    network.begin(false)?;
    said(&network, "ipvsadm -R", RULES)?;
    assert_eq!(said(&network, "ipvsadm -S -n", "")?, RULES);
    said(&network, "ipvsadm -A -t 10.0.0.100:81", "")?;
    let with_comment = format!("# saved\n{RULES}");
    said(&network, "ipvsadm-restore", &with_comment)?;
    assert_eq!(said(&network, "ipvsadm-save -n", "")?, RULES, "what was there before is gone");

    // The service that was made serves, and goes on when its own configuration is read.
    let mut traffic = Traffic::default();
    traffic.note("ipvsadm -A -t 10.0.0.100:80");
    let get = "1 TCP connections from 10.0.0.1 ports 40000.. each with one GET, held open; backends ['rs2']";
    traffic.pass(&network, get)?;
    let config = said(&network, "weir show config --socket $WEIR_SOCKET", "")?;
    for line in ["name: \"tcp-10.0.0.100-80\"", "mark: 7", "address: \"10.1.0.3\""] {
        assert!(config.contains(line), "{line} is not in\n{config}");
    }
    said(&network, "weir check /dev/stdin", &config)?;
    network.reload(&config)?;
    assert_eq!(said(&network, "ipvsadm -S -n", "")?, RULES);
    assert_eq!(said(&network, "weir show config --socket $WEIR_SOCKET", "")?, config);
    let status = said(&network, "weir show status --output json --socket $WEIR_SOCKET", "")?;
    traffic.pass(&network, "held connections closed by the client (newest first): ['EOF']")?;
    assert!(status.contains("\"faults\": []"), "{status}");

    // The file alone says what is, once it is read.
    network.begin(false)?;
    assert_eq!(said(&network, "ipvsadm -S -n", "")?, "");
    Ok(())
}

#[test]
fn a_large_restoration_is_carried_out_in_batches_and_each_fault_is_told() -> Result<()> {
    const SERVICES: u32 = 200;
    const SERVERS: u32 = 10;
    if !can_run() {
        return Ok(());
    }
    let mut network = Network::build()?;
    network.begin(false)?;
    let mut rules = String::new();
    for service in 0..SERVICES {
        let vip = format!("10.9.{}.{}:80", service / 200, service % 200);
        writeln!(rules, "-A -t {vip} -s rr")?;
        for server in 1..=SERVERS {
            writeln!(rules, "-a -t {vip} -r 10.1.1.{server}:80 -m")?;
        }
        // Refused: each is told, and stops nothing.
        if service % 100 == 0 {
            writeln!(
                rules,
                "-a -t {vip} -r 10.1.1.1:80 -m\n-D -t 10.9.9.9:80\n-a -t {vip} -r 10.1.1.77:80 -m -y 5"
            )?;
        }
    }
    let outcome = run(&network, "ipvsadm -R", &rules)?;
    // Weir was started with room for 1024 servers.
    let told = |message: &str| outcome.err.lines().filter(|line| *line == message).count();
    assert_eq!(told("Destination already exists"), 2);
    assert_eq!(told("No such service"), 2);
    assert_eq!(told("Numerical result out of range"), 2);
    assert_eq!(outcome.status, 255, "as the last command");
    let listed = said(&network, "ipvsadm -L -n", "")?;
    let servers = listed.lines().filter(|line| line.contains("Masq")).count();
    assert_eq!(servers, 1024, "as many as there is room for");
    assert!(told("Memory allocation problem") > 0);
    Ok(())
}
