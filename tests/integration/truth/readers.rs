//! The programs that are asked, and how their answers are read.
//!
//! A command runs in `bash`; what it prints on standard output and standard error is parsed.
//! `activity` is what a program itself may use of the container's memory while it runs. What
//! programs cannot say by their nature is in docs/readers.md.

use super::claims::Quantity::{
    Allowed, BootTime, Clock, Configured, Load, MemoryAvailable, MemoryFree, MemoryTotal, Online,
    Started, SwapFree, SwapTotal, Uptime,
};
use super::claims::{Claim, Claims, KIB, MIB, after, before, leading, line, size, up, value};

/// What the machine must have for a reader to work at all, with or without us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// procps knows the processors (it does not on User-Mode Linux).
    Procps,
    /// 32-bit programs run.
    Bits32,
    /// The kernel knows memory nodes.
    Nodes,
}

/// A program.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) name: &'static str,
    pub(super) command: &'static str,
    pub(super) needs: Needs,
    /// MiB.
    pub(super) activity: f64,
    pub(super) claims: fn(&str) -> Option<Vec<Claim>>,
}

const SMALL: f64 = 8.0;

const fn reader(
    name: &'static str,
    command: &'static str,
    claims: fn(&str) -> Option<Vec<Claim>>,
) -> Reader {
    Reader { name, command, needs: Needs::Nothing, activity: SMALL, claims }
}

