//! What is wrong with a configuration, and where.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;

/// Faults of one file that are kept; what is beyond is counted.
const KEPT_MAX: usize = 1000;

/// A position in a text: both from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing that is wrong: `file:line:column: path: reason`, without what does not apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: Arc<str>,
    /// Where in the file; `None` where it is about the file as a whole.
    pub at: Option<Mark>,
    /// Which key, as `services[0].port`; empty where it is about the whole.
    pub path: String,
    /// What is wrong and, where it helps, what would be right.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(at) = self.at {
            write!(f, ":{at}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Everything that is wrong with a file, by position. Displayed one fault a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    list: Vec<Fault>,
    more: usize,
}

impl Faults {
    /// A file that cannot be looked into at all.
    pub(super) fn whole_file(file: &str, reason: impl Into<String>) -> Self {
        let fault = Fault { file: file.into(), at: None, path: String::new(), reason: reason.into() };
        Self { list: vec![fault], more: 0 }
    }

    /// The faults, in the order of their positions: the first 1000.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Fault> {
        self.list.iter()
    }

    /// The same faults, each changed.
    pub(super) fn map(self, change: impl FnMut(Fault) -> Fault) -> Self {
        Self { list: self.list.into_iter().map(change).collect(), more: self.more }
    }

    /// How many there are, those that are not kept included.
    pub fn count(&self) -> usize {
        self.list.len() + self.more
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Faults {}

/// Collects faults while a file is read, so that reading can go on behind each.
#[derive(Debug)]
pub(super) struct Sink {
    file: Arc<str>,
    faults: List,
    warnings: List,
    /// Whether keys that nobody knows and keys that stand twice are warnings and not faults.
    lenient: bool,
}

#[derive(Debug, Default)]
struct List {
    kept: RefCell<Vec<Fault>>,
    more: Cell<usize>,
}

impl List {
    fn add(&self, fault: impl FnOnce() -> Fault) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(fault());
        } else {
            self.more.set(self.more.get() + 1);
        }
    }

    fn into_faults(self) -> Faults {
        let mut list = self.kept.into_inner();
        list.sort_by_key(|fault| fault.at);
        Faults { list, more: self.more.get() }
    }
}

impl Sink {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.into(), faults: List::default(), warnings: List::default(), lenient: false }
    }

    /// One to which unknown and repeated keys are warnings.
    pub(super) fn lenient(file: &str) -> Self {
        Self { lenient: true, ..Self::new(file) }
    }

    /// Notes a fault.
    pub(super) fn add(&self, at: Option<Mark>, path: impl fmt::Display, reason: impl fmt::Display) {
        self.faults.add(|| self.fault(at, path, reason));
    }

    /// Notes what works, but perhaps not as meant.
    pub(super) fn warn(&self, at: Option<Mark>, path: impl fmt::Display, reason: impl fmt::Display) {
        self.warnings.add(|| self.fault(at, path, reason));
    }

    /// Notes a key that is unknown or stands twice.
    pub(super) fn add_key(&self, at: Mark, path: impl fmt::Display, reason: impl fmt::Display) {
        if self.lenient {
            self.warn(Some(at), path, reason);
        } else {
            self.add(Some(at), path, reason);
        }
    }

    fn fault(&self, at: Option<Mark>, path: impl fmt::Display, reason: impl fmt::Display) -> Fault {
        Fault { file: Arc::clone(&self.file), at, path: path.to_string(), reason: reason.to_string() }
    }

    /// How many faults were noted; warnings do not count.
    pub(super) fn count(&self) -> usize {
        self.faults.kept.borrow().len() + self.faults.more.get()
    }

    /// The faults.
    pub(super) fn into_faults(self) -> Faults {
        self.faults.into_faults()
    }

    /// The warnings.
    pub(super) fn into_warnings(self) -> Faults {
        self.warnings.into_faults()
    }
}
