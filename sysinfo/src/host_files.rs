//! Reads the machine's files into a [`Host`] snapshot, once per interval for all containers. Never
//! reads a file of a container. Start reading at [`HostFiles::snapshot`].
//!
//! Files that hardly change (processor descriptions, boot time) are read rarely: on a machine with
//! hundreds of processors `/proc/cpuinfo` alone takes the kernel milliseconds.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ambit_kernel::text::scan;
use arc_swap::ArcSwap;
use rustix::fs::{Mode, OFlags};

use crate::KernelFiles;
use crate::clock;
use crate::host::{CpuInfo, Host, HostTexts, HugePool, RawFiles};
use crate::personality;
use crate::stats::StatSet;
use crate::topology::Topology;

/// Memory and the list of online processors.
const SHORT: u64 = 200_000_000;
/// Processor descriptions and boot time, unless processors come or go.
const LONG: u64 = 30_000_000_000;

/// The machine's files and the last snapshot of them.
pub struct HostFiles {
    raw: Arc<Raw>,
    snapshot: ArcSwap<Host>,
    /// When memory was last read, and when the list of online processors was.
    taken: AtomicU64,
    listed: AtomicU64,
    reading: Mutex<Texts>,
}

struct Raw {
    proc: Arc<KernelFiles>,
    sys: KernelFiles,
}

#[derive(Default)]
struct Texts {
    meminfo: Vec<u8>,
    online: Vec<u8>,
    cpuinfo: Vec<u8>,
    stat: Vec<u8>,
    long_taken: Option<u64>,
    fresh: Vec<u8>,
}

impl Texts {
    /// Replaces a text by a newly read one, unless nothing could be read. True if it changed.
    fn replace(
        &mut self,
        text: impl Fn(&mut Self) -> &mut Vec<u8>,
        read: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> bool {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.clear();
        let is_read = read(&mut fresh).is_ok() && !fresh.is_empty();
        let text = text(self);
        let is_new = is_read && *text != fresh;
        if is_new {
            std::mem::swap(text, &mut fresh);
        }
        self.fresh = fresh;
        is_new
    }
}

impl HostFiles {
    /// Opens the files and takes the first snapshot.
    pub fn open(proc: Arc<KernelFiles>, sys: KernelFiles) -> io::Result<Self> {
        let mut this = Self {
            raw: Arc::new(Raw { proc, sys }),
            snapshot: ArcSwap::from_pointee(Host::default()),
            taken: AtomicU64::new(0),
            listed: AtomicU64::new(0),
            reading: Mutex::default(),
        };
        let mut texts = Texts::default();
        this.raw.proc.read("meminfo", &mut texts.meminfo)?;
        this.refresh(&mut texts, clock::now(), true);
        // The next snapshot finds the texts unchanged and does not read the topology again.
        this.reading = Mutex::new(texts);
        Ok(this)
    }

    /// Returns a snapshot that is at most one interval old.
    pub fn snapshot(&self) -> Arc<Host> {
        self.snapshot_for(StatSet::BASE)
    }

    /// Returns a snapshot of which the numbers for these groups are at most one interval old.
    pub(crate) fn snapshot_for(&self, groups: StatSet) -> Arc<Host> {
        let now = clock::now();
        let is_old = |read: &AtomicU64| now.saturating_sub(read.load(Ordering::Acquire)) > SHORT;
        let memory = groups.contains(StatSet::MEMORY) && is_old(&self.taken);
        let processors = groups.contains(StatSet::PROCESSORS) && is_old(&self.listed);
        if (memory || processors)
            // One thread reads; the others use the last snapshot.
            && let Ok(mut texts) = self.reading.try_lock()
        {
            self.refresh(&mut texts, now, memory);
        }
        self.snapshot.load_full()
    }

