#![allow(unsafe_code, reason = "counting allocations takes an allocator of our own")]
//! The cost of a warm request, counted in allocations instead of time.
//!
//! Neither fuser nor the overlay allocates for OPEN, READ and RELEASE. Directory requests, for
//! which fuser allocates a buffer, are not tested.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use kernel::Kernel;

#[path = "fixtures/container.rs"]
mod container;
#[path = "fake_kernel/kernel.rs"]
mod kernel;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller guarantees a layout of non-zero size.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees that the memory is from this allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller guarantees that the memory is from this allocator, with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_open_read_read_release_allocates_nothing() {
    let (mut kernel, _overlay) = Kernel::start(container::Fixed::new(), 1);
    let mut costs = Vec::new();
    let paths = ambit_fuse::FILES.iter().map(|file| file.path);
    // An empty file has nothing to render.
    for path in paths.filter(|path| !path.ends_with("/uevent")) {
        let node = kernel.walk(path).unwrap().ino;
        let cycle = |kernel: &mut Kernel| {
            let handle = kernel.open(node, 0).unwrap();
            let length = kernel.read_borrowed(node, handle, 0, 65_536).unwrap().len() as u64;
            assert!(length > 0);
            assert!(kernel.read_borrowed(node, handle, length, 65_536).unwrap().is_empty());
            // A read from the start renders the file again.
            assert!(!kernel.read_borrowed(node, handle, 0, 65_536).unwrap().is_empty());
            kernel.release(node, handle);
        };
        cycle(&mut kernel);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..1000).for_each(|_| cycle(&mut kernel));
        costs.push((path, ALLOCATIONS.load(Ordering::Relaxed) - before));
    }
    assert!(costs.iter().all(|&(_, cost)| cost == 0), "per 1000 cycles: {costs:?}");
}
