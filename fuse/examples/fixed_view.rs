//! Serves the overlay with one fixed container at a directory, until its standard input ends:
//! `cargo run -p ambit-fuse --example fixed_view -- /tmp/overlay`. Needs root. For looking at
//! the files by hand and for measuring the path of a read without accounting.

use std::io::{self, Read};
use std::process::ExitCode;

use ambit_fuse::{MountOptions, Overlay};

#[path = "../tests/fixtures/container.rs"]
mod container;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, rest @ ..] = &arguments[..] else {
        eprintln!("usage: fixed_view DIRECTORY [THREADS]");
        return ExitCode::from(2);
    };
    let mut options = MountOptions::new(path);
    if let Some(threads) = rest.first().and_then(|threads| threads.parse().ok()) {
        options.threads = threads;
    }
    let overlay = match Overlay::mount(options, container::Fixed::new()) {
        Ok(overlay) => overlay,
        Err(error) => {
            eprintln!("fixed_view: {error}");
            return ExitCode::from(2);
        }
    };
    println!("mounted at {path}");
    let _ = io::stdin().read_to_end(&mut Vec::new());
    println!("{:?}", overlay.counters());
    match overlay.unmount() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fixed_view: {error}");
            ExitCode::FAILURE
        }
    }
}
