//! Replies as tables for people: columns aligned, numbers to the right.

use std::fmt::Write;

use super::protocol::{
    BackendRow, Count, Drops, Flows, InterfaceRow, Kubernetes, Reload, Reply, ServiceRow, Status, Traffic,
    WorkerRow,
};

/// A reply as text that ends with a newline.
pub fn render(reply: &Reply) -> String {
    match reply {
        Reply::Status(status) => render_status(status),
        Reply::Services(rows) => services(rows),
        Reply::Backends(rows) => backends(rows),
        Reply::Flows(flows) => render_flows(flows),
        Reply::Workers(rows) => workers(rows),
        Reply::Drops(drops) => render_drops(drops),
        Reply::Interfaces(rows) => interfaces(rows),
        Reply::Reload(reload) => render_reload(reload),
        Reply::Config(text) => text.clone(),
        // `ipvsadm` prints these as its users know them.
        Reply::Ipvs(_) | Reply::IpvsList(_) | Reply::IpvsTimeouts(_) => String::new(),
        Reply::Error { message } => format!("{message}\n"),
    }
}

/// A column: its heading and whether it holds numbers.
type Column = (&'static str, bool);

const fn text(heading: &'static str) -> Column {
    (heading, false)
}

const fn number(heading: &'static str) -> Column {
    (heading, true)
}

/// Lays rows out under their headings: two blanks between columns, none at the end of a line.
fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let headings = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(headings).chain(rows).collect();
    let cell_width =
        |row: &Vec<String>, column| row.get(column).map_or(0, |cell: &String| cell.chars().count());
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| rows.iter().map(|row| cell_width(row, column)).max().unwrap_or_default())
        .collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((cell, (_, is_number)), width) in row.iter().zip(columns).zip(&widths) {
            let _ = if *is_number {
                write!(line, "{cell:>width$}  ", width = *width)
            } else {
                write!(line, "{cell:<width$}  ", width = *width)
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn traffic(traffic: &Traffic) -> [String; 5] {
    let Traffic { flows, packets_in, bytes_in, packets_out, bytes_out } = traffic;
    [flows, packets_in, bytes_in, packets_out, bytes_out].map(u64::to_string)
}

const TRAFFIC: [Column; 5] =
    [number("flows"), number("packets in"), number("bytes in"), number("packets out"), number("bytes out")];

fn services(rows: &[ServiceRow]) -> String {
    let mut columns = vec![
        text("service"),
        text("vip"),
        text("scheduler"),
        number("backends"),
        number("draining"),
        number("active"),
        number("inactive"),
        number("refused"),
    ];
    columns.extend(TRAFFIC);
    table(
        &columns,
        rows.iter().map(|row| {
            let counts = [row.backends as u64, row.draining as u64, row.active, row.inactive, row.refused];
            let vips = row.vips.join(" ") + if row.inside { " (inside)" } else { "" };
            let mut cells = vec![row.name.clone(), vips, row.scheduler.clone()];
            cells.extend(counts.map(|count| count.to_string()));
            cells.extend(traffic(&row.traffic));
            cells
        }),
    )
}

fn backends(rows: &[BackendRow]) -> String {
    let mut columns = vec![
        text("service"),
        text("backend"),
        text("mode"),
        number("weight"),
        number("active"),
        number("inactive"),
    ];
    columns.extend(TRAFFIC);
    table(
        &columns,
        rows.iter().map(|row| {
            let mut cells = vec![row.service.clone(), row.address.clone(), row.mode.clone()];
            cells.extend([u64::from(row.weight), row.active, row.inactive].map(|count| count.to_string()));
            cells.extend(traffic(&row.traffic));
            cells
        }),
    )
}

fn render_flows(flows: &Flows) -> String {
    let columns = [
        text("protocol"),
        text("client"),
        text("vip"),
        text("snat"),
        text("backend"),
        text("service"),
        text("mode"),
        text("state"),
        number("expires s"),
        number("worker"),
    ];
    let mut out = table(
        &columns,
        flows.flows.iter().map(|row| {
            vec![
                row.protocol.clone(),
                row.client.clone(),
                row.vip.clone(),
                row.snat.clone().unwrap_or_else(|| "-".into()),
                row.backend.clone(),
                row.service.clone(),
                row.mode.clone(),
                row.state.clone(),
                row.expires_s.to_string(),
                row.worker.to_string(),
            ]
        }),
    );
    if flows.more {
        let _ = writeln!(out, "There are more flows than these {}.", flows.flows.len());
    }
    for worker in &flows.silent {
        let _ = writeln!(out, "Worker {worker} did not answer: its flows are missing.");
    }
    out
}

fn workers(rows: &[WorkerRow]) -> String {
    let columns = [
        number("worker"),
        number("core"),
        text("state"),
        number("flows"),
        number("opened"),
        number("half-open"),
        number("expired"),
        number("evicted"),
        number("cookies"),
        number("by cookie"),
        number("frames"),
        number("forwarded"),
        number("answered"),
        number("kernel"),
        number("dropped"),
        number("handed over"),
        number("of frames"),
        number("taken over"),
        number("waited"),
        number("turns"),
        number("sleeps"),
    ];
    let mut out = table(
        &columns,
        rows.iter().map(|row| {
            let mut cells = vec![
                row.worker.to_string(),
                row.core.map_or_else(|| "-".into(), |core| core.to_string()),
                if row.alive { "running" } else { "dead" }.into(),
            ];
            let before = [
                row.flows,
                row.flows_opened,
                row.half_open,
                row.flows_expired,
                row.flows_evicted + row.flows_dropped,
                row.cookies_sent,
                row.cookies_accepted,
                row.frames,
                row.forwarded,
                row.answered,
                row.kernel,
                row.dropped,
                row.handed_over,
            ];
            cells.extend(before.map(|count| count.to_string()));
            cells.push(percent(row.handed_over, row.frames));
            let after = [row.taken_over, row.waited, row.turns, row.sleeps];
            cells.extend(after.map(|count| count.to_string()));
            cells
        }),
    );
    // It is the same for all of them.
    for sentence in rows.first().iter().flat_map(|row| &row.snat_ports) {
        let _ = writeln!(out, "{sentence}.");
    }
    out
}

/// A share in percent, to a tenth.
fn percent(part: u64, of: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(of.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn render_drops(drops: &Drops) -> String {
    let rows = |counts: &[Count]| -> Vec<Vec<String>> {
        counts.iter().map(|count| vec![count.name.clone(), count.count.to_string()]).collect()
    };
    let mut out = if drops.drops.is_empty() {
        "Nothing was dropped.\n".into()
    } else {
        table(&[text("drop reason"), number("packets")], rows(&drops.drops))
    };
    if !drops.xdp.is_empty() {
        out.push('\n');
        out.push_str(&table(&[text("XDP program"), number("packets")], rows(&drops.xdp)));
    }
    out
}

fn interfaces(rows: &[InterfaceRow]) -> String {
    let columns = [
        text("interface"),
        number("index"),
        text("mac"),
        number("mtu"),
        text("link"),
        text("xdp"),
        text("addresses"),
    ];
    let mut out = table(
        &columns,
        rows.iter().map(|row| {
            vec![
                row.name.clone(),
                row.ifindex.to_string(),
                row.mac.clone(),
                row.mtu.to_string(),
                match (row.gone, row.up) {
                    (true, _) => "gone",
                    (false, true) => "up",
                    (false, false) => "down",
                }
                .into(),
                row.xdp.clone(),
                row.addresses.join(" "),
            ]
        }),
    );
    let columns = [
        text("interface"),
        number("queue"),
        text("mode"),
        number("rx"),
        number("tx"),
        number("rx dropped"),
        number("rx ring full"),
        number("fill ring empty"),
        number("invalid descriptors"),
    ];
    let queues = rows.iter().flat_map(|row| {
        row.queues.iter().map(|queue| {
            let counts = [
                queue.rx,
                queue.tx,
                queue.rx_dropped,
                queue.rx_ring_full,
                queue.fill_ring_empty,
                queue.invalid_descriptors,
            ];
            let mode = if queue.polled { format!("{}, polled", queue.mode) } else { queue.mode.clone() };
            let mut cells = vec![row.name.clone(), queue.queue.to_string(), mode];
            cells.extend(counts.map(|count| count.to_string()));
            cells
        })
    });
    out.push('\n');
    out.push_str(&table(&columns, queues));
    out
}

fn render_reload(reload: &Reload) -> String {
    let generation = reload.generation;
    if reload.faults.is_empty() {
        return format!("Reloaded: generation {generation}.\n");
    }
    let mut out = format!("Refused, generation {generation} stays:\n");
    for fault in &reload.faults {
        let _ = writeln!(out, "{fault}");
    }
    out
}

fn render_status(status: &Status) -> String {
    let (running, workers) = status.workers;
    let (resolved, neighbours) = status.neighbours;
    let mut rows = vec![
        ("version", status.version.clone()),
        ("process", status.pid.to_string()),
        ("uptime", duration(status.uptime_s)),
        ("configuration", status.config.clone()),
        ("generation", format!("{} ({} kept)", status.generation, status.generations_kept)),
        ("workers", format!("{running} of {workers} running")),
        ("services", format!("{} with {} backends", status.services, status.backends)),
        ("neighbours", format!("{resolved} of {neighbours} resolved")),
    ];
    if status.neighbours_refused > 0 {
        rows.push(("not asked for", format!("{} neighbours: the table is full", status.neighbours_refused)));
    }
    let mut out = String::new();
    for (name, value) in rows {
        let _ = writeln!(out, "{name:<15}{value}");
    }
    if let Some(reload) = &status.last_reload {
        let _ = write!(out, "{:<15}{}", "last reload", render_reload(reload));
    }
    if let Some(kubernetes) = &status.kubernetes {
        render_kubernetes(&mut out, kubernetes);
    }
    out
}

fn render_kubernetes(out: &mut String, kubernetes: &Kubernetes) {
    let Kubernetes { server, node, synced, resources } = kubernetes;
    let state = if *synced { "in sync" } else { "not read yet" };
    let server = if server.is_empty() { "no server yet" } else { server };
    let _ = writeln!(out, "{:<15}{state}, node {node}, {server}", "kubernetes");
    for resource in resources {
        let state = match (&resource.trouble, resource.synced) {
            (Some(trouble), _) => {
                format!("for {}: {trouble}", duration(resource.trouble_s.unwrap_or_default()))
            }
            (None, true) => "watched".to_owned(),
            (None, false) => "being read".to_owned(),
        };
        let _ = writeln!(out, "  {:<13}{state}", resource.name);
    }
}

fn duration(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days == 0 { clock } else { format!("{days} d {clock}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(service: &str, address: &str, bytes_in: u64) -> BackendRow {
        BackendRow {
            service: service.into(),
            address: address.into(),
            weight: 1,
            mode: "nat".into(),
            active: 2,
            inactive: 3,
            traffic: Traffic { flows: 5, packets_in: 10, bytes_in, packets_out: 20, bytes_out: 30 },
        }
    }

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let rows =
            vec![backend("web", "10.0.0.1:80", 123_456_789), backend("a-long-name", "[fd00::1]:80", 7)];
        let want = "\
service      backend       mode  weight  active  inactive  flows  packets in   bytes in  packets out  bytes out
web          10.0.0.1:80   nat        1       2         3      5          10  123456789           20         30
a-long-name  [fd00::1]:80  nat        1       2         3      5          10          7           20         30
";
        assert_eq!(render(&Reply::Backends(rows)), want);
    }

    #[test]
    fn drops_name_reasons_or_say_that_there_are_none() {
        let count = |name: &str, count| Count { name: name.into(), count };
        let none = Drops { drops: vec![], xdp: vec![] };
        assert_eq!(render(&Reply::Drops(none)), "Nothing was dropped.\n");
        let some = Drops { drops: vec![count("no_route", 12)], xdp: vec![count("vip", 3)] };
        let want =
            "drop reason  packets\nno_route          12\n\nXDP program  packets\nvip                3\n";
        assert_eq!(render(&Reply::Drops(some)), want);
    }

    #[test]
    fn a_refused_reload_lists_every_fault() {
        let faults =
            vec!["weir.yaml:3:1: port: 0 is no port".into(), "weir.yaml:9:1: vip: used twice".into()];
        let reload = Reload { at_unix_s: 0, count: 1, faults, generation: 7 };
        let want = "Refused, generation 7 stays:\nweir.yaml:3:1: port: 0 is no port\nweir.yaml:9:1: vip: used twice\n";
        assert_eq!(render(&Reply::Reload(reload)), want);
    }

    #[test]
    fn uptime_is_a_clock_with_days() {
        for (seconds, want) in [(59, "00:00:59"), (3_661, "01:01:01"), (90_061, "1 d 01:01:01")] {
            assert_eq!(duration(seconds), want);
        }
    }
}
