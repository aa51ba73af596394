//! Podman in containers: the containers that it starts mount a procfs and a sysfs of their own,
//! which show the container that Podman is in.

use super::MIB;
use crate::harness::daemon::{Daemon, Place};
use crate::harness::{lxc, machine, sandbox};

/// The memory of the outer container.
const MEMORY: u64 = 256 * MIB;

/// Starts containers with a busybox as their root in a folder where all can be written. Without
/// control groups, which the outer container cannot make on v1.
const PODMAN: &str = "export HOME=$PWD PATH=$PATH:/sbin:/usr/sbin
    mkdir -p root/proc root/sys root/dev root/tmp root/run root/etc; cp /bin/busybox root
    cat >look <<'!'
/busybox awk '/MemTotal/ {print $2}' /proc/meminfo; /busybox free -k | /busybox awk '/Mem:/ {print $2}'
/busybox grep -c ^processor /proc/cpuinfo; /busybox cat /sys/devices/system/cpu/online
!
    for option in --rm --privileged; do
        podman --root $PWD/s --runroot $PWD/r --storage-driver vfs --cgroup-manager cgroupfs \
            --events-backend none --runtime crun run --rm $option --cgroups disabled \
            --network none --rootfs $PWD/root /busybox sh -c \"$(cat look)\"
    done";

#[track_caller]
fn shows_limits(said: &str) {
    let kib = (MEMORY / 1024).to_string();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 8, "{said}");
    for one in lines.chunks(4) {
        assert_eq!(one[..3], [&kib, &kib, "1"], "{said}");
        assert!(one[3].parse::<u32>().is_ok(), "one processor is online: {said}");
    }
}

#[test]
fn podman_in_a_sandbox_shows_the_limits_of_the_sandbox() {
    machine::needs(&["podman", "conmon", "crun"]);
    let daemon = Daemon::start();
    let args = ["--memory", "256M", "--cpus", "1"];
    let said = sandbox::run(&daemon, &args, &format!("cd /tmp; {PODMAN}"));
    shows_limits(&said.ok());
    daemon.stop();
}

#[test]
fn podman_in_lxc_shows_the_limits_of_the_container() {
    machine::needs(&["podman", "conmon", "crun"]);
    let daemon = Daemon::start_at(Place::intercepting("proc = true\n"));
    let script = format!(
        "mkdir -p /dev/shm; for f in run var etc tmp dev/shm sys/fs/cgroup; do mount -t tmpfs tmp /$f; done; cd /tmp; {PODMAN}"
    );
    shows_limits(&lxc::run(&daemon, MEMORY, 100_000, &script).ok());
    daemon.stop();
}
