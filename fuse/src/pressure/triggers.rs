//! Triggers that containers set: the kernel's files they live in, and the thread that waits for
//! all of them.
//!
//! A trigger belongs to one open file of a container. Its event is taken out of the kernel by
//! whoever polls first, so nobody but the one thread here may poll the kernel's file: it keeps
//! the event for the container's next poll, and wakes the container when it sleeps in one. How many
//! files an account may hold is decided before one is opened ([`TriggerFile::charge`]).

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use ambit_sysinfo::TriggerFile;
use fuser::{Errno, PollEvents, PollNotifier};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

/// Unprivileged windows are multiples of this many microseconds, as the kernel has it.
const UNPRIVILEGED_WINDOW: u64 = 2_000_000;

/// What a pressure file is ready for whenever it is asked.
fn always() -> PollEvents {
    PollEvents::POLLIN | PollEvents::POLLOUT | PollEvents::POLLRDNORM | PollEvents::POLLWRNORM
}

/// Identifies the thread's own wake-up among handles, which are never this.
const STOP: u64 = u64::MAX;

/// All open files that can have triggers.
pub(super) struct Triggers {
    poller: OnceLock<Arc<Poller>>,
    files: Arc<Mutex<HashMap<u64, Armed>>>,
}

struct Poller {
    epoll: Epoll,
    stop: EventFd,
}

struct Armed {
    kernels: TriggerFile,
    /// A trigger was set.
    set: bool,
    /// It fired since it was last asked.
    fired: bool,
    /// The kernel has taken it away: the cgroup was removed.
    gone: bool,
    /// A sleeper of the container's.
    waiter: Option<PollNotifier>,
}

impl Triggers {
    pub(super) fn new() -> Self {
        Self { poller: OnceLock::new(), files: Arc::default() }
    }

    /// Keeps the kernel's file beside an open file of a container.
    pub(super) fn open(&self, handle: u64, kernels: TriggerFile) {
        let armed = Armed { kernels, set: false, fired: false, gone: false, waiter: None };
        lock(&self.files).insert(handle, armed);
    }

    /// Is there a kernel's file beside this open file?
    pub(super) fn has(&self, handle: u64) -> bool {
        lock(&self.files).contains_key(&handle)
    }

    /// Sets a trigger: the kernel judges what is written, but for the one rule that concerns who
    /// the writer is, because the file was opened by us.
    pub(super) fn set(&self, handle: u64, text: &[u8]) -> Result<(), Errno> {
        let poller = self.poller()?;
        let mut files = lock(&self.files);
        let armed = files.get_mut(&handle).ok_or(Errno::EBADF)?;
        if !armed.kernels.privileged
            && window(text).is_some_and(|window| window % UNPRIVILEGED_WINDOW != 0)
        {
            return Err(Errno::EINVAL);
        }
        rustix::io::write(&armed.kernels.file, text).map_err(io::Error::from)?;
        let event = EpollEvent::new(EpollFlags::EPOLLPRI, handle);
        poller.epoll.add(&armed.kernels.file, event).map_err(io::Error::from)?;
        armed.set = true;
        Ok(())
    }

    /// What an open file is ready for. With a notifier, its owner sleeps when nothing happened.
    pub(super) fn poll(
        &self,
        handle: u64,
        events: PollEvents,
        sleeper: Option<PollNotifier>,
    ) -> PollEvents {
        let mut files = lock(&self.files);
        match files.get_mut(&handle).filter(|armed| armed.set && !armed.gone) {
            // So the kernel answers for a file without a trigger.
            None => always() | PollEvents::POLLERR | PollEvents::POLLPRI,
            Some(armed) if events.contains(PollEvents::POLLPRI) && armed.fired => {
                armed.fired = false;
                always() | PollEvents::POLLPRI
            }
            Some(armed) => {
                armed.waiter = sleeper;
                always()
            }
        }
    }

    /// The container closed its file: the kernel takes the trigger away with ours.
    pub(super) fn release(&self, handle: u64) {
        lock(&self.files).remove(&handle);
    }

