#![allow(unsafe_code, reason = "an allocator, which passes everything to the system's")]
//! An allocator that makes the first pages of large zeroed memory present at once.
//!
//! The buffers that requests are read into are such memory, and fuser makes them. When a server is
//! killed while one of its threads waits for a request, that thread still takes one. The kernel
//! then copies into pages that are present, but does not make others present for a process that is
//! dying: it ends the request with EIO instead of keeping it for the successor, and a reader in
//! some container sees that. A program that serves a connection therefore has this as its global
//! allocator, and no huge pages, whose making takes present pages away for a moment.

use std::alloc::{GlobalAlloc, Layout, System};

/// Memory of this size and more may be a buffer of requests.
const LARGE: usize = 64 << 10;
/// Requests are a header with a name or little text: two pages, wherever in the first one begins.
const REACHED: usize = 4 * PAGE;
/// The smallest page: where pages are larger, some are touched twice.
const PAGE: usize = 4096;

/// The system's allocator, with this one difference.
#[derive(Debug, Clone, Copy, Default)]
pub struct PrefaultAllocator;

// SAFETY: every call is passed to the system's allocator unchanged; what is written afterwards is
// within the memory that it gave, and is what is there already.
unsafe impl GlobalAlloc for PrefaultAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises a layout whose size is not 0, which is all that System needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises a layout whose size is not 0; System needs no more for zeroes.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if layout.size() >= LARGE && !memory.is_null() {
            for at in (0..REACHED).step_by(PAGE) {
                // SAFETY: `at` is below REACHED, which is below the size, and the memory has no other
                // user before it is returned. Volatile, because the compiler would leave out a
                // write of the zero that is there already.
                unsafe { memory.add(at).write_volatile(0) };
            }
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller promises that the memory is from this allocator, hence from System, and
        // was allocated with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises memory of this allocator, hence of System, its layout, and a new
        // size that is not 0 and does not overflow.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Is the page at this address present? `Documentation/admin-guide/mm/pagemap.rst`.
    fn is_present(address: usize) -> bool {
        let size = rustix::param::page_size();
        let mut entry = [0; 8];
        let pages = File::open("/proc/self/pagemap").unwrap();
        pages.read_exact_at(&mut entry, (address / size * 8) as u64).unwrap();
        u64::from_ne_bytes(entry) >> 63 == 1
    }

    fn present(allocator: &impl GlobalAlloc) -> usize {
        // As large as fuser's buffers.
        let layout = Layout::from_size_align((16 << 20) + 4096, 1).unwrap();
        // SAFETY: the size is not 0.
        let memory = unsafe { allocator.alloc_zeroed(layout) };
        assert!(!memory.is_null());
        let pages = (0..REACHED).step_by(PAGE);
        let present = pages.filter(|at| is_present(memory as usize + at)).count();
        // SAFETY: from this allocator, with this layout.
        unsafe { allocator.dealloc(memory, layout) };
        present
    }

    #[test]
    fn what_a_request_can_fill_is_present() {
        assert_eq!(present(&PrefaultAllocator), REACHED / PAGE);
    }
}
