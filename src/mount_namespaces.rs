//! The mount namespaces that processes are in, with their mounts: `/proc/<pid>/mountinfo`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use ambit_kernel::text::mountinfo::{self, Mounted};

/// Longer than a usual `mountinfo`: with less room it takes a read for each few lines.
const USUAL: usize = 64 * 1024;

/// A mount namespace.
#[derive(Debug)]
pub struct Namespace {
    pub id: u64,
    /// A process that is in it.
    pub pid: u32,
    /// That process's folder in `/proc`.
    pub process: PathBuf,
    /// The mounts that it sees, those further up later.
    pub mounts: Vec<Mounted>,
}

/// The inode of a process's mount namespace. The process is a number or `self`.
pub fn of(process: &str) -> Option<u64> {
    // `mnt:[4026531841]`: reading the link costs half of what stat(2) does.
    let link = fs::read_link(format!("/proc/{process}/ns/mnt")).ok()?;
    link.to_str()?.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok()
}

/// All of them, each with the first process that is found in it.
pub fn all() -> Vec<Namespace> {
    let mut seen = HashSet::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut text = Vec::with_capacity(USUAL);
    let found = processes.filter_map(|process| {
        let name = process.file_name();
        let pid = name.to_str()?.parse().ok()?;
        let id = of(name.to_str()?).filter(|id| !seen.contains(id))?;
        // A process that ends meanwhile may not have been the only one.
        text.clear();
        File::open(process.path().join("mountinfo")).ok()?.read_to_end(&mut text).ok()?;
        seen.insert(id);
        let mounts = mountinfo::all(&text).collect();
        Some(Namespace { id, pid, process: process.path(), mounts })
    });
    found.collect()
}
