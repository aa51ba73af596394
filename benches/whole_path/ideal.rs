//! What no server can leave out: for a file that shows control groups, it finds out whose they are
//! and reads them. The ideal server does this and nothing else: it parses and formats nothing.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::harness::cgroup::{Hierarchy, hierarchies};

/// The files of a control group for each file of the overlay: controller, and the names on v1 and
/// on v2.
const READS: &[(&str, &str, &[&str], &[&str])] = &[
    (
        "proc/meminfo",
        "memory",
        &[
            "memory.usage_in_bytes",
            "memory.stat",
            "memory.kmem.usage_in_bytes",
            "memory.memsw.usage_in_bytes",
            "memory.swappiness",
        ],
        &["memory.current", "memory.stat", "memory.max", "memory.swap.current", "memory.swap.max"],
    ),
    ("times", "cpu", &["cpu.cfs_quota_us"], &["cpu.max"]),
    ("times", "cpuset", &["cpuset.effective_cpus"], &["cpuset.cpus.effective"]),
    ("times", "cpuacct", &["cpuacct.usage_all", "cpuacct.usage_percpu"], &[]),
    ("times", "cpu", &[], &["cpu.stat"]),
];

/// The files of a container that a file of the overlay shows.
type Files = HashMap<&'static str, Vec<File>>;

/// Keeps the files of each container open.
pub(crate) struct Ideal {
    hierarchies: Vec<Hierarchy>,
    known: Mutex<HashMap<String, Arc<Files>>>,
}

impl Ideal {
    pub(crate) fn new() -> Self {
        Self { hierarchies: hierarchies(), known: Mutex::default() }
    }

    /// Reads what this file of the overlay shows a process.
    pub(crate) fn read(&self, pid: u32, file: &str) -> io::Result<()> {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/pid"))?.display().to_string();
        let known = self.known.lock().unwrap().get(&namespace).cloned();
        let files = match known {
            Some(files) => files,
            None => {
                let files = Arc::new(self.open(pid)?);
                self.known.lock().unwrap().insert(namespace, Arc::clone(&files));
                files
            }
        };
        let shown = if matches!(file, "proc/stat" | "proc/uptime") { "times" } else { file };
        let mut text = [0; 16384];
        files.get(shown).into_iter().flatten().try_for_each(|file| {
            file.read_at(&mut text, 0)?;
            Ok(())
        })
    }

    fn open(&self, pid: u32) -> io::Result<Files> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mut files = Files::new();
        for &(shown, controller, v1, v2) in READS {
            let Some(hierarchy) = self.hierarchies.iter().find(|one| one.has(controller)) else {
                continue;
            };
            let path = text.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                let is_it = match hierarchy.is_v2() {
                    true => controllers.is_empty(),
                    false => controllers.split(',').any(|one| one == controller),
                };
                is_it.then_some(path)
            });
            let folder: PathBuf =
                hierarchy.root().join(path.unwrap_or("/").trim_start_matches('/'));
            for name in if hierarchy.is_v2() { v2 } else { v1 } {
                if let Ok(file) = File::open(folder.join(name)) {
                    files.entry(shown).or_default().push(file);
                }
            }
        }
        Ok(files)
    }
}
