//! Services as text: tables for people, and lines that `-R` takes.

use std::fmt::Write as _;

use control::ipvs::command::{
    Forward, Key, Netmask, Protocol, SchedulerFlags, Server, ServerEntry, Service, ServiceEntry, Stats,
    TunnelChecksum, TunnelKind,
};

use super::names::Names;
use super::options::{Opt, Options};
use super::order;

/// The first line of every listing of all services. The size is that of the kernel's connection table; Weir's tables
/// are sized by its configuration.
pub(super) const HEAD: &str = "IP Virtual Server version 1.2.1 (size=4096)\n";

/// What a table tells of each service and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Columns {
    Plain,
    Tunnels,
    Stats,
    Rates,
    Thresholds,
    Persistence,
}

/// A table of services.
#[derive(Debug)]
pub(super) struct Table {
    columns: Columns,
    is_exact: bool,
    is_sorted: bool,
    names: Names,
    text: String,
}

impl Table {
    /// An empty table as the options of `-L` ask for it.
    pub(super) fn new(options: Options) -> Self {
        let choice = [
            (Opt::Stats, Columns::Stats),
            (Opt::Rate, Columns::Rates),
            (Opt::Thresholds, Columns::Thresholds),
            (Opt::PersistentConn, Columns::Persistence),
            (Opt::TunInfo, Columns::Tunnels),
        ];
        let chosen = choice.into_iter().find(|(option, _)| options.has(*option));
        Self {
            columns: chosen.map_or(Columns::Plain, |(_, columns)| columns),
            is_exact: options.has(Opt::Exact),
            is_sorted: !options.has(Opt::NoSort),
            names: Names::new(options.has(Opt::Numeric)),
            text: String::new(),
        }
    }

    /// The table of these services, with its title.
    pub(super) fn print(mut self, mut services: Vec<ServiceEntry>) -> String {
        if self.is_sorted {
            order::sort(&mut services, |a, b| order::services(a.service.key, b.service.key));
        }
        self.title();
        for service in services {
            self.service(service);
        }
        self.text
    }

    fn title(&mut self) {
        const SERVICE: &str = "Prot LocalAddress:Port";
        const SERVER: &str = "  -> RemoteAddress:Port";
        let five = |names: [&str; 5]| {
            let [a, b, c, d, e] = names;
            format!("{SERVICE:<33} {a:>8} {b:>8} {c:>8} {d:>8} {e:>8}\n{SERVER}\n")
        };
        self.text += &match self.columns {
            Columns::Stats => five(["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"]),
            Columns::Rates => five(["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"]),
            Columns::Thresholds => format!(
                "{SERVICE:<33} {:<10} {:<10} {:<10} {:<10}\n{SERVER}\n",
                "Uthreshold", "Lthreshold", "ActiveConn", "InActConn"
            ),
            Columns::Persistence => format!(
                "{SERVICE:<33} {:<9} {:<11} {:<10} {:<10}\n{SERVER}\n",
                "Weight", "PersistConn", "ActiveConn", "InActConn"
            ),
            Columns::Tunnels => format!(
                "{SERVICE} Scheduler Flags\n{SERVER:<33} Forward TunnelInfo    Weight ActiveConn InActConn\n"
            ),
            Columns::Plain => {
                format!("{SERVICE} Scheduler Flags\n{SERVER:<33} Forward Weight ActiveConn InActConn\n")
            }
        };
    }

    fn service(&mut self, entry: ServiceEntry) {
        let ServiceEntry { service, stats, mut servers } = entry;
        let mut name = match service.key {
            // As IPVS tools have it: the upper half of the marks shows as negative.
            Key::Mark { mark, v6 } => {
                format!("FWM  {}{}", mark.get().cast_signed(), if v6 { " IPv6" } else { "" })
            }
            Key::Address { protocol, addr, port } => {
                let place = self.names.place(addr, port, Some(protocol));
                format!("{:<4} {place}", protocol_name(protocol))
            }
        };
        if matches!(service.key, Key::Address { .. }) && !service.key.is_v6() {
            cut(&mut name, 33);
        }
        match self.columns {
            Columns::Stats => {
                let _ = write!(self.text, "{name:<33}");
                self.five(counts(&stats));
            }
            Columns::Rates => {
                let _ = write!(self.text, "{name:<33}");
                self.five(rates(&stats));
            }
            _ => {
                let _ = write!(self.text, "{name} {}{}", service.scheduler, traits(&service));
            }
        }
        self.text.push('\n');
        if self.is_sorted {
            order::sort(&mut servers, |a, b| order::servers(a.server.key(), b.server.key()));
        }
        for server in &servers {
            self.server(service.key, server);
        }
    }

