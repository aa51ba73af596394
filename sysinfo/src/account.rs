//! Accounts: each caller is charged for the resources that it makes the daemon hold.
//!
//! An account is named by something that a container, or a user of the host, cannot create at will.
//! A pid namespace alone is no such name: a container nests them, and a user of the host makes them
//! in a user namespace. So an [`Owner`] is, in this order:
//!
//! 1. the **user** who made the outermost user namespace that the caller's outermost pid namespace
//!    belongs to, unless that is root: all rootless containers of a user are one account;
//! 2. else the **outermost pid namespace** below the daemon's: a container of root, whatever it
//!    nests;
//! 3. in the daemon's own pid namespace the user who made the caller's outermost user namespace, or
//!    that namespace if root made it, or else the caller's **real uid**, which a set-user-ID program
//!    does not change.
//!
//! The user of a user namespace is its creator (`NS_GET_OWNER_UID`) and not the uid that the caller
//! has in it: a range of subordinate ids gives a user 65536 of those. A program with such a uid
//! outside of the user's namespaces has an account of its own; [`Budget`](crate::Budget) leaves a
//! part of each resource free for other accounts all the same.

pub(crate) mod budget;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use ambit_kernel::lock;
use ambit_kernel::text::status::Status;
use rustix::fs::fstat;
use rustix::io::Errno;

use crate::account::budget::Resource;
use crate::clock;
use crate::context::Context;
use crate::namespace_init;

/// The name of an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A user of the host.
    User(u32),
    /// A container: its outermost pid namespace, and when the first process of that started, in
    /// ticks after boot. The start is part of the name because inode numbers of namespaces are
    /// reused.
    Container {
        /// The inode of the pid namespace.
        namespace: u64,
        /// The start of its first process.
        start: u64,
    },
    /// A container of root that shares the daemon's pid namespace: its outermost user namespace.
    Users(u64),
    /// A container by the name that its runtime passed on a socket of root.
    Named(Box<str>),
}

impl Owner {
    /// Returns the owner of a thread. Reads nothing that the container controls.
    pub(crate) fn find(tid: u32, context: &Context) -> io::Result<Self> {
        let Context { proc, options, own_namespace, .. } = context;
        let ask = options.ioctls;
        let (mut file, mut number) = (proc.open_namespace(tid, "pid")?, None);
        loop {
            let found = inode(file.as_fd())?;
            if found == *own_namespace {
                break;
            }
            number = Some(found);
            match visible_namespace((ask.parent)(file.as_fd()))? {
                Some(parent) if inode(parent.as_fd())? != *own_namespace => file = parent,
                // The parent is the daemon's own namespace, or the kernel shows none.
                _ => break,
            }
        }
        let Some(namespace) = number else { return Self::find_on_host(tid, context) };
        let users = visible_namespace((ask.users)(file.as_fd()))?;
        let users = users.map(|users| outermost_user_namespace(users, context)).transpose()?;
        if let Some((user, _)) = users.flatten()
            && user != 0
        {
            return Ok(Self::User(user));
        }
        let init = namespace_init::find_in(proc, tid, file.as_fd(), namespace, ask)?;
        let stat = &mut Vec::new();
        let start = clock::start_of(proc.read_of(init, "stat", stat)?).unwrap_or(0) / clock::TICK;
        Ok(Self::Container { namespace, start })
    }

