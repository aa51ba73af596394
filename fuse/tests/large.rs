//! A machine of 1024 processors and 4 TiB: every file is complete, none exceeds its announced
//! bound, and the length depends on the container, not on the machine.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fmt::Write;
use std::sync::Arc;

use ambit_fuse::{FILES, Text};
use ambit_sysinfo::{CpuSet, Host, HostTexts, View};

#[path = "fixtures/container.rs"]
mod container;

const CPUS: u32 = 1024;

/// What a container with these processors sees of the machine.
fn view(online: &str) -> View {
    let block = container::CPUINFO.split("\n\n").next().unwrap();
    let mut cpuinfo = String::new();
    for cpu in 0..CPUS {
        let lines = block.lines().map(|line| match line.split_once(':').unwrap() {
            ("processor\t", _) => format!("processor\t: {cpu}"),
            ("physical id\t", _) => format!("physical id\t: {}", cpu / 128),
            ("core id\t\t", _) => format!("core id\t\t: {}", cpu % 128 / 2),
            _ => line.to_owned(),
        });
        writeln!(cpuinfo, "{}\n", lines.collect::<Vec<_>>().join("\n")).unwrap();
    }
    let mut view = container::view();
    view.host = Arc::new(Host::parse(HostTexts {
        meminfo: b"MemTotal:       4294967296 kB\nMemFree:        4294967296 kB\n",
        cpuinfo: cpuinfo.as_bytes(),
        stat: b"btime 1795476668\n",
        online: b"0-1023\n",
    }));
    view.memory.total = 4 << 40;
    view.memory.free = (4 << 40) - 1;
    view.cpu.online = CpuSet::parse(online.as_bytes()).unwrap();
    // Ten years of ticks.
    view.cpu.total.idle = 31_536_000_000 * 1024;
    let mut times = view.cpu.total;
    times.idle = 31_536_000_000;
    view.cpu.times = view.cpu.online.iter().map(|cpu| (cpu, times)).collect();
    view
}

fn render(path: &str, view: &View) -> String {
    let file = FILES.iter().find(|file| file.path == path).unwrap();
    let mut text = Text::new();
    (file.render)(view, &mut text);
    String::from_utf8(text.as_bytes().to_vec()).unwrap()
}

#[test]
fn every_processor_has_its_lines_and_columns() {
    let view = view("0-1023");
    let stat = render("proc/stat", &view);
    assert_eq!(stat.lines().filter(|line| line.starts_with("cpu")).count(), 1025);
    assert!(stat.contains("\ncpu1023 ") && stat.ends_with("softirq 0 0 0 0 0 0 0 0 0 0 0\n"));
    let cpuinfo = render("proc/cpuinfo", &view);
    assert_eq!(cpuinfo.matches("processor\t: ").count(), 1024);
    assert!(cpuinfo.ends_with("\n\n"));
    for path in ["proc/interrupts", "proc/softirqs"] {
        let text = render(path, &view);
        assert_eq!(text.lines().next().unwrap().split_whitespace().count(), 1024, "{path}");
    }
    assert_eq!(render("sys/devices/system/cpu/online", &view), "0-1023\n");
    assert_eq!(
        render("proc/meminfo", &view),
        "MemTotal:       4294967296 kB\nMemFree:        4294967295 kB\n"
    );
    let mask = CpuSet::first(CPUS).mask(256).to_string();
    assert_eq!(mask.split(',').filter(|group| *group == "ffffffff").count(), 32);
}

#[test]
fn no_file_is_longer_than_it_says() {
    for online in ["0", "0-1023", "0,2,4,6,1000-1023"] {
        let view = view(online);
        for file in FILES {
            let mut text = Text::new();
            (file.render)(&view, &mut text);
            let (path, longest) = (file.path, (file.longest)(&view.host));
            assert!(text.as_bytes().len() <= longest, "{path}: {longest}");
        }
    }
}

#[test]
fn a_small_container_on_it_sees_little() {
    let view = view("512-513");
    for file in FILES {
        let path = file.path;
        let text = render(path, &view);
        assert!(text.len() < 8192, "{path}: {} bytes", text.len());
    }
    assert_eq!(render("proc/cpuinfo", &view).matches("processor\t: ").count(), 2);
}
