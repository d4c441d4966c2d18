//! Lines beside the entries, for what only some flows need: taken when a flow is opened, given back when it ends.

use super::table::Reserve;

/// Index of a line.
pub type Index = u32;

/// No line.
pub const NONE: Index = Index::MAX;

/// Up to a fixed number of lines, whose memory is taken at start. Only the first part of it is faulted in then: the
/// rest is, page by page, when so many flows need it.
#[derive(Debug)]
pub(super) struct Pool<T> {
    lines: Vec<T>,
    free: Vec<Index>,
    limit: usize,
}

impl<T: Copy + Default> Pool<T> {
    /// A pool of `limit` lines, `ready` of them faulted in.
    pub(super) fn new(limit: usize, ready: usize, reserve: &impl Reserve) -> Self {
        let mut lines = reserve.reserve(limit);
        lines.resize(ready.min(limit), T::default());
        lines.clear();
        Self { lines, free: reserve.reserve(limit), limit }
    }

    /// A line that holds `value`; `None` where all are in use.
    pub(super) fn take(&mut self, value: T) -> Option<Index> {
        if let Some(index) = self.free.pop() {
            *self.lines.get_mut(index as usize)? = value;
            return Some(index);
        }
        if self.lines.len() == self.limit {
            return None;
        }
        let index = Index::try_from(self.lines.len()).ok()?;
        self.lines.push(value);
        Some(index)
    }

    /// Takes a line back. `index` came from [`Self::take`] and is not used any more.
    pub(super) fn give_back(&mut self, index: Index) {
        if (index as usize) < self.lines.len() && self.free.len() < self.limit {
            self.free.push(index);
        }
    }

    #[inline]
    pub(super) fn get(&self, index: Index) -> Option<&T> {
        self.lines.get(index as usize)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: Index) -> Option<&mut T> {
        self.lines.get_mut(index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Heap;
    use super::*;

    #[test]
    fn lines_are_given_out_once_and_again_after_they_came_back() {
        let mut pool = Pool::new(2, 1, &Heap);
        let [first, second] = [10, 20].map(|value| pool.take(value).unwrap());
        assert_eq!(pool.take(30), None);
        assert_eq!((pool.get(first), pool.get(second)), (Some(&10), Some(&20)));
        pool.give_back(first);
        assert_eq!(pool.take(40), Some(first));
        assert_eq!((pool.get(first), pool.get(second), pool.get(NONE)), (Some(&40), Some(&20), None));
    }
}