    fn refresh(&self, texts: &mut Texts, now: u64, memory: bool) {
        let raw = &self.raw;
        if memory {
            texts.replace(|texts| &mut texts.meminfo, |text| raw.proc.read("meminfo", text));
        }
        let moved = texts.replace(
            |texts| &mut texts.online,
            |text| raw.read("sys/devices/system/cpu/online", text),
        );
        let stale = texts.long_taken.is_none_or(|taken| now.saturating_sub(taken) > LONG);
        let last = self.snapshot.load();
        let (first, long) = (texts.long_taken.is_none(), stale || moved);
        if long {
            texts.replace(|texts| &mut texts.cpuinfo, |text| raw.proc.read("cpuinfo", text));
            texts.replace(|texts| &mut texts.stat, |text| raw.proc.read("stat", text));
            texts.long_taken = Some(now);
        }
        let mut host = Host::parse(HostTexts {
            meminfo: &texts.meminfo,
            cpuinfo: if long { &texts.cpuinfo } else { b"" },
            stat: &texts.stat,
            online: &texts.online,
        });
        if !long {
            (host.cpuinfo, host.cpuinfo_32) = (last.cpuinfo.clone(), last.cpuinfo_32.clone());
        } else if cfg!(target_arch = "aarch64") {
            host.cpuinfo_32 = self.raw.cpuinfo_32();
        }
        if host.memory_total == 0 {
            host.meminfo.clone_from(&last.meminfo);
            (host.memory_total, host.swap_total) = (last.memory_total, last.swap_total);
        }
        if host.online.is_empty() {
            host.online = host.cpuinfo.blocks().map(|(cpu, _)| cpu).collect();
        }
        host.topology = if first || moved {
            Arc::new(Topology::read(self.raw.sys.as_fd()))
        } else {
            last.topology.clone()
        };
        host.transparent_page = match first {
            true => self.raw.transparent_page().unwrap_or(0),
            false => last.transparent_page,
        };
        // `Hugetlb` is the sum of all pools: if it exceeds the default pool, there are others.
        let counted: u64 =
            host.huge_pools.iter().map(|pool| pool.size.saturating_mul(pool.pages)).sum();
        if host.huge_bytes() > counted {
            self.raw.other_pools(&mut host.huge_pools);
        }
        host.raw = Some(self.raw.clone());
        self.snapshot.store(Arc::new(host));
        self.listed.store(now, Ordering::Release);
        if memory {
            self.taken.store(now, Ordering::Release);
        }
    }
}

impl std::fmt::Debug for HostFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostFiles").field("snapshot", &self.snapshot).finish_non_exhaustive()
    }
}

impl Raw {
    fn cpuinfo_32(&self) -> Option<CpuInfo> {
        let mut text = Vec::new();
        personality::as_32_bit(|| self.proc.read("cpuinfo", &mut text))?.ok()?;
        Some(CpuInfo::parse(text.into()))
    }

    fn transparent_page(&self) -> Option<u64> {
        let mut text = Vec::new();
        self.read("sys/kernel/mm/transparent_hugepage/hpage_pmd_size", &mut text).ok()?;
        scan::decimal(&text)
    }

    /// Adds the missing pools of huge pages.
    fn other_pools(&self, pools: &mut Vec<HugePool>) {
        const POOLS: &str = "kernel/mm/hugepages";
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.sys, POOLS, flags, Mode::empty());
        let Ok(entries) = folder.and_then(rustix::fs::Dir::new) else { return };
        let mut text = Vec::new();
        for entry in entries.flatten() {
            // "hugepages-1048576kB"
            let name = entry.file_name().to_bytes();
            let size = name.strip_prefix(b"hugepages-").and_then(scan::decimal);
            let (Some(size), Ok(name)) = (size, std::str::from_utf8(name)) else { continue };
            let size = size.saturating_mul(1024);
            text.clear();
            let path = format!("{POOLS}/{name}/nr_hugepages");
            if size == 0
                || pools.iter().any(|pool| pool.size == size)
                || self.sys.read(&path, &mut text).is_err()
            {
                continue;
            }
            if let Some(pages @ 1..) = scan::decimal(&text) {
                pools.push(HugePool { size, pages, is_default: false });
            }
        }
    }
}

impl RawFiles for Raw {
    fn read(&self, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
        match path.split_once('/') {
            Some(("proc", file)) => self.proc.read(file, text),
            Some(("sys", file)) => self.sys.read(file, text),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn is_populated(&self, path: &str) -> io::Result<bool> {
        let folder = path.strip_prefix("sys/").ok_or(io::ErrorKind::NotFound)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.sys, folder, flags, Mode::empty())?;
        let mut entries = rustix::fs::Dir::new(folder)?.flatten();
        Ok(entries.any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_this_machine() {
        let proc = Arc::new(KernelFiles::procfs().unwrap());
        let files = HostFiles::open(proc, KernelFiles::sysfs().unwrap()).unwrap();
        let host = files.snapshot();
        assert!(host.memory_total > 0 && !host.online.is_empty() && host.boot_time > 0);
        assert_eq!(host.cpuinfo.blocks().count(), host.online.len());
        assert!(host.online.iter().all(|cpu| host.topology.cpu(cpu).is_some()));
        assert!(Arc::ptr_eq(&host.topology, &files.snapshot().topology), "read once");
        let mut text = Vec::new();
        host.raw.as_ref().unwrap().read("proc/meminfo", &mut text).unwrap();
        assert!(text.starts_with(b"MemTotal:"));
        assert!(host.raw.as_ref().unwrap().read("etc/passwd", &mut text).is_err());
        let of_32_bits = files.raw.cpuinfo_32().unwrap();
        assert_eq!(of_32_bits.blocks().count(), host.online.len());
    }
}
