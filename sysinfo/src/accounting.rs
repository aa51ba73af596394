//! The accounting of one daemon. One instance is started per process and may be called from any
//! thread. It owns the load sampler thread; all reading of a container is in `container.rs`, all
//! identification in `callers.rs`. Start reading at [`Accounting::view_of`].

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use ambit_kernel::lock;
use ambit_kernel::text::scan;

use crate::KernelFiles;
use crate::account::Owner;
use crate::account::budget::{Descriptors, Resource};
use crate::callers::{Caller, Callers};
use crate::clock;
use crate::container::Container;
use crate::context::{self, Context, Options};
use crate::counter_store::CounterStore;
use crate::hierarchy::Hierarchies;
use crate::host::Host;
use crate::host_files::HostFiles;
use crate::kernel_file::kept;
use crate::kernel_names::KernelNames;
use crate::personality;
use crate::policy::ViewOf;
use crate::pressure::{self, Stall, TriggerFile};
use crate::stats::StatSet;
use crate::tasks::{Counter, RecentCounts};
use crate::view::View;
use crate::{Error, FirstProcess, Numbers, Views, load};

/// Nanoseconds from the first request for load sampling to the look for a predecessor's containers.
const ADOPTION_DELAY: u64 = 500_000_000;

/// All known containers, and the thread that samples their load.
#[derive(Debug)]
pub struct Accounting {
    context: Context,
    callers: Callers,
    wake: Arc<Wake>,
}

/// Wakes the load sampler thread, which sleeps without a timeout while no container is to be
/// sampled.
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
    pub fn start(options: Options) -> Result<Arc<Self>, Error> {
        Self::with(options, Hierarchies::discover()?)
    }

    fn with(options: Options, hierarchies: Hierarchies) -> Result<Arc<Self>, Error> {
        let proc = KernelFiles::procfs().map_err(read("/proc"))?;
        let sys = KernelFiles::sysfs().map_err(read("/sys"))?;
        Self::over(options, hierarchies, proc, sys)
    }

    /// Starts accounting with these hierarchies, procfs and sysfs.
    pub fn over(
        options: Options,
        hierarchies: Hierarchies,
        proc: KernelFiles,
        sys: KernelFiles,
    ) -> Result<Arc<Self>, Error> {
        let proc = Arc::new(proc);
        let host = HostFiles::open(proc.clone(), sys).map_err(read("/proc/meminfo"))?;
        let own = std::process::id();
        let kept_files = options.kept_files.min(Descriptors::of_this_process().files);
        let options = Options { kept_files, ..options };
        let mut text = Vec::new();
        let offset = proc.read_of(own, "timens_offsets", &mut text).ok();
        let [namespaces, cgroups, pressure_files] = context::budgets();
        let context = Context {
            own_offset: offset.and_then(clock::boottime_offset).unwrap_or(0),
            own_namespace: proc.pid_namespace(own).map_err(read("/proc/self/ns/pid"))?,
            // A kernel without user namespaces has no such file, for no task.
            own_users: proc.namespace(own, "user").unwrap_or(0),
            namespaces,
            cgroups,
            pressure_files,
            options,
            counter_store: std::sync::OnceLock::new(),
            proc,
            host,
            hierarchies,
            names: KernelNames::default(),
            counted: RecentCounts::default(),
        };
        let wake = Arc::new(Wake::default());
        let this = Arc::new(Self { context, callers: Callers::new(), wake: wake.clone() });
        let weak = Arc::downgrade(&this);
        std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || sample_loads(&weak, &wake))
            .map_err(read("a new thread"))?;
        Ok(this)
    }

    /// Keeps counters in this file, which outlives the process, and continues from those that a
    /// predecessor wrote there. Must be called before the first view is taken.
    pub fn remember(&self, file: std::os::fd::OwnedFd) {
        let processors =
            self.context.host.snapshot().online.iter().last().map_or(1, |last| last + 1);
        // A second call has no effect.
        let _ = self.context.counter_store.set(CounterStore::open(file, processors as usize));
        // Load averages of recorded containers are sampled before their first request.
        self.wake.request_sampling();
    }

    /// Returns the container that a thread belongs to.
    pub fn identify(&self, tid: u32) -> Result<Arc<Container>, Error> {
        self.caller(tid).map(|caller| caller.container)
    }

    fn caller(&self, tid: u32) -> Result<Caller, Error> {
        self.callers.identify(tid, clock::now(), &self.context)
    }

    /// Returns the number of the owner of a thread: the same in every process, whatever namespaces
    /// the thread's container creates.
    pub fn owner_number(&self, tid: u32) -> Option<u64> {
        Owner::find(tid, &self.context).ok().map(|owner| owner.number())
    }

    /// The current numbers of a container.
    ///
    /// # Errors
    /// No sample of it was ever taken, and none can be taken now.
    pub fn view_of(&self, container: &Container) -> Result<Arc<View>, Error> {
        let view = self.current(container, clock::now(), StatSet::BASE);
        self.callers.sweep_if_crowded(&self.context);
        view
    }

    /// A view of a container of which these groups are current, for a command that asks for all
    /// containers: it closes no files of another one.
    pub fn groups_of(&self, container: &Container, wanted: StatSet) -> Result<Arc<View>, Error> {
        let view = self.current(container, clock::now(), wanted);
        if kept() > self.context.options.kept_files {
            container.close_files();
        }
        view
    }

    fn current(
        &self,
        container: &Container,
        now: u64,
        wanted: StatSet,
    ) -> Result<Arc<View>, Error> {
        // The sampler stops sampling a container that has no readers, so this is checked at every
        // view.
        let is_overdue = container.is_overdue();
        let view = container.view(now, &self.context, wanted)?;
        if is_overdue {
            self.wake.request_sampling();
        }
        Ok(view)
    }

    /// Returns all containers with a request to this process or to a predecessor that still exist.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.callers.adopt_recorded(&self.context);
        self.callers.sweep(&self.context);
        self.callers.containers()
    }

    /// Returns a snapshot of the machine.
    pub fn host(&self) -> Arc<Host> {
        self.context.host.snapshot()
    }

    /// Returns how many processes the OOM killer has killed on the machine (Linux 4.13).
    pub fn oom_kills(&self) -> Option<u64> {
        let mut text = Vec::new();
        self.context.proc.read("vmstat", &mut text).ok()?;
        scan::pairs(&text).find(|(key, _)| *key == b"oom_kill").map(|(_, count)| count)
    }

    /// Returns the mounted cgroup hierarchies.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.context.hierarchies
    }

    /// Runs one round of the load sampler. True while any container is to be sampled.
    fn sample_loads(&self, counter: &mut Counter) -> bool {
        self.callers.sweep(&self.context);
        let now = clock::now();
        let mut any = false;
        for container in self.callers.containers() {
            // Sampling opens the files of containers again; the number of open files stays bounded.
            self.callers.sweep_if_crowded(&self.context);
            if now.saturating_sub(container.last_use()) <= self.context.options.load_bound
                && !container.is_host()
            {
                container.sample_load(&self.context, counter);
                any = true;
            }
        }
        any
    }
}

