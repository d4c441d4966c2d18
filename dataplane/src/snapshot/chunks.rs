//! A list by index of which an edited copy shares everything but what was edited.
//!
//! The list is cut into chunks. A copy costs a reference; the first edit of it copies the list of chunks, and every
//! chunk costs a copy when it is first edited. To read is one load more than from an array.

use std::array;
use std::sync::Arc;

/// A list in chunks of `N`. Where nothing was set, `T::default()` is.
#[derive(Clone, Debug)]
pub(super) struct Chunks<T, const N: usize> {
    chunks: Arc<[Arc<[T; N]>]>,
}

impl<T, const N: usize> Default for Chunks<T, N> {
    fn default() -> Self {
        Self { chunks: Arc::default() }
    }
}

impl<T: Clone + Default, const N: usize> Chunks<T, N> {
    /// What is at `index`; `None` past all that was set.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / N)?.get(index % N)
    }

    /// Sets what is at `index`.
    pub(super) fn set(&mut self, index: usize, value: T) {
        if let Some(place) = self.place(index) {
            *place = value;
        }
    }

    /// Takes what is at `index`, and leaves what is where nothing was set.
    pub(super) fn take(&mut self, index: usize) -> T {
        if index / N >= self.chunks.len() {
            return T::default();
        }
        self.place(index).map(std::mem::take).unwrap_or_default()
    }

    /// All that was set, and what is between, by index.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The place at `index`, in chunks that are this list's alone.
    fn place(&mut self, index: usize) -> Option<&mut T> {
        let number = index / N;
        if number >= self.chunks.len() {
            let known = self.chunks.iter().cloned();
            let new = self.chunks.len()..=number;
            self.chunks = known.chain(new.map(|_| Arc::new(array::from_fn(|_| T::default())))).collect();
        }
        let chunk = Arc::make_mut(&mut self.chunks).get_mut(number)?;
        Arc::make_mut(chunk).get_mut(index % N)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_list_is_an_array_and_its_copies_keep_what_they_had(
            edits in proptest::collection::vec((0..40_usize, 1..100_u8, any::<bool>()), 0..60),
        ) {
            let (mut list, mut array) = (Chunks::<u8, 4>::default(), Vec::new());
            let mut copies = Vec::new();
            for (index, value, is_copied) in edits {
                if is_copied {
                    copies.push((list.clone(), array.clone()));
                }
                list.set(index, value);
                array.resize(array.len().max(index + 1), 0);
                array[index] = value;
            }
            copies.push((list, array));
            for (list, array) in copies {
                let rest: Vec<_> = list.iter().skip(array.len()).collect();
                prop_assert!(rest.len() < 4 && rest.iter().all(|value| **value == 0));
                prop_assert_eq!(list.iter().copied().take(array.len()).collect::<Vec<_>>(), array.clone());
                prop_assert!((0..array.len()).all(|index| list.get(index) == array.get(index)));
                prop_assert!(list.get(48).is_none());
            }
        }
    }

    #[test]
    fn an_edit_copies_its_chunk_alone() {
        let mut list = Chunks::<u8, 4>::default();
        list.set(11, 1);
        let before = list.clone();
        list.set(5, 2);
        let same: Vec<_> = list.chunks.iter().zip(&*before.chunks).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
        assert_eq!(same, [true, false, true]);
    }
}
