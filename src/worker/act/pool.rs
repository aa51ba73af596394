//! The workers that there are: one for each set of control groups that asked lately.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use ambit_kernel::text::status::Status;
use ambit_sysinfo::{Account, Budget, Charge, Descriptors, What as Spent};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::Signal;

use super::actor::Actor;
use super::mailbox::{Mailbox, Progress};
use super::process::{DESCRIPTORS, LONGEST};
use super::task::{Answer, Reply, Task, What, With};
use crate::worker::broker::Broker;
use crate::worker::failure::{Failure, OnOurSide, OrFail};
use crate::worker::pin::control_groups;

/// So many times the patience is had with a worker that is not hung but waits for a processor, and
/// with one that starts, which touches nothing of the container's.
pub const TIMES: u32 = 4;

/// How often is looked whether a worker still runs that has a task.
const LOOK: Duration = Duration::from_millis(20);

/// Descriptors of a worker that waits: its socket, its process, and some to spare.
const DESCRIPTORS_EACH: usize = 4;

/// How quickly acts follow each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Is another one of the same caller likely to follow at once?
    pub follows: bool,
    /// On which processor all of them stay who have a part in it.
    pub processor: Option<usize>,
}

/// Starts workers and gives them tasks.
#[derive(Debug)]
pub struct Workers {
    broker: Arc<Broker>,
    running: Mutex<Running>,
    /// Workers that wait for the next act.
    waiting: Arc<Budget>,
    /// How long a task may take.
    patience: Duration,
}

/// The workers by the text of `/proc/<tid>/cgroup`.
#[derive(Debug, Default)]
struct Running {
    places: HashMap<Arc<[u8]>, Place>,
    /// The one that was asked last.
    last: Option<(Arc<[u8]>, Place)>,
}

/// For one set of control groups: its worker, when there is one.
type Place = Arc<Mutex<Option<Worker>>>;

/// A running one. It ends when this is dropped.
#[derive(Debug)]
struct Worker {
    line: OwnedFd,
    /// For what needs no more than a number for an answer.
    mailbox: Mailbox,
    process: OwnedFd,
    patience: Duration,
    /// What it has of the caller of the last task: the process, and the root. They are not kept
    /// open for that.
    caller: (Weak<OwnedFd>, Weak<OwnedFd>),
    /// What its waiting costs.
    charge: Option<Charge>,
}

impl Workers {
    /// None is running yet.
    #[must_use]
    pub fn new(broker: Arc<Broker>, patience: Duration) -> Self {
        let waiting = Descriptors::of_this_process().workers / DESCRIPTORS_EACH;
        let waiting = Budget::new(Spent::Workers, waiting);
        Self { broker, running: Mutex::default(), waiting, patience }
    }

