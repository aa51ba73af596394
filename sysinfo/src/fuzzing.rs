//! The parsers of kernel text, private ones included, as fuzz targets call them (`fuzz/`).
//!
//! Compiled for tests and with the feature `fuzzing` only. Whatever the input, no parser may panic
//! or take more than linear time; the values of the result are not checked, except for the
//! invariants in [`check`].

use std::io;
use std::sync::Arc;

use crate::context::Options;
use crate::cpu::{self, CpuClock};
use crate::cpuset::CpuSet;
use crate::hierarchy::Controller;
use crate::host::{Host, HostTexts, RawFiles};
use crate::limit::Limit;
use crate::membership::Membership;
use crate::policy::SwapPolicy;
use crate::sample::Sample;
use crate::stats::{Stats, VmEvents};
use crate::view::{Clock, Load, Origin, Tasks, View};
use crate::{
    clock, derive, hierarchy, kernel_names, namespace_init, personality, pressure, procfs, source,
    stat_sampler, tasks, topology,
};

/// Runs every parser of kernel text.
///
/// # Panics
/// A parser has a defect.
pub fn parse_all(text: &[u8]) {
    let host = Host::parse(HostTexts { meminfo: text, cpuinfo: text, stat: text, online: text });
    let blocks: usize = host.cpuinfo.blocks().map(|(_, block)| block.len()).sum();
    assert!(host.cpuinfo.head().len() + blocks + host.cpuinfo.tail().len() <= text.len());
    if let Some(set) = CpuSet::parse(text) {
        assert_eq!(CpuSet::parse(set.to_string().as_bytes()), Some(set));
    }
    let membership = Membership::parse(text);
    let _ = (membership.unified(), membership.name(), membership.path());
    for controller in Controller::ALL {
        let _ = membership.legacy(controller);
    }
    let _ = Membership::at_root(text, text, text, text).unified();
    hierarchy::parse(text);
    let _ = (clock::start_of(text), clock::boottime_offset(text));
    let _ = Limit::parse(text);
    let _ = (namespace_init::innermost_pid(text), procfs::inode(text));
    let _ = (personality::is_32_bit(text), pressure::has_resource_capability(text));
    tasks::parse(text);
    topology::parse(text);
    kernel_names::parse(text);
    source::parse(text);
    let mut io = Vec::new();
    source::stats::parse(text, &mut io, &mut [0; VmEvents::NAMES.len()]);
    stat_sampler::parse(&Same(text));
}

/// A machine in which every file has this text.
struct Same<'t>(&'t [u8]);

impl RawFiles for Same<'_> {
    fn read(&self, _path: &str, text: &mut Vec<u8>) -> io::Result<()> {
        text.extend_from_slice(self.0);
        Ok(())
    }
}

/// Derives the view of a container from the texts of its files.
pub fn view(texts: &[&[u8]]) -> View {
    let text = |at: usize| texts.get(at).copied().unwrap_or_default();
    let host = Host::parse(HostTexts {
        meminfo: text(0),
        cpuinfo: text(1),
        stat: text(2),
        online: text(3),
    });
    let legacy = texts.len() % 2 == 1;
    let sample = source::sample_of(legacy, [4, 5, 6, 7, 8, 9, 10, 11].map(text));
    let policy = [SwapPolicy::Limit, SwapPolicy::Host, SwapPolicy::None][texts.len() % 3];
    view_of(&sample, host, policy)
}

/// Derives the view of one sample.
pub fn view_of(sample: &Sample, host: Host, policy: SwapPolicy) -> View {
    let visible = cpu::visible(sample, &host, &Options::default());
    let mut clock = CpuClock::starting_at(0);
    let busy = &sample.busy;
    let step = busy.user.saturating_add(busy.system);
    for now in [0, step / 2, step, u64::MAX] {
        clock.advance(now, busy, &visible);
    }
    View {
        origin: Origin::Container,
        memory: derive::memory(sample, &host),
        swap: derive::swap(sample, &host, policy),
        tasks: Tasks { total: sample.threads.unwrap_or(0), ..Tasks::default() },
        load: Load::default().after(busy.user, sample.threads.unwrap_or(u64::MAX)),
        clock: Clock { uptime: step, idle: clock.idle(), boot_time: host.boot_time },
        nodes: None,
        cpu: clock.view(visible),
        stats: Stats::default(),
        host: Arc::new(host),
    }
}

/// Asserts the invariants of a view.
///
/// # Panics
/// One does not hold.
pub fn check(view: &View) {
    let (memory, swap, cpu) = (&view.memory, &view.swap, &view.cpu);
    assert!(memory.free <= memory.available && memory.available <= memory.total);
    assert!(memory.total <= view.host.memory_total);
    assert!(memory.free + memory.used <= memory.total);
    assert!(memory.cached <= memory.used);
    assert!(swap.free <= swap.total && swap.total <= view.host.swap_total);
    assert_eq!(cpu.times.len(), cpu.online.len());
    assert!(cpu.online.is_empty() == view.host.online.is_empty());
    assert!(cpu.online.iter().all(|number| view.host.online.contains(number)));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// Every file of every recorded kernel goes through every parser.
    #[test]
    fn recorded_kernel_files_do_not_panic_a_parser() {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    parse_all(&std::fs::read(entry.path()).unwrap());
                    files += 1;
                }
            }
        }
        assert!(files > 100, "{files} files");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "[0-9A-Z=: a-z\n]{0,200}") {
            parse_all(text.as_bytes());
        }

        #[test]
        fn every_view_keeps_the_invariants(texts in proptest::collection::vec("[0-9a-z:, \n]{0,60}", 0..13)) {
            let texts: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
            check(&view(&texts));
        }
    }
}
