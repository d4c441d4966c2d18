//! How others read a worker's flow table: by asking the worker.
//!
//! The asker brings the memory. The worker fills it in, a bounded piece a turn, and gives it back; it allocates and
//! frees nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use super::Handler;
use crate::io::handoff::Bell;
use crate::pipeline::FlowRecord;
use crate::time::Tick;

/// Slots of the flow table that a worker looks at for an asker in one turn.
const SLOTS_A_TURN: usize = 256;

/// How long an asker sleeps between looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A piece of a worker's flow table.
#[derive(Debug, Default)]
pub struct FlowPage {
    /// The flows.
    pub records: Vec<FlowRecord>,
    /// Where to go on; `None` at the end of the table.
    pub next: Option<usize>,
}

/// Why there is no [`FlowPage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowsUnavailable {
    /// The worker did not answer in time: it has ended, or is stopped.
    #[error("the worker does not answer")]
    NoAnswer,
    /// Somebody else is asking, or the worker still owes an answer that nobody waited for.
    #[error("the worker is still busy with another question about its flows")]
    Busy,
}

/// Where a worker is asked about its flows, one question at a time.
#[derive(Clone, Debug)]
pub struct FlowDesk {
    mailbox: Arc<Mailbox>,
    bell: Arc<Bell>,
}

/// A question, and its answer as far as it is known.
#[derive(Debug)]
struct Query {
    page: FlowPage,
    cursor: usize,
}

/// One question on its way to the worker, one answer on its way back.
#[derive(Debug)]
pub(super) struct Mailbox {
    queries: ArrayQueue<Query>,
    answers: ArrayQueue<Query>,
    /// Whether somebody is asking.
    taken: AtomicBool,
    /// Whether the worker owes an answer. Only who is asking uses it.
    unanswered: AtomicBool,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        Self {
            queries: ArrayQueue::new(1),
            answers: ArrayQueue::new(1),
            taken: AtomicBool::new(false),
            unanswered: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(super) fn has_query(&self) -> bool {
        !self.queries.is_empty()
    }

    /// The worker's side: goes on with the question, if there is one. Returns whether there is.
    #[inline]
    pub(super) fn serve(&self, handler: &impl Handler, now: Tick) -> bool {
        self.has_query() && self.serve_query(handler, now)
    }

    #[cold]
    fn serve_query(&self, handler: &impl Handler, now: Tick) -> bool {
        let Some(mut query) = self.queries.pop() else { return false };
        let records = &mut query.page.records;
        query.page.next = handler.dump(query.cursor, SLOTS_A_TURN, now, records);
        // There is room for a question and an answer, and the asker has only one of them out.
        let _ = match query.page.next {
            Some(next) if records.len() < records.capacity() => {
                query.cursor = next;
                self.queries.push(query)
            }
            _ => self.answers.push(query),
        };
        true
    }
}

impl FlowDesk {
    pub(super) fn new(mailbox: Arc<Mailbox>, bell: Arc<Bell>) -> Self {
        Self { mailbox, bell }
    }

    /// The next `limit` flows (at least 1) from `cursor` on, which is 0 or an earlier page's [`FlowPage::next`].
    /// Blocks until the worker has answered, for `timeout` at most. Not for workers.
    pub fn page(&self, cursor: usize, limit: usize, timeout: Duration) -> Result<FlowPage, FlowsUnavailable> {
        let mailbox = &*self.mailbox;
        if mailbox.taken.swap(true, Ordering::Acquire) {
            return Err(FlowsUnavailable::Busy);
        }
        let result = self.ask(cursor, limit.max(1), timeout);
        mailbox.taken.store(false, Ordering::Release);
        result
    }

    #[expect(clippy::disallowed_methods, reason = "the asker's thread, not a worker's")]
    fn ask(&self, cursor: usize, limit: usize, timeout: Duration) -> Result<FlowPage, FlowsUnavailable> {
        let mailbox = &*self.mailbox;
        if mailbox.unanswered.load(Ordering::Relaxed) && mailbox.answers.pop().is_none() {
            return Err(FlowsUnavailable::Busy);
        }
        let page = FlowPage { records: Vec::with_capacity(limit), next: None };
        mailbox.unanswered.store(true, Ordering::Relaxed);
        // The worker owes nothing, so its queue is empty.
        let _ = mailbox.queries.push(Query { page, cursor });
        self.bell.ring();
        let mut left = timeout;
        loop {
            if let Some(query) = mailbox.answers.pop() {
                mailbox.unanswered.store(false, Ordering::Relaxed);
                return Ok(query.page);
            }
            let nap = LOOK_EVERY.min(left);
            if nap.is_zero() {
                return Err(FlowsUnavailable::NoAnswer);
            }
            std::thread::sleep(nap);
            left -= nap;
        }
    }
}
