//! What one container has had of us: counts per call, and what is left of its budgets.
//!
//! A container may have several listeners (one for each process that a runtime starts in it); they
//! share one account, which is forgotten with the last of them. Calls touch atomics only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ambit_sysinfo::Owner;
use nix::sys::resource::{UsageWho, getrusage};

use super::bucket::{self, Bucket};
use super::counters::{CallCount, Counters};

/// A call that took longer on a listener thread shows that its container's memory or files hang, or
/// that the thread had to wait for a processor.
const SLOW: u64 = 10_000_000;

/// How long is looked then whether threads sleep in such calls; and how long a container in whose
/// calls they did has them answered by threads of their own.
const PROBATION: u64 = 30_000_000_000;

/// The shortest delay: below it, waiting costs more than answering.
const SHORTEST: u64 = 1_000_000;

/// Who calls again within this time makes one call after the other.
const OFTEN: u64 = 1_000_000;

/// Lines per second that the audit log takes from one container.
const LINES: u64 = 200;

/// Lines per second that the daemon's own log takes of what one container does.
const MESSAGES: u64 = 20;

/// The account of one container.
#[derive(Debug)]
pub(super) struct Account {
    /// The container's id.
    pub(super) id: String,
    /// Who pays for what its calls use up. Only root names containers here.
    pub(super) payer: Arc<ambit_sysinfo::Account>,
    pub(super) counters: Counters,
    calls: Bucket,
    delayed: AtomicU64,
    lines: Bucket,
    left_out: AtomicU64,
    messages: Bucket,
    unsaid: AtomicU64,
    /// When it called last.
    last: AtomicU64,
    /// Calls that are being answered on listener threads.
    inline: AtomicU32,
    /// Until when threads are watched that answer its calls.
    watched: AtomicU64,
    /// Until when it is on probation.
    suspect: AtomicU64,
}

/// What a container has had, for `ambit status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerCounts {
    /// The container's id.
    pub container: String,
    /// One entry per handler.
    pub calls: Vec<CallCount>,
    /// How often its budget of calls was used up, and its next call had to wait.
    pub delayed: u64,
}

impl Account {
    pub(super) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            payer: ambit_sysinfo::Account::new(Owner::Named(id.into())),
            counters: Counters::new(),
            calls: Bucket::default(),
            delayed: AtomicU64::new(0),
            lines: Bucket::default(),
            left_out: AtomicU64::new(0),
            messages: Bucket::default(),
            unsaid: AtomicU64::new(0),
            last: AtomicU64::new(0),
            inline: AtomicU32::new(0),
            watched: AtomicU64::new(0),
            suspect: AtomicU64::new(0),
        }
    }

    /// One call more, `now`. How long the next one has to wait, in nanoseconds.
    pub(super) fn spend(&self, now: u64, per_second: u64) -> Option<u64> {
        let wait = self.calls.spend(now, per_second);
        (wait > 0).then(|| {
            self.delayed.fetch_add(1, Ordering::Relaxed);
            wait.max(SHORTEST)
        })
    }

    /// Makes it one call after the other? Called with each, `now`.
    pub(super) fn calls_often(&self, now: u64) -> bool {
        now.saturating_sub(self.last.swap(now, Ordering::Relaxed)) < OFTEN
    }

    /// May another line be logged? If not, it is counted.
    pub(super) fn may_log(&self) -> bool {
        let may = self.lines.take(bucket::now(), LINES);
        if !may {
            self.leave_out();
        }
        may
    }

    /// May the daemon's own log have another line about its calls? Then the number of those that
    /// were suppressed before it.
    pub(super) fn may_say(&self) -> Option<u64> {
        if self.messages.take(bucket::now(), MESSAGES) {
            return Some(self.unsaid.swap(0, Ordering::Relaxed));
        }
        self.unsaid.fetch_add(1, Ordering::Relaxed);
        None
    }

    pub(super) fn leave_out(&self) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// The lines that were left out since the last time.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.swap(0, Ordering::Relaxed)
    }

    /// Begins, `now`, to answer a call on one of so many listener threads. `None`: its calls hang, or have
    /// hung a while ago, and must not hold up those of others.
    pub(super) fn inline(&self, now: u64, threads: usize) -> Option<Inline<'_>> {
        if self.suspect.load(Ordering::Relaxed) > now {
            return None;
        }
        let under_way = self.inline.fetch_add(1, Ordering::Relaxed) as usize;
        let slept = (self.watched.load(Ordering::Relaxed) > now).then(sleeps);
        let inline = Inline { account: self, began: now, slept };
        (under_way < threads).then_some(inline)
    }
}

