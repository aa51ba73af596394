//! The program: hands its arguments to the library and returns the exit status.

use std::process::ExitCode;

use ambit_fuse::PrefaultAllocator;

/// Pre-faults the buffers that requests of containers are read into.
#[global_allocator]
static ALLOCATOR: PrefaultAllocator = PrefaultAllocator;

fn main() -> ExitCode {
    ambit::main(std::env::args_os())
}
