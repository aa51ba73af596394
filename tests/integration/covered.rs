//! The overlay's files lie over the machine's own, where the daemon runs: a container engine that
//! shares `/sys` with the host mounts them there. The daemon's own numbers come from below.

use std::fs;
use std::process::Command;

use crate::harness::command::{Running, quiet, run, start};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::machine::{self, AMBIT};
use crate::harness::sandbox;

/// A mount namespace in which files can be covered.
struct Namespace(Running);

impl Namespace {
    fn new() -> Self {
        let mut holder = quiet("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-c"]);
        let mut holder = start(holder.arg("echo ready; while :; do sleep 1; done"));
        holder.wait_for("ready", machine::patience(20));
        Self(holder)
    }

    fn enter(&self) -> Command {
        let mut enter = quiet("nsenter");
        enter.arg(format!("--mount=/proc/{}/ns/mnt", self.0.pid())).arg("--");
        enter
    }

    fn serve(&self, place: Place) -> Daemon {
        let mut serve = self.enter();
        serve.arg(AMBIT).arg("serve").arg("--config").arg(place.config());
        Daemon::start_below(place, &mut serve)
    }

    #[track_caller]
    fn shell(&self, script: &str) -> String {
        run(self.enter().args(["sh", "-c", script])).ok()
    }

    /// What can be told of the machine through the daemon, which must be what the kernel says.
    #[track_caller]
    fn check(&self, daemon: &Daemon) {
        // Longer than what is known of the machine stays as it is.
        let read = "sleep 0.4; grep MemTotal /proc/meminfo; cat /sys/devices/system/cpu/online";
        let (total, online) = machine_says();
        assert_eq!(self.shell(read), format!("{total}\n{online}"));
        let container = self.shell(&format!(
            "{AMBIT} run --config {} --memory 64M -- sh -c \
             'grep MemTotal /proc/meminfo; cat /sys/devices/system/cpu/online'",
            daemon.place().config().display()
        ));
        assert_eq!(container, format!("MemTotal:          65536 kB\n{online}"));
    }
}

fn machine_says() -> (String, String) {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().next().unwrap().to_owned();
    (total, fs::read_to_string("/sys/devices/system/cpu/online").unwrap())
}

#[test]
fn a_daemon_whose_own_files_are_covered_by_its_overlay_goes_on() {
    let namespace = Namespace::new();
    let daemon = namespace.serve(Place::new());
    let mount = daemon.place().mount();
    namespace.shell(&format!(
        "cd {}; for f in proc/[a-o]* proc/[q-z]* proc/pressure/* sys/devices/system/*; do
             [ ! -e /$f ] || mount --bind $f /$f || exit 1; done",
        mount.display()
    ));
    namespace.check(&daemon);
    // Servers that start with the files covered: the successor, and a new program with its check.
    super::survival::kill_server(&daemon);
    namespace.check(&daemon);
    let config = daemon.place().config();
    let mut reload = namespace.enter();
    run(reload.args([AMBIT, "reload", "--exec", AMBIT, "--config"]).arg(&config)).ok();
    namespace.check(&daemon);
    // A new daemon, while the files of the dead one cover everything.
    let daemon = namespace.serve(daemon.kill());
    let read = format!("sleep 0.4; cat {0}/sys/devices/system/cpu/online", mount.display());
    assert_eq!(namespace.shell(&read), machine_says().1);
    let inside = sandbox::command(&daemon, &[], "cat /sys/devices/system/cpu/online");
    let mut enter = namespace.enter();
    let output = run(enter.arg(inside.get_program()).args(inside.get_args()));
    assert_eq!(output.ok(), machine_says().1);
}
