//! The report as Markdown: conditions, targets, a table a quantity.

use std::fmt::Write as _;

use crate::report::table::{Table, tables};
use crate::results::{Compared, Report, number};
use crate::targets;

/// The whole report.
pub(crate) fn write(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = lines(report, &mut text);
    text
}

fn lines(report: &Report, text: &mut String) -> std::fmt::Result {
    for (name, value) in report.conditions.lines() {
        writeln!(text, "- {name}: {value}")?;
    }
    for (name, reason) in &report.absent {
        writeln!(text, "- {name} was not measured: {reason}")?;
    }
    writeln!(text, "\n| Target | Measured | |\n|---|---|---|")?;
    for target in targets::all(report) {
        let ratio = target.ratio.map_or("-".to_owned(), number);
        writeln!(text, "| {} | {ratio} | {} |", target.text, target.verdict())?;
    }
    for Table { title, columns, rows } in tables(report) {
        writeln!(
            text,
            "\n**{title}**\n\n| | {} |\n|---{}|",
            columns.join(" | "),
            "|---".repeat(columns.len())
        )?;
        for (name, cells) in rows {
            let cells: Vec<_> = cells.iter().map(|cell| cell.as_deref().unwrap_or("")).collect();
            writeln!(text, "| {name} | {} |", cells.join(" | "))?;
        }
    }
    if let Some(Compared { with, lines }) = &report.compared {
        writeln!(text, "\n**Compared with {with}**\n")?;
        if lines.is_empty() {
            writeln!(text, "Nothing in common.")?;
        }
        lines.iter().try_for_each(|line| writeln!(text, "- {line}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Quantity;
    use crate::results::tests::{figure, report};

    #[test]
    fn each_device_has_a_row_and_each_case_a_column() {
        let mut now = report(vec![
            figure(Quantity::Cost, "bare", "established", &[400.0, 420.0, 440.0]),
            figure(Quantity::Cost, "weir-fullnat", "established", &[462.0]),
            figure(Quantity::Cost, "weir-fullnat", "new", &[700.0]),
        ]);
        let before = report(vec![figure(Quantity::Cost, "weir-fullnat", "established", &[420.0])]);
        now.compared = Some(now.compare(&before));
        let text = write(&now);
        for line in [
            "- Commit: 0123456789ab",
            "| bare | 420 ±5 % (3) |  |",
            "| weir-fullnat | 462 | 700 |",
            "**Compared with 0123456789ab**",
            "- CPU a packet, net of generator and sink, weir-fullnat, established, 60 bytes, 1000 flows, 1000 services: \
             420 -> 462 ns (+10 %) (one measurement each)",
            "| Weir's CPU a packet at most 1.15 times the bare AF_XDP forwarder's | 1.10 | met |",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
    }
}
