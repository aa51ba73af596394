//! Facts of the machine the tests run on, asked from the kernel and never from the product.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{command, text};

/// The program under test.
pub(crate) const AMBIT: &str = env!("CARGO_BIN_EXE_ambit");

/// A C program of `tests/programs`, as `scripts/build-programs` leaves it.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(path.exists(), "{} is missing; run scripts/build-programs", path.display());
    path
}

/// Where they all are.
pub(crate) fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/programs")
}

/// Fails with instructions when a program is not installed or the test is not run by root.
pub(crate) fn needs(names: &[&str]) {
    assert!(rustix::process::geteuid().is_root(), "run the tests as root: scripts/test native");
    for name in names {
        let found = std::env::var("PATH")
            .unwrap_or_default()
            .split(':')
            .any(|dir| Path::new(dir).join(name).exists());
        assert!(found, "{name} is missing; run scripts/install-deps --tests");
    }
}

/// These programs, less the 32-bit ones where the kernel runs none (User-Mode Linux).
pub(crate) fn runnable<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let bits32 = command::runs(&mut Command::new(program("sysinfo-32")));
    if !bits32 {
        not_on_this_kernel("32-bit programs");
    }
    names.iter().copied().filter(|name| bits32 || !name.ends_with("-32")).collect()
}

/// Says that this kernel lacks what a test is about. Goes around the capture of output, so that
/// a run shows what it did not try.
pub(crate) fn not_on_this_kernel(what: &str) {
    let _ = writeln!(std::io::stderr(), "\n    not on this kernel: {what}");
}

/// How much slower than a real machine this one is (guests are emulated).
pub(crate) fn slowness() -> u32 {
    std::env::var("AMBIT_TEST_SLOW").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A time that is generous on this machine.
pub(crate) fn patience(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * slowness()
}

/// The resident memory of a process, in kB.
pub(crate) fn resident_kb(pid: u32) -> u64 {
    text::kb(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "VmRSS")
}

/// `MemTotal` of the machine, in kB.
pub(crate) fn memory_kb() -> u64 {
    text::kb(&fs::read_to_string("/proc/meminfo").unwrap(), "MemTotal")
}

/// By how much the zones of the machine, and its nodes, have less than `MemTotal`, in kB: some
/// kernels of virtual machines initialize memory when it is needed.
pub(crate) fn missing_kb() -> u64 {
    let text = fs::read_to_string("/proc/zoneinfo").unwrap();
    let pages = text.lines().filter_map(|line| line.trim().strip_prefix("managed "));
    let pages: u64 = pages.map(|pages| pages.trim().parse::<u64>().unwrap()).sum();
    memory_kb().saturating_sub(pages * (rustix::param::page_size() as u64 / 1024))
}

/// `SwapTotal` of the machine, in kB.
pub(crate) fn swap_kb() -> u64 {
    text::kb(&fs::read_to_string("/proc/meminfo").unwrap(), "SwapTotal")
}

/// When the machine booted, in seconds since the epoch.
pub(crate) fn boot_time() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    stat.lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok())
        .unwrap_or_else(|| panic!("no btime in {stat}"))
}

/// Whether the kernel can give a container clocks of its own.
pub(crate) fn has_time_namespaces() -> bool {
    Path::new("/proc/self/timens_offsets").exists()
}

/// Processors of the machine.
pub(crate) fn processors() -> usize {
    text::cpu_lines(&fs::read_to_string("/proc/stat").unwrap()).len()
}

/// Processors that the machine could have.
pub(crate) fn possible_processors() -> usize {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible");
    list.map_or_else(|_| processors(), |list| text::list_length(&list))
}

/// Whether the kernel has this cgroup controller mounted, in whichever version.
pub(crate) fn has_controller(name: &str) -> bool {
    super::cgroup::hierarchies().iter().any(|h| h.has(name))
}