    /// Has something done for a caller, in its control groups. `more` are descriptors that the act
    /// needs in addition. If others are likely to follow at once, the worker waits for them, and stays on
    /// this processor. A worker waits for as long as `payer` pays for it: a container can have
    /// control groups without end.
    ///
    /// # Errors
    /// It was not done in time, or there is nobody to do it.
    pub fn act(
        &self,
        actor: &Actor,
        what: &What,
        more: &[BorrowedFd<'_>],
        pace: Pace,
        payer: Option<&Arc<Account>>,
    ) -> Result<Answer, Failure> {
        let place = self.place(&actor.groups);
        let mut worker = place.lock().unwrap_or_else(PoisonError::into_inner);
        let mut was_killed = false;
        // It has ended in the meantime, most likely; one that just started has not.
        for _ in 0..3 {
            let mut running = match worker.take() {
                Some(running) => running,
                None => match self.start(&actor.groups) {
                    // It may have been done: that is no call for the kernel to answer.
                    Err(_) if was_killed => return Err(killed()),
                    started => started?,
                },
            };
            match running.ask(actor, what, more, pace) {
                Ok(Some(answer)) => {
                    if running.charge.is_none() {
                        running.charge = self.waiting.charge(payer, 1);
                    }
                    *worker = Some(running).filter(|running| running.charge.is_some());
                    // The one that was killed had done it already, most likely.
                    let is_done = was_killed && answer.reply == Reply::Failed(Errno::EEXIST);
                    return Ok(if is_done { Reply::Done.into() } else { answer });
                }
                Ok(None) => {}
                // Workers die with their broker.
                Err(failure) if failure.errno == Errno::EINTR && what.is_repeatable() => {
                    was_killed = true;
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(if was_killed { killed() } else { Failure::nobody_acts("workers end at once") })
    }

    /// No act follows for a while: the worker of these control groups may look out for the end.
    pub fn rest(&self, groups: &Arc<[u8]>) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = running.places.get(groups)
            && let Ok(worker) = place.try_lock()
            && let Some(worker) = &*worker
        {
            worker.mailbox.close();
        }
    }

    fn place(&self, groups: &Arc<[u8]>) -> Place {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Running { places, last } = &mut *running;
        if let Some((same, place)) = last
            && Arc::ptr_eq(same, groups)
        {
            return Arc::clone(place);
        }
        let place = match places.get(groups) {
            Some(place) => Arc::clone(place),
            None => {
                *last = None;
                // Whoever is in use is kept, and so is a worker that has not ended yet.
                places.retain(|_, place| {
                    Arc::strong_count(place) > 1
                        || place
                            .try_lock()
                            .is_ok_and(|worker| worker.as_ref().is_some_and(Worker::runs))
                });
                Arc::clone(places.entry(Arc::clone(groups)).or_default())
            }
        };
        *last = Some((Arc::clone(groups), Arc::clone(&place)));
        place
    }

    fn start(&self, groups: &[u8]) -> Result<Worker, Failure> {
        let started = control_groups(groups).and_then(|groups| {
            let (mailbox, workers) = Mailbox::new().or_fail("mmap of a mailbox")?;
            let ask = || {
                let line = self.broker.worker(&workers, &groups)?;
                let process = line.receive(Instant::now() + self.patience * TIMES)?.pop();
                Ok((line, process))
            };
            let (line, process) = ask().or_else(|failure: Failure| match failure.errno {
                // The broker may have died with the request; there is another one then.
                Errno::EIO => ask(),
                _ => Err(failure),
            })?;
            let process = process.ok_or_else(|| Failure::nobody_acts("a worker says nothing"))?;
            let line = line.into_fd();
            set_socket_timeout(&line, Timeout::Recv, Some(self.patience)).or_fail("SO_RCVTIMEO")?;
            let (patience, caller) = (self.patience, (Weak::new(), Weak::new()));
            Ok(Worker { line, mailbox, process, patience, caller, charge: None })
        });
        started.map_err(|failure| Failure::nobody_acts(format!("no worker: {failure}")))
    }
}

impl Worker {
    /// Its answer; `None` when it had ended before it was asked.
    fn ask(
        &mut self,
        actor: &Actor,
        what: &What,
        more: &[BorrowedFd<'_>],
        pace: Pace,
    ) -> Result<Option<Answer>, Failure> {
        let is_new = |known: &Weak<OwnedFd>, now: &Arc<OwnedFd>| known.as_ptr() != Arc::as_ptr(now);
        let with = With {
            process: is_new(&self.caller.0, &actor.process),
            root: is_new(&self.caller.1, &actor.root),
            base: actor.base.is_some(),
        };
        let (who, what) = (Cow::Borrowed(&actor.who), Cow::Borrowed(what));
        let room = what.room();
        let Pace { follows, processor } = pace;
        let task = Task { who, what, with, processor, follows };
        let claimed = task.what.is_brief() && self.mailbox.claim();
        let bare = more.is_empty() && with == With::default();
        if claimed && bare && self.mailbox.put(&task) {
            return self.wait();
        }
        if !claimed {
            self.mailbox.close();
        }
        let task = postcard::to_allocvec(&task)
            .map_err(|error| Failure::new(Errno::EINVAL, error.to_string()).on_our_side())?;
        if task.len() > LONGEST {
            return Err(Failure::nobody_acts("the task is too long"));
        }
        let own = [
            with.process.then(|| actor.process.as_fd()),
            with.root.then(|| actor.root.as_fd()),
            actor.base.as_ref().map(AsFd::as_fd),
        ];
        let fds: Vec<_> = own.into_iter().flatten().chain(more.iter().copied()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Failure::nobody_acts("too many descriptors for a worker"));
        }
        let parts = [IoSlice::new(&task)];
        match rustix::net::sendmsg(&self.line, &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Ok(None),
            other => other.or_fail("sendmsg to a worker").on_our_side()?,
        };
        self.caller = (Arc::downgrade(&actor.process), Arc::downgrade(&actor.root));
        if claimed && self.mailbox.ring() {
            return self.wait();
        }
        self.answer(room).map(Some)
    }

    /// The answer to a task that was handed over by the mailbox; as above.
    fn wait(&self) -> Result<Option<Answer>, Failure> {
        let (mut waited, mut turns) = (Duration::ZERO, 1);
        loop {
            // Who has ended has told before what there was to tell.
            let runs = waited.is_zero() || self.runs();
            match self.mailbox.progress(LOOK) {
                Progress::Done(reply) => return Ok(Some(reply.into())),
                Progress::Untaken if !runs => return Ok(None),
                Progress::Taken if !runs => return Err(killed()),
                Progress::Untaken | Progress::Taken => waited += LOOK,
            }
            if waited > self.patience * turns {
                if turns >= TIMES || !self.is_runnable() {
                    return Err(Failure::new(Errno::ETIMEDOUT, "it took too long"));
                }
                turns += 1;
            }
        }
    }

    fn answer(&self, room: usize) -> Result<Answer, Failure> {
        let (mut number, mut bytes) = ([0; 4], vec![0; room]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut number), IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut turns = 1;
        let received = loop {
            match rustix::net::recvmsg(&self.line, parts, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if turns < TIMES && self.is_runnable() => turns += 1,
                received => break received,
            }
        };
        if received.as_ref().err() == Some(&rustix::io::Errno::AGAIN) {
            return Err(Failure::new(Errno::ETIMEDOUT, "it took too long"));
        }
        let length = received.map_or(0, |received| received.bytes);
        let Some(length) = length.checked_sub(number.len()) else {
            return Err(killed());
        };
        bytes.truncate(length);
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok(Answer { reply: Reply::from_number(i32::from_ne_bytes(number)), bytes, fd })
    }

    /// Does it run, or wait for a processor?
    fn is_runnable(&self) -> bool {
        let about = format!("/proc/self/fdinfo/{}", self.process.as_raw_fd());
        let about = std::fs::read(about).unwrap_or_default();
        let pid = Status(&about).numbers("Pid:").next().unwrap_or(0);
        let status = std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
        Status(&status).value("State:").is_some_and(|state| state.starts_with(b"R"))
    }

    fn runs(&self) -> bool {
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())) == Ok(0)
    }
}

fn killed() -> Failure {
    Failure::new(Errno::EINTR, "a worker was killed in the middle of its task")
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may hang in a filesystem of the container.
        let _ = rustix::process::pidfd_send_signal(self.process.as_fd(), Signal::KILL);
    }
}
