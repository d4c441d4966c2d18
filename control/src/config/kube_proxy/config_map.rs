//! The ConfigMap that a KubeProxyConfiguration lies in, as kubeadm makes it.

use super::super::fault::{Fault, Faults, Mark, Sink};
use super::super::tree::{Entry, Node, Value};

/// Where the configuration lies.
const KEY: &str = "config.conf";

/// A text within a text.
#[derive(Debug)]
pub(super) struct Inner {
    pub text: String,
    place: Place,
}

/// How positions in the inner text come from those in the outer one.
#[derive(Debug)]
enum Place {
    /// A block of lines: by so many lines and columns.
    Shifted { lines: usize, columns: usize },
    /// Not at all; it starts here.
    Behind(Mark),
}

/// The KubeProxyConfiguration in a ConfigMap; `None` where the document is something else.
pub(super) fn unpack(file_name: &str, text: &str, root: &Node<'_>) -> Result<Option<Inner>, Faults> {
    let Some(kind) = value(root, "kind") else { return Ok(None) };
    if !matches!(&kind.value, Value::Scalar { text, .. } if text == "ConfigMap") {
        return Ok(None);
    }
    let data = value(root, "data");
    let refuse = |at: Mark, reason: &str| {
        let sink = Sink::new(file_name);
        sink.add(Some(at), "data", reason);
        Err(sink.into_faults())
    };
    let Some(entry) = data.and_then(|data| entry(data, KEY)) else {
        return refuse(data.unwrap_or(root).at, "the ConfigMap has no key config.conf");
    };
    match &entry.value.value {
        Value::Scalar { text: inner, .. } if !entry.value.is_null() => {
            let place = place(text, entry);
            Ok(Some(Inner { text: inner.clone().into_owned(), place }))
        }
        _ => refuse(entry.value.at, "config.conf is not a text"),
    }
}

fn entry<'n>(node: &'n Node<'_>, key: &str) -> Option<&'n Entry<'n>> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().rfind(|entry| entry.key == key)
}

fn value<'n>(node: &'n Node<'_>, key: &str) -> Option<&'n Node<'n>> {
    entry(node, key).map(|entry| &entry.value)
}

/// A block in which each line stands as it is (`|`) begins below its key, deeper than it by the same number of blanks in
/// each line.
fn place(text: &str, entry: &Entry<'_>) -> Place {
    let behind = Place::Behind(entry.value.at);
    let mut lines = text.lines().skip(entry.at.line - 1);
    let Some(header) = lines.next() else { return behind };
    let is_block = header.split_once(':').is_some_and(|(_, rest)| rest.trim_start().starts_with('|'));
    if !is_block {
        return behind;
    }
    let first = lines.find(|line| !line.trim().is_empty()).unwrap_or_default();
    let columns = first.len() - first.trim_start_matches(' ').len();
    Place::Shifted { lines: entry.at.line, columns }
}

impl Inner {
    /// Faults of the inner text as faults of the outer one.
    pub(super) fn place(&self, faults: Faults) -> Faults {
        faults.map(|fault| Fault {
            at: match self.place {
                Place::Shifted { lines, columns } => {
                    fault.at.map(|at| Mark { line: at.line + lines, column: at.column + columns })
                }
                Place::Behind(mark) => Some(mark),
            },
            path: match fault.path.as_str() {
                "" => format!("data[{KEY:?}]"),
                path => path.to_owned(),
            },
            ..fault
        })
    }
}
