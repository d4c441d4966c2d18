//! What goes wrong on command.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::resource::Resource;

/// What is asked for, as faults tell requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Verb {
    Get,
    List,
    Watch,
    /// A watch that begins with the objects that there are (`sendInitialEvents`).
    WatchList,
    Write,
}

/// What becomes of a request instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status code with its `Status` object.
    Status(u16),
    /// Too many requests: to be asked again after so many seconds.
    TooMany(u32),
    /// A web page with this code, as what stands before the server might answer.
    Page(u16),
    /// What is no JSON, as if it were.
    Garbage,
    /// A list or events of another kind.
    WrongKind,
    /// The first half of the answer, then the end of the connection.
    Half,
    /// The answer, so much later.
    Late(Duration),
    /// `sendInitialEvents` is not known: a watch of old, whose first events have no end.
    Ignored,
}

/// A fault, and which requests it is for.
#[derive(Clone, Copy, Debug)]
struct Order {
    resource: Option<Resource>,
    verb: Option<Verb>,
    fault: Fault,
    /// How many requests it is for; `None`: all.
    left: Option<u32>,
}

/// What becomes of the watches that are going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// They end as after their time.
    End,
    /// They break off in the middle of an event.
    Middle,
    /// They get a line that is no JSON, and go on.
    Garbage,
    /// They get an event that says that their version has expired, and end.
    Expired,
}

/// Orders of a test.
#[derive(Debug)]
pub struct Faults {
    orders: Mutex<Vec<Order>>,
    /// Counts up with every cut.
    cuts: watch::Sender<(u64, Cut)>,
    stalled: watch::Sender<bool>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            orders: Mutex::default(),
            cuts: watch::Sender::new((0, Cut::End)),
            stalled: watch::Sender::new(false),
        }
    }
}

impl Faults {
    fn orders(&self) -> MutexGuard<'_, Vec<Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every request of these meets the fault, until [`Faults::clear`].
    pub fn set(&self, resource: impl Into<Option<Resource>>, verb: impl Into<Option<Verb>>, fault: Fault) {
        let order = Order { resource: resource.into(), verb: verb.into(), fault, left: None };
        self.orders().push(order);
    }

    /// As [`Faults::set`], for the next `count` requests.
    pub fn set_times(
        &self,
        resource: impl Into<Option<Resource>>,
        verb: impl Into<Option<Verb>>,
        fault: Fault,
        count: u32,
    ) {
        let order = Order { resource: resource.into(), verb: verb.into(), fault, left: Some(count) };
        self.orders().push(order);
    }

    /// No request meets a fault any more.
    pub fn clear(&self) {
        self.orders().clear();
    }

    /// Does this to all watches that are going on.
    pub fn cut(&self, cut: Cut) {
        self.cuts.send_modify(|(count, kind)| {
            *count += 1;
            *kind = cut;
        });
    }

    /// Whether watches say nothing any more, their connections open.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// The fault that a request meets.
    pub(super) fn meet(&self, resource: Resource, verb: Verb) -> Option<Fault> {
        let mut orders = self.orders();
        let is_for = |order: &&mut Order| {
            order.resource.is_none_or(|it| it == resource)
                && order.verb.is_none_or(|it| it == verb)
                && order.left != Some(0)
        };
        let order = orders.iter_mut().find(is_for)?;
        if let Some(left) = &mut order.left {
            *left -= 1;
        }
        Some(order.fault)
    }

    pub(super) fn cuts(&self) -> watch::Receiver<(u64, Cut)> {
        self.cuts.subscribe()
    }

    pub(super) fn stalls(&self) -> watch::Receiver<bool> {
        self.stalled.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_for_what_it_was_set_for_and_so_often() {
        let faults = Faults::default();
        faults.set_times(Resource::Services, Verb::List, Fault::Garbage, 2);
        faults.set(Resource::Nodes, None, Fault::Status(403));
        let services = || faults.meet(Resource::Services, Verb::List);
        assert_eq!(faults.meet(Resource::Services, Verb::Watch), None);
        assert_eq!([services(), services(), services()], [Some(Fault::Garbage), Some(Fault::Garbage), None]);
        assert_eq!(faults.meet(Resource::Nodes, Verb::Get), Some(Fault::Status(403)));
        faults.clear();
        assert_eq!(faults.meet(Resource::Nodes, Verb::Get), None);
    }
}
