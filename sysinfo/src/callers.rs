//! Identifies the container and the account of a calling thread.
//!
//! The container of a thread in a pid namespace below the daemon's is that of the namespace's first
//! process, whose cgroup has the limits; `whose_view.rs` has the exceptions. A pid namespace whose
//! first process stays in the cgroups of its creator (`unshare`, bwrap, browsers) is part of the
//! creator's container. A thread in the daemon's own pid namespace belongs to its own cgroup.
//!
//! **A number is valid only while a descriptor pins what it names.** The number of a thread that
//! has ended is reused at once, so thread ids are looked up for every request. The pidfd of its
//! first process keeps a pid namespace (`alloc_pid`, `put_pid` in kernel/pid.c). A thread of the
//! host is pinned by its folder in `/proc`. Only which of the containers in one pid namespace a
//! thread belongs to is cached by its number, for as long as its cgroup is. Start reading at
//! [`Callers::identify`].

mod recorded;
mod sweep;
mod thread_cache;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::thread_cache::ThreadCache;
use crate::account::budget::{Charge, Resource};
use crate::account::{Account, Accounts, Owner};
use crate::clock;
use crate::container::{Container, Identity, Part, SETUP_TIME};
use crate::context::Context;
use crate::hash::fnv1a;
use crate::membership::Membership;
use crate::pinned::{new_container, parent_in_container, pin, unknown};
use crate::procfs::Task;
use crate::whose_view;
use crate::{Error, FirstProcess};
use ambit_kernel::lock;

/// `MAX_PID_NS_LEVEL` of the kernel: pid namespaces do not nest deeper.
const DEEPEST: u32 = 32;
/// How many containers are added at most between two sweeps.
const MOST_ADDED: usize = 128;
/// Shortest interval, in nanoseconds, between sweeps that a refused charge causes.
const REFUSAL_SWEEP: u64 = 200_000_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ContainerKey {
    Namespace(u64),
    Cgroup(Arc<Membership>),
    /// Another container in the pid namespace, by the path of its cgroup.
    Joined(u64, Box<str>),
    /// A cgroup inside of a container, with the pid of that container's first process.
    Inside(u64, u32, Arc<Membership>),
}

type Registry = HashMap<ContainerKey, Arc<Container>>;

/// A thread's container and account.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) container: Arc<Container>,
    pub(crate) account: Arc<Account>,
}

/// All known containers, and a cache of threads of the host.
#[derive(Debug)]
pub(crate) struct Callers {
    /// Locked for writing only to add or remove entries, never while a file is read.
    registry: RwLock<Registry>,
    accounts: Accounts,
    /// Locked while containers are added or forgotten; counts those added since the last sweep.
    adding: Mutex<usize>,
    /// Time of the last sweep that a refused charge caused.
    swept: AtomicU64,
    /// Time at which the last container was asked for that was not known.
    last_newcomer: AtomicU64,
    host_threads: ThreadCache<Task>,
    /// Threads in pid namespaces of containers, with the number of that.
    threads: ThreadCache<u64>,
}

impl Callers {
    pub(crate) fn new() -> Self {
        Self {
            registry: RwLock::default(),
            accounts: Accounts::default(),
            adding: Mutex::default(),
            swept: AtomicU64::new(0),
            last_newcomer: AtomicU64::new(0),
            host_threads: ThreadCache::default(),
            threads: ThreadCache::default(),
        }
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.read().values().filter(|one| !one.is_nested()).cloned().collect()
    }

    /// Returns the number of a thread's owner if its container is not known or is being set up.
    /// While no such container was asked for lately, nothing is read.
    pub(crate) fn newcomer(&self, tid: u32, now: u64, context: &Context) -> Option<u64> {
        if now.saturating_sub(self.last_newcomer.load(Ordering::Relaxed)) > SETUP_TIME {
            return None;
        }
        self.owner(tid, context, |container| container.is_young(now))
    }

