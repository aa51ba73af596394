//! `ambit check PID`: says why a process does or does not see the numbers of its container.
//!
//! Reads what the kernel tells of the process, and identifies its container as the daemon does. It
//! looks into no mount, except to ask one of ambit whether its server has ended. Start reading at
//! [`all`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use ambit_kernel::text::mountinfo::{self, Mounted};
use ambit_kernel::text::status::Status;
use ambit_sysinfo::{Accounting, Container};
use ambit_worker::attach;
use anyhow::{Context, bail};

use crate::config::Config;
use crate::containers::short;
use crate::control;
use crate::dead_mounts::{is_dead, is_ours};
use crate::dependents::is_of;
use crate::process_setup::{accounting_options, start_accounting};
use crate::status::size;

/// The kinds of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Right,
    Wrong,
    /// It is not wrong, or it cannot be told.
    Open,
}

/// One result.
#[derive(Debug)]
pub struct Finding {
    mark: Mark,
    /// What was looked at.
    name: &'static str,
    text: String,
    remedy: &'static str,
}

impl Finding {
    /// True if the process does not see its own bounds.
    pub fn is_wrong(&self) -> bool {
        self.mark == Mark::Wrong
    }

    fn new(mark: Mark, name: &'static str, text: impl Into<String>) -> Self {
        Self { mark, name, text: text.into(), remedy: "" }
    }

    fn wrong(name: &'static str, text: impl Into<String>, remedy: &'static str) -> Self {
        Self { remedy, ..Self::new(Mark::Wrong, name, text) }
    }
}

/// Columns of the terminal that a result uses.
const WIDTH: usize = 80;
/// Columns before the text.
const INDENT: usize = 12;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.mark {
            Mark::Right => '✓',
            Mark::Wrong => '✗',
            Mark::Open => '–',
        };
        write!(f, "{mark} {:<width$}", self.name, width = INDENT - 2)?;
        let mut column = INDENT;
        let text = self.text.split_whitespace().chain(self.remedy.split_whitespace());
        for (at, word) in text.enumerate() {
            let length = word.chars().count();
            if at > 0 && column + 1 + length > WIDTH {
                write!(f, "\n{:INDENT$}", "")?;
                column = INDENT;
            } else if at > 0 {
                f.write_str(" ")?;
                column += 1;
            }
            f.write_str(word)?;
            column += length;
        }
        Ok(())
    }
}

/// Checks a process.
pub fn all(pid: u32, config: &Config) -> anyhow::Result<Vec<Finding>> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root can look at all processes: run `ambit check {pid}` as root");
    }
    let process = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| fs::read(process.join(name));
    let status = read("status").map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::anyhow!("there is no process {pid}"),
        _ => anyhow::anyhow!("cannot read the status of process {pid}: {error}"),
    })?;
    if Status(&status).numbers("Tgid:").next() != Some(pid) {
        bail!("{pid} is a thread: give its process, `Tgid` in /proc/{pid}/status");
    }
    // Threads of the kernel have no mounts.
    let Some(text) = read("mountinfo").ok().filter(|text| !text.is_empty()) else {
        bail!("process {pid} is a thread of the kernel: it has no mounts");
    };
    let accounting = start_accounting(accounting_options(config))?;
    let container = accounting.identify(pid).with_context(|| format!("process {pid}"))?;
    let is_machine = container.is_host();
    let mut findings = vec![view(pid, &container), limits(&accounting, &container)];
    if is_machine {
        let text = "it sees the machine, which is right: nothing has to be attached";
        findings.push(Finding::new(Mark::Open, "files", text));
        return Ok(findings);
    }
    let mounts: Vec<_> = mountinfo::all(&text).collect();
    findings.extend(files(&process, &mounts, &of_first(&container)));
    let listeners = control::ask_parts(&config.socket("control.sock")).map(|of| of.listeners);
    findings.push(calls(&status, &container, listeners.ok().as_deref()));
    Ok(findings)
}

/// Whose numbers the process is shown, and why.
fn view(pid: u32, container: &Container) -> Finding {
    let membership = container.membership();
    let name = ambit_sysinfo::engines::find(membership.path())
        .map_or_else(|| membership.name().to_owned(), |found| found.name());
    let name = short(&name).escape_debug();
    let first = container.init_pid().unwrap_or(pid);
    let text = match container.init_pid() {
        None if container.is_host() => "the machine: it is in no container".to_owned(),
        None => format!("its own cgroup {name}: it has the machine's pid namespace"),
        Some(_) if container.is_part() => format!(
            "{name}: its own cgroup, which is not that of the first process of its pid namespace"
        ),
        Some(first) if first == pid => format!("{name}: it is the first process"),
        Some(_) if namespace(pid) == Some(container.pid_namespace()) => {
            format!("{name}: process {first} is the first of its pid namespace")
        }
        Some(_) => format!(
            "{name}: its pid namespace was made in that container, whose first process is {first}"
        ),
    };
    Finding::new(Mark::Right, "view", text)
}

