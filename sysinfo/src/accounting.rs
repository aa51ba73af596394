//! The accounting of one daemon: start it once, ask it from any thread.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::callers::Callers;
use crate::clock;
use crate::container::Container;
use crate::extra::Extras;
use crate::hierarchy::Hierarchies;
use crate::host::Host;
use crate::host_files::HostFiles;
use crate::kernel_names::KernelNames;
use crate::pressure::{self, Stall, TriggerFile};
use crate::procfs::Procfs;
use crate::shared::{Options, Shared};
use crate::tasks::Counter;
use crate::view::View;
use crate::{Error, Views, load};

/// Load averages of a container that nobody looked at for this long are no longer kept up.
const LOAD_BOUND: u64 = 3600 * 1_000_000_000;

/// Knows all containers that asked.
#[derive(Debug)]
pub struct Accounting {
    shared: Shared,
    callers: Callers,
    wake: Arc<Wake>,
}

/// Wakes the load sampler: it sleeps for good while there is nothing to sample.
#[derive(Debug, Default)]
struct Wake {
    state: Mutex<WakeState>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct WakeState {
    wanted: bool,
    ended: bool,
}

impl Accounting {
    /// Opens the host's files and starts the load sampler.
    ///
    /// # Errors
    /// procfs, sysfs or the cgroup file systems cannot be read.
    pub fn start(options: Options) -> Result<Arc<Self>, Error> {
        Self::with(options, Hierarchies::discover()?)
    }

    /// The same with given hierarchies.
    ///
    /// # Errors
    /// procfs or sysfs cannot be read.
    pub fn with(options: Options, hierarchies: Hierarchies) -> Result<Arc<Self>, Error> {
        let read = |file: &str| {
            let file = file.to_owned();
            move |source| Error::Read { file, source }
        };
        let proc = Arc::new(Procfs::private().map_err(read("/proc"))?);
        let host =
            HostFiles::open(proc.clone(), Path::new("/sys")).map_err(read("/proc/meminfo"))?;
        let own = std::process::id();
        let mut text = Vec::new();
        let offset = proc.read_of(own, "timens_offsets", &mut text).ok();
        let shared = Shared {
            own_offset: offset.and_then(clock::boottime_offset).unwrap_or(0),
            own_namespace: proc.pid_namespace(own).map_err(read("/proc/self/ns/pid"))?,
            options,
            proc,
            host,
            hierarchies,
            names: KernelNames::default(),
        };
        let wake = Arc::new(Wake::default());
        let this = Arc::new(Self { shared, callers: Callers::new(), wake: wake.clone() });
        let weak = Arc::downgrade(&this);
        std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || sample_loads(&weak, &wake))
            .map_err(read("a new thread"))?;
        Ok(this)
    }

    /// The container that a thread belongs to.
    ///
    /// # Errors
    /// The thread is gone or not visible.
    pub fn identify(&self, tid: u32) -> Result<Arc<Container>, Error> {
        self.callers.identify(tid, &self.shared)
    }

    /// The current numbers of a container.
    ///
    /// # Errors
    /// Nothing was ever read of it, and nothing can be read now.
    pub fn view_of(&self, container: &Container) -> Result<Arc<View>, Error> {
        container.view(&self.shared, Extras::NONE)
    }

    /// All containers that asked and still exist.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.callers.sweep(self.shared.options.open_containers);
        self.callers.containers()
    }

    /// The machine.
    pub fn host(&self) -> Arc<Host> {
        self.shared.host.snapshot()
    }

    /// Where the cgroups are.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.shared.hierarchies
    }

    /// One round of the load sampler; is there anything left to sample?
    fn sample_loads(&self, counter: &mut Counter) -> bool {
        self.callers.sweep(self.shared.options.open_containers);
        let now = clock::now();
        let mut any = false;
        for container in self.callers.containers() {
            if now.saturating_sub(container.asked()) <= LOAD_BOUND && !container.is_host() {
                container.sample_load(&self.shared, counter);
                any = true;
            }
        }
        any
    }
}

impl Views for Accounting {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        self.view_with(tid, Extras::NONE)
    }

    fn view_with(&self, tid: u32, wanted: Extras) -> Result<Arc<View>, Error> {
        let container = self.identify(tid)?;
        let first = container.last_view().is_none();
        let view = container.view(&self.shared, wanted)?;
        if first {
            self.wake.want();
        }
        Ok(view)
    }

    fn trigger_file(&self, tid: u32, stall: Stall) -> Result<TriggerFile, Error> {
        let container = self.identify(tid)?;
        let membership = container.membership();
        let file = pressure::open(tid, container.is_host(), &membership, stall, &self.shared)?;
        Ok(TriggerFile {
            file,
            container: container.pid_namespace(),
            privileged: pressure::is_privileged(tid, &self.shared),
        })
    }

    fn host(&self) -> Option<Arc<Host>> {
        Some(self.shared.host.snapshot())
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        self.wake.end();
    }
}

impl Wake {
    fn want(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).wanted = true;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.changed.notify_all();
    }

    /// Sleeps until something is to be sampled; `false` when accounting ended.
    fn until_wanted(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self
            .changed
            .wait_while(state, |state| !state.wanted && !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        state.wanted = false;
        !state.ended
    }

    /// Sleeps for one interval; `false` when accounting ended.
    fn pause(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = Duration::from_nanos(load::INTERVAL);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, interval, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        !state.ended
    }
}

fn sample_loads(accounting: &Weak<Accounting>, wake: &Wake) {
    let mut counter = Counter::new();
    while wake.until_wanted() {
        loop {
            if !wake.pause() {
                return;
            }
            let Some(accounting) = accounting.upgrade() else { return };
            if !accounting.sample_loads(&mut counter) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_has_numbers_that_hold_together() {
        let accounting = Accounting::start(Options::default()).unwrap();
        let tid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let view = accounting.view(tid).unwrap();
        assert!(view.memory.total > 0 && view.memory.free <= view.memory.available);
        assert!(!view.cpu.online.is_empty());
        assert!(view.clock.uptime <= clock::now());
        assert_eq!(accounting.containers().len(), 1);
        assert!(matches!(accounting.view(u32::MAX), Err(Error::Gone(_))));
    }
}
