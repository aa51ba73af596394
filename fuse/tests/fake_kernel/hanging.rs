//! Containers whose numbers take long, as if a kernel file hangs. Requests of other containers must
//! be answered meanwhile, and the hanging ones after the patience. No test here asserts a time.
//! Start reading at `Hanging`.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ambit_fuse::MountOptions;
use ambit_sysinfo::{Error, View, Views};

use crate::container;
use crate::kernel::{EIO, Kernel, OPEN, READ, read_request};

/// Threads below this id belong to one container each, whose sample hangs until `end`. The first
/// thread that samples one hangs; others get an error at once, or the last good numbers.
const OTHERS: u32 = 1000;
/// Threads from this id on have last good numbers.
const KNOWN: u32 = 500;
/// The last good number of others, in kB.
const LAST: u64 = 5;

#[derive(Default)]
struct Hanging {
    is_over: Mutex<bool>,
    sampled: Mutex<HashSet<u32>>,
    told: Condvar,
}

impl Hanging {
    fn end(&self) {
        *self.is_over.lock().unwrap() = true;
        self.told.notify_all();
    }
}

impl Views for Hanging {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        if tid < OTHERS && !self.sampled.lock().unwrap().insert(tid) {
            if tid < KNOWN && !*self.is_over.lock().unwrap() {
                return Err(Error::Read { file: "x".into(), source: ErrorKind::TimedOut.into() });
            }
        } else if tid < OTHERS {
            let is_over = self.is_over.lock().unwrap();
            drop(self.told.wait_while(is_over, |is_over| !*is_over).unwrap());
        }
        let mut view = container::view();
        view.memory.total = u64::from(tid) << 20;
        Ok(Arc::new(view))
    }

    fn last_view(&self, tid: u32) -> Result<Arc<View>, Error> {
        if tid < OTHERS {
            return Err(Error::Read { file: "x".into(), source: ErrorKind::TimedOut.into() });
        }
        let mut view = container::view();
        view.memory.total = LAST << 10;
        Ok(Arc::new(view))
    }
}

/// Counts the substitutes, also those of other tests.
fn substitutes() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name == "fuse-substitute\n").count()
}

#[test]
fn any_number_of_hanging_containers_delays_no_other() {
    const HUNG: u32 = 22;
    let views = Arc::new(Hanging::default());
    let (mut kernel, overlay) = Kernel::start(views.clone(), 8);
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    let asked: HashMap<u64, u32> = (1..=HUNG)
        .map(|thread| {
            kernel.thread = thread;
            (kernel.send(OPEN, node, &[0; 8]), thread)
        })
        .collect();
    // Their requests are first in the queue.
    kernel.thread = OTHERS + 7;
    let text = kernel.cat("proc/meminfo").unwrap();
    assert!(text.contains(&format!(" {} kB\n", 1007 << 10)), "{text}");
    assert!(substitutes() >= 14, "{}", substitutes());
    views.end();
    let handles: Vec<_> = (0..HUNG)
        .map(|_| {
            let (unique, error, answer) = kernel.receive();
            assert_eq!(error, 0);
            (asked[&unique], crate::u64_at(&answer, 0))
        })
        .collect();
    for (thread, handle) in handles {
        kernel.thread = thread;
        let text = String::from_utf8(kernel.read(node, handle, 0, 4096).unwrap()).unwrap();
        let total = text.split_whitespace().nth(1).unwrap();
        assert_eq!(total.parse(), Ok(u64::from(thread) << 10));
        kernel.release(node, handle);
    }
    overlay.unmount().unwrap();
}

#[test]
fn when_all_threads_hang_the_last_good_numbers_are_shown() {
    const HUNG: u32 = 8 + 16;
    let views = Arc::new(Hanging::default());
    let patience = Duration::from_secs(3600);
    let options = MountOptions { threads: 8, patience, ..MountOptions::new("/nowhere") };
    let (mut kernel, overlay) = Kernel::start_with(views.clone(), options);
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    for thread in 1..=HUNG {
        kernel.thread = thread;
        kernel.send(OPEN, node, &[0; 8]);
    }
    let shows = |text: &str, kb: u64| text.contains(&format!(" {kb} kB\n"));
    for _ in 0..3 {
        kernel.thread = OTHERS + 7;
        let text = kernel.cat("proc/meminfo").unwrap();
        assert!(shows(&text, LAST), "{text}");
        kernel.thread = HUNG + 1;
        assert_eq!(kernel.cat("proc/meminfo"), Err(EIO), "it has none");
    }
    views.end();
    for _ in 0..HUNG {
        assert_eq!(kernel.receive().1, 0);
    }
    kernel.thread = OTHERS + 7;
    // True for every container, as soon as the watchdog has noticed.
    while !shows(&kernel.cat("proc/meminfo").unwrap(), 1007 << 10) {}
    kernel.thread = HUNG + 1;
    while kernel.cat("proc/meminfo").is_err() {}
    overlay.unmount().unwrap();
}

#[test]
fn a_server_ends_without_a_thread_that_hangs() {
    let views = Arc::new(Hanging::default());
    let (mut kernel, overlay) = Kernel::start(views.clone(), 1);
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    kernel.thread = 1;
    kernel.send(OPEN, node, &[0; 8]);
    overlay.unmount().unwrap();
    views.end();
}

#[test]
fn the_reader_of_a_file_that_hangs_is_answered_after_the_patience() {
    let views = Arc::new(Hanging::default());
    let patience = Duration::from_secs(1);
    let options = MountOptions { threads: 4, patience, ..MountOptions::new("/nowhere") };
    let (mut kernel, overlay) = Kernel::start_with(views.clone(), options);
    let node = kernel.walk("proc/meminfo").unwrap().ino;
    kernel.thread = OTHERS;
    let kept = kernel.open(node, 0).unwrap();
    kernel.read(node, kept, 0, 4096).unwrap();
    let asked = [1, KNOWN].map(|thread| {
        kernel.thread = thread;
        kernel.send(OPEN, node, &[0; 8])
    });
    kernel.thread = 2;
    let again = kernel.send(READ, node, &read_request(kept, 0, 4096));
    let answers: HashMap<_, _> = (0..3)
        .map(|_| {
            let (unique, error, answer) = kernel.receive();
            (unique, if error == 0 { Ok(answer) } else { Err(error) })
        })
        .collect();
    assert_eq!(answers[&again], Err(EIO));
    // Its thread is still in the read that hangs.
    kernel.release(node, kept);
    let [unknown, known] = asked.map(|asked| crate::u64_at(answers[&asked].as_ref().unwrap(), 0));
    kernel.thread = 1;
    assert_eq!(kernel.read(node, unknown, 0, 4096), Err(EIO));
    kernel.release(node, unknown);
    kernel.thread = KNOWN;
    let last = kernel.read(node, known, 0, 4096).unwrap();
    assert!(last.starts_with(format!("MemTotal: {:>14} kB\n", KNOWN << 10).as_bytes()));
    kernel.release(node, known);
    // The threads that return send no second answer, and keep no file open.
    views.end();
    while overlay.counters().opens < 3 {
        std::thread::yield_now();
    }
    for thread in [1, 2, KNOWN, OTHERS] {
        kernel.thread = thread;
        assert!(kernel.cat("proc/meminfo").is_ok());
    }
    overlay.unmount().unwrap();
}