    /// Returns the owner of a thread in the daemon's own pid namespace.
    pub(crate) fn find_on_host(tid: u32, context: &Context) -> io::Result<Self> {
        let proc = &context.proc;
        // A thread that root may not inspect belongs to no container (`Callers::identify`).
        let users = proc.namespace(tid, "user").unwrap_or(context.own_users);
        if users != context.own_users
            && let Some((user, number)) =
                outermost_user_namespace(proc.open_namespace(tid, "user")?, context)?
        {
            return Ok(if user == 0 { Self::Users(number) } else { Self::User(user) });
        }
        let status = &mut Vec::new();
        let user = real_user(proc.read_of(tid, "status", status)?);
        user.map(Self::User).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Returns a number for the owner: the same in every process, and never 0.
    pub(crate) fn number(&self) -> u64 {
        match self {
            // Numbers of namespaces are larger than 2^31.
            Self::User(user) => u64::from(*user) + 1,
            Self::Container { namespace, start } => namespace << 32 | start & u64::from(u32::MAX),
            Self::Users(namespace) => namespace << 32,
            Self::Named(_) => u64::MAX,
        }
    }

    /// Describes the owner that a number stands for, for the log.
    pub fn describe_number(number: u64) -> String {
        match (number, number >> 32) {
            (0, _) => "unknown".to_owned(),
            (_, 0) => format!("user {}", number - 1),
            (_, namespace) => format!("the container of namespace {namespace}"),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::Container { namespace, .. } => {
                write!(f, "the container of pid namespace {namespace}")
            }
            Self::Users(namespace) => write!(f, "the container of user namespace {namespace}"),
            Self::Named(name) => write!(f, "container {name}"),
        }
    }
}

/// Returns a namespace that an ioctl has opened; `None` where the kernel shows none (EPERM, ENOTTY).
/// Any other failure, such as EMFILE, is an error: an inner namespace must not be taken for the
/// outermost one.
fn visible_namespace(found: Result<OwnedFd, Errno>) -> Result<Option<OwnedFd>, Errno> {
    match found {
        Ok(namespace) => Ok(Some(namespace)),
        Err(Errno::PERM | Errno::NOTTY | Errno::NOSYS) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Returns the creator and the inode number of the outermost user namespace below the daemon's that
/// contains this one. `None`: it is the daemon's own, or the kernel does not tell.
fn outermost_user_namespace(
    mut users: OwnedFd,
    context: &Context,
) -> io::Result<Option<(u32, u64)>> {
    let ask = context.options.ioctls;
    let mut number = inode(users.as_fd())?;
    if number == context.own_users {
        return Ok(None);
    }
    while let Some(outer) = visible_namespace((ask.parent)(users.as_fd()))? {
        let its_number = inode(outer.as_fd())?;
        if its_number == context.own_users {
            break;
        }
        (users, number) = (outer, its_number);
    }
    Ok((ask.owner)(users.as_fd()).ok().map(|owner| (owner, number)))
}

fn inode(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(fstat(file)?.st_ino)
}

/// The real uid in the text of `/proc/<pid>/status`.
pub(crate) fn real_user(status: &[u8]) -> Option<u32> {
    Status(status).numbers("Uid:").next()
}

/// The amount of each resource that one owner holds.
#[derive(Debug)]
pub struct Account {
    owner: Owner,
    held: [AtomicUsize; Resource::COUNT],
    reported: [AtomicBool; Resource::COUNT],
}

impl Account {
    /// Creates an account that holds nothing.
    pub fn new(owner: Owner) -> Arc<Self> {
        Arc::new(Self { owner, held: Default::default(), reported: Default::default() })
    }

    /// Returns the owner that pays.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn held(&self, what: Resource) -> &AtomicUsize {
        &self.held[what as usize]
    }

    /// Set from the log line about a refusal until the account holds nothing of the resource.
    pub(crate) fn is_reported(&self, what: Resource) -> bool {
        self.reported[what as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn set_reported(&self, what: Resource, reported: bool) {
        self.reported[what as usize].store(reported, Ordering::Relaxed);
    }
}

/// The accounts that are in use: by a charge, or by a known container.
#[derive(Debug, Default)]
pub struct Accounts(Mutex<HashMap<Owner, Weak<Account>>>);

impl Accounts {
    /// Returns the owner's account, and creates it if there is none.
    pub fn get(&self, owner: Owner) -> Arc<Account> {
        let mut all = lock(&self.0);
        if let Some(account) = all.get(&owner).and_then(Weak::upgrade) {
            return account;
        }
        // Those in use are counted again only when the number has doubled.
        if all.len().is_power_of_two() {
            forget_unused(&mut all);
        }
        let account = Account::new(owner.clone());
        all.insert(owner, Arc::downgrade(&account));
        account
    }

    /// Frees the memory of accounts that are not in use.
    pub(crate) fn trim(&self) {
        let mut all = lock(&self.0);
        forget_unused(&mut all);
        all.shrink_to_fit();
    }
}

fn forget_unused(all: &mut HashMap<Owner, Weak<Account>>) {
    all.retain(|_, account| account.strong_count() > 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_lives_as_long_as_it_is_used() {
        let accounts = Accounts::default();
        let first = accounts.get(Owner::User(1000));
        assert!(Arc::ptr_eq(&first, &accounts.get(Owner::User(1000))));
        assert!(!Arc::ptr_eq(&first, &accounts.get(Owner::Users(1000))));
        drop(first);
        let _other = accounts.get(Owner::User(7));
        assert_eq!(accounts.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn an_owner_number_identifies_the_owner() {
        let container = Owner::Container { namespace: 4_026_532_190, start: 7 };
        let owners = [Owner::User(0), Owner::User(1000), container, Owner::Users(4_026_532_191)];
        let described = owners.map(|owner| Owner::describe_number(owner.number()));
        let namespace = |number| format!("the container of namespace {number}");
        let users = ["user 0", "user 1000"].map(str::to_owned);
        assert_eq!(described[..2], users);
        assert_eq!(described[2..], [namespace(4_026_532_190u64), namespace(4_026_532_191)]);
        assert_eq!(Owner::describe_number(0), "unknown");
    }

    #[test]
    fn the_real_uid_is_the_first_of_four() {
        assert_eq!(real_user(b"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n"), Some(1000));
        assert_eq!(real_user(b"Name:\tx\n"), None);
    }
}
