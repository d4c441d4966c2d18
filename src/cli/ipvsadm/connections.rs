//! `-L -c`: the connections, as `/proc/net/ip_vs_conn` would have them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use control::admin::client;
use control::admin::protocol::{FlowRow, Flows, FlowsCursor, Reply, Request};
use control::ipvs::command::Protocol;
use dataplane::snapshot::Engine;

use super::act::{Status, print};
use super::names::Names;
use super::options::{Opt, Options};

/// Connections asked for at once.
const PIECE: usize = 10_000;

/// Prints all connections, as they come.
pub(super) fn list(socket: &Path, options: Options) -> Status {
    let with_engine = options.has(Opt::PersistentConn);
    let mut names = Names::new(options.has(Opt::Numeric));
    let mut text = title(with_engine);
    let mut after = None;
    loop {
        let flows = match ask(socket, after) {
            Ok(flows) => flows,
            Err(message) => {
                eprintln!("{message}");
                return Status(1);
            }
        };
        for flow in &flows.flows {
            row(&mut text, flow, with_engine, &mut names);
        }
        match print(&text) {
            Status(0) => text.clear(),
            failed => return failed,
        }
        for worker in &flows.silent {
            eprintln!("worker {worker} did not answer: its connections are missing");
        }
        after = flows.next;
        if after.is_none() {
            return Status(0);
        }
    }
}

fn ask(socket: &Path, after: Option<FlowsCursor>) -> Result<Flows, String> {
    let request = Request::Flows { limit: PIECE, service: None, client: None, after };
    match client::ask(socket, &request) {
        Ok(Reply::Flows(flows)) => Ok(flows),
        Ok(Reply::Error { message }) => Err(message),
        Ok(_) => Err("the reply cannot be read, is it another version of weir?".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn title(with_engine: bool) -> String {
    let destination = match with_engine {
        true => format!("{:<18} {:<16} pe_data", "destination", "pe name"),
        false => "destination".to_owned(),
    };
    let (state, source, to) = ("state", "source", "virtual");
    format!("IPVS connection entries\npro expire {state:<11} {source:<18} {to:<18} {destination}\n")
}

fn row(text: &mut String, flow: &FlowRow, with_engine: bool, names: &mut Names) {
    let protocol = match flow.protocol.as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    };
    let mut place = |text: &str| match text.parse::<SocketAddr>() {
        Ok(addr) => names.place(addr.ip(), addr.port(), protocol),
        Err(_) => text.to_owned(),
    };
    let (source, to, destination) = (place(&flow.client), place(&flow.vip), place(&flow.backend));
    let expires = format!("{:02}:{:02}", flow.expires_s / 60, flow.expires_s % 60);
    let name = match flow.protocol.as_str() {
        // Of a mark.
        "0" => "IP".to_owned(),
        protocol => protocol.to_uppercase(),
    };
    let state = &flow.state;
    let _ = write!(text, "{name:<3} {expires:<6} {state:<11} {source:<18} {to:<18} ");
    let _ = match flow.call_id.as_ref().filter(|_| with_engine) {
        // Not below the title's columns: this is how ipvsadm has it.
        Some(id) => writeln!(text, "{destination:<16} {:<18} {id}", Engine::Sip.name()),
        None => writeln!(text, "{destination}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_a_line() {
        let flow = FlowRow {
            worker: 0,
            protocol: "tcp".into(),
            client: "10.0.0.1:40004".into(),
            vip: "10.0.0.100:80".into(),
            snat: None,
            backend: "[fd00:1::1]:80".into(),
            service: String::new(),
            mode: "nat".into(),
            state: "ESTABLISHED".into(),
            expires_s: 899,
            call_id: None,
        };
        let mut text = title(false);
        row(&mut text, &flow, true, &mut Names::new(true));
        let head = "IPVS connection entries\npro expire state       source             virtual            destination\n";
        let line = "TCP 14:59  ESTABLISHED 10.0.0.1:40004     10.0.0.100:80      [fd00:1::1]:80\n";
        assert_eq!(text, format!("{head}{line}"));
    }

    #[test]
    fn a_call_is_shown_by_its_engine_and_id_where_that_is_asked_for() {
        let flow = FlowRow {
            worker: 0,
            protocol: "udp".into(),
            client: "10.0.0.1:0".into(),
            vip: "10.0.0.100:5060".into(),
            snat: None,
            backend: "10.1.0.3:5060".into(),
            service: String::new(),
            mode: "nat".into(),
            state: "NONE".into(),
            expires_s: 59,
            call_id: Some("a84b@pc33".into()),
        };
        let start = "UDP 00:59  NONE        10.0.0.1:0         10.0.0.100:5060    10.1.0.3:5060";
        for (with_engine, end) in [(false, ""), (true, "    sip                a84b@pc33")] {
            let mut text = String::new();
            row(&mut text, &flow, with_engine, &mut Names::new(true));
            assert_eq!(text, format!("{start}{end}\n"));
        }
    }

    #[test]
    fn with_persistence_engines_the_title_is_longer() {
        assert_eq!(
            title(true).lines().last(),
            Some(
                "pro expire state       source             virtual            destination        pe name          pe_data"
            )
        );
    }
}
