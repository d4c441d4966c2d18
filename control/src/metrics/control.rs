//! What control alone knows: it notes that here once a second, and whoever asks reads it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::write::{Labels, Writer};

/// Control's notes. Cheap to clone: clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    note: Note,
    accepted: u64,
    refused: u64,
    /// Whether the last reading of the file was refused; the first one was not.
    is_refused: bool,
}

/// How things are, as control sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Number of the published tables.
    pub generation: u64,
    /// Tables that some worker may still use.
    pub generations_kept: usize,
    /// Services, and how many there is room for.
    pub services: (usize, usize),
    /// Backends, and how many there is room for.
    pub backends: (usize, usize),
    /// Neighbours with a known MAC address, and all that ever had one.
    pub neighbours: (usize, usize),
    /// Neighbours that were never asked for because the table of requests was full.
    pub neighbours_refused: u64,
    /// The served interfaces: name, how the XDP program is attached, whether they are up.
    pub interfaces: Vec<(String, String, bool)>,
}

impl Control {
    /// Notes how things are.
    pub fn note(&self, note: Note) {
        self.lock().note = note;
    }

    /// The configuration file was read again.
    pub fn reloaded(&self, is_accepted: bool) {
        let mut notes = self.lock();
        let count = if is_accepted { &mut notes.accepted } else { &mut notes.refused };
        *count += 1;
        notes.is_refused = !is_accepted;
    }

    /// Has all of it exposed.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Control {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let (note, reloads, is_refused) = {
            let notes = self.lock();
            (notes.note.clone(), [("accepted", notes.accepted), ("refused", notes.refused)], notes.is_refused)
        };
        note.write(&mut writer)?;
        let reloads = reloads.map(|(result, count)| (Labels([("result", result.into())]), count));
        writer.counters("weir_reloads", "How often the configuration file was read again", reloads)?;
        let help = "Whether the last reading of the configuration file was accepted";
        writer.gauges("weir_last_reload_accepted", help, [(Labels([]), u64::from(!is_refused))])
    }
}

impl Note {
    fn write(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.gauges(
            "weir_generation",
            "Number of the published tables",
            [(Labels([]), self.generation)],
        )?;
        let kept = "Tables that some worker may still use";
        writer.gauges("weir_generations_kept", kept, [(Labels([]), self.generations_kept as u64)])?;
        let tables = [("services", self.services), ("backends", self.backends)];
        let row = |(table, count): (&'static str, usize)| (Labels([("table", table.into())]), count as u64);
        let used = tables.map(|(table, (used, _))| row((table, used)));
        writer.gauges("weir_table_entries", "Entries that are in use, by table", used)?;
        let room = tables.map(|(table, (_, room))| row((table, room)));
        writer.gauges("weir_table_limit", "Entries that there is room for, by table", room)?;
        let (known, all) = self.neighbours;
        let states = [("known", known), ("missing", all.saturating_sub(known))];
        let states = states.map(|(state, count)| (Labels([("state", state.into())]), count as u64));
        let help = "Neighbours in use, by whether their MAC address is known now";
        writer.gauges("weir_neighbours", help, states)?;
        let help = "Neighbours that were not asked for because the table of requests was full";
        writer.counters("weir_neighbours_refused", help, [(Labels([]), self.neighbours_refused)])?;
        let modes = self.interfaces.iter().map(|(name, mode, _)| {
            (Labels([("interface", name.clone().into()), ("mode", mode.clone().into())]), 1)
        });
        writer.gauges("weir_interface_mode", "How the XDP program is attached, as the kernel says", modes)?;
        let up = self
            .interfaces
            .iter()
            .map(|(name, _, is_up)| (Labels([("interface", name.clone().into())]), u64::from(*is_up)));
        writer.gauges("weir_interface_up", "Whether the interface is up and has a carrier", up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, Metrics};

    #[test]
    fn a_mode_that_is_no_more_is_told_no_more() {
        let (control, mut metrics) = (Control::default(), Metrics::new());
        control.register(metrics.registry());
        let interfaces = |mode: &str| vec![("eth1".to_owned(), mode.to_owned(), true)];
        control.note(Note { interfaces: interfaces("native"), neighbours_refused: 3, ..Note::default() });
        control.note(Note { interfaces: interfaces("generic"), neighbours_refused: 5, ..Note::default() });
        let text = metrics.text(Format::Prometheus);
        let modes: Vec<_> = text.lines().filter(|line| line.starts_with("weir_interface_mode{")).collect();
        assert_eq!(modes, ["weir_interface_mode{interface=\"eth1\",mode=\"generic\"} 1"]);
        assert!(text.contains("\nweir_neighbours_refused_total 5\n"), "{text}");
    }

    #[test]
    fn a_refused_reload_is_told_until_one_is_accepted() {
        let (control, mut metrics) = (Control::default(), Metrics::new());
        control.register(metrics.registry());
        for (is_accepted, want) in [(false, 0), (true, 1), (false, 0)] {
            control.reloaded(is_accepted);
            let text = metrics.text(Format::Prometheus);
            assert!(text.contains(&format!("\nweir_last_reload_accepted {want}\n")), "{text}");
        }
        let text = metrics.text(Format::Prometheus);
        assert!(text.contains("weir_reloads_total{result=\"refused\"} 2\n"), "{text}");
    }
}
