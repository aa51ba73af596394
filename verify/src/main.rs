//! `ambit-verify`: reads what programs read inside a container, and says what contradicts what.
//!
//! It knows nothing of ambit: limits come from control group files or options, everything else from
//! the kernel's interfaces as any program sees them. It changes nothing but its own affinity.
//!
//! `look.rs` reads everything once, `checks/` makes rows of a look, `verdict.rs` merges looks,
//! `report.rs` prints.

mod args;
mod checks;
mod files;
mod kernel;
mod limits;
mod look;
mod report;
#[cfg(test)]
mod tests;
mod text;
mod verdict;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use args::{Args, Options};
use checks::Context;
use files::Root;
use limits::{Bounds, Given};
use look::Look;
use verdict::{Mark, Rows};

/// Looks that are taken while something that changes by itself does not agree.
const LOOKS: usize = 20;
/// Between two looks. Overlays may keep numbers for some milliseconds.
const PAUSE: Duration = Duration::from_millis(25);

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let options = match args::parse(args) {
        Ok(Args::Verify(options)) => options,
        Ok(Args::Help) => return print(args::HELP, ExitCode::SUCCESS),
        Ok(Args::Version) => {
            return print(
                concat!("ambit-verify ", env!("CARGO_PKG_VERSION"), "\n"),
                ExitCode::SUCCESS,
            );
        }
        Err(message) => return fail(&message),
    };
    let Options { given, no_calls, json, junit, root } = options;
    let (mut rows, bounds) = verify(root.as_deref(), &given);
    if no_calls {
        rows.leave_calls();
    }
    let text = match &junit {
        Some(None) => report::junit(&rows),
        _ if json => report::json(&rows, &bounds),
        _ => report::table(&rows, &bounds),
    };
    if let Some(Some(file)) = junit
        && let Err(error) = std::fs::write(&file, report::junit(&rows))
    {
        return fail(&format!("cannot write {file}: {error}"));
    }
    let contradicts = rows.count(Mark::Contradicts) > 0;
    print(&text, if contradicts { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Reads and judges everything.
fn verify(folder: Option<&str>, given: &Given) -> (Rows, Bounds) {
    let root = Root::new(folder.unwrap_or("/"));
    let is_here = folder.is_none();
    let mounts = files::mounts(&root);
    let bounds = Bounds::read(&root, &mounts, given);
    let usage = bounds.container().usage.clone();
    let take = || Look::take(&root, usage.as_deref(), bounds.pressure.as_deref(), is_here);
    let mut look = take();
    let visited = is_here.then(|| kernel::visit(look.mask.as_ref().unwrap_or(&text::Cpus::new())));
    let context = Context::read(&root, &mounts, &bounds, visited.as_ref());
    let mut rows = checks::check(&context, &look);
    for _ in 1..LOOKS {
        if !rows.is_unsettled() || !is_here {
            break;
        }
        std::thread::sleep(PAUSE);
        look = take();
        rows.merge(checks::check(&context, &look));
    }
    rows.settle();
    rows.sort();
    (rows, bounds)
}

fn print(text: &str, status: ExitCode) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => status,
        Err(error) => fail(&format!("cannot write to standard output: {error}")),
    }
}

fn fail(message: &str) -> ExitCode {
    // Nothing is left to do where that fails too.
    let _ = writeln!(io::stderr(), "ambit-verify: {message}");
    ExitCode::from(2)
}
