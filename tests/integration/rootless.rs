//! `ambit run` by an ordinary user, with control groups that were delegated to it and without.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{Output, quiet, run};
use crate::harness::daemon::readable_dir;
use crate::harness::machine::{self, AMBIT};
use crate::harness::text::{free, kb};

const USER: u32 = 65_534;

/// As root in a mount namespace of its own: gives the user a folder, the program and `/dev/fuse`, as
/// distributions do, and becomes the user.
const BECOME_USER: &str = "
    mount -t tmpfs -o mode=755 none $DIR && cd $DIR && mkdir home && chown 65534:65534 home &&
    touch ambit && mount --bind $AMBIT ambit &&
    mknod -m 666 fuse c 10 229 && mount --bind fuse /dev/fuse && cd / &&
    exec setpriv --reuid=65534 --regid=65534 --clear-groups $DIR/ambit run $(eval echo $ARGS) -- sh -c \"$SCRIPT\"";

/// `ambit run ARGS -- sh -c SCRIPT` by an ordinary user. `$DIR/home` belongs to the user.
fn by_user(mut shell: Command, args: &str, script: &str) -> Output {
    let dir = readable_dir();
    shell.env("DIR", dir.path()).env("AMBIT", AMBIT).env("ARGS", args).env("SCRIPT", script);
    shell.env("BECOME_USER", BECOME_USER);
    run(&mut shell)
}

fn anywhere() -> Command {
    let mut shell = quiet("unshare");
    shell.args(["--mount", "sh", "-c", BECOME_USER]);
    shell
}

/// A control group that was delegated to the user.
struct Delegated(Cgroup);

impl Delegated {
    fn new(name: &str) -> Self {
        let group = Cgroup::new(name, Limits::default());
        for dir in group.dirs() {
            chown(dir, Some(USER), Some(USER)).unwrap();
            for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads", "tasks"] {
                let _ = chown(dir.join(file), Some(USER), Some(USER));
            }
        }
        Self(group)
    }

    fn shell(&self) -> Command {
        self.0.run("exec unshare --mount sh -c \"$BECOME_USER\"")
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // On v2 the process itself was there. systemd removes it with the scope.
        self.0.dirs().for_each(|dir| _ = fs::remove_dir(dir.join("supervisor")));
    }
}

#[test]
fn a_delegated_control_group_is_limited_and_seen() {
    let group = Delegated::new("rootless");
    let script = "id -u; cat /proc/meminfo; echo; busybox free -k; nproc";
    let output = by_user(group.shell(), "--memory 64M --cpus 1 --pids 100", script);
    assert_eq!(output.stderr, "");
    let text = output.ok();
    assert_eq!(text.lines().next(), Some("0"));
    assert_eq!(kb(&text, "MemTotal"), 65_536);
    let (_, after_files) = text.split_once("\n\n").unwrap();
    assert_eq!(free(after_files, "Mem", "total"), 65_536);
    assert_eq!(text.lines().last(), Some("1"));
    for dir in group.0.dirs() {
        assert!(!dir.join("ambit").exists(), "{} is left", dir.display());
    }
}

#[test]
fn without_a_control_group_limits_have_no_effect_which_is_said() {
    let output = by_user(anywhere(), "--memory 64M --cpus 0.5", "cat /proc/meminfo");
    let note = "ambit: note: no control group was delegated to this user: --memory, --cpus without";
    assert!(output.stderr.starts_with(note), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert_eq!(kb(&output.ok(), "MemTotal"), machine::memory_kb());
    let output = by_user(anywhere(), "", "exit 7");
    assert_eq!((output.status, output.stderr.as_str()), (7, ""));
}

#[test]
fn the_users_files_can_be_written_and_no_others() {
    let script = "touch $DIR/home/own && ls -n $DIR/home; touch /etc/x; umount /proc/meminfo; \
                  mount -o remount,rw /; echo 1 >/dev/null && head -c 3 /dev/zero | wc -c; \
                  touch /tmp/x && ls -d /tmp/x";
    let output = by_user(anywhere(), "--bind $DIR/home", script);
    let said = &output.stdout;
    assert!(said.contains(" 0 0 0 ") && said.contains("own\n3\n/tmp/x\n"), "{output:?}");
    for refused in ["'/etc/x': Read-only file system", "umount: ", "mount: "] {
        assert!(output.stderr.contains(refused), "{refused}: {output:?}");
    }
}

#[test]
fn what_needs_root_is_an_error() {
    for (args, reason) in [
        ("--device /dev/null", "--device /dev/null needs root"),
        ("--no-userns", "--no-userns needs root"),
        ("--intercept view,mknod", "--intercept mknod needs root"),
    ] {
        let output = by_user(anywhere(), args, "true");
        assert_eq!(output.status, 2, "{output:?}");
        assert!(output.stderr.contains(reason), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
}
