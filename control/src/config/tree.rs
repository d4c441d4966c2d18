//! YAML text -> a tree of nodes with positions.
//!
//! Built from the parser's events and not with a YAML loader of values, so that every duplicate key keeps its place and
//! numbers stay as written. Hostile input ends early: depth is bounded, anchors, aliases and tags are refused.

use std::borrow::Cow;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::fault::Mark;

/// Lists and mappings in each other at most: twice what the format needs.
const DEPTH_MAX: usize = 12;

/// A value and where it starts.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub at: Mark,
    pub value: Value<'a>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    /// A scalar as written. A `plain` one has no quotes, so it may be a number, a boolean or null.
    Scalar {
        text: Cow<'a, str>,
        plain: bool,
    },
    List(Vec<Node<'a>>),
    Map(Vec<Entry<'a>>),
}

/// A key of a mapping with its value. Keys may repeat.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub key: Cow<'a, str>,
    pub at: Mark,
    pub value: Node<'a>,
}

impl Node<'_> {
    /// Whether it is YAML's null: nothing, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        let Value::Scalar { text, plain: true } = &self.value else { return false };
        matches!(&**text, "" | "~" | "null" | "Null" | "NULL")
    }

    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { text, plain: true } => plain_kind(text),
            Value::Scalar { .. } => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// The type that YAML 1.2's core schema gives to an unquoted scalar.
fn plain_kind(text: &str) -> &'static str {
    let number = text.strip_prefix(['-', '+']).unwrap_or(text);
    match text {
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => "a boolean",
        _ if number.starts_with(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok() => "a number",
        _ => "a string",
    }
}

/// Why there is no tree.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub at: Option<Mark>,
    pub reason: String,
}

fn mark(marker: Marker) -> Mark {
    Mark { line: marker.line(), column: marker.col() + 1 }
}

/// A list or mapping that is still open.
enum Open<'a> {
    List(Mark, Vec<Node<'a>>),
    Map { at: Mark, entries: Vec<Entry<'a>>, key: Option<(Cow<'a, str>, Mark)> },
}

/// The tree of the one document in `text`.
pub(super) fn parse(text: &str) -> Result<Node<'_>, Unreadable> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| Unreadable {
            at: Some(mark(*error.marker())),
            reason: format!("not YAML: {}", error.info()),
        })?;
        builder
            .event(event, mark(span.start))
            .map_err(|reason| Unreadable { at: Some(mark(span.start)), reason: reason.to_owned() })?;
    }
    let empty = Unreadable { at: None, reason: "the file is empty".to_owned() };
    builder.root.filter(|root| !root.is_null()).ok_or(empty)
}

#[derive(Default)]
struct Builder<'a> {
    open: Vec<Open<'a>>,
    root: Option<Node<'a>>,
}

impl<'a> Builder<'a> {
    fn event(&mut self, event: Event<'a>, at: Mark) -> Result<(), &'static str> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => Err("more than one YAML document in the file"),
            Event::DocumentStart(_) => Ok(()),
            Event::Alias(_) => Err("aliases are not supported: write the value out"),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if anchor != 0 =>
            {
                Err("anchors are not supported")
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => Err("tags are not supported"),
            Event::Scalar(text, style, ..) => {
                self.put(Node { at, value: Value::Scalar { text, plain: style == ScalarStyle::Plain } })
            }
            Event::SequenceStart(..) => self.open(Open::List(at, Vec::new())),
            Event::MappingStart(..) => self.open(Open::Map { at, entries: Vec::new(), key: None }),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(at, nodes)) => self.put(Node { at, value: Value::List(nodes) }),
                Some(Open::Map { at, entries, .. }) => self.put(Node { at, value: Value::Map(entries) }),
                None => Ok(()),
            },
        }
    }

    fn open(&mut self, new: Open<'a>) -> Result<(), &'static str> {
        if let Some(Open::Map { key: None, .. }) = self.open.last() {
            return Err("a key has to be a string");
        }
        if self.open.len() == DEPTH_MAX {
            return Err("nested too deep");
        }
        self.open.push(new);
        Ok(())
    }

    /// Gives a finished node to what it lies in.
    fn put(&mut self, node: Node<'a>) -> Result<(), &'static str> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(_, nodes)) => nodes.push(node),
            Some(Open::Map { entries, key, .. }) => match (key.take(), node) {
                (Some((key, at)), value) => entries.push(Entry { key, at, value }),
                (None, Node { at, value: Value::Scalar { text, .. } }) => *key = Some((text, at)),
                (None, _) => return Err("a key has to be a string"),
            },
        }
        Ok(())
    }
}