impl Reader {
    const fn needs(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    const fn uses(self, activity: f64) -> Self {
        Self { activity, ..self }
    }
}

const PSUTIL: &str = "/usr/bin/python3 -c '
import os, psutil, time
m, s = psutil.virtual_memory(), psutil.swap_memory()
say = dict(total=m.total, free=m.free, available=m.available, swap_total=s.total, swap_free=s.free,
    online=psutil.cpu_count(), boot=psutil.boot_time(), started=psutil.Process(1).create_time(),
    load=psutil.getloadavg()[0], lines=len(psutil.cpu_times(percpu=True)))
print(*(f\"{key}={value}\" for key, value in say.items()), sep=\"\\n\")'";

const PYTHON: &str = "/usr/bin/python3 -c '
import os, time
size = os.sysconf(\"SC_PAGE_SIZE\")
say = dict(online=os.cpu_count(), allowed=len(os.sched_getaffinity(0)),
    configured=os.sysconf(\"SC_NPROCESSORS_CONF\"), total=os.sysconf(\"SC_PHYS_PAGES\") * size,
    free=os.sysconf(\"SC_AVPHYS_PAGES\") * size, load=os.getloadavg()[0],
    clock=time.clock_gettime(time.CLOCK_BOOTTIME))
print(*(f\"{key}={value}\" for key, value in say.items()), sep=\"\\n\")'";

const NODE: &str = "node -e '
const os = require(\"os\");
const say = { online: os.cpus().length, allowed: os.availableParallelism(), total: os.totalmem(),
    available: os.freemem(), uptime: os.uptime(), load: os.loadavg()[0] };
for (const [key, value] of Object.entries(say)) process.stdout.write(`${key}=${value}\\n`)'";

/// On a terminal of its own; it leaves after the first picture.
const HTOP: &str = "echo q | TERM=vt100 timeout 120 script -qec 'stty cols 120 rows 30; htop -C -d 100' \
     /dev/null | sed 's/\\x1b[^A-Za-z]*[A-Za-z]/ /g' | tr -s ' \\r\\017' ' '";

/// All of them.
pub(super) const READERS: &[Reader] = &[
    // Every file and call at once.
    reader("ambit-verify", "/mnt/ambit-verify --json", verify),
    reader("free", "free -b", |text| free(text, 1.0)),
    reader("top", "top -b -n 1 -1 -E k -w 200", top).needs(Needs::Procps),
    reader("uptime", "uptime", uptime),
    reader("uptime -s", "date -d \"$(uptime -s)\" +%s", |text| {
        Claims::default().say(Started, leading(text)?, 1.0).done()
    }),
    reader("vmstat", "vmstat", vmstat).needs(Needs::Procps),
    reader("vmstat -s", "vmstat -s", vmstat_summary).needs(Needs::Procps),
    reader("ps", "ps -o etimes= -p 1; date -d \"$(ps -o lstart= -p 1)\" +%s", |text| {
        let mut lines = text.lines();
        Claims::default()
            .say(Uptime, leading(lines.next()?)?, 1.0)
            .say(Started, leading(lines.next()?)?, 1.0)
            .done()
    })
    .needs(Needs::Procps),
    reader("htop", HTOP, htop),
    reader("busybox free", "busybox free -k", |text| free(text, KIB)),
    reader("busybox uptime", "busybox uptime", uptime),
    reader("busybox nproc", "busybox nproc; busybox nproc --all", |text| {
        // It counts directories for --all.
        let mut lines = text.lines();
        let claims = Claims::default().count(Allowed, leading(lines.next()?)?);
        claims.count(Online, leading(lines.next()?)?).done()
    }),
    reader("busybox top", "busybox top -b -n 1", busybox_top),
    reader("nproc", "nproc; nproc --all", processors),
    reader("lscpu", "lscpu", lscpu),
    reader("lstopo", "lstopo-no-graphics --no-io --of console", |text| {
        let (total, unit) = size(text.split_once("Machine (")?.1)?;
        let processors = text.matches("PU L#").count() as f64;
        Claims::default().say(MemoryTotal, total, unit).count(Online, processors).done()
    })
    .uses(32.0),
    reader("numactl -H", "numactl -H", numactl).needs(Needs::Nodes),
    reader(
        "getconf",
        "for name in _NPROCESSORS_ONLN _NPROCESSORS_CONF _PHYS_PAGES _AVPHYS_PAGES PAGE_SIZE; do
            echo $name=$(getconf $name); done",
        getconf,
    ),
    reader("python", PYTHON, runtime).uses(32.0),
    reader("python psutil", PSUTIL, runtime).uses(48.0),
    reader("node", NODE, runtime).uses(160.0),
    reader("java", "java -XshowSettings:system -XX:+PrintFlagsFinal -version", java).uses(160.0),
    reader("sysinfo(2) 32 bit", "/mnt/sysinfo-32", sysinfo).needs(Needs::Bits32),
    reader("sysconf glibc", "/mnt/sysconf", sysconf),
    // musl takes both from the affinity mask.
    reader("sysconf musl", "/mnt/sysconf-musl", |text| {
        sysconf(&text.replace("configured=", "mask="))
    }),
    reader("affinity musl", "/mnt/affinity-musl", affinity),
    reader("affinity 32 bit", "/mnt/affinity-32", affinity).needs(Needs::Bits32),
];

/// Its rows; a contradiction that it finds fails its own row, with all that it says.
fn verify(text: &str) -> Option<Vec<Claim>> {
    let said: serde_json::Value = serde_json::from_str(text).ok()?;
    let rows = said["rows"].as_array().filter(|_| said["consistent"] == true)?;
    rows.iter()
        .filter_map(|row| {
            let reader = row["reader"].as_str()?;
            let (quantity, unit) = match row["subject"].as_str()? {
                "memory size" => (MemoryTotal, 4.0 * KIB),
                "memory free" => (MemoryFree, 4.0 * KIB),
                "swap size" => (SwapTotal, KIB),
                "swap free" => (SwapFree, KIB),
                "processors" if reader == "sched_getaffinity(2)" => (Allowed, 0.0),
                "processors" => (Online, 0.0),
                "processor numbers" if reader.starts_with("sysconf") => (Configured, 0.0),
                "uptime" => (Uptime, 1.0),
                "boot time" => (BootTime, 1.0),
                "load average" if reader.ends_with(" 1 min") => (Load, 0.011),
                _ => return None,
            };
            Some((quantity, row["value"].as_f64()?, unit))
        })
        .fold(Claims::default(), |claims, (what, value, unit)| claims.say(what, value, unit))
        .done()
}

fn free(text: &str, unit: f64) -> Option<Vec<Claim>> {
    let row = |name| -> Option<Vec<f64>> {
        Some(line(text, name)?.split_whitespace().filter_map(leading).collect())
    };
    let (memory, swap) = (row("Mem:")?, row("Swap:")?);
    Claims::default()
        .size(MemoryTotal, *memory.first()?, unit)
        .size(MemoryFree, *memory.get(2)?, unit)
        .size(MemoryAvailable, *memory.get(5)?, unit)
        .size(SwapTotal, *swap.first()?, unit)
        .size(SwapFree, *swap.get(2)?, unit)
        .done()
}

fn top(text: &str) -> Option<Vec<Claim>> {
    Claims::default()
        .say(Uptime, up(text)?, 60.0)
        .load(after(text, "load average:")?)
        .count(Online, text.matches("%Cpu").count() as f64)
        .size(MemoryTotal, after(text, "KiB Mem :")?, KIB)
        .size(MemoryFree, before(text, " free,")?, KIB)
        .size(SwapTotal, after(text, "KiB Swap:")?, KIB)
        .size(SwapFree, before(text.split_once("KiB Swap:")?.1, " free,")?, KIB)
        .size(MemoryAvailable, before(text, " avail Mem")?, KIB)
        .done()
}

fn uptime(text: &str) -> Option<Vec<Claim>> {
    Claims::default().say(Uptime, up(text)?, 60.0).load(after(text, "load average:")?).done()
}

fn vmstat(text: &str) -> Option<Vec<Claim>> {
    let free = text.lines().nth(2)?.split_whitespace().nth(3)?;
    Claims::default().size(MemoryFree, leading(free)?, KIB).done()
}

fn vmstat_summary(text: &str) -> Option<Vec<Claim>> {
    Claims::default()
        .size(MemoryTotal, before(text, " K total memory")?, KIB)
        .size(MemoryFree, before(text, " K free memory")?, KIB)
        .size(SwapTotal, before(text, " K total swap")?, KIB)
        .size(SwapFree, before(text, " K free swap")?, KIB)
        .say(BootTime, before(text, " boot time")?, 1.0)
        .done()
}

fn htop(text: &str) -> Option<Vec<Claim>> {
    let text = text.split_once("Command")?.0;
    let meter = |name: &str| size(text.split_once(name)?.1.split_once(']')?.0.rsplit_once('/')?.1);
    let processors =
        text.match_indices('%').filter(|(at, _)| text[at + 1..].trim_start().starts_with(']'));
    let (memory, swap) = (meter("Mem")?, meter("Swp")?);
    let mut claims = Claims::default()
        .count(Online, processors.count() as f64)
        .say(MemoryTotal, memory.0, memory.1)
        .say(SwapTotal, swap.0, swap.1)
        .load(after(text, "Load average:")?);
    // It says "(unknown)" in the first second.
    if let Some((_, clock)) = text.split_once("Uptime:")
        && let Some((hours, rest)) = clock.split_once(':')
        && let (Some(hours), Some((minutes, seconds))) = (leading(hours), rest.split_once(':'))
    {
        let seconds = hours * 3600.0 + leading(minutes)? * 60.0 + leading(seconds)?;
        claims = claims.say(Uptime, seconds, 1.0);
    }
    claims.done()
}

fn processors(text: &str) -> Option<Vec<Claim>> {
    let mut lines = text.lines();
    Claims::default()
        .count(Allowed, leading(lines.next()?)?)
        .count(Configured, leading(lines.next()?)?)
        .done()
}

fn busybox_top(text: &str) -> Option<Vec<Claim>> {
    let (used, free) = (after(text, "Mem: ")?, before(text, "K free")?);
    Claims::default()
        .size(MemoryTotal, used + free, KIB)
        .size(MemoryFree, free, KIB)
        .load(after(text, "Load average:")?)
        .done()
}

fn lscpu(text: &str) -> Option<Vec<Claim>> {
    let list = |label| line(text, label).map(|list| crate::harness::text::list_length(list) as f64);
    let claims = Claims::default()
        .count(Online, leading(line(text, "CPU(s):")?)?)
        .count(Online, list("On-line CPU(s) list:")?);
    match list("NUMA node0 CPU(s):") {
        Some(processors) => claims.count(Online, processors).done(),
        None => claims.done(),
    }
}

fn numactl(text: &str) -> Option<Vec<Claim>> {
    let processors = line(text, "node 0 cpus:")?.split_whitespace().count() as f64;
    Claims::default()
        .count(Online, processors)
        .size(MemoryTotal, after(text, "node 0 size:")?, MIB)
        .size(MemoryFree, after(text, "node 0 free:")?, MIB)
        .done()
}

fn getconf(text: &str) -> Option<Vec<Claim>> {
    let page = value(text, "PAGE_SIZE")?;
    Claims::default()
        .count(Online, value(text, "_NPROCESSORS_ONLN")?)
        .count(Configured, value(text, "_NPROCESSORS_CONF")?)
        .size(MemoryTotal, value(text, "_PHYS_PAGES")?, page)
        .size(MemoryFree, value(text, "_AVPHYS_PAGES")?, page)
        .done()
}

/// `key=value`, sizes in bytes: what our scripts for language runtimes print.
fn runtime(text: &str) -> Option<Vec<Claim>> {
    let keys = [
        ("online", Online, 0.0),
        ("lines", Online, 0.0),
        ("configured", Configured, 0.0),
        ("allowed", Allowed, 0.0),
        ("total", MemoryTotal, 0.0),
        ("available", MemoryAvailable, 0.0),
        ("swap_total", SwapTotal, 0.0),
        ("swap_free", SwapFree, 0.0),
        ("uptime", Uptime, 0.01),
        ("clock", Clock, 0.01),
        ("boot", BootTime, 1.0),
        ("started", Started, 0.01),
        ("load", Load, 0.011),
    ];
    let said = keys.iter().filter_map(|&(key, what, unit)| Some((what, value(text, key)?, unit)));
    said.fold(Claims::default(), |claims, (what, value, unit)| claims.say(what, value, unit)).done()
}

fn java(text: &str) -> Option<Vec<Claim>> {
    let heap = after(line(text, "size_t MaxHeapSize")?, "=")?;
    let claims = Claims::default()
        .count(Allowed, after(text, "Effective CPU Count:")?)
        // A quarter of the memory, in whole regions of the heap.
        .say(MemoryTotal, heap * 4.0, 32.0 * MIB);
    // "Unlimited" is what it calls a limit that is all memory there is.
    match size(line(text, "Memory Limit:")?) {
        Some((limit, unit)) => claims.say(MemoryTotal, limit, unit).done(),
        None => claims.done(),
    }
}

fn sysinfo(text: &str) -> Option<Vec<Claim>> {
    Claims::default()
        .say(Uptime, value(text, "uptime")?, 1.0)
        .load(value(text, "load0")?)
        .size(MemoryTotal, value(text, "total_kb")?, KIB)
        .size(MemoryFree, value(text, "free_kb")?, KIB)
        .size(SwapTotal, value(text, "swap_total_kb")?, KIB)
        .size(SwapFree, value(text, "swap_free_kb")?, KIB)
        .done()
}

fn sysconf(text: &str) -> Option<Vec<Claim>> {
    let claims = Claims::default().count(Online, value(text, "online")?);
    let claims = match (value(text, "configured"), value(text, "mask")) {
        (Some(configured), _) => claims.count(Configured, configured),
        (None, mask) => claims.count(Allowed, mask?),
    };
    claims
        .size(MemoryTotal, value(text, "total_kb")?, KIB)
        .size(MemoryFree, value(text, "free_kb")?, KIB)
        .load(value(text, "load")?)
        .say(Clock, value(text, "boottime")?, 0.01)
        .done()
}

fn affinity(text: &str) -> Option<Vec<Claim>> {
    Claims::default().count(Allowed, value(text, "count")?).done()
}
