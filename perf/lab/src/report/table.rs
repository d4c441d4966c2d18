//! Figures by quantity: a row a device, a column a case.

use std::collections::BTreeSet;

use crate::results::{Figure, Key, Quantity, Report, number};

/// A table.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    /// A device and a cell a column.
    pub(crate) rows: Vec<(String, Vec<Option<String>>)>,
}

/// A table for each quantity that was measured.
pub(crate) fn tables(report: &Report) -> Vec<Table> {
    Quantity::ALL.into_iter().filter_map(|quantity| table(report, quantity)).collect()
}

fn table(report: &Report, quantity: Quantity) -> Option<Table> {
    let figures: Vec<&Figure> =
        report.figures.iter().filter(|figure| figure.key.quantity == quantity).collect();
    let cases: BTreeSet<Key> =
        figures.iter().map(|figure| Key { device: String::new(), ..figure.key.clone() }).collect();
    let mut devices: Vec<&str> = Vec::new();
    for figure in &figures {
        if !devices.contains(&figure.key.device.as_str()) {
            devices.push(&figure.key.device);
        }
    }
    let cell = |device: &str, case: &Key| {
        report.figure(&Key { device: device.to_owned(), ..case.clone() }).map(cell)
    };
    let rows = devices
        .iter()
        .map(|device| ((*device).to_owned(), cases.iter().map(|case| cell(device, case)).collect()))
        .collect();
    let title = format!("{}, {}", quantity.title(), quantity.unit());
    (!figures.is_empty()).then(|| Table { title, columns: cases.iter().map(Key::case).collect(), rows })
}

/// The median, half of what repeats differ by and how many there were, and what was lost, where there is any.
fn cell(figure: &Figure) -> String {
    let median = number(figure.median() / figure.key.quantity.scale());
    let spread = match figure.values.len() {
        1 => String::new(),
        repeats => format!(" ±{:.0} % ({repeats})", figure.spread() * 50.0),
    };
    let loss = match figure.loss() {
        0.0 => String::new(),
        loss => format!(", {:.3} % lost", loss * 100.0),
    };
    format!("{median}{spread}{loss}")
}
