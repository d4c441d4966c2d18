//! Typed reading of a tree: each step gives the value, or notes a fault with its place and gives `None`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::fault::{Mark, Sink};
use super::tree::{Entry, Node, Value};

/// How alike two words are at least (Jaro-Winkler) for one to be offered for the other.
const ALIKE: f64 = 0.8;

/// The keys and indices that lead to a node; displayed as `services[0].port`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => write!(f, "{}", key.escape_debug()),
            Self::Key(parent, key) => write!(f, "{parent}.{}", key.escape_debug()),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A node, where it is and where its faults go.
#[derive(Clone, Copy)]
pub(super) struct Field<'n, 'p> {
    node: &'n Node<'n>,
    path: Path<'p>,
    sink: &'p Sink,
}

impl<'n, 'p> Field<'n, 'p> {
    pub(super) fn root(node: &'n Node<'n>, sink: &'p Sink) -> Self {
        Self { node, path: Path::Root, sink }
    }

    pub(super) fn at(&self) -> Mark {
        self.node.at
    }

    /// Notes a fault of this node.
    pub(super) fn refuse(&self, reason: impl fmt::Display) {
        self.sink.add(Some(self.node.at), self.path, reason);
    }

    pub(super) fn refuse_type(&self, wanted: &str) {
        self.refuse(format_args!("expected {wanted}, found {}", self.node.kind()));
    }

    /// A string.
    pub(super) fn text(&self) -> Option<&'n str> {
        match &self.node.value {
            Value::Scalar { text, .. } if self.node.kind() == "a string" => Some(text),
            Value::Scalar { plain: true, .. } if !self.node.is_null() => {
                self.refuse(format_args!("expected a string, found {}: put it in quotes", self.node.kind()));
                None
            }
            _ => {
                self.refuse_type("a string");
                None
            }
        }
    }

    /// A string in the form that `T` has.
    pub(super) fn parse<T: FromStr>(&self) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        let text = self.text()?;
        text.parse().map_err(|error| self.refuse(format_args!("{text:?}: {error}"))).ok()
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.refuse(format_args!("{text:?} is not one of {}", names.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    /// A boolean.
    pub(super) fn flag(&self) -> Option<bool> {
        match &self.node.value {
            Value::Scalar { text, plain: true } if text.eq_ignore_ascii_case("true") => Some(true),
            Value::Scalar { text, plain: true } if text.eq_ignore_ascii_case("false") => Some(false),
            _ => {
                self.refuse_type("true or false");
                None
            }
        }
    }

    /// A whole decimal number within `range`.
    pub(super) fn number<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + Into<u64> + TryFrom<u64>,
    {
        let Value::Scalar { text, plain: true } = &self.node.value else {
            self.refuse_type("a whole number");
            return None;
        };
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let leads = digits.len() > 1 && digits.starts_with('0');
        if digits.is_empty() || leads || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            match self.node.kind() {
                "nothing" => self.refuse_type("a whole number"),
                _ => self.refuse(format_args!("expected a whole number, found {}", text.escape_debug())),
            }
            return None;
        }
        let (low, high): (u64, u64) = ((*range.start()).into(), (*range.end()).into());
        let negative = text.starts_with('-') && digits != "0";
        // Digits fail to parse only where there are too many.
        let number = digits.parse().unwrap_or(u64::MAX);
        if negative || number < low {
            self.refuse(format_args!("{text} is below {low}"));
        } else if number > high {
            self.refuse(format_args!("{text} is above {high}"));
        } else {
            return T::try_from(number).ok();
        }
        None
    }

    /// The first `most` entries of a list; more are a fault.
    pub(super) fn list<'f>(&'f self, most: usize) -> impl Iterator<Item = Field<'n, 'f>> {
        let nodes = match &self.node.value {
            Value::List(nodes) => nodes.as_slice(),
            _ => {
                self.refuse_type("a list");
                &[]
            }
        };
        let field = |(index, node)| Field { node, path: Path::Index(&self.path, index), sink: self.sink };
        if let Some(beyond) = nodes.iter().enumerate().nth(most) {
            field(beyond).refuse(format_args!("the list has more than {most} entries"));
        }
        nodes.iter().enumerate().take(most).map(field)
    }

    /// A scalar as it is written, where it has no quotes and is not nothing.
    pub(super) fn plain(&self) -> Option<&'n str> {
        match &self.node.value {
            Value::Scalar { text, plain: true } if !self.node.is_null() => Some(text),
            _ => None,
        }
    }

    /// The keys and values of a mapping whose keys are not known beforehand. Where a key stands twice, the last one
    /// counts. More than `most` are a fault.
    pub(super) fn entries<'f>(&'f self, most: usize) -> Vec<(&'n str, Field<'n, 'f>)> {
        let Value::Map(entries) = &self.node.value else {
            self.refuse_type("a mapping");
            return Vec::new();
        };
        if entries.len() > most {
            self.refuse(format_args!("the mapping has more than {most} keys"));
        }
        let mut found: Vec<(&'n str, Field<'n, 'f>)> = Vec::new();
        for entry in entries.iter().take(most) {
            let key: &'n str = &entry.key;
            let field = Field { node: &entry.value, path: Path::Key(&self.path, key), sink: self.sink };
            match found.iter_mut().find(|(known, _)| *known == key) {
                Some((_, earlier)) => {
                    let reason = format_args!("the key is already at {}", earlier.at());
                    self.sink.add_key(entry.at, field.path, reason);
                    *earlier = field;
                }
                None => found.push((key, field)),
            }
        }
        found
    }

    /// Notes what is right, but perhaps not meant so.
    pub(super) fn warn(&self, reason: impl fmt::Display) {
        self.sink.warn(Some(self.node.at), self.path, reason);
    }

    /// Whether it is written as a number, whatever sort of.
    pub(super) fn is_number(&self) -> bool {
        self.node.kind() == "a number"
    }

    /// Whether it is a mapping.
    pub(super) fn is_map(&self) -> bool {
        matches!(&self.node.value, Value::Map(_))
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(&self.node.value, Value::List(_))
    }

    /// Whether it is a list without entries.
    pub(super) fn is_empty_list(&self) -> bool {
        matches!(&self.node.value, Value::List(nodes) if nodes.is_empty())
    }

    /// A mapping whose keys are looked at elsewhere; `None` where it is none, which is no fault here.
    pub(super) fn peek<'f>(&'f self) -> Option<Map<'n, 'f>> {
        let Value::Map(entries) = &self.node.value else { return None };
        Some(Map { entries, field: self })
    }

    /// A mapping with these `keys` and no others, each at most once.
    pub(super) fn map<'f>(&'f self, keys: &'static [&'static str]) -> Option<Map<'n, 'f>> {
        let Value::Map(entries) = &self.node.value else {
            self.refuse_type("a mapping");
            return None;
        };
        let mut seen: Vec<Option<Mark>> = vec![None; keys.len()];
        for entry in entries {
            let path = Path::Key(&self.path, &entry.key);
            let place = keys.iter().position(|key| *key == entry.key).and_then(|index| seen.get_mut(index));
            match place {
                None => self.sink.add_key(entry.at, path, Unknown { word: &entry.key, known: keys }),
                Some(Some(first)) => {
                    self.sink.add_key(entry.at, path, format_args!("the key is already at {first}"));
                }
                Some(first) => *first = Some(entry.at),
            }
        }
        Some(Map { entries, field: self })
    }
}

