//! Memory for the flow tables of the engine and of the bare loop, on huge pages where the kernel has them.

use dataplane::flow::table::Reserve;

/// Memory that asks for huge pages.
pub(crate) struct HugePages;

impl Reserve for HugePages {
    fn reserve<T>(&self, count: usize) -> Vec<T> {
        reserve(count)
    }
}

/// An empty vector with room for `count` values.
pub(crate) fn reserve<T>(count: usize) -> Vec<T> {
    const PAGE: usize = 4096;
    let vector: Vec<T> = Vec::with_capacity(count);
    let bytes = count * size_of::<T>();
    let start = vector.as_ptr().cast::<u8>();
    let inside = start.align_offset(PAGE);
    if bytes > inside + PAGE {
        let len = (bytes - inside) / PAGE * PAGE;
        // SAFETY: the range lies inside the vector's memory, and the advice changes nothing but the size of its pages.
        // A kernel without huge pages refuses, which costs speed only.
        unsafe { libc::madvise(start.add(inside).cast_mut().cast(), len, libc::MADV_HUGEPAGE) };
    }
    vector
}
