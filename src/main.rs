//! The program: parses the command line, hands over to the library, and turns an error into
//! one line and an exit status.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ambit::cli::Cli::parse().execute()
}
