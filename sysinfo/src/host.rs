//! The machine: what is the same for every container.
//!
//! A [`Host`] is one parsed snapshot shared by all views; `host_files.rs` reads it, once per
//! interval for all containers. It never decides what a container may see of it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use ambit_kernel::text::scan;

use crate::cpuset::CpuSet;
use crate::topology::Topology;

/// One snapshot of the machine.
#[derive(Clone, Default)]
pub struct Host {
    /// Lines of the kernel's `/proc/meminfo`, in its order.
    pub meminfo: Vec<MeminfoLine>,
    /// `MemTotal` in bytes.
    pub memory_total: u64,
    /// `SwapTotal` in bytes.
    pub swap_total: u64,
    /// Size of a page in bytes: 4 KiB to 64 KiB.
    pub page_size: u64,
    /// Size of a transparent huge page in bytes; 0 where the kernel has none.
    pub transparent_page: u64,
    /// Pools of huge pages that have pages.
    pub huge_pools: Vec<HugePool>,
    /// The kernel's `/proc/cpuinfo`, divided by processor.
    pub cpuinfo: CpuInfo,
    /// `/proc/cpuinfo` as shown to 32-bit programs, on architectures where it differs.
    pub cpuinfo_32: Option<CpuInfo>,
    /// Processors that are online.
    pub online: CpuSet,
    /// `btime` of `/proc/stat`: seconds since the epoch.
    pub boot_time: u64,
    /// The topology of processors and memory nodes.
    pub topology: Arc<Topology>,
    /// Reads the kernel's files for callers that belong to no container.
    pub raw: Option<Arc<dyn RawFiles>>,
}

/// The machine's huge pages of one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HugePool {
    /// The size of one page in bytes.
    pub size: u64,
    /// How many pages there are.
    pub pages: u64,
    /// True for the size that `/proc/meminfo` counts in pages.
    pub is_default: bool,
}

/// Reads the kernel's files, not those of the overlay.
pub trait RawFiles: Send + Sync {
    /// Appends the content of a file such as `proc/meminfo` or `sys/devices/system/cpu/online`.
    fn read(&self, path: &str, text: &mut Vec<u8>) -> io::Result<()>;

    /// True for a folder such as `sys/dev/block/8:0/slaves` that has entries.
    fn is_populated(&self, path: &str) -> io::Result<bool> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The texts that a [`Host`] is parsed from.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostTexts<'a> {
    /// `/proc/meminfo`
    pub meminfo: &'a [u8],
    /// `/proc/cpuinfo`
    pub cpuinfo: &'a [u8],
    /// `/proc/stat`
    pub stat: &'a [u8],
    /// `/sys/devices/system/cpu/online`; when empty, the `cpuN` lines of `/proc/stat` tell.
    pub online: &'a [u8],
}

impl Host {
    /// Parses a snapshot. Missing values are zero or empty.
    pub fn parse(texts: HostTexts<'_>) -> Self {
        let meminfo: Vec<MeminfoLine> =
            scan::lines(texts.meminfo).filter_map(MeminfoLine::parse).collect();
        let bytes_of = |label| bytes(&meminfo, label).unwrap_or(0);
        let online = match CpuSet::parse(texts.online) {
            Some(set) if !set.is_empty() => set,
            _ => scan::lines(texts.stat).filter_map(cpu_line).collect(),
        };
        Self {
            memory_total: bytes_of("MemTotal"),
            swap_total: bytes_of("SwapTotal"),
            page_size: rustix::param::page_size() as u64,
            transparent_page: 0,
            huge_pools: default_pool(&meminfo).into_iter().collect(),
            cpuinfo: CpuInfo::parse(texts.cpuinfo.into()),
            cpuinfo_32: None,
            online,
            boot_time: scan::lines(texts.stat)
                .find_map(|line| scan::decimal(line.strip_prefix(b"btime ")?))
                .unwrap_or(0),
            meminfo,
            topology: Arc::default(),
            raw: None,
        }
    }

    /// Returns a number of `/proc/meminfo` in bytes; `None` if the kernel has no such line.
    pub(crate) fn meminfo_bytes(&self, label: &str) -> Option<u64> {
        bytes(&self.meminfo, label)
    }

    /// The line `Hugetlb` of `/proc/meminfo` in bytes: huge pages of all sizes.
    pub(crate) fn huge_bytes(&self) -> u64 {
        self.meminfo_bytes("Hugetlb").unwrap_or(0)
    }
}

fn value(meminfo: &[MeminfoLine], label: &str) -> Option<u64> {
    meminfo.iter().find(|line| &*line.label == label).map(|line| line.value)
}

fn bytes(meminfo: &[MeminfoLine], label: &str) -> Option<u64> {
    Some(value(meminfo, label)?.saturating_mul(1024))
}

/// The pool that `/proc/meminfo` counts.
fn default_pool(meminfo: &[MeminfoLine]) -> Option<HugePool> {
    let size = bytes(meminfo, "Hugepagesize")?;
    let pages = value(meminfo, "HugePages_Total")?;
    (size > 0 && pages > 0).then_some(HugePool { size, pages, is_default: true })
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("memory_total", &self.memory_total)
            .field("swap_total", &self.swap_total)
            .field("online", &self.online)
            .finish_non_exhaustive()
    }
}

