//! Reads the statistics of a container: `io.stat` (v2) or `blkio.*` (v1), `memory.stat`, and the
//! pressure files of cgroup2, which exist on hybrid hosts as well.
//!
//! I/O must be that of the container's own cgroup, never of an ancestor: without an io controller
//! there is none. See Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/blkio-controller.rst.
//! Start reading at [`StatFiles`].

use ambit_kernel::text::scan;

use super::{Cgroup, CgroupFile, lineage};
use crate::Error;
use crate::hierarchy::{Controller, Hierarchies, Mount};
use crate::membership::Membership;
use crate::stats::{Io, Pressure, VmEvents};

/// The files of one container.
#[derive(Debug, Default)]
pub(crate) struct StatFiles {
    unified_io: Option<CgroupFile>,
    /// Bytes and operations, of two policies. Since Linux 6.10 the throttling counters do not move
    /// on a disk that was never throttled; the counters of BFQ count what its scheduler handles.
    legacy_io: Vec<(CgroupFile, CgroupFile)>,
    /// By level; the nearest one that has the file counts.
    unified_memory: Vec<(CgroupFile, CgroupFile)>,
    legacy_memory: Option<(CgroupFile, CgroupFile)>,
    pressure: Option<[CgroupFile; 3]>,
}

/// The values read.
#[derive(Debug)]
pub(crate) struct RawStats {
    pub(crate) io: Vec<((u32, u32), Io)>,
    pub(crate) events: [u64; VmEvents::NAMES.len()],
    buffer: Vec<u8>,
}

impl Default for RawStats {
    fn default() -> Self {
        Self { io: Vec::new(), events: [0; VmEvents::NAMES.len()], buffer: Vec::new() }
    }
}

impl StatFiles {
    pub(crate) fn new(hierarchies: &Hierarchies, membership: &Membership) -> Self {
        let below_root = |(_, cgroup): &(&Mount, &str)| !cgroup.is_empty();
        let unified = hierarchies.unified_cgroup(membership).filter(below_root);
        let with = |wanted| unified.filter(|_| hierarchies.is_unified(wanted));
        let legacy =
            |controller| hierarchies.legacy_cgroup(controller, membership).filter(below_root);
        Self {
            unified_io: with(Controller::Io)
                .map(|(mount, cgroup)| Cgroup::new(mount, cgroup).file("io.stat")),
            legacy_io: legacy(Controller::Io)
                .map_or_else(Vec::new, |(mount, cgroup)| legacy_io(mount, cgroup).into()),
            unified_memory: with(Controller::Memory).map_or_else(Vec::new, |(mount, cgroup)| {
                let levels = lineage(cgroup).filter(|level| !level.is_empty());
                levels
                    .map(|level| Cgroup::new(mount, level))
                    .map(|level| (level.file("memory.stat"), level.file("memory.events")))
                    .collect()
            }),
            legacy_memory: legacy(Controller::Memory).map(|(mount, cgroup)| {
                let cgroup = Cgroup::new(mount, cgroup);
                (cgroup.file("memory.stat"), cgroup.file("memory.oom_control"))
            }),
            pressure: unified.map(|(mount, cgroup)| {
                let cgroup = Cgroup::new(mount, cgroup);
                ["cpu.pressure", "io.pressure", "memory.pressure"].map(|name| cgroup.file(name))
            }),
        }
    }

    /// Reads I/O by device number.
    pub(crate) fn io(&mut self, raw: &mut RawStats) -> Result<(), Error> {
        let RawStats { io, buffer, .. } = raw;
        io.clear();
        if let Some(file) = &mut self.unified_io
            && let Some(text) = file.read(buffer)?
        {
            unified_io(text, io);
        }
        for (bytes, operations) in &mut self.legacy_io {
            if let Some(text) = bytes.read(buffer)? {
                blkio_rows(text, io, |io| {
                    [&mut io.read_bytes, &mut io.written_bytes, &mut io.discarded_bytes]
                });
            }
            if let Some(text) = operations.read(buffer)? {
                blkio_rows(text, io, |io| [&mut io.reads, &mut io.writes, &mut io.discards]);
            }
        }
        io.retain(|(_, io)| *io != Io::default());
        Ok(())
    }

    /// Reads the vm events.
    pub(crate) fn events(&mut self, raw: &mut RawStats) -> Result<(), Error> {
        let RawStats { events, buffer, .. } = raw;
        events.fill(0);
        for (stat, kills) in &mut self.unified_memory {
            if let Some(text) = stat.read(buffer)? {
                scan_events(text, b"", events);
                if let Some(text) = kills.read(buffer)? {
                    scan_events(text, b"", events);
                }
                return Ok(());
            }
        }
        if let Some((stat, kills)) = &mut self.legacy_memory
            && let Some(text) = stat.read(buffer)?
        {
            scan_events(text, b"total_", events);
            if let Some(text) = kills.read(buffer)? {
                scan_events(text, b"", events);
            }
        }
        Ok(())
    }

    /// Reads the texts of the pressure files.
    pub(crate) fn pressure(&mut self, raw: &mut RawStats) -> Result<Pressure, Error> {
        let Some([cpu, io, memory]) = &mut self.pressure else { return Ok(Pressure::default()) };
        let mut read = |file: &mut CgroupFile| -> Result<Option<Box<[u8]>>, Error> {
            Ok(file.read(&mut raw.buffer)?.filter(|text| !text.is_empty()).map(Box::from))
        };
        Ok(Pressure { cpu: read(cpu)?, io: read(io)?, memory: read(memory)? })
    }
}

