//! The program: hands its arguments to the library and returns the exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    ambit::cli::main(std::env::args_os())
}