    /// The epoll instance and its thread, started for the first trigger.
    fn poller(&self) -> Result<&Arc<Poller>, Errno> {
        if let Some(poller) = self.poller.get() {
            return Ok(poller);
        }
        // Nobody else may start a second one meanwhile.
        let _starting = lock(&self.files);
        if let Some(poller) = self.poller.get() {
            return Ok(poller);
        }
        let start = || -> io::Result<Arc<Poller>> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let stop = EventFd::new()?;
            epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
            let poller = Arc::new(Poller { epoll, stop });
            let (watched, files) = (Arc::clone(&poller), Arc::clone(&self.files));
            thread::Builder::new()
                .name("ambit-pressure".into())
                .spawn(move || watch(&watched, &files))?;
            Ok(poller)
        };
        let poller = start().map_err(Errno::from)?;
        Ok(self.poller.get_or_init(|| poller))
    }
}

impl Drop for Triggers {
    fn drop(&mut self) {
        if let Some(poller) = self.poller.get() {
            // It can only be full, and then the thread is on its way.
            let _ = poller.stop.write(1);
        }
    }
}

/// Waits for events of all triggers, until it is told to stop.
fn watch(poller: &Poller, files: &Mutex<HashMap<u64, Armed>>) {
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = match poller.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "pressure triggers no longer fire: epoll_wait");
                return;
            }
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return;
            }
            let mut files = lock(files);
            // Closed meanwhile.
            let Some(armed) = files.get_mut(&event.data()) else { continue };
            if event.events().intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
                armed.gone = true;
                // It would be reported for ever.
                let _ = poller.epoll.delete(armed.kernels.file.as_fd());
            } else {
                armed.fired = true;
            }
            let waiter = armed.waiter.take();
            drop(files);
            if let Some(waiter) = waiter
                && let Err(error) = waiter.notify()
            {
                tracing::debug!(%error, "cannot wake who waits for a pressure trigger");
            }
        }
    }
}

/// The window of a trigger, `some|full THRESHOLD WINDOW`, in microseconds.
pub(crate) fn window(text: &[u8]) -> Option<u64> {
    let text = text.split(|&byte| byte == 0).next()?;
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    words.nth(2)?.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use ambit_sysinfo::{Budget, What};

    use super::*;

    fn file(privileged: bool) -> TriggerFile {
        charged_to(&Budget::new(What::PressureFiles, 1), privileged)
    }

    fn charged_to(budget: &Arc<Budget>, privileged: bool) -> TriggerFile {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        TriggerFile { file, charge: budget.charge(None, 1).unwrap(), privileged }
    }

    #[test]
    fn the_window_is_the_third_word() {
        assert_eq!(window(b"some 150000 1000000\0"), Some(1_000_000));
        assert_eq!(window(b"full 1 2000000\n"), Some(2_000_000));
        assert_eq!(window(b"some 1"), None);
        assert_eq!(window(b""), None);
        assert_eq!(window(b"\xff\xfe 1 2"), None);
    }

    #[test]
    fn without_a_trigger_poll_answers_as_the_kernel_does() {
        let triggers = Triggers::new();
        let error = PollEvents::POLLERR | PollEvents::POLLPRI;
        assert!(triggers.poll(1, PollEvents::POLLPRI, None).contains(error));
        triggers.open(1, file(true));
        assert!(triggers.has(1) && triggers.poll(1, PollEvents::POLLPRI, None).contains(error));
    }

    #[test]
    fn only_the_privileged_choose_any_window() {
        let triggers = Triggers::new();
        triggers.open(1, file(false));
        assert_eq!(triggers.set(1, b"some 150000 1000000\0"), Err(Errno::EINVAL));
        assert_eq!(triggers.set(2, b"some 150000 2000000\0"), Err(Errno::EBADF));
    }

    #[test]
    fn a_file_that_is_closed_gives_back_what_it_cost() {
        let (triggers, budget) = (Triggers::new(), Budget::new(What::PressureFiles, 9));
        (1..=9).for_each(|handle| triggers.open(handle, charged_to(&budget, false)));
        assert_eq!(budget.taken(), 9);
        // The kernel reuses no handle before its file was released, but a defect must cost nothing.
        triggers.release(1);
        triggers.open(2, charged_to(&budget, false));
        assert_eq!(budget.taken(), 8);
        (1..=9).for_each(|handle| triggers.release(handle));
        assert_eq!(budget.taken(), 0);
    }
}
