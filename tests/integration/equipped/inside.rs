//! Docker in a container of LXC: the containers that it starts show the limits of the outer one, or
//! lower ones of their own.

use super::served::fetched;
use crate::harness::daemon::{Daemon, Place};
use crate::harness::{cgroup, lxc, machine};

/// Docker's programs are in `/root`. It needs folders that can be written, and control groups.
const DOCKER: &str = "mkdir -p /dev/shm
    for f in run var etc tmp dev/shm sys/fs/cgroup; do mount -t tmpfs tmp /$f; done
    cut -d: -f2 /proc/self/cgroup | while read -r c; do d=/sys/fs/cgroup/${c#name=}; mkdir -p $d
        [ -z \"$c\" ] || mount -t cgroup -o $c c $d; done
    cd /tmp; export HOME=/tmp PATH=/root:$PATH DOCKER_HOST=unix:///tmp/sock
    dockerd --bridge=none --iptables=false --storage-driver=vfs --host=$DOCKER_HOST \
        --data-root=/tmp/data --exec-root=/tmp/exec --pidfile=/tmp/pid >log 2>&1 & dockerd=$!
    until docker version >/dev/null 2>&1; do
        kill -0 $dockerd || { cat log; exit 1; }; sleep .1; done 2>/dev/null
    mkdir root; cp /bin/busybox root; tar -C root -cf image .; docker import image base >/dev/null
    look='b=/busybox; $b awk \"/MemTotal/ {print \\$2}\" /proc/meminfo
        $b free -k | $b awk \"/Mem:/ {print \\$2}\"; $b nproc'
    for option in --rm --privileged --memory=64m; do
        docker run --rm $option --network none base /busybox sh -c \"$look\"; done
    kill $dockerd; wait $dockerd";

#[test]
fn docker_in_lxc_shows_the_limits_of_the_container() {
    if cgroup::memory_is_v2() {
        return machine::not_on_this_kernel("control groups of v1");
    }
    let docker = fetched("engines", "trixie").join("usr/bin");
    let daemon = Daemon::start_at(Place::intercepting("proc = true\n"));
    let said = lxc::start(&daemon, 256 << 20, 100_000, &[(&docker, "root")], DOCKER);
    let said = said.finish(machine::patience(60)).ok();
    let outer = "262144\n262144\n1\n";
    assert_eq!(said, format!("{outer}{outer}65536\n65536\n1\n"));
    daemon.stop();
}
