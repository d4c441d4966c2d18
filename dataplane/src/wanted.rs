//! Neighbours that workers miss, on their way to control, which has the kernel ask for them.

use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;

use crate::snapshot::net::Neighbour;

/// A bounded queue from all workers to control, without locks.
#[derive(Debug)]
pub struct Wanted {
    queue: ArrayQueue<Neighbour>,
    control: AtomicWaker,
}

impl Wanted {
    /// A queue of at most `limit` neighbours (at least 1).
    pub fn new(limit: usize) -> Self {
        Self { queue: ArrayQueue::new(limit.max(1)), control: AtomicWaker::new() }
    }

    /// Asks for a neighbour; gives it back where the queue is full. Wakes control if it waits in [`Self::poll`], which
    /// is the only case that may cost a system call.
    pub fn push(&self, place: Neighbour) -> Result<(), Neighbour> {
        self.queue.push(place)?;
        self.control.wake();
        Ok(())
    }

    /// The neighbour that was asked for first.
    pub fn pop(&self) -> Option<Neighbour> {
        self.queue.pop()
    }

    /// How many neighbours wait to be popped.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Ready where a neighbour waits to be popped; else the next one wakes the caller, once. For one caller at a time.
    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        self.control.register(context.waker());
        // Looked at afterwards, so that none comes unseen in between.
        if self.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_is_woken_once_and_a_full_queue_gives_back() {
        let place = |host| Neighbour { link: 1, addr: [10, 0, 0, host].into() };
        let (wanted, woken) = (Wanted::new(2), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let context = Context::from_waker(&waker);
        assert_eq!(wanted.poll(&context), Poll::Pending);
        wanted.push(place(1)).unwrap();
        wanted.push(place(2)).unwrap();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "by the first");
        assert_eq!(wanted.poll(&context), Poll::Ready(()));
        assert_eq!(wanted.push(place(3)), Err(place(3)));
        assert_eq!((wanted.len(), wanted.pop(), wanted.pop()), (2, Some(place(1)), Some(place(2))));
        assert_eq!((wanted.pop(), wanted.poll(&context)), (None, Poll::Pending));
    }
}
