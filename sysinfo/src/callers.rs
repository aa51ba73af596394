//! Which container a thread belongs to.
//!
//! A thread in a pid namespace of its own belongs to the container whose first process is that
//! namespace's number one, and is judged by that process's cgroup: a container is one machine,
//! however it divides itself. A thread in the daemon's own pid namespace is judged by its own
//! cgroup. Never forks; nothing is believed of a pid number alone for longer than the age of a
//! view, since numbers are handed out again.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustix::process::{Pid, PidfdFlags};

use crate::Error;
use crate::clock;
use crate::container::{Container, Identity, Init};
use crate::membership::Membership;
use crate::namespace_init;
use crate::shared::Shared;

/// How long a thread id is taken for the same thread. Numbers are handed out in a circle of at
/// least 32768, which nothing can go round in this time.
const TID_BOUND: u64 = 20_000_000;
const SHARDS: usize = 32;
/// A cgroup of the host that nobody asked from for so long is forgotten.
const HOST_CGROUP_BOUND: u64 = 600_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Namespace(u64),
    Cgroup(Arc<Membership>),
}

type Registry = HashMap<Key, Arc<Container>>;

/// All known containers, and the threads that asked a moment ago.
#[derive(Debug)]
pub(crate) struct Callers {
    registry: ArcSwap<Registry>,
    /// Held while containers are added and forgotten: how many were added since it was last swept.
    adding: Mutex<usize>,
    recent: [Mutex<Vec<Recent>>; SHARDS],
}

#[derive(Debug)]
struct Recent {
    tid: u32,
    at: u64,
    container: Arc<Container>,
}

impl Callers {
    pub(crate) fn new() -> Self {
        Self {
            registry: ArcSwap::default(),
            adding: Mutex::default(),
            recent: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// All known containers.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.registry.load().values().cloned().collect()
    }

    /// The container of a thread that asks `now`.
    pub(crate) fn identify(
        &self,
        tid: u32,
        now: u64,
        shared: &Shared,
    ) -> Result<Arc<Container>, Error> {
        let shard = &self.recent[tid as usize % SHARDS];
        let mut recent = shard.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|entry| now.saturating_sub(entry.at) <= TID_BOUND);
        if let Some(entry) = recent.iter().find(|entry| entry.tid == tid) {
            return Ok(entry.container.clone());
        }
        drop(recent);
        let container = self.identify_anew(tid, shared)?;
        let mut recent = shard.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push(Recent { tid, at: now, container: container.clone() });
        Ok(container)
    }

    fn identify_anew(&self, tid: u32, shared: &Shared) -> Result<Arc<Container>, Error> {
        let namespace = match shared.proc.pid_namespace(tid) {
            Ok(namespace) => namespace,
            // Not to be inspected (a security module, or the machine's own PID 1): no
            // container's process can arrange that against root, so it is the host's.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => shared.own_namespace,
            Err(_) => return Err(Error::Gone(tid)),
        };
        if namespace == shared.own_namespace {
            return self.of_host_cgroup(tid, shared);
        }
        let key = Key::Namespace(namespace);
        if let Some(container) = self.registry.load().get(&key)
            && !container.is_gone()
        {
            return Ok(container.clone());
        }
        let mut adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(container) = self.registry.load().get(&key)
            && !container.is_gone()
        {
            return Ok(container.clone());
        }
        let (identity, membership) =
            new_container(tid, namespace, shared).ok_or(Error::Gone(tid))?;
        Ok(self.add(&mut adding, key, Container::new(identity, membership, shared), shared))
    }