    fn server(&mut self, key: Key, entry: &ServerEntry) {
        let ServerEntry { server, active, inactive, persistent, stats } = entry;
        let protocol = protocol_of(key);
        let mut name = self.names.place(server.addr, server.port, protocol);
        if !key.is_v6() {
            cut(&mut name, 28);
        }
        let _ = write!(self.text, "  -> {name:<28}");
        let Server { weight, upper, lower, .. } = server;
        let forward = forward_name(server.forward);
        let _ = match self.columns {
            Columns::Stats => {
                self.five(counts(stats));
                Ok(())
            }
            Columns::Rates => {
                let [conns, input, output, input_bytes, output_bytes] = rates(stats);
                let _ = write!(self.text, " {conns:>8} {input:>8} {output:>8}");
                self.number(input_bytes);
                self.number(output_bytes);
                Ok(())
            }
            Columns::Thresholds => {
                write!(self.text, " {upper:<10} {lower:<10} {active:<10} {inactive:<10}")
            }
            Columns::Persistence => {
                write!(self.text, " {weight:<9} {persistent:<11} {active:<10} {inactive:<10}")
            }
            Columns::Tunnels => {
                let tunnel = tunnel_info(server.forward);
                write!(self.text, " {forward:<7} {tunnel:<13} {weight:<6} {active:<10} {inactive:<10}")
            }
            Columns::Plain => {
                write!(self.text, " {forward:<7} {weight:<6} {active:<10} {inactive:<10}")
            }
        };
        self.text.push('\n');
    }

    fn five(&mut self, numbers: [u64; 5]) {
        for number in numbers {
            self.number(number);
        }
    }

    /// A number in nine columns, large ones in thousands, millions and so on unless it is to be exact.
    fn number(&mut self, number: u64) {
        let _ = if self.is_exact {
            let width = (number.checked_ilog10().unwrap_or(0) as usize + 2).max(9);
            write!(self.text, "{number:>width$}")
        } else {
            match number {
                0..100_000_000 => write!(self.text, "{number:>9}"),
                100_000_000..1_000_000_000 => write!(self.text, "{:>8}K", number / 1000),
                1_000_000_000..100_000_000_000 => write!(self.text, "{:>8}M", number / 1_000_000),
                100_000_000_000..100_000_000_000_000 => {
                    write!(self.text, "{:>8}G", number / 1_000_000_000)
                }
                _ => write!(self.text, "{:>8}T", number / 1_000_000_000_000),
            }
        };
    }
}

/// Services as the lines that make them anew.
pub(super) fn rules(mut services: Vec<ServiceEntry>, numeric: bool) -> String {
    let mut names = Names::new(numeric);
    let mut text = String::new();
    order::sort(&mut services, |a, b| order::services(a.service.key, b.service.key));
    for ServiceEntry { service, mut servers, .. } in services {
        let name = match service.key {
            Key::Mark { mark, v6 } => {
                format!("-f {}{}", mark.get().cast_signed(), if v6 { " -6" } else { "" })
            }
            Key::Address { protocol, addr, port } => {
                let option = match protocol {
                    Protocol::Tcp => "-t",
                    Protocol::Udp => "-u",
                    Protocol::Sctp => "--sctp-service",
                };
                format!("{option} {}", names.place(addr, port, Some(protocol)))
            }
        };
        let _ = writeln!(text, "-A {name} -s {}{}", service.scheduler, trait_options(&service));
        order::sort(&mut servers, |a, b| order::servers(a.server.key(), b.server.key()));
        for ServerEntry { server, .. } in servers {
            let place = names.place(server.addr, server.port, protocol_of(service.key));
            let _ = write!(text, "-a {name} -r {place} ");
            let _ = writeln!(
                text,
                "{} -w {}{}",
                forward_option(server.forward),
                server.weight,
                tunnel_options(server.forward)
            );
        }
    }
    text
}

