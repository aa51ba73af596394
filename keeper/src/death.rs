//! The end of a server: whether it has come, and what follows.
//!
//! A server that is silent is killed. One that does not end even then sleeps in the kernel, where no
//! signal reaches it (state D): its FUSE connections are aborted, so that the next server can mount
//! new ones, and it is not waited for any more.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use ambit_kernel::output::{one_line, stderr};
use anyhow::Context;
use nix::sys::signal::Signal;

use super::child::Process;
use super::process::{Keeper, LAST_MOMENT, LONGEST_PAUSE, Stop};
use super::wire;

/// A process that has not ended so long after SIGKILL is in state D, and may be for ever.
const UNKILLABLE: Duration = Duration::from_secs(60);
/// A server that lives longer than this did not fail at once.
const STABLE: Duration = Duration::from_secs(2);
/// The longest pause after one that has served for a moment.
const SHORT_PAUSE: Duration = Duration::from_millis(16);
/// How long the search for dead files may take.
const SEARCH: Duration = Duration::from_secs(30);
/// What belongs to a FUSE connection in the store, and the names of the connections.
const OF_CONNECTION: [&str; 3] = ["", "-init", "-abort"];
const CONNECTIONS: [&str; 2] = ["overlay", "pressure"];

/// What is done with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It goes on, or ends soon.
    Wait,
    Kill,
    /// It has ended.
    Ended,
    /// It does not end: its connections are aborted, and others take its place.
    GiveUp,
}

impl Fate {
    /// Of a server that is late, or was killed so long ago.
    fn of(has_ended: bool, is_late: bool, killed: Option<Duration>, patience: Duration) -> Self {
        match (has_ended, killed) {
            (true, _) => Self::Ended,
            (false, Some(since)) if since >= patience => Self::GiveUp,
            (false, None) if is_late => Self::Kill,
            _ => Self::Wait,
        }
    }
}

impl Keeper {
    /// How long a server that was killed may take to end.
    pub(super) fn patience(&self) -> Duration {
        match self.stopping {
            Some(Stop::Keep | Stop::Release) => LAST_MOMENT,
            _ => UNKILLABLE,
        }
    }

    /// Has the server ended, or should it?
    pub(super) fn look_at_server(&mut self, now: Instant) -> Option<ExitCode> {
        let (patience, stop_by) = (self.patience(), self.stop_by);
        let Some(server) = &mut self.server else {
            let over = self.stopping.is_some();
            return over.then(|| self.end(ExitCode::SUCCESS));
        };
        let is_silent = server.silent_at() <= now;
        let is_late = is_silent || stop_by.is_some_and(|by| by <= now);
        let ended = server.process.ended();
        let killed = server.killed.map(|killed| now.saturating_duration_since(killed));
        match Fate::of(ended.is_some(), is_late, killed, patience) {
            Fate::Wait => return None,
            Fate::Kill => {
                stderr::line("the server does not answer and is killed");
                server.killed = Some(now);
                server.process.kill();
                return None;
            }
            Fate::Ended => {}
            // The service manager keeps the files as they are.
            Fate::GiveUp if self.stopping == Some(Stop::Keep) => {}
            Fate::GiveUp => self.give_up(),
        }
        // What it said last is heard first.
        self.listen();
        let server = self.server.take()?;
        let (lived, served) = (server.started.elapsed(), server.served());
        let was_silent = server.killed.is_some();
        server.bury(&mut self.graveyard);
        let ended = ended.flatten();
        match self.stopping {
            Some(Stop::Replace) => self.replace(served),
            Some(_) => return Some(self.end(code(ended))),
            // It never worked: the one that started us is told.
            None if !self.is_needed => return Some(self.end(code(ended))),
            // A mistaken configuration, and none was kept: only systemd holds what there is.
            None if self.served_nothing_and(ended) => return Some(self.end(code(ended))),
            None => self.follow(ended, lived, served, was_silent),
        }
        None
    }

