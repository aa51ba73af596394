//! Prints what the container of a process has and uses: `cargo run -p ambit-sysinfo --example view --
//! PID`. Needs root. This is all that a new front end has to know of accounting.

use std::error::Error;
use std::process::ExitCode;

use ambit_sysinfo::view::Origin;
use ambit_sysinfo::{Accounting, Options, Views};

fn main() -> ExitCode {
    match print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("view: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print() -> Result<(), Box<dyn Error>> {
    let pid = std::env::args().nth(1).ok_or("usage: view PID")?.parse()?;
    let accounting = Accounting::start(Options::default())?;
    let view = accounting.view(pid)?;
    let what = match view.origin {
        Origin::Host => "the machine",
        Origin::Container => "a container",
    };
    let mib = |bytes: u64| bytes >> 20;
    println!("process {pid} is in {what}");
    println!("memory:     {} MiB, {} free", mib(view.memory.total), mib(view.memory.free));
    println!("swap:       {} MiB, {} free", mib(view.swap.total), mib(view.swap.free));
    println!("processors: {}", view.cpu.online);
    println!("uptime:     {} s", view.clock.uptime / 1_000_000_000);
    println!("threads:    {}, {} runnable", view.tasks.total, view.tasks.running);
    Ok(())
}
