//! Threads for calls that take long, so that the listener threads never block.
//!
//! A thread for each act, and few at a time: over the limit the kernel answers instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Acts at a time.
const LIMIT: usize = 16;

/// Counts the acts that are under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Acting(Arc<AtomicUsize>);

/// One of them.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Acting {
    /// Runs this in a thread of its own. False when there are too many already; nothing ran then.
    pub(super) fn hand_over(&self, act: impl FnOnce() + Send + 'static) -> bool {
        let place = Place(Arc::clone(&self.0));
        if self.0.fetch_add(1, Ordering::AcqRel) >= LIMIT {
            return false;
        }
        let run = move || {
            let _place = place;
            act();
        };
        std::thread::Builder::new().name("act".into()).spawn(run).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn there_are_only_so_many() {
        let (acting, barrier) = (Acting::default(), Arc::new(Barrier::new(LIMIT + 1)));
        let wait = |barrier: &Arc<Barrier>| {
            let barrier = Arc::clone(barrier);
            move || {
                barrier.wait();
            }
        };
        for _ in 0..LIMIT {
            assert!(acting.hand_over(wait(&barrier)));
        }
        assert!(!acting.hand_over(|| ()));
        barrier.wait();
        while acting.0.load(Ordering::Acquire) > 0 {
            std::thread::yield_now();
        }
        assert!(acting.hand_over(|| ()));
    }
}
