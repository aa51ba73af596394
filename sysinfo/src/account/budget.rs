//! Budgets: bounds how much of each resource of the daemon one account may hold.
//!
//! One rule for every resource, without a setting: **an account may hold as much as is still
//! free**. A single account gets half, and each of `n` accounts that take all they can gets one
//! part of `n + 1`; one part always stays free (dynamic thresholds: Choudhury and Hahne, 1998). The
//! first unit of an account is always granted, so that a new container is served when everything is
//! taken; [`Descriptors`] keep a reserve for that.
//!
//! Dropping a [`Charge`] returns what it took. No lock is taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource as Limit, getrlimit};

use crate::account::Account;
use crate::limiter::Limiter;

/// A bounded resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Pressure files opened for triggers: each takes a descriptor and a timer in the kernel.
    PressureFiles,
    /// Bytes of rendered text that open files keep.
    Texts,
    /// Known pid namespaces: each takes a descriptor.
    Namespaces,
    /// Known cgroups of the daemon's own pid namespace.
    Cgroups,
    /// Slots in the journal of intercepted calls.
    Calls,
    /// Idle workers, which act in one set of control groups: each takes some descriptors.
    Workers,
    /// Connections of users other than root: each takes two descriptors.
    Connections,
}

impl Resource {
    pub(crate) const COUNT: usize = 7;

    fn describe(self) -> &'static str {
        match self {
            Self::PressureFiles => "pressure files open for writing",
            Self::Texts => "bytes of text in open files",
            Self::Namespaces => "pid namespaces",
            Self::Cgroups => "control groups",
            Self::Calls => "calls in progress",
            Self::Workers => "idle workers",
            Self::Connections => "connections",
        }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.describe())
    }
}

/// The size of one resource and how much of it is taken.
#[derive(Debug)]
pub struct Budget {
    what: Resource,
    size: usize,
    /// The most that one account may hold, even if more is free.
    each: usize,
    taken: AtomicUsize,
    lines: Limiter,
}

impl Budget {
    /// Creates a budget of this size, of which nothing is taken.
    pub fn new(what: Resource, size: usize) -> Arc<Self> {
        Self::with_most(what, size, usize::MAX)
    }

    /// Creates a budget of which one account may hold at most `each`.
    pub fn with_most(what: Resource, size: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { what, size, each, taken: AtomicUsize::new(0), lines: Limiter::default() })
    }

    /// Charges an account. `None` if it would hold more than it may; the first refusal is logged.
    /// Without an account, only the total is bounded.
    pub fn charge(
        self: &Arc<Self>,
        account: Option<&Arc<Account>>,
        amount: usize,
    ) -> Option<Charge> {
        let charge = self.try_charge(account, amount);
        if charge.is_none()
            && let Some(account) = account
        {
            self.log_refusal(account);
        }
        charge
    }

    /// Charges an account without logging a refusal.
    pub fn try_charge(
        self: &Arc<Self>,
        account: Option<&Arc<Account>>,
        amount: usize,
    ) -> Option<Charge> {
        let mut charge = Charge { budget: Arc::clone(self), account: account.cloned(), amount: 0 };
        charge.grow(amount).then_some(charge)
    }

    /// Returns the amount that is taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    fn log_refusal(&self, account: &Account) {
        if !account.is_reported(self.what)
            && let Some(suppressed) = self.lines.allow()
        {
            account.set_reported(self.what, true);
            let held = account.held(self.what).load(Ordering::Relaxed);
            let (owner, what, all) = (account.owner(), self.what, self.size);
            tracing::warn!(
                suppressed,
                "{owner} has used up its part: it has {held} of {all} {what}"
            );
        }
    }
}

/// An amount taken from a budget; returned when it is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    account: Option<Arc<Account>>,
    amount: usize,
}

impl Charge {
    /// The account that pays.
    pub fn account(&self) -> Option<&Arc<Account>> {
        self.account.as_ref()
    }

    /// Changes the amount. `false` if the account may not hold that much more; the amount is
    /// unchanged then.
    pub fn resize(&mut self, amount: usize) -> bool {
        match amount.checked_sub(self.amount) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(self.amount - amount);
                true
            }
        }
    }

    fn grow(&mut self, more: usize) -> bool {
        let Budget { what, size, each, taken, .. } = &*self.budget;
        let before = taken.fetch_add(more, Ordering::Relaxed);
        let free = size.saturating_sub(before);
        let granted = match &self.account {
            None => more <= free,
            Some(account) => {
                let own = account.held(*what).fetch_add(more, Ordering::Relaxed);
                own == 0 || own.saturating_add(more) <= free.min(*each)
            }
        };
        self.amount += more;
        if !granted {
            self.shrink(more);
        }
        granted
    }

    fn shrink(&mut self, less: usize) {
        let Budget { what, taken, .. } = &*self.budget;
        self.amount -= less;
        taken.fetch_sub(less, Ordering::Relaxed);
        if let Some(account) = &self.account
            && account.held(*what).fetch_sub(less, Ordering::Relaxed) == less
            && account.is_reported(*what)
        {
            account.set_reported(*what, false);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}

/// How the descriptors of this process (`RLIMIT_NOFILE`) are divided. A quarter is in no share: it
/// is for listeners, for short use by privileged operations, and for the first request of a new
/// container.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors {
    /// For cgroup files kept open.
    pub files: usize,
    /// For pressure files that containers hold open.
    pub pressure_files: usize,
    /// For pidfds of the first processes of pid namespaces.
    pub namespaces: usize,
    /// How many idle workers, with four descriptors each, there may be.
    pub workers: usize,
}

