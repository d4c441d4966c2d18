//! The way back: what is in force, as a configuration file that says the same.

use std::fmt::Write as _;

use dataplane::snapshot::{Options, Settings as Sysctls, SynProxy, Timeouts, Tunnel, TunnelChecksum};
use ipnet::IpNet;

use super::kubernetes::{self, Section};
use super::services::{CLIENTS, MASQUERADES, WHEN_EMPTY};
use super::settings::{KERNEL_PATH, KernelPath, Settings, ZeroCopy};
use super::sysctls::{SCTP_STATES, TCP_STATES};
use crate::model::{
    Access, Backend, Clients, DesiredState, Family, Identity, Masquerade, MatchRule, Netmask, Origin,
    Persistence, PortRange, Reach, Service, SnatPool, Unicast, WhenEmpty, port_number,
};

/// The file. Read again it gives equal settings and an equal desired state, but for services whose address no host can
/// have and those that are not from a file: they stand in it as comments, since the reader takes them for mistakes.
pub fn write(settings: &Settings, of_kubernetes: &Section, desired: &DesiredState) -> String {
    let mut text = String::new();
    write_settings(&mut text, settings);
    kubernetes::write(&mut text, of_kubernetes);
    write_timeouts(&mut text, &desired.timeouts());
    write_sysctls(&mut text, &desired.settings());
    // What other sources say, they say again.
    let draft = desired.draft();
    let own: Vec<_> = draft.node_addresses.iter().map(|addr| quoted(&addr.ip().to_string())).collect();
    if !own.is_empty() {
        line(&mut text, &format!("node_addresses: [{}]", own.join(", ")));
    }
    for (key, networks) in [("local_networks", &draft.local), ("virtual_networks", &draft.virtual_networks)] {
        if !networks.is_empty() {
            line(&mut text, &format!("{key}: [{}]", quoted_all(networks)));
        }
    }
    section(&mut text, "snat_pools", &draft.pools, pool);
    section(&mut text, "match_rules", &draft.rules, rule);
    section(&mut text, "services", &desired.services().collect::<Vec<_>>(), |of| service(of));
    text
}

fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}

/// A list under its key; nothing for an empty one.
fn section<T>(text: &mut String, key: &str, list: &[T], entry: impl Fn(&T) -> Vec<String>) {
    if list.is_empty() {
        return;
    }
    let _ = writeln!(text, "{key}:");
    for lines in list.iter().map(entry) {
        for (number, content) in lines.iter().enumerate() {
            let comment = content.starts_with('#');
            let indent = match number {
                _ if comment => "  ",
                0 => "  - ",
                _ => "    ",
            };
            let _ = writeln!(text, "{indent}{content}");
        }
    }
}

/// A scalar that YAML takes for nothing but a string: JSON's notation is YAML's too.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

pub(super) fn quoted_all<T: ToString>(list: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = list.into_iter().map(|item| quoted(&item.to_string())).collect();
    all.join(", ")
}

fn write_settings(text: &mut String, settings: &Settings) {
    line(text, "interfaces:");
    for name in &settings.interfaces {
        let _ = writeln!(text, "  - {{name: {}}}", quoted(name.as_str()));
    }
    let workers = &settings.workers;
    let _ = writeln!(text, "workers:\n  count: {}", workers.count);
    if let Some(cores) = &workers.cores {
        let cores: Vec<_> = cores.iter().map(u16::to_string).collect();
        let _ = writeln!(text, "  cores: [{}]", cores.join(", "));
    }
    let _ = writeln!(text, "  spin_us: {}", workers.spin.as_micros());
    let _ = writeln!(text, "  busy_poll: {}", workers.busy_poll);
    let _ = writeln!(text, "  beat_limit_ms: {}", workers.beat_limit.as_millis());
    let _ = writeln!(text, "flows: {{limit: {}}}", settings.flow_limit);
    let limits = settings.limits;
    let _ = writeln!(text, "limits: {{services: {}, backends: {}}}", limits.services, limits.backends);
    let mode = if settings.xdp.allow_generic { "generic-allowed" } else { "native" };
    let zero_copy = match settings.xdp.zero_copy {
        ZeroCopy::Auto => "auto",
        ZeroCopy::Never => "never",
        ZeroCopy::Require => "require",
    };
    let _ = writeln!(text, "xdp: {{mode: {mode}, zero_copy: {zero_copy}}}");
    let path = match settings.kernel_path {
        KernelPath::Veth => KERNEL_PATH,
        KernelPath::None => "none",
    };
    let _ = writeln!(text, "kernel_path: {path}");
    let _ = writeln!(text, "admin: {{socket: {}}}", quoted(&settings.socket.to_string_lossy()));
    if let Some(address) = settings.health {
        let _ = writeln!(text, "health: {{listen: {}}}", quoted(&address.to_string()));
    }
    let listen = settings.metrics.map(|address| format!("listen: {}, ", quoted(&address.to_string())));
    let (listen, services) = (listen.unwrap_or_default(), settings.metrics_services);
    let _ = writeln!(text, "metrics: {{{listen}services: {services}}}");
}