fn legacy_io(mount: &Mount, cgroup: &str) -> [(CgroupFile, CgroupFile); 2] {
    let cgroup = Cgroup::new(mount, cgroup);
    [
        ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
        ("blkio.bfq.io_service_bytes_recursive", "blkio.bfq.io_serviced_recursive"),
    ]
    .map(|(bytes, operations)| (cgroup.file(bytes), cgroup.file(operations)))
}

/// `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn unified_io(text: &[u8], found: &mut Vec<((u32, u32), Io)>) {
    for line in scan::lines(text) {
        let mut words = scan::words(line);
        let Some(number) = words.next().and_then(device_number) else { continue };
        let mut io = Io::default();
        for word in words {
            let Some(equals) = memchr::memchr(b'=', word) else { continue };
            let field = match &word[..equals] {
                b"rbytes" => &mut io.read_bytes,
                b"wbytes" => &mut io.written_bytes,
                b"dbytes" => &mut io.discarded_bytes,
                b"rios" => &mut io.reads,
                b"wios" => &mut io.writes,
                b"dios" => &mut io.discards,
                _ => continue,
            };
            *field = scan::decimal(&word[equals + 1..]).unwrap_or(0);
        }
        found.push((number, io));
    }
}

/// Parses lines of `254:0 Read 4096`. For a device that both policies count, the larger number is
/// taken.
fn blkio_rows(
    text: &[u8],
    found: &mut Vec<((u32, u32), Io)>,
    fields: impl Fn(&mut Io) -> [&mut u64; 3],
) {
    for line in scan::lines(text) {
        let mut words = scan::words(line);
        let Some(number) = words.next().and_then(device_number) else { continue };
        let (Some(kind), Some(count)) = (words.next(), words.next().and_then(scan::decimal)) else {
            continue;
        };
        let which = match kind {
            b"Read" => 0,
            b"Write" => 1,
            b"Discard" => 2,
            _ => continue,
        };
        let at = match found.iter().position(|(known, _)| *known == number) {
            Some(at) => at,
            None => {
                found.push((number, Io::default()));
                found.len() - 1
            }
        };
        let field = &mut *fields(&mut found[at].1)[which];
        *field = count.max(*field);
    }
}

fn device_number(word: &[u8]) -> Option<(u32, u32)> {
    let colon = memchr::memchr(b':', word)?;
    let number = |digits| u32::try_from(scan::decimal(digits)?).ok();
    Some((number(&word[..colon])?, number(&word[colon + 1..])?))
}

fn scan_events(text: &[u8], prefix: &[u8], events: &mut [u64; VmEvents::NAMES.len()]) {
    for (key, count) in scan::pairs(text) {
        if let Some(at) = key.strip_prefix(prefix).and_then(VmEvents::index) {
            events[at] = count;
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(
    text: &[u8],
    found: &mut Vec<((u32, u32), Io)>,
    events: &mut [u64; VmEvents::NAMES.len()],
) {
    unified_io(text, found);
    blkio_rows(text, found, |io| [&mut io.reads, &mut io.writes, &mut io.discards]);
    scan_events(text, b"total_", events);
    scan_events(text, b"", events);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_versions() {
        let mut found = Vec::new();
        unified_io(
            b"254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n8:0 rbytes=7\n",
            &mut found,
        );
        let all = Io {
            read_bytes: 1,
            written_bytes: 2,
            reads: 3,
            writes: 4,
            discarded_bytes: 5,
            discards: 6,
        };
        assert_eq!(found[0], ((254, 0), all));
        assert_eq!(found[1], ((8, 16), Io::default()));
        assert_eq!(found[2], ((8, 0), Io { read_bytes: 7, ..Io::default() }));

        let text = b"254:0 Read 10\n254:0 Write 20\n254:0 Sync 30\n254:0 Discard 3\nTotal 33\n";
        let mut found = Vec::new();
        blkio_rows(text, &mut found, |io| [&mut io.reads, &mut io.writes, &mut io.discards]);
        assert_eq!(found, [((254, 0), Io { reads: 10, writes: 20, discards: 3, ..Io::default() })]);
    }

    #[test]
    fn events_of_both_versions() {
        let mut events = [0; VmEvents::NAMES.len()];
        scan_events(b"pgfault 1\ntotal_pgfault 2\ntotal_pgpgin 3\n", b"total_", &mut events);
        assert_eq!(events[VmEvents::index(b"pgfault").unwrap()], 2);
        scan_events(b"anon 9\npgfault 5\n", b"", &mut events);
        assert_eq!(events[VmEvents::index(b"pgfault").unwrap()], 5);
        assert_eq!(events.iter().sum::<u64>(), 5);
        scan_events(b"max 8\noom 7\noom_kill 6\noom_group_kill 0\n", b"", &mut events);
        assert_eq!(events[VmEvents::index(b"oom_kill").unwrap()], 6);
        scan_events(b"oom_kill_disable 0\nunder_oom 0\noom_kill 9\n", b"", &mut events);
        assert_eq!(events[VmEvents::index(b"oom_kill").unwrap()], 9);
        assert_eq!(events.iter().sum::<u64>(), 14);
    }
}
