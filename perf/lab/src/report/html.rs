//! The report as one HTML file that needs no other.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::report::svg::{Series, bars, escape, lines};
use crate::report::table::{Table, tables};
use crate::results::{Compared, Figure, Key, Quantity, Report, number};
use crate::targets;

const STYLE: &str = "body{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
    table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid #ccc;padding:.25rem .6rem;text-align:left}\
    .met{color:#047857}.missed{color:#b91c1c}svg{display:block;max-width:100%;margin:.5rem 0 1.5rem}";

/// The whole file.
pub(crate) fn write(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = document(report, &mut text);
    text
}

fn document(report: &Report, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Weir's lab, {commit}</title>\
         <style>{STYLE}</style></head><body>\n<h1>Weir beside its peers</h1>\n<table>",
        commit = escape(&report.conditions.origin.commit),
    )?;
    for (name, value) in report.conditions.lines() {
        writeln!(text, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(&value))?;
    }
    for (name, reason) in &report.absent {
        writeln!(text, "<tr><th>Not measured</th><td>{}: {}</td></tr>", escape(name), escape(reason))?;
    }
    writeln!(text, "</table>\n<h2>Targets</h2>\n<table>")?;
    for target in targets::all(report) {
        let class = target.met.map_or("", |met| if met { "met" } else { "missed" });
        let ratio = target.ratio.map_or("-".to_owned(), number);
        writeln!(
            text,
            "<tr><td>{}</td><td>{ratio}</td><td class=\"{class}\">{}</td></tr>",
            escape(&target.text),
            target.verdict()
        )?;
    }
    writeln!(text, "</table>")?;
    plots(report, text)?;
    writeln!(
        text,
        "<h2>All figures</h2>\n<p>Medians; &plusmn; is half of what repeats differ by, and behind it how many \
         there were.</p>"
    )?;
    for Table { title, columns, rows } in tables(report) {
        write!(text, "<h3>{}</h3>\n<table><tr><th></th>", escape(&title))?;
        columns.iter().try_for_each(|column| write!(text, "<th>{}</th>", escape(column)))?;
        writeln!(text, "</tr>")?;
        for (name, cells) in rows {
            write!(text, "<tr><th>{}</th>", escape(&name))?;
            cells
                .iter()
                .try_for_each(|cell| write!(text, "<td>{}</td>", escape(cell.as_deref().unwrap_or(""))))?;
            writeln!(text, "</tr>")?;
        }
        writeln!(text, "</table>")?;
    }
    if let Some(Compared { with, lines }) = &report.compared {
        writeln!(text, "<h2>Compared with {}</h2>\n<ul>", escape(with))?;
        lines.iter().try_for_each(|line| writeln!(text, "<li>{}</li>", escape(line)))?;
        writeln!(text, "</ul>")?;
    }
    writeln!(text, "</body></html>")
}

fn plots(report: &Report, text: &mut String) -> std::fmt::Result {
    for (quantity, packets) in [
        (Quantity::Cost, "established"),
        (Quantity::Cost, "new"),
        (Quantity::Throughput, "established"),
        (Quantity::ThroughputLossless, "established"),
        (Quantity::Connections, "connections"),
    ] {
        let fits = |figure: &&Figure| {
            figure.key.quantity == quantity && figure.key.packets == packets && figure.key.is_usual()
        };
        let rows: Vec<_> = report
            .figures
            .iter()
            .filter(fits)
            .map(|figure| (figure.key.device.clone(), figure.median().max(0.0)))
            .collect();
        if !rows.is_empty() {
            let unit = quantity.unit();
            writeln!(text, "<h2>{}, {packets}</h2>\n{}", escape(quantity.title()), bars(&rows, unit))?;
        }
    }
    latency(report, text)?;
    let cost =
        |title, across, varied, fits| Scaling { title, across, quantity: Quantity::Cost, varied, fits };
    for scaling in [
        cost("CPU a packet against services", "services", |key| key.services, |key| key.flows <= 1000),
        cost("CPU a packet against flows", "flows", |key| key.flows, |key| key.services == 1000),
        Scaling {
            title: "Throughput against workers",
            across: "workers",
            quantity: Quantity::Throughput,
            varied: |key| u32::try_from(key.workers).unwrap_or(u32::MAX),
            fits: |key| key.services == 1000,
        },
    ] {
        scaling.plot(report, text)?;
    }
    Ok(())
}

