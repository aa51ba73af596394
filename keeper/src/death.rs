//! The end of a server: detects it, and starts what follows.
//!
//! The keeper kills a server that sends nothing. A server that does not end after SIGKILL is in
//! uninterruptible sleep (state D): the keeper aborts its FUSE connections, so that the next server
//! can mount new ones, and stops waiting for it.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use ambit_kernel::output::{one_line, stderr};
use anyhow::Context;
use nix::sys::signal::Signal;

use super::child::Process;
use super::client::SERVER;
use super::process::{Keeper, LONGEST_PAUSE, SHUTDOWN_TIMEOUT, Stop};
use super::wire;

/// A process that has not ended this long after SIGKILL is in state D, and may stay there for ever.
const UNKILLABLE: Duration = Duration::from_secs(60);
/// A server that lives longer than this is restarted without a pause.
const STABLE: Duration = Duration::from_secs(2);
/// The longest pause after a server that has served.
const SHORT_PAUSE: Duration = Duration::from_millis(16);
/// The time limit of the search for dead files.
const SEARCH: Duration = Duration::from_secs(30);
/// The suffixes of the names of a FUSE connection's descriptors in the store, and the connections.
const OF_CONNECTION: [&str; 3] = ["", "-init", "-abort"];
const CONNECTIONS: [&str; 3] = ["overlay", "pressure", "leases"];

/// What the keeper does with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The server goes on, or ends soon.
    Wait,
    Kill,
    /// The server has ended.
    Ended,
    /// The server does not end: its connections are aborted, and the next server is started.
    Abandon,
}

impl Fate {
    /// Decides for a server that is late, or was killed `killed` ago.
    fn decide(
        has_ended: bool,
        is_late: bool,
        killed: Option<Duration>,
        patience: Duration,
    ) -> Self {
        match (has_ended, killed) {
            (true, _) => Self::Ended,
            (false, Some(since)) if since >= patience => Self::Abandon,
            (false, None) if is_late => Self::Kill,
            _ => Self::Wait,
        }
    }
}

impl Keeper {
    /// Returns how long a server that was killed may take to end.
    pub(super) fn patience(&self) -> Duration {
        match self.stopping {
            Some(Stop::Keep | Stop::Release) => SHUTDOWN_TIMEOUT,
            _ => UNKILLABLE,
        }
    }

    /// Checks whether the server has ended, or must be killed. Returns the keeper's exit status if
    /// the keeper ends too.
    pub(super) fn check_server(&mut self, now: Instant) -> Option<ExitCode> {
        let (patience, stop_by) = (self.patience(), self.stop_by);
        let Some(server) = &mut self.server else {
            let over = self.stopping.is_some();
            return over.then(|| self.end(ExitCode::SUCCESS));
        };
        let is_silent = server.silent_at() <= now;
        let is_late = is_silent || stop_by.is_some_and(|by| by <= now);
        let ended = server.ended();
        let killed = server.killed.map(|killed| now.saturating_duration_since(killed));
        match Fate::decide(ended.is_some(), is_late, killed, patience) {
            Fate::Wait => return None,
            Fate::Kill => {
                stderr::line("the server does not answer and is killed");
                server.killed = Some(now);
                server.process.kill();
                return None;
            }
            // No thread of it runs any more, so the next server need not wait for it.
            Fate::Ended => self.store.remove(SERVER),
            // The service manager keeps the files as they are.
            Fate::Abandon if self.stopping == Some(Stop::Keep) => {}
            Fate::Abandon => self.abort_connections(),
        }
        // Its last messages are handled first.
        self.listen();
        let server = self.server.take()?;
        let (lived, served) = (server.started.elapsed(), server.served());
        let was_silent = server.killed.is_some();
        server.dismiss(&mut self.dying);
        let ended = ended.flatten();
        match self.stopping {
            Some(Stop::Replace) => self.replace(served),
            Some(_) => return Some(self.end(code(ended))),
            // No server has ever served: the keeper's parent gets the exit status.
            None if !self.is_needed => return Some(self.end(code(ended))),
            // The configuration is invalid and no earlier one is held: systemd keeps the
            // descriptors.
            None if self.has_no_configuration(ended) => return Some(self.end(code(ended))),
            None => self.follow(ended, lived, served, was_silent),
        }
        None
    }

    /// True after the exit status of an invalid configuration, if a service manager holds all
    /// descriptors and there is no earlier configuration to use.
    fn has_no_configuration(&self, ended: Option<ExitStatus>) -> bool {
        ended.and_then(|ended| ended.code()) == Some(i32::from(self.contract.misconfigured))
            && self.editions.current().configuration.is_none()
            && self.store.outlives_us()
    }

