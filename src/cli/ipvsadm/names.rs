//! Names of ports and hosts, for lines that are not numeric.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::LazyLock;

use control::ipvs::command::Protocol;

/// The system's table of services (`services(5)`).
const SERVICES: &str = "/etc/services";

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    // Without the table there are no names.
    let table = std::fs::read(SERVICES).unwrap_or_default();
    Known::read(&String::from_utf8_lossy(&table))
});

/// The port with this name; for UDP another than for TCP, maybe.
pub(super) fn port_of(name: &str, protocol: Protocol) -> Option<u16> {
    KNOWN.ports.get(&(name.to_owned(), protocol.number())).copied()
}

/// What is known of ports by name. The first line about one counts, as with `getservbyname` and `getservbyport`.
#[derive(Debug, Default)]
struct Known {
    ports: HashMap<(String, u8), u16>,
    names: HashMap<(u16, u8), String>,
}

impl Known {
    fn read(table: &str) -> Self {
        let mut known = Self::default();
        for line in table.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(name), Some(port)) = (words.next(), words.next()) else { continue };
            let Some((port, protocol)) = port.split_once('/') else { continue };
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => continue,
            };
            let Ok(port) = port.parse() else { continue };
            let protocol = protocol.number();
            known.names.entry((port, protocol)).or_insert_with(|| name.to_owned());
            for name in [name].into_iter().chain(words) {
                known.ports.entry((name.to_owned(), protocol)).or_insert(port);
            }
        }
        known
    }
}

/// How addresses and ports are written.
#[derive(Debug)]
pub(super) struct Names {
    numeric: bool,
    hosts: HashMap<IpAddr, String>,
}

impl Names {
    /// As numbers, or by name where there is one. Asking for a host's name may take as long as the resolver takes;
    /// each is asked for once.
    pub(super) fn new(numeric: bool) -> Self {
        Self { numeric, hosts: HashMap::new() }
    }

    /// `address:port`.
    pub(super) fn place(&mut self, addr: IpAddr, port: u16, protocol: Option<Protocol>) -> String {
        let (open, close) = if addr.is_ipv6() { ("[", "]") } else { ("", "") };
        if self.numeric {
            return format!("{open}{addr}{close}:{port}");
        }
        let host = self
            .hosts
            .entry(addr)
            .or_insert_with(|| dns_lookup::lookup_addr(&addr).unwrap_or_else(|_| addr.to_string()));
        let name = protocol.and_then(|protocol| KNOWN.names.get(&(port, protocol.number())));
        let port = name.cloned().unwrap_or_else(|| port.to_string());
        format!("{open}{host}{close}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_table_counts_and_aliases_are_names() {
        let known = Known::read(
            "# comment\nhttp 80/tcp www # more\nhttp2 80/tcp\ndomain 53/tcp\ndomain 53/udp\nodd 9/dccp\nbad x/tcp\n",
        );
        let port =
            |name: &str, protocol: Protocol| known.ports.get(&(name.to_owned(), protocol.number())).copied();
        assert_eq!(port("http", Protocol::Tcp), Some(80));
        assert_eq!(port("www", Protocol::Tcp), Some(80));
        assert_eq!(port("http2", Protocol::Tcp), Some(80));
        assert_eq!(port("http", Protocol::Udp), None);
        assert_eq!(port("domain", Protocol::Udp), Some(53));
        assert_eq!(known.names.get(&(80, Protocol::Tcp.number())).map(String::as_str), Some("http"));
        assert_eq!(known.names.len(), 3);
    }

    #[test]
    fn a_numeric_place_has_brackets_around_ipv6() {
        let mut names = Names::new(true);
        assert_eq!(names.place([10, 0, 0, 1].into(), 80, Some(Protocol::Tcp)), "10.0.0.1:80");
        assert_eq!(names.place("fd00::1".parse().unwrap(), 0, None), "[fd00::1]:0");
    }
}
