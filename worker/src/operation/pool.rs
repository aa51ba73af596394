//! The pool of workers: one for each set of control groups from which an operation came lately.
//!
//! A worker that does not answer in time is killed, and a call that it may have carried out is
//! never repeated unless the operation is repeatable. A worker that waits for its next task is
//! charged to the container's budget of workers.
//!
//! An engine removes the control groups as soon as the container's init has ended, and warns about a
//! process in them. So a worker ends with its caller, and before the caller has its answer if that
//! is the init, or a process that has not called before: most programs make one node. Start reading
//! at [`Workers::perform`].

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ambit_kernel::channel::{self, Received};
use ambit_kernel::text::status::Status;
use ambit_sysinfo::{Account, Budget, Charge, Descriptors, Resource};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::Signal;

use super::caller_handle::CallerHandle;
use super::process::LONGEST;
use super::reply::{Answer, Reply};
use super::task::{Operation, Task};
use crate::broker::Broker;
use crate::error::{Context, Error, MarkUntried};
use crate::pin::control_groups;

/// The timeout is extended up to this many times for a worker that is runnable, so not blocked, and
/// for a worker that starts, which does not touch files of the container.
pub const TIMES: u32 = 4;

/// How long to wait for the end of a worker.
const END: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How many callers of one set of control groups are remembered.
const RECENT: usize = 16;

/// The size of an answer without the operation's own bytes: two numbers.
const ANSWER: usize = 16;

/// The descriptors that a waiting worker is charged with: its socket, its pidfd, and two spare.
const DESCRIPTORS_EACH: usize = 4;

/// Starts workers and sends tasks to them.
#[derive(Debug)]
pub struct Workers {
    broker: Arc<Broker>,
    /// The workers by the content of `/proc/<tid>/cgroup`.
    running: Mutex<HashMap<Vec<u8>, Slot>>,
    /// The budget of workers that wait for the next task.
    waiting: Arc<Budget>,
    /// The timeout of a task.
    patience: Duration,
}

/// How often another broker is asked for a worker.
const RETRIES: u32 = 3;

/// One set of control groups.
type Slot = Arc<Mutex<Place>>;

/// The worker of one set of control groups, if it is running.
#[derive(Debug, Default)]
struct Place {
    worker: Option<Worker>,
    /// The processes that called last.
    callers: VecDeque<i32>,
}

/// A running worker, which is killed when this is dropped.
#[derive(Debug)]
struct Worker {
    socket: OwnedFd,
    process: OwnedFd,
    /// The budget that it holds while it waits.
    charge: Option<Charge>,
    /// True if it remembers which device programs the container may use.
    has_programs: bool,
}

impl Workers {
    /// Returns a pool without workers. `patience` is the timeout of a task.
    pub fn new(broker: Arc<Broker>, patience: Duration) -> Self {
        let waiting = Descriptors::of_this_process().workers / DESCRIPTORS_EACH;
        let waiting = Budget::new(Resource::Workers, waiting);
        Self { broker, running: Mutex::default(), waiting, patience }
    }

