//! A hint to the memory system: fetch this cache line, it is wanted soon.
#![expect(unsafe_code, reason = "the prefetch instruction has no safe wrapper")]

/// Asks for the cache line that `value` begins in to be brought into all cache levels. Never faults, changes nothing.
#[inline(always)]
pub fn prefetch<T: ?Sized>(value: &T) {
    fetch(std::ptr::from_ref(value).cast());
}

/// The same for the value in this place of a list. A place that the list does not have costs a fetch of something else: less
/// than to compare it with the length each time.
#[inline(always)]
pub fn prefetch_at<T>(values: &[T], place: usize) {
    fetch(values.as_ptr().wrapping_add(place).cast());
}

/// The same for all cache lines of `value`.
#[inline(always)]
pub fn prefetch_whole<T>(value: &T) {
    let first: *const u8 = std::ptr::from_ref(value).cast();
    for offset in (0..size_of::<T>()).step_by(LINE) {
        fetch(first.wrapping_add(offset));
    }
    // It may begin in the middle of a line.
    fetch(first.wrapping_add(size_of::<T>().saturating_sub(1)));
}

/// Bytes of a cache line.
const LINE: usize = 64;

#[inline(always)]
fn fetch(byte: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: PREFETCHT0 is a hint that neither faults nor dereferences, and SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(byte.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = byte;
}
