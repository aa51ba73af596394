//! `/proc/stat`: processor times of the container, and how many processes it made.
//!
//! Layout of `fs/proc/stat.c`. The totals of interrupts, context switches and softirqs are not
//! accounted by cgroups; their lines stay, because programs look for them, and are 0.

use ambit_sysinfo::view::Times;
use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/stat`.
pub static STAT: OverlayFile = OverlayFile {
    // Ten columns, of which five grow with the uptime.
    longest: |host| 512 + (host.online.len() + 1) * 100,
    ..OverlayFile::new("proc/stat", StatSet::TIMES, render)
};

fn render(view: &View, out: &mut Text) {
    out.put("cpu ");
    times(&view.cpu.total, out);
    for (cpu, spent) in &view.cpu.times {
        out.put("cpu").dec(u64::from(*cpu));
        times(spent, out);
    }
    out.put("intr 0").newline().put("ctxt 0").newline();
    out.put("btime ").dec(view.clock.boot_time).newline();
    out.put("processes ").dec(view.tasks.forks).newline();
    out.put("procs_running ").dec(view.tasks.running).newline();
    out.put("procs_blocked ").dec(view.tasks.blocked).newline();
    out.put("softirq 0 0 0 0 0 0 0 0 0 0 0").newline();
}

fn times(spent: &Times, out: &mut Text) {
    let Times { user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice } = *spent;
    for ticks in [user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice] {
        out.space().dec(ticks);
    }
    out.newline();
}

#[cfg(test)]
mod tests {
    use procfs_core::{FromBufReadSI, KernelStats};

    use super::*;
    use crate::fixture;

    #[test]
    fn shows_the_containers_processors_under_the_kernels_numbers() {
        let view = fixture::view();
        let text = fixture::render(&STAT, &view);
        assert!(text.starts_with("cpu  30 0 12 900 0 0 0 0 0 0\ncpu0 "), "{text}");
        assert!(text.contains("\ncpu2 20 0 8 450 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime 1795476668\n"));
        assert!(text.ends_with("\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"));
    }

    #[test]
    fn procfs_reads_what_the_view_says() {
        let view = fixture::view();
        let text = fixture::render(&STAT, &view);
        let parsed = KernelStats::from_buf_read(text.as_bytes(), &fixture::system()).unwrap();
        assert_eq!(parsed.total.user, view.cpu.total.user);
        assert_eq!(parsed.total.idle, view.cpu.total.idle);
        assert_eq!(parsed.cpu_time.len(), 2);
        assert_eq!(parsed.cpu_time[1].system, view.cpu.times[1].1.system);
        assert_eq!((parsed.btime, parsed.processes), (1_795_476_668, view.tasks.forks));
        assert_eq!(parsed.procs_running, Some(view.tasks.running as u32));
        assert_eq!(parsed.procs_blocked, Some(view.tasks.blocked as u32));
    }
}
