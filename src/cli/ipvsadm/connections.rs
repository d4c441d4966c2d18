//! `-L -c`: the connections, as `/proc/net/ip_vs_conn` would have them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use control::admin::client;
use control::admin::protocol::{FLOWS_LIMIT, FlowRow, Reply, Request};
use control::ipvs::command::Protocol;

use super::act::{Status, print};
use super::names::Names;
use super::options::{Opt, Options};

/// Prints all connections.
pub(super) fn list(socket: &Path, options: Options) -> Status {
    let request = Request::Flows { limit: FLOWS_LIMIT, service: None, client: None };
    let flows = match client::ask(socket, &request) {
        Ok(Reply::Flows(flows)) => flows,
        Ok(Reply::Error { message }) => {
            eprintln!("{message}");
            return Status(1);
        }
        Ok(_) => {
            eprintln!("the reply cannot be read, is it another version of weir?");
            return Status(1);
        }
        Err(error) => {
            eprintln!("{error}");
            return Status(1);
        }
    };
    let mut names = Names::new(options.has(Opt::Numeric));
    let status = print(&table(&flows.flows, options.has(Opt::PersistentConn), &mut names));
    if flows.more {
        eprintln!("there are more than these {} connections", flows.flows.len());
    }
    for worker in &flows.silent {
        eprintln!("worker {worker} did not answer: its connections are missing");
    }
    status
}

fn table(flows: &[FlowRow], with_engine: bool, names: &mut Names) -> String {
    let mut text = "IPVS connection entries\n".to_owned();
    let (state, source, to, destination) = ("state", "source", "virtual", "destination");
    let _ = match with_engine {
        // No connection has a persistence engine, so its columns stay empty.
        true => writeln!(
            text,
            "pro expire {state:<11} {source:<18} {to:<18} {destination:<18} {:<16} pe_data",
            "pe name"
        ),
        false => writeln!(text, "pro expire {state:<11} {source:<18} {to:<18} {destination}"),
    };
    for flow in flows {
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
        let name = flow.protocol.to_uppercase();
        let state = &flow.state;
        let _ = writeln!(text, "{name:<3} {expires:<6} {state:<11} {source:<18} {to:<18} {destination}");
    }
    text
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
        };
        let head = "IPVS connection entries\npro expire state       source             virtual            destination\n";
        let line = "TCP 14:59  ESTABLISHED 10.0.0.1:40004     10.0.0.100:80      [fd00:1::1]:80\n";
        assert_eq!(table(&[flow], false, &mut Names::new(true)), format!("{head}{line}"));
    }
}
