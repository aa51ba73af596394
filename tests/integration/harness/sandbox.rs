//! Commands in a sandbox of `ambit run`, and a survey: many programs asked in one sandbox, so
//! that what they say can be compared.

use std::collections::BTreeMap;
use std::process::Command;

use super::command::{self, Output, quiet};
use super::daemon::Daemon;
use super::machine::{self, AMBIT};

/// Where the C programs of the tests are seen inside.
pub(crate) const PROGRAMS: &str = "/mnt";

/// `ambit run ARGS… -- sh -c SCRIPT` through this daemon, with our programs bound in.
pub(crate) fn command(daemon: &Daemon, args: &[&str], script: &str) -> Command {
    let mut run = quiet(AMBIT);
    run.arg("run").arg("--config").arg(daemon.place().config()).args(args);
    run.arg("--bind").arg(format!("{}:{PROGRAMS}:ro", machine::programs().display()));
    run.args(["--", "sh", "-c", script]);
    run
}

/// Runs a script in a sandbox to its end.
#[track_caller]
pub(crate) fn run(daemon: &Daemon, args: &[&str], script: &str) -> Output {
    command::run(&mut command(daemon, args, script))
}

/// What each question was answered.
#[derive(Debug)]
pub(crate) struct Survey(BTreeMap<String, String>);

/// The questions: a name, and the shell command that answers it.
pub(crate) type Questions<'a> = &'a [(&'a str, &'a str)];

/// A script that asks all questions; [`Survey::of`] reads its output.
pub(crate) fn script(questions: Questions<'_>) -> String {
    // A first round brings programs and libraries into the page cache, so that they do not
    // change what the second one sees.
    let ask: String = questions
        .iter()
        .map(|(name, command)| format!("echo '@@ {name}'; {command} 2>&1\n"))
        .collect();
    let warm: String =
        questions.iter().map(|(_, command)| format!("({command}) >/dev/null 2>&1\n")).collect();
    format!("{warm}{ask}echo '@@ end'\n")
}

impl Survey {
    /// Takes the output of a script apart.
    #[track_caller]
    pub(crate) fn of(output: &str) -> Self {
        assert!(output.contains("@@ end"), "the survey was cut short:\n{output}");
        let answers = output.split("@@ ").filter_map(|part| part.split_once('\n'));
        Self(answers.map(|(name, answer)| (name.trim().to_owned(), answer.to_owned())).collect())
    }

    /// Asks in a sandbox.
    #[track_caller]
    pub(crate) fn run(daemon: &Daemon, args: &[&str], questions: Questions<'_>) -> Self {
        Self::of(&run(daemon, args, &script(questions)).ok())
    }

    /// The answer to a question.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("{name} was not asked"))
    }
}
