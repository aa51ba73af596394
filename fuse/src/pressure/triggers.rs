//! Triggers that containers have set: the kernel's files that they belong to, and the thread that
//! polls all of them.
//!
//! A trigger belongs to one open file of a container. The first poll of the kernel's file consumes
//! its event, so only the thread here may poll it: it keeps the event for the container's next
//! poll, and wakes the container if it sleeps in one. How many files an account may have is decided
//! before a file is opened ([`TriggerFile::charge`]). Start reading at [`Triggers::set`].

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use ambit_kernel::lock;
use ambit_sysinfo::TriggerFile;
use fuser::{Errno, PollEvents, PollNotifier};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::retry_on_intr;

/// Unprivileged windows are multiples of this many microseconds, as in the kernel.
const UNPRIVILEGED_WINDOW: u64 = 2_000_000;

/// Events for which a pressure file is always ready.
fn always() -> PollEvents {
    PollEvents::POLLIN | PollEvents::POLLOUT | PollEvents::POLLRDNORM | PollEvents::POLLWRNORM
}

/// Identifies the eventfd that stops the thread. No handle has this value.
const STOP: u64 = u64::MAX;

/// All open files that can have triggers.
pub(super) struct Triggers {
    poller: OnceLock<Arc<Poller>>,
    files: Arc<Mutex<HashMap<u64, Armed>>>,
}

struct Poller {
    epoll: OwnedFd,
    stop: OwnedFd,
}

struct Armed {
    kernels: TriggerFile,
    /// A trigger was set.
    set: bool,
    /// Set when it has fired since the last poll.
    fired: bool,
    /// Set when the kernel has removed it with the cgroup.
    gone: bool,
    /// Wakes a thread of the container that sleeps in poll(2).
    waiter: Option<PollNotifier>,
}

impl Triggers {
    pub(super) fn new() -> Self {
        Self { poller: OnceLock::new(), files: Arc::default() }
    }

    /// Stores the kernel's file for an open file of a container.
    pub(super) fn open(&self, handle: u64, kernels: TriggerFile) {
        let armed = Armed { kernels, set: false, fired: false, gone: false, waiter: None };
        lock(&self.files).insert(handle, armed);
    }

    /// True if there is a kernel's file for this open file.
    pub(super) fn has(&self, handle: u64) -> bool {
        lock(&self.files).contains_key(&handle)
    }

    /// Sets a trigger. The kernel checks what is written, except for the rule about unprivileged
    /// windows, because for the kernel the daemon is the opener.
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
        let data = EventData::new_u64(handle);
        epoll::add(&poller.epoll, &armed.kernels.file, data, EventFlags::PRI)
            .map_err(io::Error::from)?;
        armed.set = true;
        Ok(())
    }

    /// Returns the events for which an open file is ready. If there are none, the notifier wakes
    /// the caller of poll(2) later.
    pub(super) fn poll(
        &self,
        handle: u64,
        events: PollEvents,
        sleeper: Option<PollNotifier>,
    ) -> PollEvents {
        let mut files = lock(&self.files);
        match files.get_mut(&handle).filter(|armed| armed.set && !armed.gone) {
            // The kernel's answer for a file without a trigger.
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

    /// Closes the kernel's file, which removes the trigger, when the container has closed its file.
    pub(super) fn release(&self, handle: u64) {
        lock(&self.files).remove(&handle);
    }

    /// Returns the epoll instance. It and its thread are started for the first trigger.
    fn poller(&self) -> Result<&Arc<Poller>, Errno> {
        if let Some(poller) = self.poller.get() {
            return Ok(poller);
        }
        // Locked so that only one thread starts it.
        let _starting = lock(&self.files);
        if let Some(poller) = self.poller.get() {
            return Ok(poller);
        }
        let start = || -> io::Result<Arc<Poller>> {
            let epoll = epoll::create(CreateFlags::CLOEXEC)?;
            let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
            epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
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
            // Fails only if the counter is full, and then the thread is already woken.
            let _ = rustix::io::write(&poller.stop, &1u64.to_ne_bytes());
        }
    }
}

/// Waits for events of all triggers, until the eventfd stops it.
fn watch(poller: &Poller, files: &Mutex<HashMap<u64, Armed>>) {
    let mut events: Vec<Event> = Vec::with_capacity(64);
    loop {
        events.clear();
        let waited =
            retry_on_intr(|| epoll::wait(&poller.epoll, spare_capacity(&mut events), None));
        if let Err(error) = waited {
            tracing::error!(%error, "pressure triggers no longer fire: epoll_wait");
            return;
        }
        for &Event { flags, data } in &events {
            if data.u64() == STOP {
                return;
            }
            let mut files = lock(files);
            // The file was closed meanwhile.
            let Some(armed) = files.get_mut(&data.u64()) else { continue };
            if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
                armed.gone = true;
                // Else epoll_wait(2) would return the error event for ever.
                let _ = epoll::delete(&poller.epoll, &armed.kernels.file);
            } else {
                armed.fired = true;
            }
            let waiter = armed.waiter.take();
            drop(files);
            if let Some(waiter) = waiter
                && let Err(error) = waiter.notify()
            {
                tracing::debug!(%error, "cannot wake a thread that polls a pressure trigger");
            }
        }
    }
}

/// Parses the window of a trigger, `some|full THRESHOLD WINDOW`, in microseconds.
pub(crate) fn window(text: &[u8]) -> Option<u64> {
    let text = text.split(|&byte| byte == 0).next()?;
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    words.nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use ambit_sysinfo::{Budget, Resource};

    use super::*;

    fn file(privileged: bool) -> TriggerFile {
        charged_to(&Budget::new(Resource::PressureFiles, 1), privileged)
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
    fn closing_a_file_returns_its_charge() {
        let (triggers, budget) = (Triggers::new(), Budget::new(Resource::PressureFiles, 9));
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