    /// Runs an operation for a caller, in a worker in its control groups. `more` are descriptors
    /// that the operation needs in addition. The worker is kept for the next task if the budget of
    /// `payer` allows it, because a container can make any number of control groups.
    ///
    /// # Errors
    /// ETIMEDOUT if the operation did not end in time, ENOSYS if no worker could be started.
    pub fn perform(
        &self,
        caller: &CallerHandle,
        operation: &Operation,
        more: &[BorrowedFd<'_>],
        payer: Option<&Arc<Account>>,
    ) -> Result<Answer, Error> {
        let slot = self.slot(&caller.groups);
        let mut place = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = place.expects_more(caller);
        let mut was_killed = false;
        // A worker that was kept may have ended in the meantime; one that just started has not.
        for _ in 0..3 {
            let mut running = match place.worker.take() {
                Some(running) => running,
                None => match self.start(&caller.groups) {
                    // The operation may have been done, so the call is not left to the kernel.
                    Err(_) if was_killed => return Err(killed()),
                    started => started?,
                },
            };
            match running.ask(caller, operation, more) {
                Ok(Some(answer)) => {
                    running.has_programs |= matches!(operation, Operation::Bpf(_));
                    let stays = stays || running.has_programs;
                    if running.charge.is_none() && stays {
                        running.charge = self.waiting.charge(payer, 1);
                    }
                    if !stays {
                        running.end();
                    } else if running.charge.is_some() {
                        place.worker = Some(running);
                    }
                    // The worker that was killed had most likely made the file already.
                    let is_done = was_killed && answer.reply == Reply::Failed(Errno::EXIST);
                    return Ok(if is_done { Reply::Done.into() } else { answer });
                }
                Ok(None) => {}
                // A worker is killed when its broker ends.
                Err(error) if error.errno == Errno::INTR && operation.is_repeatable() => {
                    was_killed = true;
                }
                Err(error) => return Err(error),
            }
        }
        Err(if was_killed {
            killed()
        } else {
            Error::unavailable("three workers ended before they took the task")
        })
    }

    fn slot(&self, groups: &[u8]) -> Slot {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = running.get(groups) {
            return Arc::clone(slot);
        }
        // Drop the entries of workers that have ended and are not in use.
        running.retain(|_, slot| {
            let runs =
                || slot.try_lock().is_ok_and(|one| one.worker.as_ref().is_some_and(Worker::runs));
            Arc::strong_count(slot) > 1 || runs()
        });
        Arc::clone(running.entry(groups.to_owned()).or_default())
    }

    fn start(&self, groups: &[u8]) -> Result<Worker, Error> {
        let started = control_groups(groups).and_then(|groups| {
            let ask = || -> Result<_, Error> {
                let socket = self.broker.worker(&groups)?;
                let process = socket.receive(Instant::now() + self.patience * TIMES)?.pop();
                Ok((socket, process))
            };
            let mut left = RETRIES;
            let (socket, process) = loop {
                match ask() {
                    // The broker may have died with the request. The keeper starts another one,
                    // which can die too.
                    Err(error) if error.errno == Errno::IO && left > 0 => left -= 1,
                    asked => break asked?,
                }
            };
            let process = process.ok_or_else(|| Error::unavailable("a worker sent no pidfd"))?;
            let socket = socket.into_fd();
            set_socket_timeout(&socket, Timeout::Recv, Some(self.patience))
                .context("SO_RCVTIMEO")?;
            Ok(Worker { socket, process, charge: None, has_programs: false })
        });
        started.map_err(|error| Error::unavailable(format!("no worker could be started: {error}")))
    }
}

impl Place {
    /// True if the caller has called before, and is not the container's init. Remembers the caller.
    fn expects_more(&mut self, caller: &CallerHandle) -> bool {
        let is_known = self.callers.contains(&caller.leader);
        if !is_known {
            self.callers.truncate(RECENT - 1);
            self.callers.push_front(caller.leader);
        }
        is_known && !caller.is_init
    }
}

impl Worker {
    /// Sends a task and waits for the answer. `None` if the worker ended before it took the task.
    fn ask(
        &self,
        caller: &CallerHandle,
        operation: &Operation,
        more: &[BorrowedFd<'_>],
    ) -> Result<Option<Answer>, Error> {
        let task =
            Task { identity: Cow::Borrowed(&caller.who), operation: Cow::Borrowed(operation) };
        let task = postcard::to_allocvec(&task)
            .map_err(|error| Error::new(Errno::INVAL, error.to_string()).mark_untried())?;
        if task.len() > LONGEST {
            return Err(Error::unavailable("the task is too long"));
        }
        let base = caller.base.as_ref().unwrap_or(&caller.root);
        let mut fds = vec![caller.process.as_fd(), caller.root.as_fd(), base.as_fd()];
        fds.extend(more);
        match channel::send(&self.socket, &task, &fds, SendFlags::empty()) {
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(None),
            sent => sent.context("sendmsg to a worker").mark_untried()?,
        }
        self.answer(operation.room()).map(Some)
    }

    /// Waits for the answer. `room` is the most bytes that the operation returns.
    fn answer(&self, room: usize) -> Result<Answer, Error> {
        let mut bytes = vec![0; room + ANSWER];
        let mut timeouts = 1;
        let Received { length, mut fds, .. } = loop {
            match channel::receive(&self.socket, &mut bytes, RecvFlags::empty()) {
                Err(Errno::AGAIN) if timeouts < TIMES && self.is_runnable() => {
                    timeouts += 1;
                }
                Err(Errno::AGAIN) => {
                    return Err(Error::new(Errno::TIMEDOUT, "the operation took too long"));
                }
                // The worker has ended. An empty message, handled below, means the same.
                Err(_) => return Err(killed()),
                Ok(received) => break received,
            }
        };
        let answer = postcard::from_bytes(&bytes[..length]).map_err(|_| killed())?;
        Ok(Answer { fd: fds.pop(), ..answer })
    }

    /// True if it is running or waiting for a CPU (state R).
    fn is_runnable(&self) -> bool {
        let about = format!("/proc/self/fdinfo/{}", self.process.as_raw_fd());
        let about = std::fs::read(about).unwrap_or_default();
        let pid = Status(&about).numbers("Pid:").next().unwrap_or(0);
        let status = std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
        Status(&status).value("State:").is_some_and(|state| state.starts_with(b"R"))
    }

    /// Kills it and waits until it has left its control groups.
    fn end(self) {
        let process = self.process.try_clone();
        drop(self);
        if let Ok(process) = process {
            let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&END));
        }
    }

    fn runs(&self) -> bool {
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())) == Ok(0)
    }
}

fn killed() -> Error {
    Error::new(Errno::INTR, "a worker was killed in the middle of its task")
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be blocked in a filesystem of the container.
        let _ = rustix::process::pidfd_send_signal(self.process.as_fd(), Signal::KILL);
    }
}
