//! Profiles that `ambit profile` merges into one that refuses what it does not list, in real
//! engines. Those without a base are what all other tests of engines have.

use std::fs;

use libseccomp::ScmpSyscall;
use serde_json::{Value, json};

use crate::harness::command::{self, Output, quiet};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::machine::AMBIT;
use crate::harness::{lxc, oci, profile};

const MIB: u64 = 1 << 20;
const ON: &str = "mknod = true\nsetxattr = true\nsched_setscheduler = true\nmount = true\n";

/// What is reported, what is not but has the same name, and what the base refuses. Not every kernel
/// has these attributes on tmpfs, but none forbids them.
const INSIDE: &str = r"cd /root; /mnt/node_call make null 1 3; /mnt/node_call make memory 1 1
mkfifo fifo && echo fifo; mknod white c 0 0 && echo white; mkdir d m; /mnt/node_call opaque d
setfattr -n user.long -v longer d 2>&1 | grep -c 'not permitted'; setfattr -n user.one -v 1 d 2>&1 | grep -c 'not permitted'
mount -t tmpfs tmp m && echo tmpfs; mount --bind d m && echo bind; mount --make-rslave / && echo slave
mount -o remount,bind,ro m && echo remount; nice -n $((-5 - $(nice))) nice; busybox free -m | grep -c ' 144 '
python3 -c 'import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.syscall(250, 0, 0), ctypes.get_errno())'";

const SAID: &str = "ok\nEPERM\nfifo\nwhite\nok\n0\n0\ntmpfs\nbind\nslave\nremount\n-5\n1\n-1 1\n";

/// Names of calls, and one that is refused.
fn allowed() -> Vec<String> {
    let names = (0..1000).filter_map(|number| ScmpSyscall::from(number).get_name().ok());
    names.filter(|name| name != "keyctl").collect()
}

#[track_caller]
fn works(run: impl Fn(&Daemon) -> Output) {
    let daemon = Daemon::start_at(Place::intercepting(ON));
    let output = run(&daemon);
    assert_eq!(output.stdout, SAID, "{}", output.stderr);
    drop(daemon);
}

#[track_caller]
fn oci(engine: &str) {
    works(|daemon| {
        let folder = readable_dir();
        let base = folder.path().join("base.json");
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{ "names": allowed(), "action": "SCMP_ACT_ALLOW" }],
        });
        fs::write(&base, profile.to_string()).unwrap();
        let text = profile::of(daemon, "oci", &["--base", base.to_str().unwrap()]);
        let profile: Value = serde_json::from_str(&text).unwrap();
        let container = oci::Container { memory: 144 * MIB, ..oci::Container::with_users(INSIDE) };
        oci::run_with(engine, daemon, container, &profile)
    });
}

#[test]
fn runc_with_a_base() {
    oci("runc");
}

#[test]
fn crun_with_a_base() {
    oci("crun");
}

#[test]
fn lxc_with_a_base() {
    works(|daemon| {
        let folder = readable_dir();
        let base = folder.path().join("base");
        fs::write(&base, format!("2\nallowlist errno 1\n[all]\n{}\n", allowed().join("\n")))
            .unwrap();
        let text = profile::of(daemon, "lxc", &["--base", base.to_str().unwrap()]);
        lxc::run_with(daemon, 144 * MIB, 100_000, &text, INSIDE)
    });
}

#[test]
fn a_written_profile_comes_with_the_lines_of_a_container() {
    let daemon = Daemon::start();
    let folder = readable_dir();
    let file = folder.path().join("seccomp");
    let args = ["--label", "web", "--output", file.to_str().unwrap()];
    let output = profile::ask(&daemon, "lxc", &args);
    assert!(output.stderr.contains("the configuration grants mknod"), "{}", output.stderr);
    let lines = output.ok();
    for line in [
        format!("lxc.seccomp.profile = {}\n", file.display()),
        format!("lxc.seccomp.notify.proxy = unix:{}\n", daemon.socket("lxc.sock").display()),
        "lxc.seccomp.notify.cookie = web\n".to_owned(),
        format!("{} proc/meminfo none bind", daemon.file("proc/meminfo").display()),
    ] {
        assert!(lines.contains(&line), "{line}: {lines}");
    }
    assert!(fs::read_to_string(file).unwrap().contains("sysinfo notify\n"));
}

#[test]
fn usage_errors_have_status_2_and_print_no_profile() {
    let folder = readable_dir();
    let base = folder.path().join("base.json");
    fs::write(&base, "{\n  \"syscalls\": []\n}\n").unwrap();
    let base = base.to_str().unwrap();
    let of_base = format!("{base}:3:1: this is no seccomp profile");
    for (args, said) in [
        (&["--for", "lxc", "--intercept", "nonsense"][..], "known are: view, sysinfo"),
        (&["--for", "oci", "--intercept", "mount,mount.allowed=ext4"], "belongs in [intercept]"),
        (&["--for", "oci", "--intercept", ""], "no call is reported"),
        (&["--for", "docker"], "possible values: lxc, oci"),
        (&["--for", "oci", "--base", base], &of_base),
    ] {
        let output = command::run(quiet(AMBIT).arg("profile").args(args));
        assert_eq!((output.status, &*output.stdout), (2, ""), "{args:?}");
        assert!(output.stderr.contains(said), "{args:?}: {}", output.stderr);
    }
}
