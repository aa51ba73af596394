//! What `ambit profile` prints.

use ambit_intercept::HANDLERS;

use super::command::{self, Output, quiet};
use super::daemon::Daemon;
use super::machine::AMBIT;

/// `ambit profile` with the configuration of this daemon, for all calls that there are.
#[track_caller]
pub(crate) fn ask(daemon: &Daemon, engine: &str, args: &[&str]) -> Output {
    let all: Vec<_> = HANDLERS.iter().map(|handler| handler.describe().name).collect();
    let mut ask = quiet(AMBIT);
    ask.args(["profile", "--for", engine, "--intercept", &all.join(",")]).args(args);
    command::run(ask.arg("--config").arg(daemon.place().config()))
}

/// The profile itself.
#[track_caller]
pub(crate) fn of(daemon: &Daemon, engine: &str, args: &[&str]) -> String {
    ask(daemon, engine, args).ok()
}