impl Descriptors {
    /// Divides the `RLIMIT_NOFILE` of this process.
    pub fn of_this_process() -> Self {
        let limit = getrlimit(Limit::Nofile).current;
        Self::divide(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX))
    }

    fn divide(limit: usize) -> Self {
        Self {
            files: limit / 2,
            pressure_files: limit / 10,
            namespaces: limit / 10,
            workers: limit / 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::account::Owner;

    fn account(user: u32) -> Arc<Account> {
        Account::new(Owner::User(user))
    }

    fn take(budget: &Arc<Budget>, account: &Arc<Account>) -> Vec<Charge> {
        std::iter::from_fn(|| budget.charge(Some(account), 1)).collect()
    }

    #[test]
    fn an_account_holds_as_much_as_is_free() {
        let budget = Budget::new(Resource::Namespaces, 1200);
        let accounts = [1, 2, 3].map(account);
        let first = take(&budget, &accounts[0]);
        assert_eq!(first.len(), 600);
        let second = take(&budget, &accounts[1]);
        assert_eq!(second.len(), 300);
        assert_eq!(take(&budget, &accounts[2]).len(), 150, "a part stays free");
        drop(first);
        assert!(budget.charge(Some(&accounts[0]), 400).is_some());
    }

    #[test]
    fn the_first_unit_of_an_account_is_granted_when_all_is_taken() {
        let budget = Budget::new(Resource::Namespaces, 4);
        let _all = [1, 2, 3, 4, 5, 6].map(|user| budget.charge(Some(&account(user)), 1).unwrap());
        let (late, none) = (account(9), None);
        let _first = budget.charge(Some(&late), 1).unwrap();
        assert!(budget.charge(Some(&late), 1).is_none());
        assert!(budget.charge(none, 1).is_none());
    }

    #[test]
    fn an_account_is_bounded_while_more_is_free() {
        let budget = Budget::with_most(Resource::PressureFiles, 5000, 128);
        let (one, other) = (account(1), account(2));
        let mut held = take(&budget, &one);
        assert_eq!(held.len(), 128);
        assert_eq!(take(&budget, &other).len(), 128);
        held.pop();
        assert!(budget.charge(Some(&one), 1).is_some());
    }

    #[test]
    fn resources_are_bounded_independently() {
        let account = account(1);
        let namespaces = Budget::with_most(Resource::Namespaces, 100, 1);
        let texts = Budget::with_most(Resource::Texts, 100, 1);
        let _held = [&namespaces, &texts].map(|budget| budget.charge(Some(&account), 1).unwrap());
        assert!(namespaces.charge(Some(&account), 1).is_none());
    }

    #[test]
    fn a_quarter_of_the_descriptors_is_kept() {
        for limit in [256, 1024, 20_000, 1 << 20, usize::MAX] {
            let Descriptors { files, pressure_files, namespaces, workers } =
                Descriptors::divide(limit);
            let taken = files + pressure_files + namespaces + workers;
            assert!(limit - taken >= limit / 4, "{limit}");
        }
    }

    proptest! {
        #[test]
        fn taken_is_the_sum_of_all_charges(
            steps: Vec<(u8, bool, u16)>, size in 1..5000_usize, each in 1..5000_usize,
        ) {
            let budget = Budget::with_most(Resource::Texts, size, each);
            let accounts = [1, 2, 3].map(account);
            let mut held: Vec<Charge> = Vec::new();
            for (who, gives_back, amount) in steps {
                let amount = usize::from(amount % 2000);
                match held.len() {
                    0 => {}
                    many if gives_back => drop(held.swap_remove(usize::from(who) % many)),
                    many if who % 5 == 0 => {
                        let one = &mut held[amount % many];
                        let before = one.amount;
                        let resized = one.resize(amount);
                        prop_assert_eq!(one.amount, if resized { amount } else { before });
                    }
                    _ => {}
                }
                let account = accounts.get(usize::from(who) % 4);
                held.extend(budget.try_charge(account, amount));
                let sum = |of: Option<&Arc<Account>>| -> usize {
                    let same = |charge: &&Charge| match of {
                        Some(of) => charge.account().is_some_and(|its| Arc::ptr_eq(its, of)),
                        None => true,
                    };
                    held.iter().filter(same).map(|charge| charge.amount).sum()
                };
                prop_assert_eq!(budget.taken(), sum(None));
                for account in &accounts {
                    let held = account.held(Resource::Texts).load(Ordering::Relaxed);
                    prop_assert_eq!(held, sum(Some(account)));
                }
            }
            drop(held);
            prop_assert_eq!(budget.taken(), 0);
            for account in &accounts {
                prop_assert_eq!(account.held(Resource::Texts).load(Ordering::Relaxed), 0);
            }
        }
    }

    #[test]
    fn threads_that_charge_at_once_leave_nothing_taken() {
        let budget = Budget::new(Resource::Texts, 1000);
        let account = account(1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for amount in 0..2000 {
                        if let Some(mut charge) = budget.try_charge(Some(&account), amount % 700) {
                            charge.resize(amount % 300);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.taken(), 0);
        assert_eq!(account.held(Resource::Texts).load(Ordering::Relaxed), 0);
    }
}