/// An unknown key, with the known one that it may stand for.
struct Unknown<'a> {
    word: &'a str,
    known: &'a [&'static str],
}

impl fmt::Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown key")?;
        match closest(self.word, self.known.iter().copied()) {
            Some(known) => write!(f, " (did you mean {known:?}?)"),
            None => write!(f, ", known are {}", self.known.join(", ")),
        }
    }
}

/// The word that `word` most likely is a misspelling of.
pub(super) fn closest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let scored = known.map(|known| (strsim::jaro_winkler(word, known), known));
    scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// A mapping whose keys are known ones.
pub(super) struct Map<'n, 'f> {
    entries: &'n [Entry<'n>],
    field: &'f Field<'n, 'f>,
}

impl<'n, 'f> Map<'n, 'f> {
    /// The value of a key that may be left out. Nothing behind the key counts as left out; of several values, the last
    /// one counts.
    pub(super) fn optional(&self, key: &'static str) -> Option<Field<'n, 'f>> {
        let entry = self.entries.iter().rfind(|entry| entry.key == key)?;
        let path = Path::Key(&self.field.path, key);
        (!entry.value.is_null()).then_some(Field { node: &entry.value, path, sink: self.field.sink })
    }

    /// How many faults of the file were noted by now.
    pub(super) fn faults(&self) -> usize {
        self.field.sink.count()
    }

    /// The value of a key that has to be there.
    pub(super) fn required(&self, key: &'static str) -> Option<Field<'n, 'f>> {
        let found = self.optional(key);
        if found.is_none() {
            self.field.refuse(format_args!("{key:?} is missing"));
        }
        found
    }
}

/// One step of a path from the root, for faults that are found after the tree was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(&'static str),
    Index(usize),
}

/// Steps, displayed like a [`Path`].
pub(super) struct Steps<'s>(pub &'s [Step]);

impl fmt::Display for Steps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// The node that the steps lead to.
pub(super) fn find<'n>(root: &'n Node<'n>, steps: &[Step]) -> Option<&'n Node<'n>> {
    steps.iter().try_fold(root, |node, step| match (&node.value, step) {
        (Value::Map(entries), Step::Key(key)) => {
            entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.value)
        }
        (Value::List(nodes), Step::Index(index)) => nodes.get(*index),
        _ => None,
    })
}

/// Where the steps lead to, or the last of them that leads somewhere.
pub(super) fn locate(root: &Node<'_>, steps: &[Step]) -> Mark {
    let lengths = (0..=steps.len()).rev();
    let found = lengths.filter_map(|length| find(root, steps.get(..length)?)).next();
    found.map_or(root.at, |node| node.at)
}
