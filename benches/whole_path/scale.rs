//! A thousand containers: the rows of the table in docs/performance.md, each beside its limit of the
//! same run. Start reading at [`print`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::harness::command::quiet;
use super::harness::daemon::Daemon;
use super::harness::machine::{AMBIT, patience};
use super::herd::Herd;
use super::{Server, this_program};

/// The rows that can be selected.
pub(crate) const ROWS: &[&str] = &["cold", "idle", "kill", "load", "neighbour"];

const MANY: usize = 1000;
/// One container is cold again after this time: its last numbers are older than their bound.
const COLD: u32 = 25_000;
/// A container that is younger is sampled anew at each read.
const SETTLED: Duration = Duration::from_millis(2500);
/// Twelve rounds of the load sampler: in one of them the threads of idle containers are counted.
const CYCLE: Duration = Duration::from_secs(60);

/// Prints a table of the rows that are selected. In nanoseconds: meminfo on lease and the machine's
/// own; sysinfo(2), mknod(2) and the smallest handler.
pub(crate) fn print(
    leased: Option<[f64; 2]>,
    calls: Option<[f64; 3]>,
    is_selected: impl Fn(&str) -> bool,
) {
    println!("\n| figure | ambit | limit | ratio | reach |\n|---|--:|--:|--:|--:|");
    if let Some([leased, host]) = leased {
        let ratio = Some(leased / host);
        let us = |time: f64| format!("{:.1} us", time / 1e3);
        row("leased meminfo, the machine's own", &us(leased), &us(host), ratio, "0.6");
    }
    if let Some([sysinfo, mknod, smallest]) = calls.map(|times| times.map(|time| time / 1e3)) {
        for (call, time, reach) in [("sysinfo", sysinfo, "1.3"), ("mknod", mknod, "12")] {
            let ratio = Some(time / smallest);
            row(&format!("{call}, smallest handler"), &us(time), &us(smallest), ratio, reach);
        }
    }
    if ["cold", "idle", "kill"].into_iter().any(&is_selected) {
        let mut herd = Herd::start(MANY, 1);
        sleep(SETTLED);
        if is_selected("cold") {
            cold(&mut herd);
        }
        if is_selected("idle") {
            idle(&mut herd);
        }
        if is_selected("kill") {
            [1, 50, MANY].into_iter().for_each(|count| killed(&mut herd, count));
        }
    }
    if is_selected("load") {
        load();
    }
    if is_selected("neighbour") {
        neighbour();
    }
}

fn row(figure: &str, ours: &str, limit: &str, ratio: Option<f64>, reach: &str) {
    let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    println!("| {figure} | {ours} | {limit} | {ratio} | {reach} |");
}

fn us(time: f64) -> String {
    format!("{time:.0} us")
}

/// Reads of a container whose numbers are not recent.
fn cold(herd: &mut Herd) {
    let daemon = Daemon::start();
    let null = Server::start("a null server", this_program("--null-server"), |_| {});
    let ideal = Server::start("an ideal server", this_program("--ideal-server"), |_| {});
    let lxcfs = Server::start("lxcfs", Command::new("lxcfs"), |(command, dir)| {
        command.arg("-f").arg("-p").arg(dir.join("pid"));
    });
    let ours = |file: &str| daemon.file(&format!("proc/{file}")).display().to_string();
    let theirs =
        |server: &Server, file| server.mount().join("proc").join(file).display().to_string();

    let first = herd.read((MANY, 1, 0), &ours("meminfo"));
    // The other servers know each container too.
    for server in [&ideal, &lxcfs] {
        herd.read((MANY, 1, 0), &theirs(server, "meminfo"));
    }
    let many = (MANY, 5, 0);
    let mut again = 0.0;
    for (file, faster) in [("meminfo", "0.33"), ("stat", "0.40"), ("uptime", "0.40")] {
        let time = herd.read(many, &ours(file));
        if file == "meminfo" {
            again = time;
        }
        let [ideal, lxcfs] = [&ideal, &lxcfs].map(|server| herd.read(many, &theirs(server, file)));
        let host = herd.read(many, &format!("/proc/{file}"));
        row(
            &format!("cold {file}, ideal server"),
            &us(time),
            &us(ideal),
            Some(time / ideal),
            "1.5",
        );
        row(&format!("cold {file}, lxcfs"), &us(time), &us(lxcfs), Some(time / lxcfs), faster);
        row(
            &format!("cold {file}, the machine's own"),
            &us(time),
            &us(host),
            Some(time / host),
            "-",
        );
    }
    let ratio = |herd: &mut Herd, path: &str| {
        let one = herd.read((1, 200, COLD), path);
        herd.read(many, path) / one
    };
    let (time, limit) = (ratio(herd, &ours("meminfo")), ratio(herd, &theirs(&null, "meminfo")));
    let text = |ratio| format!("{ratio:.2}x");
    row(
        "1,000 containers against 1, null server",
        &text(time),
        &text(limit),
        Some(time / limit),
        "1.2",
    );
    let most = Some(first / (again + 50.0));
    row("first visit, cold read + 50 us", &us(first), &us(again + 50.0), most, "1");
}

