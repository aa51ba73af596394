//! Each cgroup file of a recorded container is in turn empty, missing, unreadable or nonsense: the
//! numbers stay consistent, and nothing panics. docs/fallbacks.md describes what is shown.
#![allow(clippy::unwrap_used, reason = "a test fails where something is missing")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ambit_sysinfo::cpu;
use ambit_sysinfo::hierarchy::Hierarchies;
use ambit_sysinfo::host::{Host, HostTexts};
use ambit_sysinfo::membership::Membership;
use ambit_sysinfo::policy::{CpuPolicy, MemoryLimit, StealPolicy, SwapPolicy};
use ambit_sysinfo::sample::Sample;
use ambit_sysinfo::source::Source;
use ambit_sysinfo::{Options, StatSet, derive};

/// The container with limits, see tests/fixtures/README.md.
const LIMITED: &str = "100";

/// How a file is broken.
#[derive(Debug, Clone, Copy)]
enum Broken {
    Missing,
    Fails,
    Text(&'static [u8]),
}

const ALL: [Broken; 9] = [
    Broken::Missing,
    Broken::Fails,
    Broken::Text(b""),
    Broken::Text(b"\n"),
    Broken::Text(b"nonsense\n"),
    Broken::Text(b"-1\n"),
    Broken::Text(b"18446744073709551615\n"),
    Broken::Text(b"99999999999999999999999999 99999999999999999999\n"),
    Broken::Text(b"\xff\xfe\0\0 anon -5\nfile max\n7-3,5-\n"),
];

impl Broken {
    fn put(self, path: &Path) {
        fs::remove_file(path).unwrap();
        match self {
            Self::Missing => {}
            Self::Fails => fs::create_dir(path).unwrap(),
            Self::Text(text) => fs::write(path, text).unwrap(),
        }
    }

    fn undo(path: &Path, text: &[u8]) {
        if path.is_dir() {
            fs::remove_dir(path).unwrap();
        }
        fs::write(path, text).unwrap();
    }
}

#[track_caller]
fn assert_consistent(sample: &Sample, host: &Host, what: &str) {
    let memory = derive::memory(sample, host);
    assert!(memory.free <= memory.available && memory.available <= memory.total, "{what}");
    assert!(memory.total <= host.memory_total, "{what}: more than the machine has");
    let swap = derive::swap(sample, host, SwapPolicy::Limit);
    assert!(swap.free <= swap.total && swap.total <= host.swap_total, "{what}");
    for cpu_policy in [CpuPolicy::Quota, CpuPolicy::Cpuset, CpuPolicy::Weight] {
        let cpus = cpu::visible(sample, host, &Options { cpu_policy, ..Options::default() });
        assert!(!cpus.is_empty(), "{what}: no processor");
        assert!(cpus.iter().all(|cpu| host.online.contains(cpu)), "{what}: {cpus} are not there");
    }
}

#[test]
fn broken_files_leave_the_numbers_consistent() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    for name in ["linux-6.12-v2-2cpu", "linux-6.1-v1-1cpu", "linux-6.18-hybrid-2cpu"] {
        let copy = tempfile::tempdir().unwrap();
        let copied =
            Command::new("cp").arg("-r").arg(fixtures.join(name)).arg(copy.path()).status();
        assert!(copied.unwrap().success());
        let root = copy.path().join(name);
        let read = |path: &str| fs::read(root.join(path)).unwrap_or_default();
        let host = Host::parse(HostTexts {
            meminfo: &read("proc/meminfo"),
            cpuinfo: &read("proc/cpuinfo"),
            stat: &read("proc/stat"),
            online: &read("sys/devices/system/cpu/online"),
        });
        let hierarchies = Hierarchies::from_mountinfo(&read("proc/self/mountinfo"), &root).unwrap();
        let membership = Membership::parse(&read(&format!("proc/{LIMITED}/cgroup")));
        let sample = || {
            let mut sample = Sample::default();
            let options = Options {
                cpu_policy: CpuPolicy::Weight,
                memory_limit: MemoryLimit::High,
                steal: StealPolicy::Throttled,
                ..Options::default()
            };
            let mut source = Source::new(&hierarchies, &membership, &options);
            source.sample(StatSet::BASE, &mut sample, &mut Vec::new()).map(|()| sample)
        };
        let good = sample().unwrap();
        let mut broken = 0;
        for path in cgroup_files(&root, &membership, &hierarchies) {
            let text = fs::read(&path).unwrap();
            for how in ALL {
                how.put(&path);
                // After an error the last numbers are shown, so it is not checked further.
                if let Ok(sample) = sample() {
                    assert_consistent(&sample, &host, &format!("{how:?} {}", path.display()));
                    broken += usize::from(sample != good);
                }
                Broken::undo(&path, &text);
            }
        }
        assert!(broken > 20, "{name}: only {broken} of the files made a difference");
        assert_eq!(sample().unwrap(), good);
    }
}

/// The files in the container's own cgroups.
fn cgroup_files(root: &Path, membership: &Membership, hierarchies: &Hierarchies) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some((mount, _)) = &hierarchies.unified
        && let Some(cgroup) = membership.unified().and_then(|path| mount.relative(path))
        && !cgroup.is_empty()
    {
        folders.push(mount.path().join(cgroup));
    }
    for (controller, mount) in &hierarchies.legacy {
        if let Some(cgroup) = membership.legacy(*controller).and_then(|path| mount.relative(path))
            && !cgroup.is_empty()
        {
            folders.push(mount.path().join(cgroup));
        }
    }
    folders.sort();
    folders.dedup();
    assert!(!folders.is_empty(), "{}: no cgroup of the container", root.display());
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}