impl Views for Accounting {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        self.view_with(tid, StatSet::BASE)
    }

    fn view_with(&self, tid: u32, wanted: StatSet) -> Result<Arc<View>, Error> {
        self.numbers(tid, wanted).map(|numbers| numbers.view)
    }

    fn newcomer(&self, tid: u32) -> Option<u64> {
        self.callers.newcomer(tid, clock::now(), &self.context)
    }

    fn owner(&self, tid: u32) -> Option<u64> {
        self.callers.owner(tid, &self.context, |_| true)
    }

    fn numbers(&self, tid: u32, wanted: StatSet) -> Result<Numbers, Error> {
        let now = clock::now();
        let Caller { container, account } = self.callers.identify(tid, now, &self.context)?;
        let view = self.current(&container, now, wanted)?;
        self.callers.sweep_if_crowded(&self.context);
        Ok(Numbers { view, account: Some(account) })
    }

    fn last_view(&self, tid: u32) -> Result<Arc<View>, Error> {
        let container = self.identify(tid)?;
        container.last_view().ok_or_else(|| container.hangs())
    }

    fn trigger_file(&self, tid: u32, stall: Stall) -> Result<TriggerFile, Error> {
        let Caller { container, account } = self.caller(tid)?;
        let charge = self.context.pressure_files.charge(Some(&account), 1);
        let charge = charge.ok_or(Error::UsedUp(Resource::PressureFiles))?;
        let membership = container.membership();
        let file = pressure::open(tid, container.is_host(), &membership, stall, &self.context)?;
        let privileged = pressure::is_privileged(tid, &self.context);
        Ok(TriggerFile { file, charge, privileged })
    }

    fn is_of_machine(&self, tid: u32) -> bool {
        let namespace = self.context.proc.pid_namespace(tid);
        namespace.is_ok_and(|namespace| namespace == self.context.own_namespace)
    }

    fn first_process(&self, tid: u32) -> Option<FirstProcess> {
        if self.context.options.view_of == ViewOf::Caller {
            return None;
        }
        self.callers.first_process(tid, clock::now(), &self.context)
    }

    fn lease(
        &self,
        first: FirstProcess,
        wanted: StatSet,
        length: Duration,
    ) -> Result<(Arc<View>, Duration), Error> {
        let container = self.callers.container_of(first, clock::now(), &self.context)?;
        let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let is_overdue = container.is_overdue();
        let (view, length) = container.lease(&self.context, wanted, length)?;
        if is_overdue {
            self.wake.request_sampling();
        }
        self.callers.sweep_if_crowded(&self.context);
        Ok((view, Duration::from_nanos(length)))
    }

    fn has_32_bit_personality(&self, tid: u32) -> bool {
        let mut text = Vec::new();
        self.context.proc.read_of(tid, "personality", &mut text).is_ok_and(personality::is_32_bit)
    }

    fn host(&self) -> Option<Arc<Host>> {
        Some(self.context.host.snapshot())
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        self.wake.stop();
    }
}

impl Wake {
    fn request_sampling(&self) {
        lock(&self.state).wanted = true;
        self.changed.notify_all();
    }

    fn stop(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }

    /// Sleeps until a container is to be sampled; `false` when accounting ends.
    fn until_wanted(&self) -> bool {
        let state = lock(&self.state);
        let mut state = self
            .changed
            .wait_while(state, |state| !state.wanted && !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        state.wanted = false;
        !state.ended
    }

    /// Sleeps for so many nanoseconds; `false` when accounting ends.
    fn pause(&self, interval: u64) -> bool {
        let state = lock(&self.state);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, Duration::from_nanos(interval), |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        !state.ended
    }
}

/// Makes the error for a failed read of this file.
fn read(file: &str) -> impl FnOnce(io::Error) -> Error {
    let file = file.to_owned();
    move |source| Error::Read { file, source }
}

fn sample_loads(accounting: &Weak<Accounting>, wake: &Wake) {
    let mut counter = Counter::new();
    // Callers that waited for this server are answered before it looks for all containers.
    let mut delay = ADOPTION_DELAY;
    while wake.until_wanted() && wake.pause(std::mem::take(&mut delay)) {
        if let Some(accounting) = accounting.upgrade() {
            accounting.callers.adopt_recorded(&accounting.context);
        }
        loop {
            if !wake.pause(load::INTERVAL) {
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
mod tests;
