//! The workers that there are: one for each set of control groups that asked lately.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ambit_kernel::channel::{self, Received};
use ambit_kernel::text::status::Status;
use ambit_sysinfo::{Account, Budget, Charge, Descriptors, What as Spent};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::Signal;

use super::actor::Actor;
use super::process::LONGEST;
use super::reply::{Answer, Reply};
use super::task::{Task, What};
use crate::broker::Broker;
use crate::failure::{Failure, OnOurSide, OrFail};
use crate::pin::control_groups;

/// So many times the patience is had with a worker that is not hung but waits for a processor, and
/// with one that starts, which touches nothing of the container's.
pub const TIMES: u32 = 4;

/// Room for what an answer has besides the act's own bytes: two numbers.
const ANSWER: usize = 16;

/// Descriptors of a worker that waits: its socket, its process, and some to spare.
const DESCRIPTORS_EACH: usize = 4;

/// Starts workers and gives them tasks.
#[derive(Debug)]
pub struct Workers {
    broker: Arc<Broker>,
    /// The workers by the text of `/proc/<tid>/cgroup`.
    running: Mutex<HashMap<Vec<u8>, Place>>,
    /// Workers that wait for the next act.
    waiting: Arc<Budget>,
    /// How long a task may take.
    patience: Duration,
}

/// For one set of control groups: its worker, when there is one.
type Place = Arc<Mutex<Option<Worker>>>;

/// A running one. It ends when this is dropped.
#[derive(Debug)]
struct Worker {
    line: OwnedFd,
    process: OwnedFd,
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
    /// needs in addition. A worker waits for the next act for as long as `payer` pays for it: a
    /// container can have control groups without end.
    ///
    /// # Errors
    /// It was not done in time, or there is nobody to do it.
    pub fn act(
        &self,
        actor: &Actor,
        what: &What,
        more: &[BorrowedFd<'_>],
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
            match running.ask(actor, what, more) {
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

    fn place(&self, groups: &[u8]) -> Place {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = running.get(groups) {
            return Arc::clone(place);
        }
        // A worker that is in use is kept, and so is one that has not ended yet.
        running.retain(|_, place| {
            let runs = || place.try_lock().is_ok_and(|one| one.as_ref().is_some_and(Worker::runs));
            Arc::strong_count(place) > 1 || runs()
        });
        Arc::clone(running.entry(groups.to_owned()).or_default())
    }

    fn start(&self, groups: &[u8]) -> Result<Worker, Failure> {
        let started = control_groups(groups).and_then(|groups| {
            let ask = || {
                let line = self.broker.worker(&groups)?;
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
            Ok(Worker { line, process, charge: None })
        });
        started.map_err(|failure| Failure::nobody_acts(format!("no worker: {failure}")))
    }
}

impl Worker {
    /// Its answer; `None` when it had ended before it was asked.
    fn ask(
        &self,
        actor: &Actor,
        what: &What,
        more: &[BorrowedFd<'_>],
    ) -> Result<Option<Answer>, Failure> {
        let task = Task { who: Cow::Borrowed(&actor.who), what: Cow::Borrowed(what) };
        let task = postcard::to_allocvec(&task)
            .map_err(|error| Failure::new(Errno::EINVAL, error.to_string()).on_our_side())?;
        if task.len() > LONGEST {
            return Err(Failure::nobody_acts("the task is too long"));
        }
        let base = actor.base.as_ref().unwrap_or(&actor.root);
        let mut fds = vec![actor.process.as_fd(), actor.root.as_fd(), base.as_fd()];
        fds.extend(more);
        match channel::send(&self.line, &task, &fds, SendFlags::empty()) {
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Ok(None),
            sent => sent.or_fail("sendmsg to a worker").on_our_side()?,
        }
        self.answer(what.room()).map(Some)
    }

    /// Waits for the answer, of which so many bytes may be the act's own.
    fn answer(&self, room: usize) -> Result<Answer, Failure> {
        let mut bytes = vec![0; room + ANSWER];
        let mut turns = 1;
        let Received { length, mut fds, .. } = loop {
            match channel::receive(&self.line, &mut bytes, RecvFlags::empty()) {
                Err(rustix::io::Errno::AGAIN) if turns < TIMES && self.is_runnable() => turns += 1,
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(Failure::new(Errno::ETIMEDOUT, "it took too long"));
                }
                // The worker has ended, as after an empty message.
                Err(_) => return Err(killed()),
                Ok(received) => break received,
            }
        };
        let answer = postcard::from_bytes(&bytes[..length]).map_err(|_| killed())?;
        Ok(Answer { fd: fds.pop(), ..answer })
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
