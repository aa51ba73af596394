#![allow(unsafe_code, reason = "an allocator, which passes everything to the system's")]
//! A global allocator that pre-faults the first pages of large zeroed allocations.
//!
//! fuser reads requests into such allocations. When a server is killed while a thread is in read(2)
//! on the device, that read still takes a request. The kernel then copies it into present pages,
//! but does not fault in others for a dying process: it ends the request with EIO instead of
//! keeping it for the successor, and a reader in a container gets that error. A program that serves
//! a connection therefore uses this allocator, does not fork, because fork(2) write-protects all
//! pages, and disables huge pages, because collapsing small pages into one makes them absent for a
//! moment. It must never change what the caller of the allocator sees.

use std::alloc::{GlobalAlloc, Layout, System};

/// Smallest size of an allocation that may be a buffer for requests.
const LARGE: usize = 64 << 10;
/// Pre-faulted bytes: a request is a header with a name or a short text, which is two pages at any
/// alignment.
const REACHED: usize = 4 * PAGE;
/// The smallest page size: where pages are larger, some are written twice.
const PAGE: usize = 4096;

/// The system's allocator with pre-faulting.
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

    /// True if the page at this address is present (`Documentation/admin-guide/mm/pagemap.rst`).
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
    fn the_pages_of_a_request_are_present() {
        assert_eq!(present(&PrefaultAllocator), REACHED / PAGE);
    }
}
