//! The limits under which programs are asked, and what follows from them for a machine of this
//! size. Written down here once more, from the limits alone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::cgroup::{self, Cgroup, Limits};
use crate::harness::command::quiet;
use crate::harness::machine;

const MIB: u64 = 1 << 20;

/// One kind of limit.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) args: &'static [&'static str],
    /// True if a control group above has a tighter limit.
    pub(super) nested: bool,
    memory: Option<u64>,
    swap: Option<u64>,
    processors: Option<usize>,
}

const ABOVE: Limits<'_> =
    Limits { memory: Some(640 * MIB), swap: None, quota: Some(100_000), cpuset: None };

/// All of them.
pub(super) const COLUMNS: &[Column] = &[
    Column {
        name: "unlimited",
        args: &[],
        nested: false,
        memory: None,
        swap: None,
        processors: None,
    },
    Column {
        name: "memory",
        args: &["--memory", "512M"],
        nested: false,
        memory: Some(512 * MIB),
        // As much swap as memory, unless said otherwise.
        swap: Some(512 * MIB),
        processors: None,
    },
    Column {
        name: "memory+swap",
        args: &["--memory", "512M", "--swap", "64M"],
        nested: false,
        memory: Some(512 * MIB),
        swap: Some(64 * MIB),
        processors: None,
    },
    Column {
        name: "cpuset",
        args: &["--cpuset", "1"],
        nested: false,
        memory: None,
        swap: None,
        processors: Some(1),
    },
    Column {
        name: "quota 1.5",
        args: &["--cpus", "1.5"],
        nested: false,
        memory: None,
        swap: None,
        processors: Some(2),
    },
    Column {
        name: "quota 0.5",
        args: &["--cpus", "0.5"],
        nested: false,
        memory: None,
        swap: None,
        processors: Some(1),
    },
    Column {
        name: "nested",
        // v1 refuses a quota that is wider than the one above.
        args: &["--memory", "1G", "--swap", "0"],
        nested: true,
        memory: Some(640 * MIB),
        swap: Some(0),
        processors: Some(1),
    },
];

impl Column {
    /// Why this machine cannot do it.
    pub(super) fn missing(&self) -> Option<&'static str> {
        let wants = |option| self.args.contains(&option);
        if wants("--cpuset") && (!machine::has_controller("cpuset") || machine::processors() < 2) {
            return Some("a cpuset of one processor among several");
        }
        None
    }

    /// Bytes.
    pub(super) fn memory(&self) -> u64 {
        let machine = machine::memory_kb() * 1024;
        self.memory.map_or(machine, |limit| limit.min(machine))
    }

    /// Bytes.
    pub(super) fn swap(&self) -> u64 {
        let machine = machine::swap_kb() * 1024;
        self.swap.map_or(machine, |limit| limit.min(machine))
    }

    /// True if some of its memory is swapped out while programs run.
    pub(super) fn swaps(&self) -> bool {
        self.name == "memory+swap" && machine::swap_kb() > 0
    }

    pub(super) fn processors(&self) -> usize {
        let machine = machine::processors();
        self.processors.map_or(machine, |limit| limit.min(machine))
    }
}

/// The tighter control group above a sandbox; gone when dropped.
#[derive(Debug)]
pub(super) enum Above {
    /// v1: sandboxes are made below the caller's own groups.
    Own(Cgroup),
    /// v2: they are made in one place, since a group with processes may have no children.
    Shared(PathBuf),
}

impl Above {
    pub(super) fn make() -> Self {
        if !cgroup::memory_is_v2() {
            return Self::Own(Cgroup::new("above", ABOVE));
        }
        let place = cgroup::hierarchies()[0].root().join("ambit");
        fs::create_dir_all(&place).unwrap();
        let set = |file: &str, value: String| fs::write(place.join(file), value).unwrap();
        set("memory.max", ABOVE.memory.unwrap().to_string());
        set("cpu.max", format!("{} 100000", ABOVE.quota.unwrap()));
        Self::Shared(place)
    }

    /// The same command, started below.
    pub(super) fn around(&self, command: &Command) -> Command {
        let mut shell = quiet("sh");
        let dirs: Vec<_> = match self {
            Self::Own(cgroup) => cgroup.dirs().map(|dir| dir.to_str().unwrap()).collect(),
            Self::Shared(_) => Vec::new(),
        };
        shell.env("DIRS", dirs.join(" ")).args([
            "-c",
            "for d in $DIRS; do echo 0 >$d/cgroup.procs || exit 99; done; exec \"$@\"",
            "sh",
        ]);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell
    }
}

impl Drop for Above {
    fn drop(&mut self) {
        if let Self::Shared(place) = self
            && fs::remove_dir(&place).is_err()
            && place.exists()
        {
            for file in ["memory.max", "cpu.max"] {
                let _ = fs::write(place.join(file), "max");
            }
        }
    }
}