    fn of_host_cgroup(&self, tid: u32, shared: &Shared) -> Result<Arc<Container>, Error> {
        let mut text = Vec::new();
        let text = shared.proc.read_of(tid, "cgroup", &mut text).map_err(|_| Error::Gone(tid))?;
        let membership = Membership::parse(text);
        let key = Key::Cgroup(Arc::new(membership.clone()));
        if let Some(container) = self.registry.load().get(&key) {
            return Ok(container.clone());
        }
        let mut adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(container) = self.registry.load().get(&key) {
            return Ok(container.clone());
        }
        let is_host = membership.is_root(&shared.hierarchies);
        let identity = Identity { namespace: 0, init: None, is_host };
        Ok(self.add(&mut adding, key, Container::new(identity, membership, shared), shared))
    }

    fn add(
        &self,
        added: &mut usize,
        key: Key,
        container: Container,
        shared: &Shared,
    ) -> Arc<Container> {
        // A container can make namespaces by the thousand, faster than the regular sweep comes round;
        // the descriptors that they take would be missing for others.
        *added += 1;
        if *added > shared.options.open_containers / 2 {
            *added = 0;
            self.sweep_locked(shared);
        }
        let container = Arc::new(container);
        let mut registry = Registry::clone(&self.registry.load());
        registry.insert(key, container.clone());
        self.registry.store(Arc::new(registry));
        container
    }

    /// What is in the first registry and not in the second needs no baseline any more.
    fn give_back(&self, before: &Registry, after: &Registry, shared: &Shared) {
        let Some(baselines) = shared.baselines.get() else { return };
        let gone = before.iter().filter(|(key, _)| !after.contains_key(key));
        gone.filter_map(|(_, container)| container.baseline())
            .for_each(|at| baselines.give_back(at));
    }

    /// Forgets containers that ended, and lets all but the most recently asked `open` ones
    /// close their files.
    pub(crate) fn sweep(&self, shared: &Shared) {
        let mut added = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        *added = 0;
        self.sweep_locked(shared);
    }

    fn sweep_locked(&self, shared: &Shared) {
        let open = shared.options.open_containers;
        let now = clock::now();
        let forgotten = |container: &Container| {
            let unused = now.saturating_sub(container.asked()) > HOST_CGROUP_BOUND;
            container.is_gone() || (container.init_pid().is_none() && unused)
        };
        let registry = self.registry.load();
        if registry.values().any(|container| forgotten(container)) {
            let mut registry = Registry::clone(&registry);
            registry.retain(|_, container| !forgotten(container));
            self.give_back(&self.registry.load(), &registry, shared);
            self.registry.store(Arc::new(registry));
        }
        for shard in &self.recent {
            let mut recent = shard.lock().unwrap_or_else(PoisonError::into_inner);
            recent.retain(|entry| now.saturating_sub(entry.at) <= TID_BOUND);
        }
        let registry = self.registry.load();
        if registry.len() > open {
            let mut by_use: Vec<_> = registry.values().collect();
            by_use.sort_by_key(|container| std::cmp::Reverse(container.asked()));
            by_use[open..].iter().for_each(|container| container.close_files());
        }
    }
}

/// Pins the init of a namespace and learns what never changes about it.
fn new_container(tid: u32, namespace: u64, shared: &Shared) -> Option<(Identity, Membership)> {
    let proc = &shared.proc;
    let pid = namespace_init::find(proc, tid, namespace, shared.options.ask_kernel).ok()?;
    let process = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let pidfd = rustix::process::pidfd_open(process, PidfdFlags::empty()).ok()?;
    // From here on the number is pinned, if it still names the same process.
    if proc.pid_namespace(pid).ok()? != namespace {
        return None;
    }
    let mut text = Vec::new();
    let start = clock::start_of(proc.read_of(pid, "stat", &mut text).ok()?)?;
    let offset = proc.read_of(pid, "timens_offsets", &mut text).ok();
    let offset = offset.and_then(clock::boottime_offset);
    let offset = offset.map(|offset| offset.saturating_sub(shared.own_offset));
    let membership = Membership::parse(proc.read_of(pid, "cgroup", &mut text).ok()?);
    let init = Init { pid, pidfd, start, offset: offset.filter(|&offset| offset != 0) };
    Some((Identity { namespace, init: Some(init), is_host: false }, membership))
}