fn write_timeouts(text: &mut String, timeouts: &Timeouts) {
    let states = |names: &[&str], seconds: &[u32]| {
        let all: Vec<_> =
            names.iter().zip(seconds).map(|(name, seconds)| format!("{name}: {seconds}")).collect();
        all.join(", ")
    };
    let _ = writeln!(text, "timeouts:\n  udp_s: {}", timeouts.udp_s);
    let _ = writeln!(text, "  tcp: {{{}}}", states(&TCP_STATES, &timeouts.tcp_s));
    let _ = writeln!(text, "  sctp: {{{}}}", states(&SCTP_STATES, &timeouts.sctp_s));
}

fn write_sysctls(text: &mut String, settings: &Sysctls) {
    line(text, "ipvs:");
    for (key, value) in [
        ("conn_reuse_mode", settings.conn_reuse_mode.to_string()),
        ("expire_nodest_conn", settings.expire_nodest_conn.to_string()),
        ("expire_quiescent_template", settings.expire_quiescent_template.to_string()),
        ("sloppy_tcp", settings.sloppy_tcp.to_string()),
        ("sloppy_sctp", settings.sloppy_sctp.to_string()),
        ("drop_entry", (settings.drop_entry as u8).to_string()),
        ("drop_packet", (settings.drop_packet as u8).to_string()),
        ("secure_tcp", (settings.secure_tcp as u8).to_string()),
        ("am_droprate", settings.am_droprate.to_string()),
        ("amemthresh", settings.amemthresh.to_string()),
        ("drop_removed", settings.drop_removed.to_string()),
        ("lblc_expiration", settings.lblc_expiration_s.to_string()),
        ("lblcr_expiration", settings.lblcr_expiration_s.to_string()),
    ] {
        let _ = writeln!(text, "  {key}: {value}");
    }
    let _ = writeln!(
        text,
        "floods: {{half_open: {}, new_flows_per_s: {}}}",
        settings.half_open, settings.new_flows_per_s
    );
}

fn pool(pool: &SnatPool) -> Vec<String> {
    let ranges = pool.ranges.iter().map(|range| {
        let mut addresses = range.iter();
        match (addresses.next(), addresses.last()) {
            (Some(first), Some(last)) => format!("{first}-{last}"),
            (first, _) => first.map(|first| first.to_string()).unwrap_or_default(),
        }
    });
    vec![
        format!("name: {}", quoted(&pool.name)),
        format!("addresses: [{}]", quoted_all(ranges)),
        format!("ports: {}-{}", pool.low.number(), pool.high.number()),
    ]
}

fn rule(rule: &MatchRule) -> Vec<String> {
    let mut lines = vec![format!("mark: {}", rule.mark)];
    let mut list = |key: &str, entries: String| {
        if !entries.is_empty() {
            lines.push(format!("{key}: [{entries}]"));
        }
    };
    let nets = |nets: &[IpNet]| quoted_all(nets);
    let ports = |ports: &[PortRange]| {
        let ports: Vec<_> = ports
            .iter()
            .map(|range| match range.ends() {
                (low, high) if low == high => low.to_string(),
                (low, high) => format!("{low}-{high}"),
            })
            .collect();
        ports.join(", ")
    };
    list("sources", nets(&rule.sources));
    list("destinations", nets(&rule.destinations));
    let protocols: Vec<_> = rule.protocols.iter().map(|protocol| protocol.name()).collect();
    list("protocols", protocols.join(", "));
    list("destination_ports", ports(&rule.destination_ports));
    list("source_ports", ports(&rule.source_ports));
    if let Some(interface) = &rule.interface {
        lines.push(format!("interface: {}", quoted(&interface.name)));
    }
    lines
}

fn service(service: &Service) -> Vec<String> {
    let mut lines = vec![format!("name: {}", quoted(&service.name))];
    lines.extend(reach(service));
    if let Some(port) = service.node_port {
        lines.push(format!("node_port: {}", port.number()));
    }
    let scheduling = service.scheduling;
    lines.push(format!("scheduler: {}", scheduling.kind));
    let flags: Vec<_> = scheduling.flags.names(scheduling.kind).collect();
    if !flags.is_empty() {
        lines.push(format!("scheduler_flags: [{}]", flags.join(", ")));
    }
    lines.extend(service.persistence.map(persistence));
    lines.extend(service.engine.map(|engine| format!("persistence_engine: {}", engine.name())));
    if service.one_packet {
        lines.push("one_packet: true".into());
    }
    if let Some(pool) = &service.pool {
        lines.push(format!("snat_pool: {}", quoted(pool)));
    }
    lines.push(format!("announce: {}", service.announce));
    lines.extend(access(&service.access));
    lines.extend(options(&service.options));
    if service.backends.is_empty() {
        lines.push("backends: []".into());
    } else {
        lines.push("backends:".into());
        lines.extend(service.backends.iter().map(backend));
    }
    match unreadable(service) {
        None => lines,
        Some(reason) => {
            let mut comment = vec![format!("# not read again: {reason}")];
            comment.extend(lines.iter().map(|line| format!("# {line}")));
            comment
        }
    }
}

