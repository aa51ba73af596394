//! Forgets containers that have ended, and closes files when too many are open. Start reading at
//! [`Callers::sweep`].

use std::collections::HashMap;
use std::sync::Arc;

use ambit_kernel::lock;
use ambit_kernel::sys::arenas;

use super::{Callers, ContainerKey, Registry};
use crate::account::Owner;
use crate::clock;
use crate::container::Container;
use crate::context::Context;
use crate::kernel_file::kept;

/// Nanoseconds without a request after which a cgroup of the host is forgotten.
const HOST_CGROUP_BOUND: u64 = 600_000_000_000;
/// So many forgotten containers at once are a burst, whose memory is given back.
const BURST: usize = 256;

impl Callers {
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
        let mut added = lock(&self.adding);
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

    pub(super) fn sweep_locked(&self, context: &Context) {
        let now = clock::now();
        let forgotten = |container: &Container| {
            let unused = now.saturating_sub(container.last_use()) > HOST_CGROUP_BOUND;
            container.is_gone() || (container.is_cgroup() && unused)
        };
        let registry = self.read();
        let gone = registry.iter().filter(|(_, container)| forgotten(container));
        let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
        drop(registry);
        self.host_threads.sweep(now);
        self.threads.sweep(now);
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
