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

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ambit_kernel::sys::arenas;

use crate::account::budget::{Charge, Resource};
use crate::account::{Account, Accounts, Owner};
use crate::clock;
use crate::container::{Container, Identity, Part, SETUP_TIME};
use crate::context::Context;
use crate::counter_store::CounterStore;
use crate::hash::fnv1a;
use crate::kernel_file::kept;
use crate::membership::Membership;
use crate::pinned::{new_container, parent_in_container, pin, unknown};
use crate::procfs::Task;
use crate::whose_view;
use crate::{Error, FirstProcess};

/// Nanoseconds for which the cgroup of a thread, and the uid of one of the host, are cached; both
/// can change.
const THREAD_BOUND: u64 = 20_000_000;
const SHARDS: usize = 32;
/// How many threads each shard caches. Those of the host have one descriptor each.
const SHARD_SIZE: usize = 4;
/// `MAX_PID_NS_LEVEL` of the kernel: pid namespaces do not nest deeper.
const DEEPEST: u32 = 32;
/// Nanoseconds without a request after which a cgroup of the host is forgotten.
const HOST_CGROUP_BOUND: u64 = 600_000_000_000;
/// How many containers are added at most between two sweeps.
const MOST_ADDED: usize = 128;
/// So many forgotten containers at once are a burst, whose memory is given back.
const BURST: usize = 256;
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
    host_threads: [Mutex<Vec<HostThread>>; SHARDS],
    /// Threads in pid namespaces of containers.
    threads: [Mutex<Vec<Thread>>; SHARDS],
}

/// A thread in the pid namespace of a container, and the container it belongs to.
#[derive(Debug)]
struct Thread {
    tid: u32,
    namespace: u64,
    at: u64,
    caller: Caller,
}

#[derive(Debug)]
struct HostThread {
    tid: u32,
    at: u64,
    task: Task,
    caller: Caller,
}

/// True if what was found at that time is still valid.
fn is_fresh(at: u64, now: u64) -> bool {
    now.saturating_sub(at) <= THREAD_BOUND
}