/// A call that is being answered on a listener thread.
#[derive(Debug)]
pub(super) struct Inline<'a> {
    account: &'a Account,
    began: u64,
    /// How often this thread had slept before, if that is watched: asking costs.
    slept: Option<i64>,
}

impl Drop for Inline<'_> {
    fn drop(&mut self) {
        self.account.inline.fetch_sub(1, Ordering::Relaxed);
        let now = bucket::now();
        if now - self.began > SLOW {
            let until = match self.slept {
                None => &self.account.watched,
                Some(before) if sleeps() > before => &self.account.suspect,
                Some(_) => return,
            };
            until.store(now.saturating_add(PROBATION), Ordering::Relaxed);
        }
    }
}

/// How often this thread has gone to sleep. Whoever is only kept from running does not.
fn sleeps() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

/// The accounts of all containers that have a listener or a connection.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<HashMap<String, Weak<Account>>>);

impl Accounts {
    /// The account of a container.
    pub(super) fn of(&self, id: &str) -> Arc<Account> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = all.get(id).and_then(Weak::upgrade) {
            return account;
        }
        all.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account::new(id));
        all.insert(id.to_owned(), Arc::downgrade(&account));
        account
    }

    /// What all of them have had, by name.
    pub(super) fn read(&self) -> Vec<ContainerCounts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, account| account.strong_count() > 0);
        let accounts: Vec<_> = all.values().filter_map(Weak::upgrade).collect();
        drop(all);
        let counts = accounts.iter().map(|account| ContainerCounts {
            container: account.id.clone(),
            calls: account.counters.read().calls,
            delayed: account.delayed.load(Ordering::Relaxed),
        });
        let mut counts: Vec<_> = counts.collect();
        counts.sort_by(|a, b| a.container.cmp(&b.container));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_a_container_share_an_account_that_ends_with_them() {
        let accounts = Accounts::default();
        let (first, second) = (accounts.of("a"), accounts.of("a"));
        assert!(Arc::ptr_eq(&first, &second));
        let _other = accounts.of("b");
        assert_eq!(accounts.read().len(), 2);
        drop((first, second));
        let left = accounts.read();
        assert_eq!(left.iter().map(|one| &*one.container).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn what_a_container_does_fills_no_log() {
        let account = Account::new("a");
        let said = (0..1000).filter(|_| account.may_say().is_some()).count();
        // A second's worth at once, and what comes back meanwhile.
        assert!((20..500).contains(&said), "{said}");
        assert_eq!(account.unsaid.load(Ordering::Relaxed) as usize, 1000 - said);
    }

    #[test]
    fn a_container_whose_calls_hang_leaves_the_listener_threads() {
        let account = Account::new("a");
        let hangs = account.inline(bucket::now(), 1).unwrap();
        assert!(account.inline(bucket::now(), 1).is_none(), "one thread is lost to it already");
        drop(hangs);
        let slow = |sleeps: bool| {
            let call = account.inline(bucket::now(), 1).unwrap();
            let slow = std::time::Duration::from_nanos(SLOW + 1);
            if sleeps {
                std::thread::sleep(slow);
            }
            let began = std::time::Instant::now();
            while began.elapsed() <= slow {}
            drop(call);
        };
        slow(true);
        slow(false);
        assert!(account.inline(bucket::now(), 8).is_some(), "it may have waited for a processor");
        slow(true);
        assert!(account.inline(bucket::now(), 8).is_none(), "on probation");
    }
}
