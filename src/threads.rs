//! Detects that a thread which the server needs has ended by a panic.
//!
//! A request that panics is answered and its thread goes on. A panic outside of a request ends the
//! thread, and no other thread does its work: the server then ends itself, and the next server has
//! all threads. The list of threads is read only after a panic.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

/// How often the list is read after a panic: the thread may take a moment to end.
const LOOKS: u32 = 3;
/// How many more times the list is to be read.
static DUE: AtomicU32 = AtomicU32::new(0);

/// Names of threads that end when they have nothing to do.
const TRANSIENT: [&str; 8] = [
    "act",
    "attach",
    "audit",
    "cgroupns",
    "fuse-substitute",
    "keeper-late",
    "notify-oci-read",
    "reaper",
];

/// The number of threads of each name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Threads(BTreeMap<String, usize>);

/// Installs a panic hook that logs one line and notes the panic for [`Threads::lost`].
pub(crate) fn watch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        DUE.store(LOOKS, Ordering::Relaxed);
        let thread = std::thread::current();
        tracing::error!(thread = thread.name(), "{panic}");
    }));
}

impl Threads {
    /// Returns the threads of this process that must not end.
    pub(crate) fn running() -> Self {
        let mut all = Self::default();
        for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
            let name = name.trim_end();
            // The kernel keeps 15 bytes of a name.
            if !TRANSIENT.iter().any(|transient| name == &transient[..transient.len().min(15)]) {
                *all.0.entry(name.to_owned()).or_default() += 1;
            }
        }
        all
    }

    /// Returns the name of one of these threads if it has ended by a panic.
    pub(crate) fn lost(&self) -> Option<&str> {
        let due = |looks: u32| looks.checked_sub(1);
        DUE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).ok()?;
        self.missing_from(&Self::running())
    }

    fn missing_from(&self, now: &Self) -> Option<&str> {
        let is_missing =
            |(name, count): &(&String, &usize)| now.0.get(*name).unwrap_or(&0) < *count;
        self.0.iter().find(is_missing).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_has_ended_is_detected() {
        let start = || {
            let (end, ended) = mpsc::channel::<()>();
            let thread = std::thread::Builder::new().name("test-needed".to_owned());
            (end, thread.spawn(move || ended.recv().is_ok()).unwrap())
        };
        let ours = |threads: Threads| {
            Threads(threads.0.into_iter().filter(|(name, _)| name == "test-needed").collect())
        };
        let ((first, one), (second, other)) = (start(), start());
        let before = loop {
            let before = ours(Threads::running());
            if before.0.values().sum::<usize>() == 2 {
                break before;
            }
        };
        assert_eq!(before.missing_from(&ours(Threads::running())), None);
        drop(first);
        one.join().unwrap();
        while before.missing_from(&ours(Threads::running())) != Some("test-needed") {}
        drop(second);
        other.join().unwrap();
    }
}
