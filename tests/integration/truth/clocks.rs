//! Boot time, uptime, start times and CLOCK_BOOTTIME: in a time namespace all of them agree, and
//! nothing is shifted twice; without one, `btime` of the configuration chooses what agrees.
//! docs/readers.md has the table.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::claims::{leading, value};
use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::run;
use crate::harness::daemon::{Daemon, Place};
use crate::harness::table::row;
use crate::harness::{machine, sandbox};

/// What programs say of time; `$PROC` is where the overlay's files are.
const ASK: &str = "echo now=$(date +%s); echo uptime=$(cut -d' ' -f1 $PROC/uptime)
    echo btime=$(sed -n 's/^btime //p' $PROC/stat); /mnt/sysconf 2>/dev/null || $SYSCONF
    sysinfo=$(/mnt/sysinfo 2>/dev/null | sed -n 's/^uptime=//p'); echo sysinfo=${sysinfo:-0}
    /usr/bin/python3 -c '
import os, psutil
psutil.PROCFS_PATH = os.environ[\"PROC\"] if os.path.exists(os.environ[\"PROC\"] + \"/self\") else \"/proc\"
boot = [int(l.split()[1]) for l in open(os.environ[\"PROC\"] + \"/stat\") if l.startswith(\"btime\")][0]
ticks = int(open(\"/proc/1/stat\").read().rsplit(\")\", 1)[1].split()[19])
print(f\"psutil_boot={psutil.boot_time()}\\nstarted={psutil.Process(1).create_time()}\")
print(f\"by_btime={boot + ticks / 100}\")'";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[track_caller]
fn near(situation: &str, what: &str, a: f64, b: f64, apart: f64) {
    row(what, situation).because("starting takes time (s)").numbers(a, b, apart);
}

/// Seconds between the container's start and its first question; guests are slow.
fn soon() -> f64 {
    machine::patience(3).as_secs_f64()
}

#[test]
fn in_a_time_namespace_all_clocks_agree() {
    if !machine::has_time_namespaces() {
        return machine::not_on_this_kernel("time namespaces");
    }
    // Whatever the policy says: the kernel has shifted its part already.
    for policy in ["host", "container"] {
        let daemon = Daemon::start_at(with_policy(policy));
        let before = now();
        let script = format!("export PROC=/proc; sleep 1; {ASK}");
        let said = sandbox::run(&daemon, &[], &script).ok();
        let get = |key| value(&said, key).unwrap_or_else(|| panic!("no {key}: {said}"));
        let (uptime, now) = (get("uptime"), get("now"));
        assert!(uptime >= 1.0 && uptime <= soon() + 2.0, "{policy}: {said}");
        near("a time namespace", "CLOCK_BOOTTIME and uptime", get("boottime"), uptime, soon());
        near("a time namespace", "sysinfo and uptime", get("sysinfo"), uptime, soon());
        near("a time namespace", "boot time and uptime", now - get("btime"), uptime, 2.1);
        near("a time namespace", "boot time of psutil", get("psutil_boot"), get("btime"), 0.0);
        near("a time namespace", "start of the first process", get("started"), get("btime"), 2.1);
        near(
            "a time namespace",
            "start of the first process",
            get("started"),
            before,
            soon() + 1.0,
        );
    }
}

fn with_policy(policy: &str) -> Place {
    let place = Place::new();
    let config = fs::read_to_string(place.config()).unwrap();
    let line = format!("[overlay]\nbtime = \"{policy}\"\n");
    fs::write(place.config(), config.replace("[overlay]\n", &line)).unwrap();
    place
}

/// A container as most engines make it: a pid namespace, and no time namespace. The kernel's
/// start times count from the machine's boot, whatever the overlay shows.
#[test]
fn without_a_time_namespace_the_policy_decides() {
    machine::needs(&["ps"]);
    for policy in ["host", "container"] {
        let situation = format!("no time namespace, btime = {policy}");
        let daemon = Daemon::start_at(with_policy(policy));
        let script = format!(
            "mount -t proc proc /proc; for file in stat uptime; do
                mount --bind {proc}/$file /proc/$file; done
             export PROC=/proc SYSCONF={sysconf}; sleep 1; {ASK}
             start=$(ps -o lstart= -p 1); [ -z \"$start\" ] || echo ps=$(date -d \"$start\" +%s)",
            proc = daemon.file("proc").display(),
            sysconf = machine::program("sysconf").display(),
        );
        let cgroup = Cgroup::new("clocks", Limits::default());
        let mut command = crate::harness::command::quiet("unshare");
        let inner = cgroup.script(&script);
        command.args(["--mount", "--propagation", "private"]).arg(inner.get_program());
        command.args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("TZ", "UTC").env("LC_ALL", "C");
        let before = now();
        let said = run(&mut command);
        let get = |key| value(&said.stdout, key).unwrap_or_else(|| panic!("no {key}: {said:?}"));
        let age = get("uptime");
        assert!((1.0..=soon() + 2.0).contains(&age), "{policy}: {said:?}");
        let machine_boot = machine::boot_time() as f64;
        match policy {
            // Start times are right; boot time and uptime are of different machines.
            "host" => {
                near(&situation, "boot time", get("btime"), machine_boot, 0.0);
                near(&situation, "psutil's start", get("started"), before, soon() + 2.0);
                if let Some(start) = value(&said.stdout, "ps").filter(|ps| *ps > machine_boot - 1.0)
                {
                    near(&situation, "ps's start", start, before, soon() + 2.0);
                }
            }
            // Boot time and uptime agree; start times lie in the future by the machine's uptime.
            _ => {
                near(&situation, "boot time", get("btime"), before, soon() + 2.0);
                near(&situation, "boot time and uptime", get("now") - get("btime"), age, 2.1);
                let ahead = get("started") - before;
                let uptime = leading(&fs::read_to_string("/proc/uptime").unwrap()).unwrap();
                near(&situation, "psutil's start", ahead, uptime, soon() + 4.0);
            }
        }
    }
}
