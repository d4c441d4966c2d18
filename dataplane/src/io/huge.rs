//! Flow-table memory on huge pages, where the kernel gives any.
#![expect(unsafe_code, reason = "madvise(2) has no safe wrapper")]

use crate::flow::table::Reserve;

/// Takes memory from the allocator and asks the kernel to back it by transparent huge pages before it is touched: at
/// 10 million flows small pages cost 12 to 15 % more. Where there are none, the memory is the same as any.
#[derive(Clone, Copy, Debug, Default)]
pub struct HugePages;

impl Reserve for HugePages {
    fn reserve<T>(&self, count: usize) -> Vec<T> {
        let mut vector = Vec::<T>::with_capacity(count);
        let bytes = std::mem::size_of_val(vector.spare_capacity_mut());
        let start = vector.as_mut_ptr().cast::<libc::c_void>();
        let offset = start.align_offset(PAGE);
        if bytes >= offset + HUGE_PAGE {
            // SAFETY: the range from the first page boundary in the vector's own capacity to that capacity's end is
            // mapped memory of this process, and MADV_HUGEPAGE changes nothing that it holds.
            unsafe { libc::madvise(start.byte_add(offset), bytes - offset, libc::MADV_HUGEPAGE) };
        }
        vector
    }
}

const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_the_capacity_asked_for() {
        for count in [0, 1, 1 << 20] {
            let mut memory: Vec<[u64; 8]> = HugePages.reserve(count);
            assert!(memory.capacity() >= count);
            memory.resize(count, [7; 8]);
            assert!(memory.iter().all(|line| line[0] == 7));
        }
    }
}
