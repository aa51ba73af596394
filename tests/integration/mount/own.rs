//! A procfs or sysfs that is mounted inside a container: what covers the container's own covers it.

use super::{MIB, Stage};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::sandbox;

/// Prints the memory and processors of a procfs in KiB, and whether masks are there.
const LOOK: &str = "look() { awk '/MemTotal/ {print $2}' $1/meminfo; grep -c ^processor $1/cpuinfo
    [ -z \"$(cat $1/buddyinfo 2>/dev/null)\" ] && echo masked; }; ";

fn limited(daemon: &Daemon, args: &[&str], script: &str) -> String {
    let args = [&["--memory", "256M", "--cpus", "1"], args].concat();
    sandbox::run(daemon, &args, &format!("cd /tmp; mkdir p s m; {LOOK}{script}")).ok()
}

#[test]
fn a_new_procfs_shows_the_container() {
    let daemon = Daemon::start_at(Place::intercepting(""));
    let script = "mount -t proc proc p && look p; look /proc; umount p/meminfo 2>/dev/null && echo bare
         unshare --pid --fork --mount-proc sh -c 'echo $$; ls -d /proc/[0-9]* | wc -l
             awk \"/MemTotal/ {print \\$2}\" /proc/meminfo'
         mount -t proc -o hidepid=2 proc m && grep -o hidepid=[a-z]* /proc/self/mountinfo; umount -l p m";
    let text = limited(&daemon, &[], script);
    let expected = format!("{0}\n1\nmasked\n{0}\n1\nmasked\n1\n", 256 * MIB / 1024);
    assert!(text.starts_with(&expected), "{text}");
    let inner = format!("\n{}\nhidepid=invisible\n", 256 * MIB / 1024);
    assert!(text.ends_with(&inner) && !text.contains("bare"), "{text}");
    daemon.stop();
}

#[test]
fn a_new_sysfs_shows_the_container_and_is_read_only() {
    let daemon = Daemon::start_at(Place::intercepting(""));
    // The network is the host's, and so is a sysfs of it: the kernel wants a network of its own.
    let script = "mount -t sysfs sysfs s 2>/dev/null || echo refused; exec unshare --net sh -c '
         mount -t sysfs sysfs s && echo mounted
         cat s/devices/system/cpu/online /sys/devices/system/cpu/online | uniq | wc -l
         ls s/block /sys/block | grep -c loop; grep \" /tmp/s \" /proc/self/mountinfo | grep -c \" ro,\"; umount -l s'";
    let text = limited(&daemon, &[], script);
    assert_eq!(text, "refused\nmounted\n1\n0\n1\n");
    daemon.stop();
}

#[test]
fn a_new_procfs_has_the_pressure_of_the_container() {
    let daemon = Daemon::start_at(Place::intercepting(""));
    // The device and the path there: on hosts with cgroup v2 a file of the container's cgroup.
    let script =
        "files() { awk -v at=$1/pressure/ 'index($5, at) == 1 {print $3, $4}' /proc/self/mountinfo
         }; mount -t proc proc p; files /proc >own; files /tmp/p >new; cmp own new && wc -l <own
         ls -d /proc/pressure 2>/dev/null | wc -l; umount -l p";
    let text = limited(&daemon, &[], script);
    assert!(matches!(&*text, "3\n1\n" | "0\n0\n"), "{text}");
    daemon.stop();
}

/// Without rights, without a procfs to go by, and with a target of another user: the kernel's errors.
#[test]
fn what_the_kernel_refuses_stays_refused() {
    let daemon = Daemon::start_at(Place::intercepting(""));
    let script = "call() { /mnt/mount_call proc $1 $2 0 $3; }; call /tmp/none proc; call /tmp/p proc nonsense
         setpriv --reuid 1000 --clear-groups /mnt/mount_call proc /tmp/p proc 0
         /mnt/mount_call fsopen proc; /mnt/mount_call fsopen tmpfs
         unshare -Urm sh -c '/mnt/mount_call proc /tmp/p proc 0'
         unshare -Urpfm sh -c '/mnt/mount_call proc /tmp/p proc 0; awk \"/MemTotal/ {print \\$2}\" /tmp/p/meminfo'";
    let text = limited(&daemon, &[], script);
    let expected = format!("ENOENT\nEINVAL\nEPERM\nENOSYS\nok\nEPERM\nok\n{}\n", 256 * MIB / 1024);
    assert_eq!(text, expected);
    daemon.stop();
}

#[test]
fn it_goes_with_other_mounts_and_can_be_left_out() {
    let stage = Stage::new(super::SHIFTED);
    let script = "/mnt/mount_call proc /tmp/m proc 0; umount -l m 2>/dev/null
         /mnt/mount_call /run/i/ext4 /tmp/m ext4 0; umount m";
    let bind = format!("{}:/run/i", stage.folder().display());
    for (calls, expected) in [("mount,proc", "ok\nok\n"), ("mount", "EPERM\nok\n")] {
        let script = format!("mkdir /tmp/m; cd /tmp; {script}");
        let args = ["--intercept", calls, "--bind", &bind];
        assert_eq!(sandbox::run(stage.daemon(), &args, &script).ok(), expected, "{calls}");
    }
    stage.leaves_nothing();
}