/// One line of `/proc/meminfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeminfoLine {
    /// The label without its colon, such as `MemTotal` or `Active(anon)`.
    pub label: Box<str>,
    /// The number: KiB where the line ends in `kB`, pages otherwise (`HugePages_*`).
    pub value: u64,
    /// True if the line ends in `kB`.
    pub kib: bool,
}

impl MeminfoLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let colon = memchr::memchr(b':', line)?;
        let label = std::str::from_utf8(&line[..colon]).ok()?;
        let rest = line[colon + 1..].trim_ascii();
        Some(Self { label: label.into(), value: scan::decimal(rest)?, kib: rest.ends_with(b"kB") })
    }
}

/// `/proc/cpuinfo`, divided by processor, so that any subset can be copied without reading it
/// again.
#[derive(Clone, Default)]
pub struct CpuInfo {
    text: Arc<[u8]>,
    head: Range<usize>,
    blocks: Vec<(u32, Range<usize>)>,
    tail: Range<usize>,
}

impl CpuInfo {
    /// Divides a text at its `processor : N` lines.
    pub fn parse(text: Arc<[u8]>) -> Self {
        let mut starts: Vec<(u32, usize)> = Vec::new();
        let mut at = 0;
        for line in scan::lines(&text) {
            if let Some(cpu) = processor_line(line) {
                starts.push((cpu, at));
            }
            at += line.len() + 1;
        }
        let head = 0..starts.first().map_or(text.len(), |&(_, start)| start);
        let mut blocks = Vec::with_capacity(starts.len());
        let mut tail = text.len()..text.len();
        for (index, &(cpu, start)) in starts.iter().enumerate() {
            let next = starts.get(index + 1).map_or(text.len(), |&(_, next)| next);
            // The last block ends at its empty line; the text after it describes the machine
            // (`Hardware` on arm, `timebase` on powerpc).
            let end = match memchr::memmem::find(&text[start..next], b"\n\n") {
                Some(gap) if index + 1 == starts.len() => start + gap + 2,
                _ => next,
            };
            blocks.push((cpu, start..end));
            tail = end..next;
        }
        Self { text, head, blocks, tail }
    }

    /// The text before the first processor.
    pub fn head(&self) -> &[u8] {
        &self.text[self.head.clone()]
    }

    /// Each processor's number and its lines, the empty line at the end included.
    pub fn blocks(&self) -> impl Iterator<Item = (u32, &[u8])> + '_ {
        self.blocks.iter().map(|(cpu, range)| (*cpu, &self.text[range.clone()]))
    }

    /// The text after the last processor.
    pub fn tail(&self) -> &[u8] {
        &self.text[self.tail.clone()]
    }
}

impl fmt::Debug for CpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuInfo({} processors, {} bytes)", self.blocks.len(), self.text.len())
    }
}

/// The number in `processor<blanks>: N`; s390x prints `processor N: ...` instead.
fn processor_line(line: &[u8]) -> Option<u32> {
    let rest = line.strip_prefix(b"processor")?;
    let number = match memchr::memchr(b':', rest)? {
        colon if rest[..colon].trim_ascii().is_empty() => rest[colon + 1..].trim_ascii(),
        colon => rest[..colon].trim_ascii(),
    };
    u32::try_from(scan::decimal(number)?).ok()
}

fn cpu_line(line: &[u8]) -> Option<u32> {
    let rest = line.strip_prefix(b"cpu")?;
    rest.first().filter(|byte| byte.is_ascii_digit())?;
    u32::try_from(scan::decimal(rest)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divides_cpuinfo_by_processor() {
        let text =
            b"processor\t: 0\nmodel name\t: x\n\nprocessor\t: 3\nmodel name\t: y\n\nHardware : z\n";
        let info = CpuInfo::parse(text.as_slice().into());
        let blocks: Vec<_> = info.blocks().collect();
        assert_eq!(blocks[0], (0, b"processor\t: 0\nmodel name\t: x\n\n".as_slice()));
        assert_eq!(blocks[1], (3, b"processor\t: 3\nmodel name\t: y\n\n".as_slice()));
        assert_eq!(info.tail(), b"Hardware : z\n");
        assert!(info.head().is_empty());
    }

    #[test]
    fn knows_the_layout_of_s390x() {
        let text = b"vendor_id       : IBM/S390\n# processors    : 2\nprocessor 0: version = FF\nprocessor 1: version = FF\n";
        let info = CpuInfo::parse(text.as_slice().into());
        assert_eq!(info.blocks().map(|(cpu, _)| cpu).collect::<Vec<_>>(), [0, 1]);
        assert!(info.head().starts_with(b"vendor_id"));
    }

    #[test]
    fn takes_totals_boot_time_and_processors() {
        let host = Host::parse(HostTexts {
            meminfo: b"MemTotal:        1024 kB\nHugePages_Total:       3\nSwapTotal: 8 kB\n",
            stat: b"cpu  1 2\ncpu0 1 2\ncpu2 1 2\nbtime 77\n",
            ..HostTexts::default()
        });
        assert_eq!((host.memory_total, host.swap_total, host.boot_time), (1 << 20, 8 << 10, 77));
        assert_eq!(host.online.to_string(), "0,2");
        assert!(!host.meminfo[1].kib);
    }
}
