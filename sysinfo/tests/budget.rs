//! The cost of a view, counted in allocations instead of time: a warm view allocates nothing, a new
//! sample only the view itself.
#![allow(unsafe_code, reason = "counting allocations takes an allocator of our own")]
#![allow(clippy::unwrap_used, reason = "a test fails where something is missing")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ambit_sysinfo::{Accounting, Options, Views};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

fn this_thread() -> u32 {
    u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap()
}

#[test]
fn a_warm_view_allocates_nothing() {
    let options = Options { age_bound: u64::MAX, ..Options::default() };
    let accounting = Accounting::start(options).unwrap();
    let tid = this_thread();
    accounting.view(tid).unwrap();
    // A thread of the host is cached for 20 ms only, and identifying it again reads its cgroup: the
    // smallest of many rounds is a warm one.
    let least = (0..1000).map(|_| allocations(|| drop(accounting.view(tid).unwrap()))).min();
    assert_eq!(least, Some(0));
}

#[test]
fn a_new_sample_allocates_the_view_and_little_else() {
    let options = Options { age_bound: 0, ..Options::default() };
    let accounting = Accounting::start(options).unwrap();
    let container = accounting.identify(this_thread()).unwrap();
    for _ in 0..10 {
        accounting.view_of(&container).unwrap();
    }
    let least =
        (0..100).map(|_| allocations(|| drop(accounting.view_of(&container).unwrap()))).min();
    assert!(least <= Some(8), "{least:?} allocations for one sample");
}
