//! Calls whose paths lead through `/proc`, or that are for files of the kernel.

use crate::harness::daemon::{Daemon, Place};
use crate::harness::sandbox;

#[test]
fn what_root_owns_can_be_given_to_root() {
    let daemon = Daemon::start_at(Place::intercepting("chown = true\n"));
    let script = "cd /tmp; touch mine; mkdir dir; ask() { chown $1 $2 2>/dev/null && echo ok || echo no; }
        for f in /proc /sys /proc/sys/kernel mine; do ask 0:0 $f; done; ask '-h 0:0' /proc/self
        for o in 1:1 0:1 65534:65534; do ask $o /proc; done; ask 0:0 /proc/none
        stat -c %u:%g /proc mine; exec 7</proc
        python3 -c 'import os; os.fchown(7, 0, 0); os.chown(7, 0, 0); os.lchown(\"/sys\", 0, 0)
os.chown(\"sys\", 0, 0, dir_fd=os.open(\"/proc\", os.O_RDONLY | os.O_DIRECTORY), follow_symlinks=False)
print(\"python\")'
        setpriv --bounding-set=-chown chown 0:0 /proc 2>&1 | sed s/.*://";
    let said = sandbox::run(&daemon, &["--intercept", "chown"], script);
    let expected = "ok\nok\nok\nok\nok\nno\nno\nno\nno\n65534:65534\n0:0\npython\n \
                    Operation not permitted\n";
    assert_eq!(said.stdout, expected, "{}", said.stderr);
    daemon.stop().0.ok();
}

#[test]
fn magic_links_of_the_caller_lead_to_its_own_files() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\nsetxattr = true\n"));
    let script = r#"cd /tmp; mkdir at at/sub; exec 7<at; cat >ask <<'END'
import os, sys, threading
def say(what, call):
    try: call(); print(what, "ok")
    except OSError as e: print(what, os.strerror(e.errno))
def node(path): return lambda: os.mknod(path, 0o20644, os.makedev(1, 3))
def mark(path, **how): return lambda: os.setxattr(path, "trusted.overlay.opaque", b"y", **how)
say("fd", node("/proc/self/fd/7/by-fd"))
say("below", node("/proc/thread-self/fd/7/sub/../sub/below"))
say("root", node("/proc/self/root/tmp/at/by-root"))
say("exists", node("/proc/self/fd/7"))
say("closed", node("/proc/self/fd/99/x"))
say("missing", node("/proc/self/fd/7/none/x"))
say("another", node("/proc/%d/cwd/x" % os.getppid()))
thread = threading.Thread(target=say, args=("thread", node("/proc/self/fd/7/by-thread")))
thread.start(); thread.join()
say("mark", mark("/proc/self/fd/7"))
say("mark below", mark("/proc/self/fd/7/sub"))
say("mark the link", mark("/proc/self/fd/7", follow_symlinks=False))
os.makedirs("fake/proc/self/fd/7"); os.chroot("fake"); os.chdir("/")
say("no procfs", node("/proc/self/fd/7/fake"))
os.rename("/proc/self", "/other")
say("no link", node("/proc/self/fd/7/fake"))
END
        python3 ask; find at fake -type c | sort"#;
    let expected = "fd ok\nbelow ok\nroot ok\nexists File exists\nclosed No such file or directory\n\
        missing No such file or directory\nanother Operation not permitted\nthread ok\nmark ok\n\
        mark below ok\nmark the link Operation not permitted\nno procfs ok\n\
        no link No such file or directory\n\
        at/by-fd\nat/by-root\nat/by-thread\nat/sub/below\nfake/other/fd/7/fake\n";
    let args = ["--intercept", "mknod,setxattr"];
    assert_eq!(sandbox::run(&daemon, &args, script).ok(), expected);
    daemon.stop().0.ok();
}
