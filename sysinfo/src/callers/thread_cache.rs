//! The containers of threads that made a request a moment ago.

use std::sync::Mutex;

use ambit_kernel::lock;

use super::Caller;

/// Nanoseconds for which the cgroup of a thread, and the uid of one of the host, are cached; both
/// can change.
const THREAD_BOUND: u64 = 20_000_000;
const SHARDS: usize = 32;
/// How many threads each shard caches. Those of the host have one descriptor each.
const SHARD_SIZE: usize = 4;

/// Callers by thread id, each with what tells that the id still names the same thread.
#[derive(Debug)]
pub(super) struct ThreadCache<T>([Mutex<Vec<Thread<T>>>; SHARDS]);

#[derive(Debug)]
struct Thread<T> {
    tid: u32,
    at: u64,
    pinned: T,
    caller: Caller,
}

impl<T> Default for ThreadCache<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<T> ThreadCache<T> {
    pub(super) fn get(&self, tid: u32, now: u64, is_it: impl Fn(&T) -> bool) -> Option<Caller> {
        let shard = lock(&self.0[tid as usize % SHARDS]);
        let known = shard.iter().find(|known| known.tid == tid && known.is_fresh(now))?;
        is_it(&known.pinned).then(|| known.caller.clone())
    }

    pub(super) fn insert(&self, tid: u32, now: u64, pinned: T, caller: &Caller) {
        let mut shard = lock(&self.0[tid as usize % SHARDS]);
        shard.retain(|known| known.tid != tid && known.is_fresh(now));
        if shard.len() < SHARD_SIZE {
            shard.push(Thread { tid, at: now, pinned, caller: caller.clone() });
        }
    }

    /// Forgets threads whose time is over.
    pub(super) fn sweep(&self, now: u64) {
        for shard in &self.0 {
            lock(shard).retain(|known| known.is_fresh(now));
        }
    }
}

impl<T> Thread<T> {
    fn is_fresh(&self, now: u64) -> bool {
        now.saturating_sub(self.at) <= THREAD_BOUND
    }
}
