//! The parts of a read, each by itself: accounting (a view that is warm, a sample that is new)
//! and every renderer. Ratios are to one read of the kernel's own `/proc/meminfo` in the same
//! run. Needs no privilege but to read cgroups; run it with `make bench`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use ambit_fuse::{FILES, Text};
use ambit_sysinfo::{Accounting, Options, Views};

const ROUNDS: usize = 15;
const PER_ROUND: u32 = 1000;

fn main() {
    let meminfo = File::open("/proc/meminfo").unwrap();
    let mut buffer = [0; 8192];
    let kernel = nanoseconds(|| {
        black_box(meminfo.read_at(&mut buffer, 0).unwrap());
    });
    println!("{:<44} {:>9} {:>7}", "part", "ns", "ratio");
    let row = |part: &str, took: f64| println!("{part:<44} {took:>9.0} {:>7.3}", took / kernel);
    row("the kernel's /proc/meminfo, kept open", kernel);

    let tid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
    let warm = Accounting::start(Options { age_bound: u64::MAX, ..Options::default() }).unwrap();
    row("a warm view", nanoseconds(|| drop(black_box(warm.view(tid).unwrap()))));
    let fresh = Accounting::start(Options { age_bound: 0, ..Options::default() }).unwrap();
    let container = fresh.identify(tid).unwrap();
    row("a new sample", nanoseconds(|| drop(black_box(fresh.view_of(&container).unwrap()))));

    for file in FILES {
        let view = warm.view_with(tid, file.needs).unwrap();
        let mut text = Text::new();
        let took = nanoseconds(|| {
            text.clear();
            (file.render)(&view, &mut text);
            black_box(text.as_bytes());
        });
        row(file.path, took);
    }
}

/// The median of many rounds.
fn nanoseconds(mut work: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..PER_ROUND).for_each(|_| work());
            start.elapsed().as_secs_f64() * 1e9 / f64::from(PER_ROUND)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}