/// Percentiles at each load.
fn latency(report: &Report, text: &mut String) -> std::fmt::Result {
    for percent in [10, 50, 90] {
        let series: Vec<_> = report
            .figures
            .iter()
            .filter(|figure| {
                figure.key.quantity == Quantity::LatencyP99 && figure.key.load_percent == Some(percent)
            })
            .filter_map(|figure| {
                let times = figure.middle()?.latency?;
                // One in so many frames takes longer.
                let points = [
                    (2.0, times.p50_ns),
                    (10.0, times.p90_ns),
                    (100.0, times.p99_ns),
                    (1000.0, times.p999_ns),
                    (10_000.0, times.p9999_ns),
                ];
                let points = points.map(|(x, ns)| (x, ns as f64 / Quantity::LatencyP99.scale())).into();
                Some(Series { name: figure.key.device.clone(), points })
            })
            .collect();
        if !series.is_empty() {
            let plot = lines(&series, "one frame in so many takes longer", "us");
            writeln!(text, "<h2>Latency at {percent} % of the device's own throughput</h2>\n{plot}")?;
        }
    }
    Ok(())
}

/// A quantity against what is varied.
struct Scaling {
    title: &'static str,
    across: &'static str,
    quantity: Quantity,
    varied: fn(&Key) -> u32,
    fits: fn(&Key) -> bool,
}

impl Scaling {
    /// For established and for new flows, where there is more than one point.
    fn plot(&self, report: &Report, text: &mut String) -> std::fmt::Result {
        let Self { title, across, quantity, varied, fits } = self;
        for packets in ["established", "new"] {
            let mut series: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
            for figure in &report.figures {
                let key = &figure.key;
                let usual = key.quantity == *quantity && key.packets == packets && key.size == "60";
                if usual && !key.is_of_few() && fits(key) && varied(key) > 0 {
                    let point = (f64::from(varied(key)), figure.median().max(1.0));
                    series.entry(&key.device).or_default().push(point);
                }
            }
            series.retain(|_, points| points.len() > 1);
            if series.is_empty() {
                continue;
            }
            let series: Vec<_> = series
                .into_iter()
                .map(|(name, mut points)| {
                    points.sort_by(|one, other| one.0.total_cmp(&other.0));
                    Series { name: name.to_owned(), points }
                })
                .collect();
            writeln!(text, "<h2>{title}, {packets}</h2>\n{}", lines(&series, across, quantity.unit()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{figure, report};

    #[test]
    fn the_file_has_everything_in_it_and_its_text_is_escaped() {
        let mut many = figure(Quantity::Cost, "weir-fullnat", "established", &[470.0]);
        many.key.services = 50_000;
        let mut two = figure(Quantity::Throughput, "weir-fullnat", "established", &[2e6]);
        two.key.workers = 2;
        let mut few = figure(Quantity::Cost, "bare", "established", &[4321.0]);
        few.key.paced = true;
        let text = write(&report(vec![
            figure(Quantity::Cost, "bare", "established", &[400.0]),
            few,
            figure(Quantity::Cost, "weir-fullnat", "established", &[480.0]),
            figure(Quantity::Throughput, "weir-fullnat", "established", &[1e6]),
            many,
            two,
        ]));
        for (title, plots) in [
            ("CPU a packet, net of generator and sink, established", 1),
            ("CPU a packet against services, established", 1),
            ("CPU a packet against flows, established", 0),
            ("Throughput with at most 0.001 % loss, established", 1),
            ("Throughput against workers, established", 1),
        ] {
            assert_eq!(text.matches(&format!("<h2>{title}</h2>\n<svg")).count(), plots, "{title}");
        }
        assert_eq!(text.matches("4321").count(), 1, "in the table, and not among the bars of a busy device");
        assert!(text.contains("Example &lt;1&gt;") && !text.contains("Example <1>"));
        assert!(text.contains("<td>1.20</td><td class=\"missed\">missed</td>"));
        assert!(!text.contains("src=") && !text.contains("href="), "nothing is fetched");
        assert_eq!(text.matches("<table>").count(), text.matches("</table>").count());
    }
}