/// Why the reader would not take it.
fn unreadable(service: &Service) -> Option<String> {
    let impossible = service.vips().iter().find_map(|vip| Unicast::new(vip.ip()).err());
    if let Some(impossible) = impossible {
        return Some(impossible.to_string());
    }
    if service.origin == Origin::Kubernetes {
        return Some("it is from Kubernetes".into());
    }
    let on_node = matches!(service.identity(), Some(Identity::Node { .. }));
    on_node.then(|| "it has no VIP".to_owned())
}

/// What is not as it is for services that say nothing.
fn access(access: &Access) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(
        access.sources.as_ref().map(|sources| format!("source_ranges: [{}]", quoted_all(sources.iter()))),
    );
    let masquerade = MASQUERADES.iter().find(|(_, masquerade)| *masquerade == access.masquerade);
    let masquerade = masquerade.filter(|(_, masquerade)| *masquerade != Masquerade::default());
    lines.extend(masquerade.map(|(name, _)| format!("masquerade: {name}")));
    let when_empty = WHEN_EMPTY.iter().find(|(_, when_empty)| *when_empty == access.when_empty);
    let when_empty = when_empty.filter(|(_, when_empty)| *when_empty != WhenEmpty::default());
    lines.extend(when_empty.map(|(name, _)| format!("when_empty: {name}")));
    lines
}

fn reach(service: &Service) -> Vec<String> {
    match &service.reach {
        Reach::Vips(vips) => {
            let addresses = quoted_all(vips.addresses.iter().map(|vip| vip.ip()));
            let key = if vips.addresses.len() == 1 {
                format!("vip: {addresses}")
            } else {
                format!("vips: [{addresses}]")
            };
            let (port, protocol) = (port_number(vips.port), vips.protocol.name());
            let mut lines = vec![key, format!("port: {port}"), format!("protocol: {protocol}")];
            let clients = CLIENTS.iter().find(|(_, clients)| *clients == vips.clients);
            let clients = clients.filter(|(_, clients)| *clients != Clients::default());
            lines.extend(clients.map(|(name, _)| format!("clients: {name}")));
            lines
        }
        Reach::Mark { mark, family } => {
            let family = match family {
                Family::V4 => "ipv4",
                Family::V6 => "ipv6",
            };
            vec![format!("mark: {mark}"), format!("family: {family}")]
        }
    }
}

fn persistence(of: Persistence) -> String {
    let netmask = match of.netmask {
        None => String::new(),
        Some(Netmask::V4(mask)) => format!(", netmask: {}", quoted(&mask.to_string())),
        Some(Netmask::V6(len)) => format!(", netmask: {len}"),
    };
    format!("persistence: {{timeout_s: {}{netmask}}}", of.timeout_s)
}

fn options(options: &Options) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, is_set) in [
        ("stateless_fallback", options.stateless_fallback),
        ("proxy_protocol", options.proxy_protocol),
        ("toa", options.toa),
        ("move_udp", options.move_udp),
    ] {
        if is_set {
            lines.push(format!("{key}: true"));
        }
    }
    lines.extend(options.mss.map(|mss| match mss {
        0 => "mss: auto".to_owned(),
        mss => format!("mss: {mss}"),
    }));
    match options.syn_proxy {
        SynProxy::Off => {}
        SynProxy::Above(half_open) => lines.push(format!("syn_proxy: {{above: {half_open}}}")),
        SynProxy::Always => lines.push("syn_proxy: always".into()),
    }
    lines.extend(options.drain_s.map(|seconds| format!("drain_s: {seconds}")));
    lines
}

fn backend(backend: &Backend) -> String {
    let mut text = format!(
        "  - {{address: {}, port: {}, weight: {}, mode: {}",
        quoted(&backend.addr.ip().to_string()),
        backend.port_number(),
        backend.weight.0,
        backend.mode.name()
    );
    if backend.tunnel != Tunnel::default() {
        let checksum = match backend.tunnel.checksum {
            TunnelChecksum::None => "none",
            TunnelChecksum::Full => "full",
            TunnelChecksum::Remote => "remote",
        };
        let port = match backend.tunnel.port {
            0 => String::new(),
            port => format!("port: {port}, "),
        };
        let _ = write!(text, ", tunnel: {{{port}checksum: {checksum}}}");
    }
    for (key, number) in [("upper_threshold", backend.upper), ("lower_threshold", backend.lower)] {
        if number > 0 {
            let _ = write!(text, ", {key}: {number}");
        }
    }
    text.push('}');
    text
}