/// What a service has besides address and scheduler, as the table shows it.
fn traits(service: &Service) -> String {
    let mut text = String::new();
    let flags = flag_names(&service.scheduler, service.flags);
    if !flags.is_empty() {
        let _ = write!(text, " ({flags})");
    }
    if let Some(seconds) = service.persistent_s {
        let _ = write!(text, " persistent {seconds}");
        let _ = match service.netmask {
            mask if mask.is_single() => Ok(()),
            Netmask::V4(mask) => write!(text, " mask {mask}"),
            Netmask::V6(length) => write!(text, " mask {length}"),
        };
        if !service.engine.is_empty() {
            let _ = write!(text, " pe {}", service.engine);
        }
    }
    if service.one_packet {
        text += " ops";
    }
    text
}

/// The same as options.
fn trait_options(service: &Service) -> String {
    let mut text = String::new();
    if let Some(seconds) = service.persistent_s {
        let _ = write!(text, " -p {seconds}");
        let _ = match service.netmask {
            mask if mask.is_single() => Ok(()),
            Netmask::V4(mask) => write!(text, " -M {mask}"),
            Netmask::V6(length) => write!(text, " -M {length}"),
        };
    }
    if !service.engine.is_empty() {
        let _ = write!(text, " --pe {}", service.engine);
    }
    if service.one_packet {
        text += " -o";
    }
    let flags = flag_names(&service.scheduler, service.flags);
    if !flags.is_empty() {
        let _ = write!(text, " -b {flags}");
    }
    text
}

fn flag_names(scheduler: &str, flags: SchedulerFlags) -> String {
    let names = match scheduler {
        "sh" => ["sh-fallback", "sh-port", "flag-3"],
        "mh" => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    };
    let set = [flags.first, flags.second, flags.third];
    let names: Vec<_> = names.into_iter().zip(set).filter_map(|(name, set)| set.then_some(name)).collect();
    names.join(",")
}

/// The protocol whose names ports of the service and its servers have.
fn protocol_of(key: Key) -> Option<Protocol> {
    match key {
        Key::Address { protocol, .. } => Some(protocol),
        Key::Mark { .. } => None,
    }
}

pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn forward_name(forward: Forward) -> &'static str {
    match forward {
        Forward::Masq => "Masq",
        Forward::Route => "Route",
        Forward::Tunnel { .. } => "Tunnel",
        Forward::FullNat => "FullNat",
    }
}

/// A `fullnat` server has no option of its own: it comes back as `-m`, which is nearest.
fn forward_option(forward: Forward) -> &'static str {
    match forward {
        Forward::Masq | Forward::FullNat => "-m",
        Forward::Route => "-g",
        Forward::Tunnel { .. } => "-i",
    }
}

fn tunnel_info(forward: Forward) -> String {
    let Forward::Tunnel { kind, port, checksum } = forward else { return "n/a".to_owned() };
    let checksum = match checksum {
        TunnelChecksum::None => "-c",
        TunnelChecksum::Full => "+c",
        TunnelChecksum::Remote => "r+c",
    };
    match kind {
        TunnelKind::Ipip => "ipip".to_owned(),
        TunnelKind::Gue => format!("gue:{port}:{checksum}"),
        TunnelKind::Gre => format!("gre:{checksum}"),
    }
}

fn tunnel_options(forward: Forward) -> String {
    let Forward::Tunnel { kind, port, checksum } = forward else { return String::new() };
    let checksum = match checksum {
        TunnelChecksum::None => "--tun-nocsum",
        TunnelChecksum::Full => "--tun-csum",
        TunnelChecksum::Remote => "--tun-remcsum",
    };
    match kind {
        TunnelKind::Ipip => " --tun-type ipip".to_owned(),
        TunnelKind::Gue => format!(" --tun-type gue --tun-port {port} {checksum}"),
        TunnelKind::Gre => format!(" --tun-type gre {checksum}"),
    }
}

fn counts(stats: &Stats) -> [u64; 5] {
    [stats.conns, stats.in_packets, stats.out_packets, stats.in_bytes, stats.out_bytes]
}

fn rates(stats: &Stats) -> [u64; 5] {
    let Stats { conns_rate, in_packets_rate, out_packets_rate, in_bytes_rate, out_bytes_rate, .. } = stats;
    [*conns_rate, *in_packets_rate, *out_packets_rate, *in_bytes_rate, *out_bytes_rate]
}