fn namespace(pid: u32) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|file| file.ino())
}

fn limits(accounting: &Accounting, container: &Container) -> Finding {
    match accounting.view_of(container) {
        Ok(view) => {
            let (memory, swap) = (size(view.memory.total), size(view.swap.total));
            let text = format!("memory {memory}, swap {swap}, processors {}", view.cpu.online);
            Finding::new(Mark::Right, "limits", text)
        }
        Err(error) => Finding::wrong("limits", format!("cannot be read: {error}"), ""),
    }
}

/// The mounts that the first process of the container sees.
fn of_first(container: &Container) -> Vec<Mounted> {
    let text = container.init_pid().and_then(|pid| fs::read(format!("/proc/{pid}/mountinfo")).ok());
    text.map(|text| mountinfo::all(&text).collect()).unwrap_or_default()
}

/// What a process sees at a path of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Cover {
    Ambit,
    Dead,
    /// The kernel's file. The first process of the container sees that of ambit.
    Remounted,
    Nothing,
    /// The folder is hidden (`subset=pid`).
    Hidden,
    Other(String),
}

/// Returns the mount that shows a path: goes from the root down, as the kernel does.
fn shows<'m>(mounts: &'m [Mounted], path: &Path) -> Option<&'m Mounted> {
    let is_on = |id: u64| {
        let on = mounts.iter().filter(move |mount| mount.parent == id && mount.id != id);
        // Of two mounts on one, the path leads through the one that is reached first.
        let on = on.filter(|mount| path.starts_with(&mount.path));
        on.min_by_key(|mount| mount.path.components().count())
    };
    let has_parent = |mount: &Mounted| {
        mounts.iter().any(|other| other.id == mount.parent && other.id != mount.id)
    };
    let mut shown =
        mounts.iter().find(|mount| mount.path == Path::new("/") && !has_parent(mount))?;
    // Each mount is visited once, so a list that a process changes meanwhile ends the loop.
    for _ in 0..mounts.len() {
        let Some(next) = is_on(shown.id) else { break };
        shown = next;
    }
    Some(shown)
}

fn cover(path: &Path, mounts: &[Mounted], of_first: &[Mounted], is_dead: bool) -> Cover {
    match shows(mounts, path) {
        Some(mount) if is_ours(mount) && is_dead => Cover::Dead,
        Some(mount) if is_ours(mount) => Cover::Ambit,
        Some(mount) if is_own_pressure(path, mount) => Cover::Ambit,
        Some(mount) if mount.kind == "proc" || mount.kind == "sysfs" => {
            let is_hidden = mount.options.split(',').any(|option| option == "subset=pid");
            match shows(of_first, path).is_some_and(is_ours) {
                _ if is_hidden && mount.kind == "proc" => Cover::Hidden,
                true => Cover::Remounted,
                false => Cover::Nothing,
            }
        }
        Some(mount) => Cover::Other(format!("{} ({})", mount.kind, mount.source)),
        None => Cover::Nothing,
    }
}

/// True for a pressure file of a cgroup, which attach mounts in the place of the overlay's.
fn is_own_pressure(path: &Path, mount: &Mounted) -> bool {
    mount.kind == "cgroup2" && path.starts_with("/proc/pressure") && attach::is_marked(mount)
}

/// Results for the files, one for each cause.
fn files(process: &Path, mounts: &[Mounted], of_first: &[Mounted]) -> Vec<Finding> {
    let root = process.join("root");
    let mut answers: BTreeMap<u32, bool> = BTreeMap::new();
    let mut causes: BTreeMap<Cover, Vec<&str>> = BTreeMap::new();
    for point in ambit_fuse::bind_points() {
        let path = Path::new("/").join(point);
        // What the machine's kernel does not have, the container cannot have.
        if !path.exists() {
            continue;
        }
        let dead = shows(mounts, &path).filter(|mount| is_ours(mount)).is_some_and(|mount| {
            *answers.entry(mount.minor).or_insert_with(|| is_dead(&root, mount))
        });
        causes.entry(cover(&path, mounts, of_first, dead)).or_default().push(point);
    }
    let has_some = causes.contains_key(&Cover::Ambit);
    causes.into_iter().map(|(cause, points)| finding(&cause, &points, has_some)).collect()
}

