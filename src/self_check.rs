//! What a new program tries before it takes over from one that serves: everything that containers
//! will ask it for, for itself and in memory. Nothing is mounted, and nobody else is touched.

use ambit_fuse::{FILES, Text};
use ambit_sysinfo::sysinfo::{Abi, encode};
use ambit_sysinfo::view::Origin;
use ambit_sysinfo::{Accounting, View, Views};
use anyhow::Context;

use crate::config::Config;
use crate::daemon;
use ambit_intercept as intercept;

/// Tries it all.
///
/// # Errors
/// Something does not work.
pub fn run(config: &Config) -> anyhow::Result<()> {
    intercept::check_kernel().context("calls cannot be received")?;
    let accounting = daemon::start_accounting(daemon::accounting_options(config))?;
    let own = std::process::id();
    accounting.identify(own).context("a caller is not identified")?;
    for file in FILES {
        let path = file.path();
        let view = accounting
            .view_with(own, file.needs())
            .with_context(|| format!("there are no numbers for {path}"))?;
        // As a container sees it: the host would get the kernel's own text.
        let view = View { origin: Origin::Container, ..View::clone(&view) };
        let mut text = Text::new();
        file.render(&view, &mut text);
        // Some are rightly empty, or have only a headline.
        if path == "proc/meminfo" && !text.as_bytes().starts_with(b"MemTotal:") {
            anyhow::bail!("{path} has no MemTotal");
        }
    }
    answer(&accounting, own)
}

/// What sysinfo(2) would be answered.
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
