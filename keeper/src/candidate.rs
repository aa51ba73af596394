//! The candidate: the server of a new program, which is started beside the server and takes its
//! place when it is prepared. If it fails before, the server goes on.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ambit_kernel::output::one_line;

use super::child::CHECK;
use super::edition::Edition;
use super::process::{Keeper, Stop};
use super::program::Program;
use super::wire;

impl Keeper {
    /// Starts a new program beside the server, as the candidate.
    pub(super) fn try_program(&mut self, program: &Path) {
        if self.candidate.is_some() || self.stopping.is_some() {
            return self.send("refused another program is being started already");
        }
        let started = Program::open(program).and_then(|program| {
            let (program, current) = (Rc::new(program), self.editions.current().clone());
            let edition = Edition { program, instead: false, ..current };
            Ok((self.start(&edition, true)?, edition))
        });
        match started {
            Ok(candidate) => self.candidate = Some(candidate),
            Err(error) => self.send(&format!("refused {}", one_line(&error))),
        }
    }

    /// Checks whether the candidate is prepared, or has failed.
    pub(super) fn check_candidate(&mut self, now: Instant) {
        let Some((candidate, _)) = &mut self.candidate else { return };
        if candidate.prepared {
            return;
        }
        // Read before its last messages are, so that none is missed.
        let ended = candidate.process.ended();
        candidate.flush();
        while let Some((text, fd)) = candidate.receive() {
            match (text.split_once(' '), fd) {
                (None, Some(fd)) if text == wire::CONFIGURED => candidate.configuration = Some(fd),
                (None, _) if text == "prepared" => {
                    candidate.prepared = true;
                    return self.stop(Stop::Replace);
                }
                (Some(("failed", why)), _) => candidate.failure = Some(why.to_owned()),
                _ => {}
            }
        }
        if ended.is_none() && candidate.silent_at() > now {
            return;
        }
        let said = candidate.failure.take();
        if let Some((candidate, _)) = self.candidate.take() {
            candidate.dismiss(&mut self.dying);
        }
        let how = match ended {
            None => format!("it was not ready after {} s", CHECK.as_secs()),
            Some(end) => end.map_or("it ended".to_owned(), |end| end.to_string()),
        };
        let why = said.unwrap_or(how);
        self.send(&format!("refused the new program failed before it served: {why}"));
    }

    /// Makes the candidate the server. `served` is how long the server before has served.
    pub(super) fn replace(&mut self, served: Option<Duration>) {
        self.stopping = None;
        self.stop_by = None;
        let Some((mut candidate, mut edition)) = self.candidate.take() else {
            self.start_at = Some(Instant::now());
            return;
        };
        candidate.heard = Instant::now();
        if let Some(configuration) = candidate.configuration.take() {
            edition.configuration = Some(Rc::new(configuration));
        }
        self.server = Some(candidate);
        self.ended = None;
        self.editions.replace(edition, served);
        self.hand_over();
    }
}