/// Shortens a name to so many characters.
fn cut(name: &mut String, most: usize) {
    if let Some((end, _)) = name.char_indices().nth(most) {
        name.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ipvsadm 1.31 prints of the same service and servers.
    const COUNTS: [&str; 3] = [
        "TCP  10.0.0.1:80                     4000M  999999K  100000K   99999G     123T",
        "  -> 10.1.0.1:80                     4000M  999999K  100000K   99999G     123T",
        "  -> 10.1.0.2:80                     4000M  999999K  100000K   99999G     123T",
    ];
    const EXACT: [&str; 3] = [
        "TCP  10.0.0.1:80                  4000000000 999999999 100000000 99999999999999 123456789012345",
        "  -> 10.1.0.1:80                  4000000000 999999999 100000000 99999999999999 123456789012345",
        "  -> 10.1.0.2:80                  4000000000 999999999 100000000 99999999999999 123456789012345",
    ];
    const RATES: [&str; 3] = [
        "TCP  10.0.0.1:80                     4000M        1        2        3        4",
        "  -> 10.1.0.1:80                  4000000000        1        2        3        4",
        "  -> 10.1.0.2:80                  4000000000        1        2        3        4",
    ];
    const TUNNELS: [&str; 3] = [
        "TCP  10.0.0.1:80 sh (sh-fallback,sh-port) persistent 60 mask 255.255.255.0 ops",
        "  -> 10.1.0.1:80                  Tunnel  ipip          1      0          0         ",
        "  -> 10.1.0.2:80                  Route   n/a           0      0          0         ",
    ];
    const RULES: &str = "-A -t 10.0.0.1:80 -s sh -p 60 -M 255.255.255.0 -o -b sh-fallback,sh-port\n\
        -a -t 10.0.0.1:80 -r 10.1.0.1:80 -i -w 1 --tun-type ipip\n\
        -a -t 10.0.0.1:80 -r 10.1.0.2:80 -g -w 0\n";

    fn entry() -> ServiceEntry {
        let stats = Stats {
            conns: 4_000_000_000,
            in_packets: 999_999_999,
            out_packets: 100_000_000,
            in_bytes: 99_999_999_999_999,
            out_bytes: 123_456_789_012_345,
            conns_rate: 4_000_000_000,
            in_packets_rate: 1,
            out_packets_rate: 2,
            in_bytes_rate: 3,
            out_bytes_rate: 4,
        };
        let tunnel = Forward::Tunnel { kind: TunnelKind::Ipip, port: 0, checksum: TunnelChecksum::None };
        let server = |last, forward, weight| ServerEntry {
            server: Server { addr: [10, 1, 0, last].into(), port: 80, forward, weight, upper: 0, lower: 0 },
            active: 0,
            inactive: 0,
            persistent: 0,
            stats,
        };
        ServiceEntry {
            service: Service {
                key: Key::Address { protocol: Protocol::Tcp, addr: [10, 0, 0, 1].into(), port: 80 },
                scheduler: "sh".into(),
                flags: SchedulerFlags { first: true, second: true, third: false },
                persistent_s: Some(60),
                netmask: Netmask::V4([255, 255, 255, 0].into()),
                one_packet: true,
                engine: String::new(),
            },
            stats,
            servers: vec![server(2, Forward::Route, 0), server(1, tunnel, 1)],
        }
    }

    #[test]
    fn tables_are_those_of_ipvsadm() {
        for (options, want) in [
            (vec![Opt::Numeric, Opt::Stats], COUNTS),
            (vec![Opt::Numeric, Opt::Stats, Opt::Rate], COUNTS),
            (vec![Opt::Numeric, Opt::Stats, Opt::Exact], EXACT),
            (vec![Opt::Numeric, Opt::Rate], RATES),
            (vec![Opt::Numeric, Opt::TunInfo], TUNNELS),
        ] {
            let mut set = Options::default();
            options.iter().for_each(|option| set.add(*option).unwrap());
            let text = Table::new(set).print(vec![entry()]);
            assert_eq!(text.lines().skip(2).collect::<Vec<_>>(), want, "{options:?}");
        }
    }

    #[test]
    fn rules_make_the_same_services_anew() {
        assert_eq!(rules(vec![entry()], true), RULES);
        let mut marked = entry();
        marked.service.key = Key::Mark { mark: std::num::NonZeroU32::MAX, v6: true };
        assert!(rules(vec![marked], true).starts_with("-A -f -1 -6 -s sh "), "marks are signed");
    }

    #[test]
    fn a_long_name_is_cut_but_for_ipv6() {
        let mut name = "TCP  a-host-with-a-very-long-name.example.org:80".to_owned();
        cut(&mut name, 33);
        assert_eq!(name, "TCP  a-host-with-a-very-long-name");
    }
}
