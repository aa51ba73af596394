//! `ambit verify CONTAINER`: runs `ambit-verify` inside of a container, as its root.
//!
//! The program has no seccomp filter of the container there, so that no server answers its calls.
//! It is told to leave them open.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ambit_worker::run_inside;
use anyhow::{Context, bail};

use crate::containers;

/// The name of the program.
const NAME: &str = "ambit-verify";
/// Where packages put programs that are not for the command line.
const LIBEXEC: &str = "/usr/libexec/ambit";

/// The arguments of `ambit verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The name or id of a container, the beginning of its id, or a process in it
    container: String,
    /// The memory must be exactly this: 512M, or the machine's if that is less
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// The swap must be exactly this, without memory
    #[arg(long, value_name = "SIZE")]
    swap: Option<String>,
    /// The quota must be exactly this, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// The processors must be exactly these, such as 0-1,4
    #[arg(long, value_name = "LIST")]
    cpuset: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "junit")]
    json: bool,
    /// Print JUnit XML
    #[arg(long)]
    junit: bool,
}

impl VerifyArgs {
    /// Returns the arguments of the program.
    fn words(&self) -> anyhow::Result<Vec<CString>> {
        let mut words = vec![NAME.to_owned(), "--no-calls".to_owned()];
        let values = [
            ("--memory", &self.memory),
            ("--swap", &self.swap),
            ("--cpus", &self.cpus),
            ("--cpuset", &self.cpuset),
        ];
        let given = values.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        words.extend(given.map(|(name, value)| format!("{name}={value}")));
        let flags = [("--json", self.json), ("--junit", self.junit)];
        words
            .extend(flags.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned()));
        words.into_iter().map(|word| CString::new(word).context("a NUL in an argument")).collect()
    }
}

/// Runs the command. Returns the exit status of the program.
pub fn run(args: &VerifyArgs) -> anyhow::Result<u8> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root can enter a container: run `ambit verify` as root");
    }
    let words = args.words()?;
    let container = containers::find(&args.container)?;
    let program = program()?;
    let folder = container.folder().with_context(|| format!("{container} has ended"))?;
    let status = run_inside(folder.as_fd(), &program, &words)
        .with_context(|| format!("cannot enter {container}"))?;
    Ok(u8::try_from(status).unwrap_or(u8::MAX))
}

/// Opens the program: beside this one, or where packages put it.
fn program() -> anyhow::Result<File> {
    let own = std::env::current_exe().context("/proc/self/exe")?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    let places: [PathBuf; 2] = [beside.join(NAME), Path::new(LIBEXEC).join(NAME)];
    for place in &places {
        match File::open(place) {
            Ok(program) => return Ok(program),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => bail!("cannot open {}: {error}", place.display()),
        }
    }
    bail!(
        "{NAME} is neither in {} nor in {LIBEXEC}: put it there (`make build` makes it)",
        beside.display()
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: VerifyArgs,
    }

    #[test]
    fn options_are_passed_on_and_calls_left_open() {
        let cli = Cli::parse_from(["verify", "web", "--memory", "1G", "--cpus=1.5", "--json"]);
        let words: Vec<_> = cli.args.words().unwrap();
        let expected = [c"ambit-verify", c"--no-calls", c"--memory=1G", c"--cpus=1.5", c"--json"];
        assert_eq!(words, expected.map(ToOwned::to_owned));
        assert!(Cli::try_parse_from(["verify", "web", "--json", "--junit"]).is_err());
        assert!(Cli::try_parse_from(["verify"]).is_err());
    }
}