    /// True after the exit status of a mistaken configuration, if a service manager holds
    /// everything and no configuration is known that could be used.
    fn served_nothing_and(&self, ended: Option<ExitStatus>) -> bool {
        ended.and_then(|ended| ended.code()) == Some(i32::from(self.contract.misconfigured))
            && self.editions.current().configuration.is_none()
            && self.store.outlives_us()
    }

    /// Has another server follow the one that has ended.
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
        // One that has served is not broken: containers wait for the next one.
        let longest = if served.is_some() { SHORT_PAUSE } else { LONGEST_PAUSE };
        self.pause = if lived > STABLE {
            Duration::ZERO
        } else {
            (self.pause * 2).clamp(Duration::from_millis(1), longest)
        };
        // One that stands by is there already, and took its time.
        let is_ready = served.is_some() && self.standby.is_some();
        let pause = if is_ready { Duration::ZERO } else { self.pause };
        self.start_at = Some(Instant::now() + pause);
    }

    /// A server has died that has served for so long: if that was too early and too often, the next
    /// ones are started from what was there before.
    pub(super) fn count_death(&mut self, served: Option<Duration>) {
        if !self.editions.died(served) {
            return;
        }
        // The file on disk has the other configuration.
        self.editions.current_mut().instead = true;
        self.pause = Duration::ZERO;
        self.dismiss_standby();
        let program = self.editions.current().program.path().display().to_string();
        stderr::line(&format!(
            "servers of the new program or configuration die early: going back to the program \
             {program} and the configuration that it had before"
        ));
    }

    /// The server does not end: its files are given up, so that the next one can serve new ones.
    fn give_up(&mut self) {
        for connection in CONNECTIONS {
            let aborted = self.store.get(&format!("{connection}-abort"));
            if let Some(Err(errno)) = aborted.map(|abort| rustix::io::write(abort, b"1")) {
                stderr::line(&format!("the connection {connection} is not aborted: {errno}"));
            }
            for part in OF_CONNECTION {
                self.store.remove(&format!("{connection}{part}"));
            }
        }
        self.store.remove("server");
        self.has_dead_files = true;
        stderr::line(&format!(
            "the server has not ended {} s after SIGKILL (state D): its FUSE connections are \
             aborted, and the next server mounts the files anew. Containers that have the old ones \
             bound get ENOTCONN from them: the log and `ambit status` name these containers; \
             restart them, or unmount the files there",
            UNKILLABLE.as_secs()
        ));
    }

    /// Has a process write to the log which containers have dead files. It looks into all mount
    /// namespaces, which may take long or hang: the keeper and the server do not.
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

    pub(super) fn look_at_search(&mut self, now: Instant) {
        let is_over =
            |(search, until): &mut (Process, Instant)| *until <= now || search.ended().is_some();
        if let Some((search, _)) = self.search.take_if(is_over) {
            self.graveyard.bury(search);
        }
    }
}

/// Did it end by itself, and not by what another process sent to it?
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

    /// Looks every second at a server that does not end by itself, and is late from the tenth second
    /// on; SIGKILL ends it so long after it was sent, or never.
    fn fates(dies_within: Option<u64>) -> Vec<(u64, Fate)> {
        let (mut killed, mut fates) = (None, Vec::new());
        for second in 0..200 {
            let since = killed.map(|at| second - at);
            let has_ended = since.zip(dies_within).is_some_and(|(since, within)| since >= within);
            let fate = Fate::of(has_ended, second >= 10, since.map(Duration::from_secs), PATIENCE);
            match fate {
                Fate::Wait => continue,
                Fate::Kill => killed = Some(second),
                Fate::Ended | Fate::GiveUp => {
                    fates.push((second, fate));
                    break;
                }
            }
            fates.push((second, fate));
        }
        fates
    }

    #[test]
    fn a_server_that_does_not_end_is_killed_once_and_given_up_after_a_minute() {
        assert_eq!(fates(None), [(10, Fate::Kill), (70, Fate::GiveUp)]);
    }

    #[test]
    fn one_that_takes_long_to_end_is_waited_for() {
        assert_eq!(fates(Some(59)), [(10, Fate::Kill), (69, Fate::Ended)]);
        assert_eq!(fates(Some(0)), [(10, Fate::Kill), (11, Fate::Ended)]);
    }
}