/// A container whose neighbour reads with 32 processes: ambit's files, those of the null server and
/// the machine's own, in turns. On one processor the neighbour would take the victim's own time, so
/// they are on all, and who of them shares one with whom changes from round to round.
fn neighbour() {
    super::bind_to(&super::every_processor());
    let daemon = Daemon::start();
    let null = Server::start("a null server", this_program("--null-server"), |_| {});
    let herd = &mut Herd::start(2, 1);
    sleep(SETTLED);
    let folders = [daemon.file("proc"), null.mount().join("proc"), PathBuf::from("/proc")];
    let mut times: [Vec<[f64; 3]>; 3] = Default::default();
    for _ in 0..15 {
        for (folder, times) in folders.iter().zip(&mut times) {
            let [victim, noise] =
                ["uptime", "cpuinfo"].map(|it| folder.join(it).display().to_string());
            let alone = herd.read((1, 300, 0), &victim);
            herd.flood(32, &noise);
            let flooded = herd.read((1, 300, 0), &victim);
            herd.quiet();
            times.push([flooded, alone, flooded / alone]);
        }
    }
    let [ours, null, own] = times.map(|times| {
        let median = |at: usize| {
            let mut sorted: Vec<_> = times.iter().map(|one| one[at]).collect();
            sorted.sort_by(f64::total_cmp);
            (sorted[sorted.len() / 2], [sorted[0], sorted[sorted.len() - 1]])
        };
        [median(0), median(1), median(2)]
    });
    row("neighbour of 32 readers, alone", &us(ours[0].0), &us(ours[1].0), Some(ours[2].0), "1.5");
    for (name, limit) in [("null server", null), ("the machine's own", own)] {
        let text = |(median, [least, most]): (f64, [f64; 2])| {
            format!("{median:.1}x ({least:.1} to {most:.1})")
        };
        row(
            &format!("the same, {name}"),
            &text(ours[2]),
            &text(limit[2]),
            Some(ours[2].0 / limit[2].0),
            "-",
        );
    }
}

/// What a server does while no container reads.
fn idle(herd: &mut Herd) {
    let daemon = Daemon::start();
    herd.read((MANY, 1, 0), &daemon.file("proc/meminfo").display().to_string());
    let server = server_of(&daemon);
    sleep(Duration::from_secs(2));
    let (before, requests) = (wake_ups(server), requests_of(&daemon));
    sleep(Duration::from_secs(20));
    let after = wake_ups(server);
    let sum = |of: &[(String, u64)], name: &str| {
        of.iter().filter(|one| one.0.starts_with(name)).map(|one| one.1).sum::<u64>()
    };
    let requests = requests_of(&daemon) - requests;
    row("requests while idle, in 20 s", &requests.to_string(), "0", None, "0");
    for (threads, name, reach) in
        [("that serve files", "ambit-fuse", "0"), ("of all kinds", "", "-")]
    {
        let count = (sum(&after, name) - sum(&before, name)).to_string();
        row(&format!("wake-ups of threads {threads}"), &count, "0", None, reach);
    }
}

