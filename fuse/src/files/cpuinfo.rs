//! `/proc/cpuinfo`: the processors the container is shown, described as the machine describes
//! them.
//!
//! Processors keep their numbers, so that affinity masks, `online` and this file agree. `siblings`
//! and `cpu cores` count visible processors only: sockets times cores times threads is then the
//! number of processors listed. The other lines are copied; nothing is allocated after a thread has
//! rendered this file once.

use std::cell::RefCell;
use std::ops::Range;

use ambit_kernel::text::scan;
use ambit_sysinfo::host::CpuInfo as Blocks;
use ambit_sysinfo::{CpuSet, StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/cpuinfo`.
pub static CPUINFO: OverlayFile = OverlayFile {
    render_32_bit: Some(|view, out| {
        let info = view.host.cpuinfo_32.as_ref().unwrap_or(&view.host.cpuinfo);
        SOCKETS.with_borrow_mut(|cores| render(info, view, cores, out));
    }),
    longest: |host| longest(&host.cpuinfo).max(host.cpuinfo_32.as_ref().map_or(0, longest)),
    ..OverlayFile::new("proc/cpuinfo", StatSet::PROCESSORS, |view, out| {
        SOCKETS.with_borrow_mut(|cores| render(&view.host.cpuinfo, view, cores, out));
    })
};

/// Two counts can become longer by a few digits.
fn longest(info: &Blocks) -> usize {
    let blocks = info.blocks().map(|(_, block)| block.len() + 16).sum::<usize>();
    blocks + info.head().len() + info.tail().len()
}

thread_local! {
    /// (socket, core) of each visible processor, sorted. Kept to avoid an allocation.
    static SOCKETS: RefCell<Vec<(u64, u64)>> = const { RefCell::new(Vec::new()) };
}

fn render(info: &Blocks, view: &View, cores: &mut Vec<(u64, u64)>, out: &mut Text) {
    let online = &view.cpu.online;
    let visible = || info.blocks().filter(|(cpu, _)| online.contains(*cpu)).map(|(_, block)| block);

    head(info.head(), visible().count(), out);
    cores.clear();
    cores.extend(visible().filter_map(Topology::find).map(|found| (found.socket, found.core)));
    cores.sort_unstable();
    for block in visible() {
        match Topology::find(block) {
            Some(found) => {
                let (siblings, distinct) = count(cores, found.socket);
                out.put(&block[..found.siblings.start]).dec(siblings);
                out.put(&block[found.siblings.end..found.cores.start]).dec(distinct);
                out.put(&block[found.cores.end..]);
            }
            None => {
                out.put(block);
            }
        }
    }
    tail(info.tail(), online, out);
}

/// Counts the visible processors of a socket, and their cores.
fn count(cores: &[(u64, u64)], socket: u64) -> (u64, u64) {
    let first = cores.partition_point(|&(other, _)| other < socket);
    let end = cores.partition_point(|&(other, _)| other <= socket);
    let mine = &cores[first..end];
    (mine.len() as u64, mine.chunk_by(|a, b| a == b).count() as u64)
}

/// Socket and core of a processor, and the positions of `siblings` and `cpu cores` in its lines
/// (x86 prints them in this order, before its longest lines).
struct Topology {
    socket: u64,
    siblings: Range<usize>,
    core: u64,
    cores: Range<usize>,
}

impl Topology {
    fn find(block: &[u8]) -> Option<Self> {
        let (mut socket, mut siblings, mut core) = (None, None, None);
        let mut at = 0;
        for line in scan::lines(block) {
            let start = at;
            at += line.len() + 1;
            let number = || {
                let digits = value(line)?;
                Some((
                    scan::decimal(&line[digits.clone()])?,
                    start + digits.start..start + digits.end,
                ))
            };
            if line.starts_with(b"physical id") {
                socket = number().map(|(id, _)| id);
            } else if line.starts_with(b"siblings") {
                siblings = number().map(|(_, place)| place);
            } else if line.starts_with(b"core id") {
                core = number().map(|(id, _)| id);
            } else if line.starts_with(b"cpu cores") {
                let cores = number().map(|(_, place)| place)?;
                return Some(Self { socket: socket?, siblings: siblings?, core: core?, cores });
            }
        }
        None
    }
}

/// Returns the range of the value in a line `label : value`.
fn value(line: &[u8]) -> Option<Range<usize>> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let blanks = line[colon + 1..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    Some(colon + 1 + blanks..line.len())
}

/// Writes the text before the processors. On s390x it has their number.
fn head(head: &[u8], count: usize, out: &mut Text) {
    for line in scan::lines(head) {
        match value(line) {
            Some(digits) if line.starts_with(b"# processors") => {
                out.put(&line[..digits.start]).dec(count as u64).newline();
            }
            _ => {
                out.put(line).newline();
            }
        }
    }
}

/// Writes the text after the processors. On s390x it has a second paragraph for each.
fn tail(mut tail: &[u8], online: &CpuSet, out: &mut Text) {
    let mut shown = true;
    while !tail.is_empty() {
        let end = tail.iter().position(|&byte| byte == b'\n').map_or(tail.len(), |at| at + 1);
        let (line, rest) = tail.split_at(end);
        tail = rest;
        if line.starts_with(b"cpu number") {
            let number = value(line).and_then(|digits| scan::decimal(&line[digits]));
            shown = number
                .and_then(|cpu| u32::try_from(cpu).ok())
                .is_some_and(|cpu| online.contains(cpu));
        }
        if shown {
            out.put(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ambit_sysinfo::{Host, HostTexts};
    use procfs_core::{CpuInfo as Parsed, FromBufRead};
    use proptest::prelude::*;

    use super::*;
    use crate::fixture;

    fn shown(cpuinfo: &str, online: &str) -> String {
        let mut view = fixture::view();
        let texts = HostTexts { cpuinfo: cpuinfo.as_bytes(), ..HostTexts::default() };
        view.host = Arc::new(Host::parse(texts));
        view.cpu.online = CpuSet::parse(online.as_bytes()).unwrap();
        fixture::render(&CPUINFO, &view)
    }

    /// Two sockets of two cores of two threads.
    fn machine() -> String {
        let block = |cpu: u32| {
            let (socket, core) = (cpu / 4, cpu % 2);
            format!(
                "processor\t: {cpu}\nmodel name\t: x\nphysical id\t: {socket}\nsiblings\t: 4\n\
                 core id\t\t: {core}\ncpu cores\t: 2\nflags\t\t: fpu\npower management:\n\n"
            )
        };
        (0..8).map(block).collect()
    }

    #[test]
    fn the_whole_machine_is_shown_as_it_is() {
        assert_eq!(shown(&machine(), "0-7"), machine());
        assert_eq!(shown(fixture::CPUINFO, "0-1"), fixture::CPUINFO);
    }

    #[test]
    fn counts_only_visible_neighbours() {
        let text = shown(&machine(), "1,2,3,7");
        let parsed = Parsed::from_buf_read(text.as_bytes()).unwrap();
        assert_eq!(parsed.num_cores(), 4);
        let field = |cpu: usize, name: &str| parsed.get_field(cpu, name).unwrap().to_owned();
        assert_eq!(field(0, "processor"), "1");
        assert_eq!((field(0, "siblings"), field(0, "cpu cores")), ("3".into(), "2".into()));
        assert_eq!((field(3, "siblings"), field(3, "cpu cores")), ("1".into(), "1".into()));
        assert_eq!(field(3, "physical id"), "1");
    }

    #[test]
    fn counts_and_filters_on_s390x() {
        let text = "vendor_id       : IBM/S390\n# processors    : 2\nmax thread id   : 0\n\
                    processor 0: version = FF,  identification = 1\n\
                    processor 1: version = FF,  identification = 2\n\n\
                    cpu number      : 0\ncpu MHz static  : 5200\n\n\
                    cpu number      : 1\ncpu MHz static  : 5200\n\n";
        assert_eq!(
            shown(text, "1"),
            "vendor_id       : IBM/S390\n# processors    : 1\nmax thread id   : 0\n\
             processor 1: version = FF,  identification = 2\n\n\
             cpu number      : 1\ncpu MHz static  : 5200\n\n"
        );
    }

    #[test]
    fn keeps_what_describes_the_machine() {
        let arm =
            "processor\t: 0\nFeatures\t: fp\n\nprocessor\t: 1\nFeatures\t: fp\n\nHardware\t: x\n";
        assert_eq!(shown(arm, "0"), "processor\t: 0\nFeatures\t: fp\n\nHardware\t: x\n");
    }

    #[test]
    fn every_architecture_keeps_its_shape() {
        // arch/arm64/kernel/cpuinfo.c, for programs of 64 and of 32 bits; arch/riscv/kernel/cpu.c;
        // arch/powerpc/kernel/setup-common.c.
        let arm64 = "BogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n\
                     CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1";
        let compat = "model name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS\t: 50.00\n\
                      Features\t: half thumb fastmult vfp\nCPU implementer\t: 0x41\nCPU revision\t: 1";
        let riscv = "hart\t\t: 3\nisa\t\t: rv64imafdc\nmmu\t\t: sv48\nuarch\t\t: sifive,u74-mc";
        let power = "cpu\t\t: POWER9, altivec supported\nclock\t\t: 2300.000000MHz\n\
                     revision\t: 2.2 (pvr 004e 1202)";
        let trailer = "timebase\t: 512000000\nplatform\t: PowerNV\nmachine\t\t: PowerNV 8335-GTH\n";
        for (lines, tail) in [(arm64, ""), (compat, ""), (riscv, ""), (power, trailer)] {
            let machine = |cpus: &[u32]| -> String {
                let blocks = cpus.iter().map(|cpu| format!("processor\t: {cpu}\n{lines}\n\n"));
                blocks.chain([tail.to_owned()]).collect()
            };
            assert_eq!(shown(&machine(&[0, 1, 2, 3]), "0-3"), machine(&[0, 1, 2, 3]));
            assert_eq!(shown(&machine(&[0, 1, 2, 3]), "1,3"), machine(&[1, 3]));
            assert_eq!(shown(&machine(&[0, 1, 2, 3]), "0"), machine(&[0]), "the trailer stays");
        }
    }

    const LINES: &str = "((processor|siblings|core id|cpu cores|physical id|cpu number|# processors)\
                         [\t :0-9]{0,9}\n{1,2}){0,12}";

    proptest! {
        #[test]
        fn never_panics_and_shows_no_hidden_processor(text in LINES) {
            let text = shown(&text, "1");
            prop_assert!(!text.lines().any(|line| line == "processor\t: 0"));
        }
    }
}
