//! The check that a new program runs before it takes over from the server. It renders every file
//! and answers sysinfo(2) for its own process, in memory. It mounts nothing and changes no process.

use ambit_fuse::{FILES, Text};
use ambit_sysinfo::sysinfo::{Abi, encode};
use ambit_sysinfo::view::Origin;
use ambit_sysinfo::{Accounting, View, Views};
use anyhow::Context;

use crate::config::Config;
use crate::process_setup;
use ambit_intercept as intercept;

/// Runs the check.
pub fn run(config: &Config) -> anyhow::Result<()> {
    intercept::check_kernel().context("calls cannot be received")?;
    let accounting = process_setup::start_accounting(process_setup::accounting_options(config))?;
    let own = std::process::id();
    accounting.identify(own).context("a caller is not identified")?;
    for file in FILES {
        let path = file.path;
        let view = accounting
            .view_with(own, file.needs)
            .with_context(|| format!("there are no numbers for {path}"))?;
        // As a container: the host gets the kernel's own text.
        let view = View { origin: Origin::Container, ..View::clone(&view) };
        let mut text = Text::new();
        (file.render)(&view, &mut text);
        // Some files are empty or have only a header, which is correct.
        if path == "proc/meminfo" && !text.as_bytes().starts_with(b"MemTotal:") {
            anyhow::bail!("{path} has no MemTotal");
        }
    }
    answer(&accounting, own)
}

/// Renders the answer to sysinfo(2).
fn answer(accounting: &Accounting, own: u32) -> anyhow::Result<()> {
    let view = accounting.view(own).context("there are no numbers for sysinfo")?;
    for abi in [Abi::Bits64, Abi::Bits32] {
        if encode(&view, abi).bytes().is_empty() || view.memory.total == 0 {
            anyhow::bail!("sysinfo has no memory");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_passes() {
        run(&Config::default()).unwrap();
    }
}
