//! Who has borrowed a listener, and what is lent.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ambit_kernel::sys::affinity::Stay;
use libseccomp_sys::seccomp_notif;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::sched_getcpu;

use super::account::Account;
use super::bucket;
use super::handler::{Cost, Repeat, Verdict};
use super::journal::Entry;
use super::lease::Lease;
use super::listener::Listener;
use super::policies::Member;
use super::policy::Policy;
use super::recent::Recent;
use super::thread::{Threads, decide};

/// How long a borrower waits for the next call. Longer than a tick, as in a worker's mailbox.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Who takes longer shall not wait for one processor among many.
const QUICK: Duration = Duration::from_millis(2);

/// A listener, and where it is watched while it is not lent.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Which thread's it is, and what it is called there.
    pub(super) index: usize,
    pub(super) token: u64,
    pub(super) listener: Arc<Listener>,
    pub(super) member: Arc<Mutex<Member>>,
}

/// The listeners that are lent.
#[derive(Debug, Default)]
pub(super) struct Loans(Mutex<Vec<Loan>>);

#[derive(Debug)]
struct Loan {
    place: Place,
    lease: Arc<Lease>,
    /// At which call the borrower was when it was last looked at.
    seen: Option<u64>,
}

impl Loans {
    fn lock(&self) -> MutexGuard<'_, Vec<Loan>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, place: Place, lease: Arc<Lease>) {
        self.lock().push(Loan { place, lease, seen: None });
    }

    /// Takes back those whose borrower is at the same call as the last time. Is any of them lent
    /// still?
    pub(super) fn look_after(&self, mut take: impl FnMut(&Place)) -> bool {
        let mut all = self.lock();
        all.retain_mut(|loan| {
            let at = loan.lease.at();
            if let Some(same) = at.filter(|_| at == loan.seen)
                && loan.lease.take_back(same)
            {
                take(&loan.place);
            }
            loan.seen = at;
            !loan.lease.has_ended()
        });
        !all.is_empty()
    }

    /// No borrower takes another call.
    pub(super) fn end(&self) {
        self.lock().drain(..).for_each(|loan| loan.lease.end());
    }
}

impl Threads {
    /// Hands a brief call over together with its listener.
    pub(super) fn lend(
        self: &Arc<Self>,
        place: Place,
        account: &Arc<Account>,
        policy: Policy,
        notification: seccomp_notif,
        entry: Entry,
    ) {
        let lease = Arc::new(Lease::new());
        let limit = policy.settings().acts;
        let (own, whose, borrowed) = (Arc::clone(self), Arc::clone(account), Arc::clone(&lease));
        let lent = place.clone();
        self.watch_of(&place).lend(place.token, &*place.listener);
        let handed = self.pipeline().acting().hand_over(&account.id, limit, move || {
            own.serve_as(&lent, &borrowed, (&whose, &policy), &notification, entry);
        });
        if handed {
            self.loans().add(place, lease);
        } else {
            self.watch_of(&place).return_source(place.token, &*place.listener);
            self.pipeline().too_many(account);
            let _ = place.listener.answer(notification.id, &Verdict::Continue);
        }
    }

    /// What a borrower does: this call, and those that follow it closely.
    fn serve_as(
        self: &Arc<Self>,
        place: &Place,
        lease: &Lease,
        (account, policy): (&Arc<Account>, &Policy),
        first: &seccomp_notif,
        entry: Entry,
    ) {
        let ends = Ends { threads: self, place, lease, recent: Recent::default() };
        let (recent, listener) = (&ends.recent, &place.listener);
        let act =
            |policy: &Policy, call: &seccomp_notif, entry: &Entry, recent: Option<&Recent>| {
                let (pipeline, repeat) = (self.pipeline(), Repeat::Safe);
                decide(pipeline, listener, account, policy, call, entry, repeat, recent);
            };
        // The caller woke this thread on its own processor. As long as acts are quick, it stays there
        // and so does the worker.
        let (mut stay, mut quick) = (Stay::anywhere(), true);
        entry.acting();
        act(policy, first, &entry, Some(recent));
        drop(entry);
        while lease.wait() && !self.pipeline().acting().is_crowded() && self.comes(listener, recent)
        {
            if !lease.receive() {
                return;
            }
            let mut entry = self.journal().entry(&account.payer);
            let received = entry.receive(listener);
            lease.received();
            // Whatever is wrong with the listener, its own thread finds out.
            let Ok(call) = received else { continue };
            let policy = self.policy(&place.member);
            let wait = account.spend(bucket::now(), policy.settings().calls);
            match self.pipeline().cost(&call.data, &policy) {
                Cost::Act => {
                    lease.wait();
                    drop((ends, stay));
                    entry.acting();
                    return act(&policy, &call, &entry, None);
                }
                Cost::Brief => entry.acting(),
                Cost::Inline => {}
            }
            let here = quick.then(|| recent.processor.get().unwrap_or_else(sched_getcpu));
            stay.on(here);
            recent.processor.set(here);
            let began = Instant::now();
            act(&policy, &call, &entry, Some(recent));
            quick = began.elapsed() < QUICK;
            // The listener's thread has it wait with the next one.
            if wait.is_some() {
                lease.wait();
                break;
            }
        }
        drop(ends);
    }

    /// Does a call wait, or come soon? Of a caller that ends meanwhile nothing is kept, and its worker ends
    /// too: a control group with a process in it cannot be removed, nor a file system be unmounted.
    fn comes(&self, listener: &Listener, recent: &Recent) -> bool {
        loop {
            let caller = recent.process();
            let watched = caller.as_deref().map_or(listener.as_fd(), AsFd::as_fd);
            let mut ready = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::from_borrowed_fd(watched, PollFlags::IN),
            ];
            let count = if caller.is_some() { 2 } else { 1 };
            let came = poll(&mut ready[..count], Some(&IDLE));
            let calls = ready[0].revents();
            if !matches!(came, Ok(1..)) || !calls.is_empty() {
                return calls == PollFlags::IN;
            }
            self.pipeline().rest(recent);
        }
    }
}

/// Gives a listener back, if it was not taken back before; also when an act panics.
struct Ends<'a> {
    threads: &'a Threads,
    place: &'a Place,
    lease: &'a Lease,
    /// Threads that called lately.
    recent: Recent,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.threads.pipeline().rest(&self.recent);
        if self.lease.give_back() {
            let Place { token, listener, .. } = self.place;
            self.threads.watch_of(self.place).return_source(*token, &**listener);
        }
    }
}