    /// Schedules the start of another server.
    fn follow(
        &mut self,
        ended: Option<ExitStatus>,
        lived: Duration,
        served: Option<Duration>,
        was_silent: bool,
    ) {
        let how = ended.map_or("for no known reason".to_owned(), |end| end.to_string());
        stderr::line(&format!("the server ended ({how}) and is started again"));
        self.count_death(served);
        self.restarts += 1;
        let crashed = ended.is_some_and(has_crashed).then_some(wire::CRASHED);
        self.ended = crashed.or(was_silent.then_some(wire::SILENT));
        // A program that has served works, and containers wait for the next server.
        let longest = if served.is_some() { SHORT_PAUSE } else { LONGEST_PAUSE };
        self.pause = if lived > STABLE {
            Duration::ZERO
        } else {
            (self.pause * 2).clamp(Duration::from_millis(1), longest)
        };
        // A standby is started already, so that its start needs no pause.
        let is_ready = served.is_some() && self.standby.is_some();
        let pause = if is_ready { Duration::ZERO } else { self.pause };
        self.start_at = Some(Instant::now() + pause);
    }

    /// Counts the death of a server that has served for `served`. After too many early deaths, the
    /// next servers are started from the program and the configuration from before.
    pub(super) fn count_death(&mut self, served: Option<Duration>) {
        if !self.editions.died(served) {
            return;
        }
        // The file on disk has the configuration that failed.
        self.editions.current_mut().instead = true;
        self.pause = Duration::ZERO;
        self.dismiss_standby();
        let program = self.editions.current().program.path().display().to_string();
        stderr::line(&format!(
            "servers of the new program or configuration die early: going back to the program \
             {program} and the configuration that it had before"
        ));
    }

    /// Aborts the FUSE connections of a server that does not end, so that the next server can mount
    /// new ones.
    fn abort_connections(&mut self) {
        for connection in CONNECTIONS {
            let aborted = self.store.get(&format!("{connection}-abort"));
            if let Some(Err(errno)) = aborted.map(|abort| rustix::io::write(abort, b"1")) {
                stderr::line(&format!("the connection {connection} is not aborted: {errno}"));
            }
            for part in OF_CONNECTION {
                self.store.remove(&format!("{connection}{part}"));
            }
        }
        self.store.remove(SERVER);
        self.has_dead_files = true;
        stderr::line(&format!(
            "the server has not ended {} s after SIGKILL (state D): its FUSE connections are \
             aborted, and the next server mounts the files anew. Containers that have the old ones \
             bound get ENOTCONN from them: the log and `ambit status` name these containers; \
             restart them, or unmount the files there",
            UNKILLABLE.as_secs()
        ));
    }

    /// Starts a process that logs which containers have dead files. Reading all mount namespaces
    /// may take long or hang, so the keeper and the server do not do it.
    pub(super) fn search_dead_files(&mut self) {
        let nothing = std::fs::File::open("/dev/null").context("cannot open /dev/null");
        let program = &self.editions.current().program;
        let arguments = ["check".as_ref(), "--dead-files".as_ref()];
        match nothing.and_then(|nothing| Process::start(program, &arguments, nothing.into())) {
            Ok(search) => self.search = Some((search, Instant::now() + SEARCH)),
            Err(error) => {
                stderr::line(&format!("dead files are not searched: {}", one_line(&error)));
            }
        }
    }

    pub(super) fn check_search(&mut self, now: Instant) {
        let is_over =
            |(search, until): &mut (Process, Instant)| *until <= now || search.ended().is_some();
        if let Some((search, _)) = self.search.take_if(is_over) {
            self.dying.dismiss(search);
        }
    }
}

/// True if the process ended itself, and not by a signal that another process sent.
fn has_crashed(status: ExitStatus) -> bool {
    let from_outside = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT].map(|one| one as i32);
    status.signal().map_or(!status.success(), |signal| !from_outside.contains(&signal))
}

fn code(status: Option<ExitStatus>) -> ExitCode {
    let code = status.and_then(|status| status.code()).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Checks once a second a server that does not end itself, and is late from the tenth second
    /// on. It ends `dies_within` seconds after SIGKILL, or never.
    fn fates(dies_within: Option<u64>) -> Vec<(u64, Fate)> {
        let (mut killed, mut fates) = (None, Vec::new());
        for second in 0..200 {
            let since = killed.map(|at| second - at);
            let has_ended = since.zip(dies_within).is_some_and(|(since, within)| since >= within);
            let fate =
                Fate::decide(has_ended, second >= 10, since.map(Duration::from_secs), PATIENCE);
            match fate {
                Fate::Wait => continue,
                Fate::Kill => killed = Some(second),
                Fate::Ended | Fate::Abandon => {
                    fates.push((second, fate));
                    break;
                }
            }
            fates.push((second, fate));
        }
        fates
    }

    #[test]
    fn a_server_that_does_not_end_is_killed_once_and_abandoned_after_a_minute() {
        assert_eq!(fates(None), [(10, Fate::Kill), (70, Fate::Abandon)]);
    }

    #[test]
    fn a_server_that_ends_within_a_minute_of_sigkill_is_not_abandoned() {
        assert_eq!(fates(Some(59)), [(10, Fate::Kill), (69, Fate::Ended)]);
        assert_eq!(fates(Some(0)), [(10, Fate::Kill), (11, Fate::Ended)]);
    }
}
