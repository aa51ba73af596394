//! The account of one container: counts of its calls, and its budgets of calls, of log lines and
//! their bytes, and of processor time.
//!
//! A container may have several listeners (one for each process that a runtime starts in it). They
//! share one account, which is removed with the last of them. The account also decides whether a
//! call of the container may run on a listener thread ([`Account::inline`]). A call must never take
//! a lock here: it uses atomics only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ambit_sysinfo::Owner;
use nix::sys::resource::{UsageWho, getrusage};

use super::bucket::{self, Bucket, Rate};
use super::counters::{CallCount, Counters};

/// In nanoseconds. If a call takes longer on a listener thread, either memory or files of its
/// container hang, or the thread waited for a CPU.
const SLOW: u64 = 10_000_000;

/// In nanoseconds. After a slow call, listener threads record for this long whether they sleep in
/// slow calls of the container. If one did, the calls of the container run on other threads for
/// this long.
const WATCH_TIME: u64 = 30_000_000_000;

/// The shortest delay, in nanoseconds: a shorter wait costs more than an answer.
const SHORTEST: u64 = 1_000_000;

/// A container that calls again within so many nanoseconds makes one call after the other.
const IN_SUCCESSION: u64 = 1_000_000;

/// Lines per second that the audit log takes from one container.
const LINES: u64 = 200;

/// The bytes that the audit log takes from one container: 350 MB a day.
const BYTES: Rate = Rate { per_second: 4 << 10, most: 1 << 20 };

/// Lines per second that the daemon's own log takes of what one container does.
const MESSAGES: u64 = 20;

/// The bytes of these lines: 90 MB a day.
const MESSAGE_BYTES: Rate = Rate { per_second: 1 << 10, most: 64 << 10 };

/// The bytes that the daemon's own log takes of what all containers do: 700 MB a day.
const ALL_MESSAGE_BYTES: Rate = Rate { per_second: 8 << 10, most: 512 << 10 };

/// The bytes of a line without the texts of the caller.
const MESSAGE: usize = 160;

/// The processor time that the daemon spends on operations of one container, in nanoseconds. What
/// is beyond waits.
const PROCESSOR: Rate = Rate { per_second: 100_000_000, most: 2_000_000_000 };

/// With less than this left, one operation of the container runs at a time.
const LITTLE: u64 = 200_000_000;

/// The most that is charged beyond the budget, so that an operation waits for a second at most.
const DEBT: u64 = 100_000_000;

/// So many operations of a container that fail in succession double what each is charged.
const FAILURES: u32 = 8;

/// The most doublings.
const DOUBLINGS: u32 = 3;

/// The account of one container.
#[derive(Debug)]
pub(super) struct Account {
    /// The container's id.
    pub(super) id: String,
    /// Holds the resources that its calls use. Only root can name containers, so the name is enough
    /// to identify the container.
    pub(super) payer: Arc<ambit_sysinfo::Account>,
    pub(super) counters: Counters,
    /// True when the daemon's log names the container.
    announced: AtomicBool,
    calls: Bucket,
    /// How often its budget of calls was used up.
    delayed: AtomicU64,
    /// The budget of lines in the audit log.
    lines: Bucket,
    /// The budget of bytes in the audit log.
    bytes: Bucket,
    /// Lines that were left out of the audit log since the last report.
    left_out: AtomicU64,
    /// The budget of lines in the daemon's own log.
    messages: Bucket,
    /// The budget of bytes in the daemon's own log.
    message_bytes: Bucket,
    /// The budget of processor time for operations.
    processor: Bucket,
    /// How many operations have failed since the last one that succeeded.
    failures: AtomicU32,
    /// Lines that were left out of the daemon's own log since the last one that was not.
    unlogged: AtomicU64,
    /// When it made its last call.
    last: AtomicU64,
    /// Calls that are being answered on listener threads.
    inline: AtomicU32,
    /// Until when listener threads record whether they sleep in its calls.
    watched: AtomicU64,
    /// Until when its calls do not run on listener threads.
    off_listener: AtomicU64,
}