    /// Returns the number of the owner of a thread in a container, if that container is not known
    /// or one of these.
    pub(crate) fn owner(
        &self,
        tid: u32,
        context: &Context,
        is_one: impl FnOnce(&Container) -> bool,
    ) -> Option<u64> {
        let namespace = context.proc.pid_namespace(tid).ok()?;
        if namespace == context.own_namespace {
            return None;
        }
        let known = self.read().get(&ContainerKey::Namespace(namespace)).cloned();
        match known {
            Some(container) => is_one(&container).then(|| container.account().owner().number()),
            None => Owner::find(tid, context).ok().map(|owner| owner.number()),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Registry> {
        self.registry.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the container and the account of a thread.
    pub(crate) fn identify(&self, tid: u32, now: u64, context: &Context) -> Result<Caller, Error> {
        let Caller { container, account } = self.identify_namespace(tid, now, context)?;
        Ok(Caller { container: self.enclosing_or_self(container, now, DEEPEST, context), account })
    }

    /// Returns the first process of a thread's pid namespace, unless the thread is in a part of
    /// the namespace or the namespace is part of another container.
    pub(crate) fn first_process(
        &self,
        tid: u32,
        now: u64,
        context: &Context,
    ) -> Option<FirstProcess> {
        let own = self.identify_namespace(tid, now, context).ok()?.container;
        let outer = self.enclosing_or_self(own.clone(), now, DEEPEST, context);
        let is_whole = Arc::ptr_eq(&own, &outer) && !own.is_part();
        is_whole.then(|| own.first_process()).flatten()
    }

    /// Returns the container of the first process of a pid namespace.
    pub(crate) fn container_of(
        &self,
        first: FirstProcess,
        now: u64,
        context: &Context,
    ) -> Result<Arc<Container>, Error> {
        let own = self.identify_namespace(first.pid, now, context)?.container;
        if own.first_process() != Some(first) {
            return Err(Error::Gone(first.pid));
        }
        Ok(self.enclosing_or_self(own, now, DEEPEST, context))
    }

    /// Returns the outermost container that this one is part of, or itself. Follows at most this
    /// many enclosing pid namespaces.
    fn enclosing_or_self(
        &self,
        found: Arc<Container>,
        now: u64,
        around: u32,
        context: &Context,
    ) -> Arc<Container> {
        let enclosing = match found.enclosing(now) {
            Ok(enclosing) => enclosing,
            Err(()) => {
                let init = found.init_pid().filter(|_| around > 0);
                let parent_in_container = init.and_then(|init| parent_in_container(init, context));
                let outer = parent_in_container.and_then(|parent_in_container| {
                    self.identify_namespace(parent_in_container, now, context).ok()
                });
                let enclosing = outer
                    .map(|outer| self.enclosing_or_self(outer.container, now, around - 1, context));
                // A reused number can lead back to the same container.
                let enclosing = enclosing.filter(|enclosing| !Arc::ptr_eq(enclosing, &found));
                found.set_enclosing(enclosing.clone(), now);
                enclosing
            }
        };
        enclosing.unwrap_or(found)
    }

    /// Returns the container of a thread in its pid namespace, or of its cgroup in the daemon's own,
    /// and the account.
    fn identify_namespace(&self, tid: u32, now: u64, context: &Context) -> Result<Caller, Error> {
        let namespace = match context.proc.pid_namespace(tid) {
            Ok(namespace) => namespace,
            // EACCES: a security module forbids it, or it is the PID 1 of the machine. No process
            // of a container can arrange that against root, so it is taken as the host's.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => context.own_namespace,
            Err(error) => return Err(unknown(tid)(error)),
        };
        if namespace == context.own_namespace {
            return self.identify_host(tid, now, context);
        }
        if let Some(caller) = self.threads.get(tid, now, |of| *of == namespace) {
            return Ok(caller);
        }
        let container = self.get_or_add(ContainerKey::Namespace(namespace), context, |adding| {
            // First, because it costs less than the rest, and is all for an account that has used
            // up its part.
            let payer = self.payer(adding, tid, Resource::Namespaces, context)?;
            let (identity, membership) = new_container(tid, namespace, context)?;
            Ok(Container::new(identity, membership, payer, context))
        })?;
        let (container, is_certain) = self.choose(tid, container, context);
        let caller = Caller { account: container.account().clone(), container };
        if is_certain {
            self.threads.insert(tid, now, namespace, &caller);
        }
        Ok(caller)
    }

    /// Returns the container of a thread, given that of the first process of its pid namespace; and
    /// false if that can change at any moment, because an engine is starting the thread's process.
    fn choose(
        &self,
        tid: u32,
        of_namespace: Arc<Container>,
        context: &Context,
    ) -> (Arc<Container>, bool) {
        let choice = whose_view::choose(tid, &of_namespace, context);
        let mut container = of_namespace;
        let namespace = container.pid_namespace();
        if let Some(path) = choice.joined {
            let key = ContainerKey::Joined(namespace, path.clone());
            let joined = self.get_or_add(key, context, |adding| {
                // First, because the search for the process reads files of each process.
                let payer = self.payer(adding, tid, Resource::Namespaces, context)?;
                let first = whose_view::first_process(tid, namespace, &path, context)
                    .map_err(unknown(tid))?;
                let (mut identity, membership) = pin(first, namespace, context)?;
                let key = fnv1a(path.as_bytes());
                identity.part = Some(Part { key, is_inside: false });
                Ok(Container::new(identity, membership, payer, context))
            });
            // Without room for another container, the thread is shown that of its pid namespace.
            let Ok(joined) = joined else { return (container, false) };
            container = joined;
        }
        if let Some(own) = choice.own.filter(|own| whose_view::is_inside(own, &container, context))
        {
            let init = container.init_pid().unwrap_or(0);
            let own = Arc::new(own);
            let inside = self.get_or_add(
                ContainerKey::Inside(namespace, init, own.clone()),
                context,
                |adding| {
                    let identity = container.part(own.key()).map_err(unknown(tid))?;
                    let payer = self.payer(adding, tid, Resource::Namespaces, context)?;
                    Ok(Container::new(identity, Membership::clone(&own), payer, context))
                },
            );
            container = inside.unwrap_or(container);
        }
        (container, choice.is_certain)
    }

    /// Returns the container with this key, or adds the one that the function makes. The function
    /// runs while the number of added containers is locked.
    fn get_or_add(
        &self,
        key: ContainerKey,
        context: &Context,
        make: impl FnOnce(&mut usize) -> Result<Container, Error>,
    ) -> Result<Arc<Container>, Error> {
        if let Some(container) = self.read().get(&key) {
            return Ok(container.clone());
        }
        self.last_newcomer.store(clock::now(), Ordering::Relaxed);
        let mut adding = lock(&self.adding);
        if let Some(container) = self.read().get(&key) {
            return Ok(container.clone());
        }
        let container = make(&mut adding)?;
        Ok(self.add(&mut adding, key, container, context))
    }

    /// Returns the account of a thread, and the charge for one more container.
    fn payer(
        &self,
        adding: &mut usize,
        tid: u32,
        what: Resource,
        context: &Context,
    ) -> Result<(Arc<Account>, Charge), Error> {
        let account = self.accounts.get(Owner::find(tid, context).map_err(unknown(tid))?);
        let charge = self.charge(adding, what, &account, context)?;
        Ok((account, charge))
    }

    /// Identifies a thread in the daemon's own pid namespace.
    fn identify_host(&self, tid: u32, now: u64, context: &Context) -> Result<Caller, Error> {
        if let Some(caller) = self.host_threads.get(tid, now, Task::is_alive) {
            return Ok(caller);
        }
        let task = context.proc.open_task(tid).map_err(unknown(tid))?;
        let mut text = Vec::new();
        let text = context.proc.read_of(tid, "cgroup", &mut text).map_err(unknown(tid))?;
        let membership = Membership::parse(text);
        let owner = Owner::find_on_host(tid, context).map_err(unknown(tid))?;
        let account = self.accounts.get(owner);
        let container = self.identify_host_cgroup(membership, &account, context)?;
        let caller = Caller { container, account };
        self.host_threads.insert(tid, now, task, &caller);
        Ok(caller)
    }

    fn identify_host_cgroup(
        &self,
        membership: Membership,
        account: &Arc<Account>,
        context: &Context,
    ) -> Result<Arc<Container>, Error> {
        let key = ContainerKey::Cgroup(Arc::new(membership.clone()));
        self.get_or_add(key, context, |adding| {
            let charge = self.charge(adding, Resource::Cgroups, account, context)?;
            let is_host = context.hierarchies.has_at_root(&membership);
            let identity = Identity { namespace: 0, init: None, is_host, part: None };
            let payer = (account.clone(), charge);
            Ok(Container::new(identity, membership, payer, context))
        })
    }

    /// Charges an account for one more container. A refused charge is tried again after ended
    /// containers are forgotten.
    fn charge(
        &self,
        added: &mut usize,
        what: Resource,
        account: &Arc<Account>,
        context: &Context,
    ) -> Result<Charge, Error> {
        let budget = match what {
            Resource::Cgroups => &context.cgroups,
            _ => &context.namespaces,
        };
        if let Some(charge) = budget.try_charge(Some(account), 1) {
            return Ok(charge);
        }
        let now = clock::now();
        if now.saturating_sub(self.swept.load(Ordering::Relaxed)) > REFUSAL_SWEEP {
            self.swept.store(now, Ordering::Relaxed);
            *added = 0;
            self.sweep_locked(context);
        }
        budget.charge(Some(account), 1).ok_or(Error::UsedUp(what))
    }

    fn add(
        &self,
        added: &mut usize,
        key: ContainerKey,
        container: Container,
        context: &Context,
    ) -> Arc<Container> {
        // A container can create thousands of namespaces between two regular sweeps, whose
        // descriptors would be missing for other containers.
        *added += 1;
        if *added > MOST_ADDED {
            *added = 0;
            self.sweep_locked(context);
        }
        let container = Arc::new(container);
        self.write().insert(key, container.clone());
        container
    }
}