fn finding(cause: &Cover, points: &[&str], has_some: bool) -> Finding {
    let some = match points {
        [one] => format!("/{one}"),
        [first, second] => format!("/{first} and /{second}"),
        [first, .., last] => format!("{} files (/{first} … /{last})", points.len()),
        [] => String::new(),
    };
    match cause {
        Cover::Ambit => {
            Finding::new(Mark::Right, "files", format!("{some}: ambit shows its container's"))
        }
        Cover::Dead => Finding::wrong(
            "files",
            format!("{some}: dead, every access fails."),
            "Restart the container, or attach it again.",
        ),
        Cover::Remounted => Finding::wrong(
            "files",
            format!("{some}: the kernel's, which shows the machine."),
            "The first process of the container has those of ambit: this one's service mounts \
             /proc or /sys again (ProtectProc=, ProcSubset=, PrivatePIDs= or \
             ProtectKernelTunables= of systemd).",
        ),
        // Engines refuse binds over some files, and the kernel may show the same in them.
        Cover::Nothing if has_some => {
            Finding::new(Mark::Open, "files", format!("{some}: the kernel's, not covered"))
        }
        Cover::Nothing => Finding::wrong(
            "files",
            format!("{some}: the kernel's, which shows the machine."),
            "Nothing is attached in its mount namespace: see docs/engines.md.",
        ),
        Cover::Hidden => Finding::wrong(
            "files",
            format!("{some}: hidden, its /proc has processes only."),
            "Its service has ProcSubset=pid.",
        ),
        Cover::Other(kind) => Finding::wrong(
            "files",
            format!("{some}: covered by {}.", kind.escape_debug()),
            "Another program shows its own numbers there; unmount them, or start the container \
             without it.",
        ),
    }
}

/// The result for the system calls. `listeners` is what the daemon says, if one answers.
fn calls(status: &[u8], container: &Container, listeners: Option<&[String]>) -> Finding {
    let is_filtered = Status(status).numbers("Seccomp:").next() == Some(2);
    if !is_filtered {
        return Finding::wrong(
            "calls",
            "it has no seccomp filter: sysinfo(2) and sched_getaffinity(2) show the machine.",
            "Start the container with a profile that traps them: `ambit profile`.",
        );
    }
    let Some(listeners) = listeners else {
        let text =
            "it has a seccomp filter; no daemon answers that could say whether it traps calls";
        return Finding::new(Mark::Open, "calls", text);
    };
    let membership = container.membership();
    match listeners.iter().find(|id| is_of(membership.path(), id)) {
        Some(id) => Finding::new(
            Mark::Right,
            "calls",
            format!("the daemon has the seccomp listener of {}", short(id).escape_debug()),
        ),
        None => Finding::wrong(
            "calls",
            "it has a seccomp filter, and the daemon has no listener of its container.",
            "Start the container with a profile that traps calls: `ambit profile`.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(text: &str) -> Vec<Mounted> {
        mountinfo::all(text.as_bytes()).collect()
    }

    // The root may come last.
    const PLAIN: &str = "2 1 0:6 / /proc rw - proc proc rw\n1 0 0:5 / / rw - ext4 /dev/sda rw\n";
    const OURS: &str = "3 2 0:7 /proc/meminfo /proc/meminfo rw - fuse.ambit ambit ro\n";
    const AGAIN: &str = "4 2 0:8 / /proc rw - proc proc rw\n";

    #[test]
    fn the_cause_is_told_by_the_mounts() {
        let meminfo = Path::new("/proc/meminfo");
        let attached = mounts(&format!("{PLAIN}{OURS}"));
        let of = |text: &str, dead| cover(meminfo, &mounts(text), &attached, dead);
        assert_eq!(cover(meminfo, &attached, &attached, false), Cover::Ambit);
        assert_eq!(cover(meminfo, &attached, &attached, true), Cover::Dead);
        assert_eq!(of(&format!("{PLAIN}{OURS}{AGAIN}"), false), Cover::Remounted);
        assert_eq!(cover(meminfo, &mounts(PLAIN), &mounts(PLAIN), false), Cover::Nothing);
        let hidden = AGAIN.replace("proc rw\n", "proc rw,subset=pid\n");
        assert_eq!(of(&format!("{PLAIN}{hidden}"), false), Cover::Hidden);
        let file = Path::new("/proc/pressure/cpu");
        let pressure = |attributes| {
            let own =
                format!("3 2 0:7 /a/cpu.pressure {} {attributes} - cgroup2 a rw\n", file.display());
            cover(file, &mounts(&format!("{PLAIN}{own}")), &[], false)
        };
        assert_eq!(pressure("rw,nosuid,nodev,noexec,nodiratime"), Cover::Ambit);
        assert_eq!(pressure("rw"), Cover::Other("cgroup2 (a)".into()));
        let other = OURS.replace("fuse.ambit ambit", "tmpfs none");
        assert_eq!(of(&format!("{PLAIN}{other}"), false), Cover::Other("tmpfs (none)".into()));
    }

    #[test]
    fn a_result_fits_a_terminal() {
        let points = ["proc/meminfo", "proc/stat", "proc/uptime"];
        let text = finding(&Cover::Remounted, &points, true).to_string();
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(text.starts_with("✗ files     3 files (/proc/meminfo … /proc/uptime): "), "{text}");
    }

    #[test]
    fn processes_that_cannot_be_checked_are_told() {
        let error = |pid| all(pid, &Config::default()).unwrap_err().to_string();
        if rustix::process::geteuid().is_root() {
            assert_eq!(error(u32::MAX), format!("there is no process {}", u32::MAX));
        } else {
            assert!(error(1).contains("as root"));
        }
    }
}