/// The counts of a container, for `ambit status`.
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
            announced: AtomicBool::new(false),
            calls: Bucket::default(),
            delayed: AtomicU64::new(0),
            lines: Bucket::default(),
            bytes: Bucket::default(),
            left_out: AtomicU64::new(0),
            messages: Bucket::default(),
            message_bytes: Bucket::default(),
            processor: Bucket::default(),
            failures: AtomicU32::new(0),
            unlogged: AtomicU64::new(0),
            last: AtomicU64::new(0),
            inline: AtomicU32::new(0),
            watched: AtomicU64::new(0),
            off_listener: AtomicU64::new(0),
        }
    }

    /// Counts one call at `now` against the budget. Returns how many nanoseconds the next call must
    /// wait, if it must.
    pub(super) fn spend(&self, now: u64, per_second: u64) -> Option<u64> {
        let wait = self.calls.spend(now, per_second);
        (wait > 0).then(|| {
            self.delayed.fetch_add(1, Ordering::Relaxed);
            wait.max(SHORTEST)
        })
    }

    /// True if the container makes one call after the other. Called once for each call, at `now`.
    pub(super) fn calls_in_succession(&self, now: u64) -> bool {
        now.saturating_sub(self.last.swap(now, Ordering::Relaxed)) < IN_SUCCESSION
    }

    /// True for the first listener or connection of the container, which the log names.
    pub(super) fn announce(&self) -> bool {
        !self.announced.swap(true, Ordering::Relaxed)
    }

    /// True if the audit log may have another line.
    pub(super) fn may_audit(&self) -> bool {
        self.lines.take(bucket::now(), LINES)
    }

    /// True if the audit log may have a line of so many bytes.
    pub(super) fn may_audit_bytes(&self, bytes: u64) -> bool {
        self.bytes.take_many(bucket::now(), bytes, BYTES)
    }

    /// Returns the number of lines that were suppressed before this one, if the daemon's own log
    /// may have another line about this container. `texts` are the bytes of the caller's texts in
    /// it.
    pub(super) fn may_log(&self, texts: usize) -> Option<u64> {
        static ALL: Bucket = Bucket::new();
        let (now, bytes) = (bucket::now(), (MESSAGE + texts) as u64);
        if self.messages.take(now, MESSAGES)
            && self.message_bytes.take_many(now, bytes, MESSAGE_BYTES)
            && ALL.take_many(now, bytes, ALL_MESSAGE_BYTES)
        {
            return Some(self.unlogged.swap(0, Ordering::Relaxed));
        }
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Counts a line that is left out of the audit log, and returns how many were before.
    pub(super) fn leave_out(&self) -> u64 {
        self.left_out.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts an operation that succeeded or failed.
    pub(super) fn count_operation(&self, succeeded: bool) {
        if succeeded {
            self.failures.store(0, Ordering::Relaxed);
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Charges the processor time of an operation. After many failures in succession it is charged
    /// several times, because such a container gains nothing from the next attempt.
    pub(super) fn charge_processor(&self, now: u64, used: Duration) {
        let doublings = (self.failures.load(Ordering::Relaxed) / FAILURES).min(DOUBLINGS);
        let used =
            u64::try_from(used.as_nanos()).unwrap_or(u64::MAX).saturating_mul(1 << doublings);
        self.processor.charge(now, used, PROCESSOR, DEBT);
    }

    /// Returns how many of `most` operations of the container may run at `now`, or after how many
    /// nanoseconds one may.
    pub(super) fn operations(&self, now: u64, most: usize) -> Result<usize, u64> {
        match self.processor.wait_for(now, 0, PROCESSOR) {
            0 if self.processor.wait_for(now, LITTLE, PROCESSOR) > 0 => Ok(1),
            0 => Ok(most),
            wait => Err(wait),
        }
    }

    /// Returns the number of lines that were left out of the audit log since the last call.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.swap(0, Ordering::Relaxed)
    }

    /// Begins, at `now`, to answer a call on one of `threads` listener threads. `None` if calls of
    /// the container hang, or did so recently: they must not delay the calls of other containers.
    pub(super) fn inline(&self, now: u64, threads: usize) -> Option<Inline<'_>> {
        if self.off_listener.load(Ordering::Relaxed) > now {
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
    /// How often this thread had slept before the call. Read only while the account is watched,
    /// because it costs a system call.
    slept: Option<i64>,
}

impl Drop for Inline<'_> {
    fn drop(&mut self) {
        self.account.inline.fetch_sub(1, Ordering::Relaxed);
        let now = bucket::now();
        if now - self.began > SLOW {
            let until = match self.slept {
                None => &self.account.watched,
                Some(before) if sleeps() > before => &self.account.off_listener,
                Some(_) => return,
            };
            until.store(now.saturating_add(WATCH_TIME), Ordering::Relaxed);
        }
    }
}

/// Returns how often this thread has gone to sleep. A thread that waits for a CPU does not sleep.
fn sleeps() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

/// The accounts of all containers that have a listener or a connection.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<HashMap<String, Weak<Account>>>);

impl Accounts {
    /// Returns the account of a container, which is made if there is none.
    pub(super) fn get(&self, id: &str) -> Arc<Account> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = all.get(id).and_then(Weak::upgrade) {
            return account;
        }
        all.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account::new(id));
        all.insert(id.to_owned(), Arc::downgrade(&account));
        account
    }

    /// Returns the counts of all containers, sorted by name.
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
    fn listeners_of_a_container_share_one_account() {
        let accounts = Accounts::default();
        let (first, second) = (accounts.get("a"), accounts.get("a"));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(first.announce() && !second.announce(), "one line in the log");
        let _other = accounts.get("b");
        assert_eq!(accounts.read().len(), 2);
        drop((first, second));
        let left = accounts.read();
        assert_eq!(left.iter().map(|one| &*one.container).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_call_over_the_limit_delays_the_next_one_and_is_counted() {
        let accounts = Accounts::default();
        let account = accounts.get("a");
        assert!((0..10).all(|_| account.spend(7, 10).is_none()));
        assert_eq!(account.spend(7, 10), Some(100_000_000));
        assert_eq!(accounts.read()[0].delayed, 1);
        let quick = Account::new("b");
        assert!((0..10_000).all(|_| quick.spend(7, 10_000).is_none()));
        assert_eq!(quick.spend(7, 10_000), Some(SHORTEST), "a shorter delay is not worth it");
    }

    #[test]
    fn log_lines_about_one_container_are_limited() {
        let account = Account::new("a");
        let said = (0..1000).filter(|_| account.may_log(0).is_some()).count();
        // The lines of one second at once, and those that the budget gains meanwhile.
        assert!((20..500).contains(&said), "{said}");
        assert_eq!(account.unlogged.load(Ordering::Relaxed) as usize, 1000 - said);
    }

    #[test]
    fn bytes_in_logs_are_limited() {
        let account = Account::new("a");
        let audited = (0..1000).filter(|_| account.may_audit_bytes(10_000)).count();
        assert_eq!(audited, (1 << 20) / 10_000);
        let logged = (0..20).filter(|_| account.may_log(20_000).is_some()).count();
        assert_eq!(logged, (64 << 10) / 20_160);
    }

    #[test]
    fn processor_time_beyond_the_budget_is_waited_for() {
        let (account, start) = (Account::new("a"), 1_000_000);
        let charge = |ms| account.charge_processor(start, Duration::from_millis(ms));
        charge(1800);
        assert_eq!(account.operations(start, 8), Ok(8));
        charge(100);
        assert_eq!(account.operations(start, 8), Ok(1), "little is left");
        charge(150);
        assert_eq!(account.operations(start, 8), Err(500_000_000), "50 ms at 100 ms a second");
        assert_eq!(account.operations(start + 500_000_000, 8), Ok(1));
        charge(60_000);
        assert_eq!(account.operations(start, 8), Err(1_000_000_000), "a second at most");
    }

    #[test]
    fn failures_in_succession_are_charged_more() {
        let waits = |failures| {
            let account = Account::new("a");
            (0..failures).for_each(|_| account.count_operation(false));
            account.charge_processor(1, Duration::from_millis(1010));
            account.operations(1, 8).is_err()
        };
        assert!(!waits(FAILURES - 1) && waits(FAILURES) && waits(u32::from(u16::MAX)));
        let account = Account::new("a");
        (0..100).for_each(|_| account.count_operation(false));
        account.count_operation(true);
        account.charge_processor(1, Duration::from_millis(1010));
        assert_eq!(account.operations(1, 8), Ok(8));
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
        assert!(account.inline(bucket::now(), 8).is_some(), "it may have waited for a CPU");
        slow(true);
        assert!(account.inline(bucket::now(), 8).is_none(), "it hung a while ago");
    }
}