impl Callers {
    pub(crate) fn new() -> Self {
        Self {
            registry: RwLock::default(),
            accounts: Accounts::default(),
            adding: Mutex::default(),
            swept: AtomicU64::new(0),
            last_newcomer: AtomicU64::new(0),
            host_threads: std::array::from_fn(|_| Mutex::default()),
            threads: std::array::from_fn(|_| Mutex::default()),
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
        let namespace = context.proc.pid_namespace(tid).ok()?;
        if namespace == context.own_namespace {
            return None;
        }
        let known = self.read().get(&ContainerKey::Namespace(namespace)).cloned();
        match known {
            Some(container) => {
                container.is_young(now).then(|| container.account().owner().number())
            }
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
        let shard = &self.threads[tid as usize % SHARDS];
        let is_it = |thread: &&Thread| thread.tid == tid && thread.namespace == namespace;
        let known = lock(shard).iter().find(is_it).map(|known| (known.at, known.caller.clone()));
        if let Some((_, caller)) = known.filter(|&(at, _)| is_fresh(at, now)) {
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
        let caller = Caller::for_container(&container);
        if is_certain {
            let mut known = lock(shard);
            known.retain(|thread| thread.tid != tid && is_fresh(thread.at, now));
            if known.len() < SHARD_SIZE {
                known.push(Thread { tid, namespace, at: now, caller: caller.clone() });
            }
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
        let mut adding = self.lock_adding();
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
        let shard = &self.host_threads[tid as usize % SHARDS];
        let known = lock(shard);
        if let Some(thread) =
            known.iter().find(|thread| thread.tid == tid && is_fresh(thread.at, now))
            && thread.task.is_alive()
        {
            return Ok(thread.caller.clone());
        }
        drop(known);
        let task = context.proc.open_task(tid).map_err(unknown(tid))?;
        let mut text = Vec::new();
        let text = context.proc.read_of(tid, "cgroup", &mut text).map_err(unknown(tid))?;
        let membership = Membership::parse(text);
        let owner = Owner::find_on_host(tid, context).map_err(unknown(tid))?;
        let account = self.accounts.get(owner);
        let container = self.identify_host_cgroup(membership, &account, context)?;
        let caller = Caller { container, account };
        let mut known = lock(shard);
        known.retain(|thread| thread.tid != tid && is_fresh(thread.at, now));
        if known.len() < SHARD_SIZE {
            known.push(HostThread { tid, at: now, task, caller: caller.clone() });
        }
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

    /// Registers the containers of a predecessor's records, so that they are listed and their load
    /// is sampled before their first request. The first call reads the files of each process of the
    /// machine; concurrent callers wait for it, later calls do nothing.
    pub(crate) fn adopt_recorded(&self, context: &Context) {
        if let Some(store) = context.counter_store.get() {
            store.adopted.call_once_force(|_| self.find_recorded(store, context));
        }
    }

    fn find_recorded(&self, store: &CounterStore, context: &Context) {
        let left = store.unclaimed();
        let cgroups = left.iter().filter(|(namespace, _)| *namespace == 0);
        let mut cgroups: HashSet<u64> = cgroups.map(|&(_, key)| key).collect();
        let namespaces = left.iter().map(|&(namespace, _)| namespace);
        let mut namespaces: HashSet<u64> = namespaces.filter(|&number| number != 0).collect();
        let (mut alive, mut all_seen) = (HashSet::new(), true);
        let Ok(processes) = context.proc.processes() else { return };
        let mut text = Vec::new();
        for pid in processes {
            if namespaces.is_empty() && cgroups.is_empty() {
                break;
            }
            match context.proc.pid_namespace(pid) {
                Ok(namespace) if namespaces.contains(&namespace) => {
                    alive.insert(namespace);
                    if self.identify(pid, clock::now(), context).is_ok() {
                        namespaces.remove(&namespace);
                    }
                }
                Ok(namespace) if namespace == context.own_namespace && !cgroups.is_empty() => {
                    let text = context.proc.read_of(pid, "cgroup", &mut text);
                    let key = text.ok().map(|text| Membership::parse(text).key());
                    if key.is_some_and(|key| cgroups.contains(&key))
                        && self.identify_host(pid, clock::now(), context).is_ok()
                    {
                        cgroups.retain(|other| Some(*other) != key);
                    }
                }
                Ok(_) => {}
                Err(error) => all_seen &= error.kind() != io::ErrorKind::PermissionDenied,
            }
        }
        // A record of a pid namespace without processes is obsolete. One of a cgroup is kept:
        // processes can enter it again.
        let gone = left.into_iter().filter(|(namespace, _)| namespaces.contains(namespace));
        gone.filter(|(namespace, _)| all_seen && !alive.contains(namespace))
            .for_each(|key| store.discard_unclaimed(key));
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

    /// Forgets these containers and releases their counter records.
    fn forget(&self, gone: &[ContainerKey], context: &Context) {
        if gone.is_empty() {
            return;
        }
        let mut registry = self.write();
        let gone: Vec<_> = gone.iter().filter_map(|key| registry.remove(key)).collect();
        if registry.capacity() > 4 * registry.len().max(BURST) {
            registry.shrink_to_fit();
        }
        drop(registry);
        if let Some(store) = context.counter_store.get() {
            let slots = gone.iter().filter_map(|container| container.counter_slot());
            slots.for_each(|at| store.release(at));
        }
        let is_burst = gone.len() >= BURST;
        drop(gone);
        if is_burst {
            // What is left of each container would keep a page of the heap.
            self.accounts.trim();
            context.counted.trim(clock::awake());
            arenas::trim();
        }
    }

    /// Forgets containers that have ended, and closes files if there are more than [`kept_files`].
    ///
    /// [`kept_files`]: crate::Options::kept_files
    pub(crate) fn sweep(&self, context: &Context) {
        let mut added = self.lock_adding();
        *added = 0;
        self.sweep_locked(context);
    }

    /// Sweeps when too many files are open, unless another thread is sweeping.
    pub(crate) fn sweep_if_crowded(&self, context: &Context) {
        if kept() > context.options.kept_files
            && let Ok(mut added) = self.adding.try_lock()
        {
            *added = 0;
            self.sweep_locked(context);
        }
    }

    fn sweep_locked(&self, context: &Context) {
        let now = clock::now();
        let forgotten = |container: &Container| {
            let unused = now.saturating_sub(container.last_use()) > HOST_CGROUP_BOUND;
            container.is_gone() || (container.is_cgroup() && unused)
        };
        let registry = self.read();
        let gone = registry.iter().filter(|(_, container)| forgotten(container));
        let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
        drop(registry);
        for shard in &self.host_threads {
            lock(shard).retain(|thread| is_fresh(thread.at, now));
        }
        for shard in &self.threads {
            lock(shard).retain(|thread| is_fresh(thread.at, now));
        }
        self.forget(&gone, context);
        let most = context.options.kept_files;
        if kept() > most {
            // A quarter is closed, so that the next sweep is not at once.
            let mut all = in_order_of_use(&self.read()).into_iter().rev();
            while kept() > most - most / 4
                && let Some(container) = all.next()
            {
                container.close_files();
            }
        }
    }

    fn lock_adding(&self) -> MutexGuard<'_, usize> {
        lock(&self.adding)
    }
}

impl Caller {
    fn for_container(container: &Arc<Container>) -> Self {
        Self { container: container.clone(), account: container.account().clone() }
    }
}

/// Orders containers for keeping their files open: the most recently used container of each
/// account, then the second of each, and so on. So an account with many containers does not close
/// the files of an account with few.
fn in_order_of_use(registry: &Registry) -> Vec<Arc<Container>> {
    let mut all: Vec<_> = registry.values().collect();
    all.sort_by_cached_key(|container| std::cmp::Reverse(container.last_use()));
    let mut before: HashMap<&Owner, usize> = HashMap::new();
    let mut ranked: Vec<_> = all
        .into_iter()
        .map(|container| {
            let rank = before.entry(container.account().owner()).or_default();
            *rank += 1;
            (*rank, container)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, container)| container.clone()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