/// Prints the time from the death of a server to the next answer, with so many known containers.
fn killed(herd: &mut Herd, count: usize) {
    let daemon = Daemon::start();
    let path = daemon.file("proc/meminfo").display().to_string();
    herd.read((count, 1, 0), &path);
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            // The standby is ready.
            sleep(Duration::from_secs(2));
            herd.read((count, 1, 0), &path);
            let server = server_of(&daemon);
            let start = Instant::now();
            kill(Pid::from_raw(server.cast_signed()), Signal::SIGKILL).unwrap();
            herd.read((1, 1, 0), &path);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let reach = match count {
        1 => 5.0,
        50 => 15.0,
        _ => 40.0,
    };
    let time = times[times.len() / 2];
    let figure = format!("kill -9 to the next answer, {count} known");
    row(&figure, &format!("{time:.1} ms"), "-", None, &format!("{reach} ms"));
}

/// Memory, load sampling and `status`, with containers of ten processes.
fn load() {
    let daemon = Daemon::start();
    let path = daemon.file("proc/meminfo").display().to_string();
    let server = server_of(&daemon);
    let memory = |figure: &str, reach: &str| {
        let megabytes = kilobytes(server) as f64 / 1024.0;
        row(&format!("memory, {figure}"), &format!("{megabytes:.1} MB"), "-", None, reach);
    };
    memory("idle", "1.6 MB");
    let mut herd = Herd::start(2 * MANY, 10);
    sleep(SETTLED);
    for (count, most, share) in [(MANY, "6 MB", "1 %"), (2 * MANY, "10 MB", "2 %")] {
        for file in ["meminfo", "stat", "loadavg"] {
            herd.read((count, 1, 0), &path.replace("meminfo", file));
        }
        memory(&format!("{count} containers"), most);
        // The first counts.
        sleep(Duration::from_secs(6));
        let (start, before) = (Instant::now(), processor_time(server));
        sleep(CYCLE);
        let used = (processor_time(server) - before) / start.elapsed().as_secs_f64() * 100.0;
        row(&format!("load, {count} idle"), &format!("{used:.2} %"), "-", None, share);
    }
    // The command looks at the mounts of all processes while the daemon answers.
    super::bind_to(&super::every_processor());
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            let status =
                quiet(AMBIT).arg("status").arg("--config").arg(daemon.place().config()).output();
            assert!(status.unwrap().status.success());
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    row("`status`, 2000 containers", &format!("{:.2} s", times[2]), "-", None, "0.2 s");
    drop(herd);
    // Two rounds of the load sampler, which forgets them.
    sleep(Duration::from_secs(11));
    memory("after 2000 ended", "1.6 MB");
}

fn server_of(daemon: &Daemon) -> u32 {
    let until = Instant::now() + patience(10);
    loop {
        let pid = daemon.try_status().and_then(|status| status["server_pid"].as_u64());
        match pid.and_then(|pid| u32::try_from(pid).ok()) {
            Some(pid) if Path::new(&format!("/proc/{pid}")).exists() => return pid,
            _ => assert!(Instant::now() < until, "the daemon does not answer"),
        }
    }
}

fn requests_of(daemon: &Daemon) -> u64 {
    daemon.status()["files"]["opened"].as_u64().unwrap()
}

/// The threads of a process.
fn threads(pid: u32) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|entry| entry.path())
}

/// How often each thread of a process has gone to sleep, by name.
fn wake_ups(pid: u32) -> Vec<(String, u64)> {
    let one = |thread: PathBuf| {
        let status = fs::read_to_string(thread.join("status")).ok()?;
        let of = |key| status.lines().find_map(|line: &str| line.strip_prefix(key)).map(str::trim);
        Some((of("Name:")?.to_owned(), of("voluntary_ctxt_switches:")?.parse().ok()?))
    };
    threads(pid).filter_map(one).collect()
}

/// Seconds of processor time that a process has used.
fn processor_time(pid: u32) -> f64 {
    let one = |thread: PathBuf| {
        let text = fs::read_to_string(thread.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    threads(pid).filter_map(one).sum::<f64>() / 1e9
}

/// Anonymous memory of a process.
fn kilobytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
