//! Where the keeper sleeps: until an event of a process or a socket, or until something is due. Start
//! reading at `Keeper::wait`.

use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::child::Server;
use super::process::Keeper;

/// A keeper that wakes this much late was frozen or stopped, and the server probably with it. The
/// silence of the server does not count then.
const OVERSLEPT: Duration = Duration::from_secs(2);
/// The pause before another attempt to send to the service manager.
const MANAGER_PAUSE: Duration = Duration::from_millis(10);

impl Keeper {
    /// Sleeps until an event or a deadline, and returns the time.
    pub(super) fn wait(&mut self, signals: &SignalFd) -> Instant {
        // A prepared candidate waits until the server has left.
        let candidate = || self.candidate.iter().map(|(one, _)| one).filter(|one| !one.prepared);
        let servers = || self.server.iter().chain(candidate());
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        for server in servers() {
            fds.push(PollFd::new(&server.process.pidfd, PollFlags::IN));
            let more = if server.has_unsent() { PollFlags::OUT } else { PollFlags::empty() };
            if !server.is_disconnected {
                fds.push(PollFd::new(&server.socket, PollFlags::IN | more));
            }
        }
        let standby = self.standby.iter().map(|standby| &standby.process);
        let with_brokers = || self.server.iter().chain(&self.standby);
        let brokers = with_brokers().filter_map(|server| server.broker.process.as_ref());
        let search = self.search.iter().map(|(search, _)| search);
        for process in standby.chain(brokers).chain(search).chain(&self.dying.0) {
            fds.push(PollFd::new(&process.pidfd, PollFlags::IN));
        }
        let now = Instant::now();
        let due = [self.start_at, self.search.as_ref().map(|(_, until)| *until)];
        let manager = (!self.store.is_flushed()).then(|| now + MANAGER_PAUSE);
        let server = self.server.as_ref().map(|server| self.due(server));
        let missing = with_brokers().filter(|one| one.broker.process.is_none());
        let missing = missing.filter(|_| self.stopping.is_none()).map(|one| one.broker.due);
        let due = due.into_iter().chain([manager, server]).flatten().chain(missing);
        let due = due.chain(candidate().map(Server::silent_at)).min();
        let left = due.map(|due| due.saturating_duration_since(now));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(1),
            // One more millisecond, so that poll(2) does not return before the deadline.
            tv_nsec: i64::from(left.subsec_nanos()).saturating_add(1_000_000).min(999_999_999),
        });
        let _ = poll(&mut fds, timeout.as_ref());
        let woken = Instant::now();
        if left.is_some_and(|left| has_overslept(left, woken.duration_since(now))) {
            let candidate = self.candidate.as_mut().map(|(one, _)| one);
            self.server.iter_mut().chain(candidate).for_each(|one| one.heard = woken);
        }
        woken
    }

    /// Returns when the server must be checked, if no event comes before.
    fn due(&self, server: &Server) -> Instant {
        match server.killed {
            Some(killed) => killed + self.patience(),
            None => self.stop_by.map_or(server.silent_at(), |by| by.min(server.silent_at())),
        }
    }
}

/// True if the keeper slept for `slept` instead of at most `left`: it was frozen or stopped.
fn has_overslept(left: Duration, slept: Duration) -> bool {
    slept > left + OVERSLEPT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silence_of_a_server_does_not_count_while_the_keeper_was_frozen() {
        let left = Duration::from_secs(1);
        // A busy machine wakes the keeper late, too.
        assert!(!has_overslept(left, left) && !has_overslept(left, left + OVERSLEPT));
        assert!(has_overslept(left, Duration::from_secs(60)));
        assert!(!has_overslept(Duration::from_secs(59), Duration::from_secs(60)));
    }
}
