//! Device policies that containers set for control groups of their own, by programs of bpf(2): that
//! they hold, and that those of the host still do.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::command::{self, Output};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{cgroup, lxc, machine, oci, sandbox};

const MIB: u64 = 1 << 20;
const ON: &str = "bpf.enabled = true\nbpf.devices = true\n";

/// Before each script: `$g` is the container's own control group, `$g/a` one below it, which the
/// host lets it make at some time. `try GROUP DEVICE` says whether a process there can open a
/// device.
const PRELUDE: &str = "d=/root; [ -w $d ] || d=/tmp; g=$d/bpf-group; mkdir $g; mount -t cgroup2 none $g || exit 9
    n=0; until mkdir $g/a 2>/dev/null; do n=$((n+1)); [ $n -lt 600 ] || exit 8; sleep .1; done
    try() { sh -c 'echo 0 >$0/cgroup.procs || echo no move; : <$1' $1 $2 2>/dev/null && echo open || echo closed; }
    call=/mnt/bpf_call\n";

/// The control group of v2 that a container is in whose script this is, and its root user.
fn find_container() -> Option<(PathBuf, u32)> {
    let own = fs::metadata("/proc/self/ns/user").ok()?.ino();
    let top = cgroup::hierarchies().into_iter().find(cgroup::Hierarchy::is_v2)?;
    fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path()).find_map(|process| {
        let command = fs::read(process.join("cmdline")).ok()?;
        let ours = command.windows(9).any(|window| window == b"bpf-group");
        if !ours || fs::metadata(process.join("ns/user")).ok()?.ino() == own {
            return None;
        }
        // It has become one of the container's.
        let map = fs::read_to_string(process.join("uid_map")).ok()?;
        let root = map.split_whitespace().nth(1)?.parse().ok()?;
        if fs::metadata(process.join("cwd")).is_err()
            || !fs::read_to_string(process.join("comm")).ok()?.starts_with("sh")
        {
            return None;
        }
        let text = fs::read_to_string(process.join("cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        Some((top.root().join(path), root))
    })
}

/// Gives a control group to a user, as the kernel's documentation of cgroup v2 has it. Returns what
/// it was.
fn delegate(group: &Path, user: u32) -> Vec<(PathBuf, u32)> {
    let files = ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
    let files = files.map(|file| if file.is_empty() { group.to_owned() } else { group.join(file) });
    files
        .into_iter()
        .filter_map(|file| {
            let before = fs::metadata(&file).ok()?.uid();
            chown(&file, Some(user), None).ok()?;
            Some((file, before))
        })
        .collect()
}

/// Runs a container, does something to its control group on the host, and delegates it.
#[track_caller]
fn delegated(host: impl Fn(&Path) + Sync, run: impl FnOnce() -> Output) -> Output {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if let Some((group, root)) = find_container() {
                    host(&group);
                    return delegate(&group, root);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Vec::new()
        });
        let output = run();
        ended.store(true, Ordering::Relaxed);
        for (file, owner) in host.join().unwrap() {
            // It is gone, unless it was there before the container.
            let _ = chown(file, Some(owner), None);
        }
        output
    })
}

#[track_caller]
fn run_where(daemon: &Daemon, args: &[&str], script: &str, host: impl Fn(&Path) + Sync) -> Output {
    let script = format!("{PRELUDE}{script}");
    delegated(host, || sandbox::run(daemon, &[&["--intercept", "bpf"], args].concat(), &script))
}

#[track_caller]
fn run(lines: &str, script: &str) -> String {
    let daemon = Daemon::start_at(Place::intercepting(lines));
    let text = run_where(&daemon, &[], script, |_| ()).ok();
    daemon.stop().0.ok();
    text
}

/// Our own call on the host.
#[track_caller]
fn on_host(args: &[&str]) -> String {
    command::run(command::quiet(machine::program("bpf_call").to_str().unwrap()).args(args)).ok()
}

/// Every kernel that the tests run on has `CONFIG_CGROUP_BPF`; one without would say EINVAL.
const POLICY: &str = "try $g/a /dev/zero; $call deny $g/a 1 5; try $g/a /dev/zero; try $g/a /dev/full; try $g /dev/zero
    $call replace $g/a 1 7; try $g/a /dev/zero; try $g/a /dev/full; $call clear $g/a; try $g/a /dev/full";
const HELD: &str = "open\nload: ok\nattach: ok\nclosed\nopen\nopen\n\
    query: ok\n1, flags 2\nopen: ok\nreplace: ok\nopen\nclosed\nquery: ok\ndetach: ok\nopen\n";

#[test]
fn a_policy_applies_until_it_is_detached() {
    assert_eq!(run(ON, POLICY), HELD);
}

#[test]
fn changes_are_logged_and_queries_are_not() {
    let folder = readable_dir();
    let log = folder.path().join("audit.log");
    let lines = format!("{ON}\n[audit]\nfile = {log:?}\n");
    let script = "$call deny $g/a 1 5; $call clear $g/a; $call deny $g 1 5";
    let told = "load: ok\nattach: ok\nquery: ok\ndetach: ok\nload: ok\nattach: EPERM\n";
    assert_eq!(run(&lines, script), told);
    let text = fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        let command = text(&line["arguments"]["command"]);
        format!(
            "{} {command} {} {}",
            text(&line["call"]),
            text(&line["outcome"]),
            text(&line["errno"])
        )
    });
    assert_eq!(
        lines.collect::<Vec<_>>(),
        [
            "bpf PROG_LOAD granted -",
            "bpf PROG_ATTACH granted -",
            "bpf PROG_GET_FD_BY_ID granted -",
            "bpf PROG_DETACH granted -",
            "bpf PROG_LOAD granted -",
            "bpf PROG_ATTACH refused EPERM"
        ]
    );
}

/// What a thread gets that does not lead its process.
fn each_thread() -> &'static str {
    if on_host(&["threads"]) == "yes\n" {
        return "load: ok\nattach: ok\nclosed\nquery: ok\ndetach: ok\nopen\n";
    }
    machine::not_on_this_kernel("knowing whose descriptors a thread has (CONFIG_KCMP)");
    "load: EPERM\nopen\nquery: ok\nopen\n"
}

#[test]
fn every_thread_and_word_size_is_served() {
    let calls = machine::runnable(&["bpf_call", "bpf_call-32"]);
    let each = |call: &&str| {
        format!(
            "/mnt/{call} thread $g/a 1 5; try $g/a /dev/zero; /mnt/{call} clear $g/a; try $g/a /dev/zero\n"
        )
    };
    let expected = each_thread().repeat(calls.len());
    assert_eq!(run(ON, &calls.iter().map(each).collect::<String>()), expected);
}

#[test]
fn invalid_arguments_have_the_kernels_errno_and_other_commands_are_refused() {
    let text = run(ON, "$call edges $g/a; echo $?");
    let expected = "of no size: E2BIG\nno attribute: EFAULT\nnowhere: EFAULT\ncut off: EFAULT\na huge attribute: E2BIG\n\
        an endless one: E2BIG\nan unknown field: E2BIG\n\
        no instructions: E2BIG\ntoo many: E2BIG\ninstructions nowhere: EFAULT\nno license: EFAULT\n\
        another type: EPERM\nfor packets: ok\ntypes of a program: EPERM\na network interface: EPERM\nflags: EPERM\n\
        a map: EPERM\na helper: EPERM\na function: EPERM\n\
        what the verifier refuses: EACCES\nits log: 1\nwith a log: ok\nits log: 1\n\
        a log nowhere: EFAULT\na log without size: EINVAL\n\
        no such program: EBADF\na file as a program: EINVAL\nno such target: EBADF\n\
        a file as target: EBADF\na folder as target: EBADF\nboth kinds: EINVAL\n\
        unknown flags: EINVAL\nreplace nothing: EBADF\nof another hook: EINVAL\n\
        by a link: EINVAL\nof another hook nowhere: EBADF\nwhat it is: ok\nwhat a file is: EINVAL\n\
        not attached: ENOENT\nattach: ok\ntwice: EINVAL\nwith other flags: EPERM\nhow many: ok\n1\n\
        numbers nowhere: EFAULT\nnumbers: ok\nanother number: EPERM\nwhat it is: ok\ntwice by its number: EINVAL\ndetach: ok\nagain: ENOENT\n0\n";
    assert_eq!(text, expected);
}

#[test]
fn nothing_is_granted_unless_both_keys_are_on() {
    for lines in ["bpf = true\n", "bpf = false\n", "bpf.enabled = true\nbpf.devices = false\n"] {
        assert_eq!(run(lines, "$call load; $call clear $g/a"), "EPERM\nquery: EPERM\n", "{lines}");
    }
}

#[test]
fn only_callers_with_the_capability_in_their_container_are_served() {
    let script = "unshare -Ur $call load; setpriv --reuid 1000 --clear-groups $call load
        setpriv --bounding-set=-sys_admin,-bpf $call load; setpriv --bounding-set=-sys_admin,-net_admin $call load
        setpriv --bounding-set=-sys_admin $call deny $g/a 1 5; try $g/a /dev/zero";
    assert_eq!(run(ON, script), "EPERM\nEPERM\nEPERM\nEPERM\nload: ok\nattach: ok\nclosed\n");
    let nested = format!("{ON}nested = true\n");
    let script = "unshare -Ur $call deny $g/a 1 5; try $g/a /dev/zero";
    assert_eq!(run(&nested, script), "load: ok\nattach: ok\nclosed\n");
}

#[test]
fn control_groups_that_are_not_its_own_are_out_of_reach() {
    let strange = cgroup::Cgroup::new("strange", cgroup::Limits::default());
    let top = cgroup::hierarchies().into_iter().find(cgroup::Hierarchy::is_v2).unwrap();
    let strange = strange.dirs().find(|dir| dir.starts_with(top.root())).unwrap().to_owned();
    let before = delegate(&strange, 100_000);
    let daemon = Daemon::start_at(Place::intercepting(ON));
    let bind = format!("{}:/run/strange", strange.display());
    let all = format!("{}:/run/all", top.root().display());
    let script = "for d in $g /run/strange /run/all; do $call deny $d 1 5; $call clear $d; done
        $call flip $g/a $g 1 5; try $g /dev/zero; $call flip $g/a /run/strange 1 5
        for i in 1 2 3 4 5 6 7 8 9; do $call open $i; done | sort -u";
    let id = on_host(&["deny", strange.to_str().unwrap(), "1", "7"]);
    assert_eq!(id, "load: ok\nattach: ok\n");
    let text = run_where(&daemon, &["--bind", &bind, "--bind", &all], script, |_| ()).ok();
    let refused = "load: ok\nattach: EPERM\nquery: EPERM\n".repeat(3);
    assert_eq!(text, format!("{refused}attached some: 1\nopen\nattached some: 1\nEPERM\n"));
    // The host's is there, and no other.
    assert_eq!(on_host(&["clear", strange.to_str().unwrap()]), "query: ok\ndetach: ok\n");
    for (file, owner) in before {
        chown(file, Some(owner), None).unwrap();
    }
    daemon.stop().0.ok();
}

#[test]
fn the_hosts_programs_apply_whatever_is_attached_below() {
    let daemon = Daemon::start_at(Place::intercepting(ON));
    // Both count.
    let added = |group: &Path| drop(on_host(&["deny", group.to_str().unwrap(), "1", "7", "2"]));
    let script = "try $g/a /dev/full; $call deny $g/a 1 5; try $g/a /dev/full; try $g/a /dev/zero
        $call deny $g/a 1 9 1; mkdir $g/a/b; $call deny $g/a/b 1 9; try $g/a/b /dev/full; $call clear $g";
    let text = run_where(&daemon, &[], script, added).ok();
    let mixed = "load: ok\nattach: EPERM\n";
    let both = "load: ok\nattach: ok\n";
    assert_eq!(text, format!("closed\n{both}closed\nclosed\n{mixed}{both}closed\nquery: EPERM\n"));
    // One that would not be run for groups with another: they get none.
    let overridden =
        |group: &Path| drop(on_host(&["deny", group.to_str().unwrap(), "1", "7", "1"]));
    let script =
        "$call deny $g/a 1 5; $call deny $g/a 1 5 1; try $g/a /dev/full; try $g/a /dev/zero";
    let text = run_where(&daemon, &[], script, overridden).ok();
    assert_eq!(text, format!("{mixed}{mixed}closed\nopen\n"));
    daemon.stop().0.ok();
}

#[test]
fn policies_that_replace_each_other_stay_below_the_hosts() {
    let daemon = Daemon::start_at(Place::intercepting(ON));
    let host = |group: &Path| drop(on_host(&["deny", group.to_str().unwrap(), "1", "7", "2"]));
    // The container's own kinds: one that those below override, one that allows none below.
    let script = "mkdir $g/a/b $g/c $g/c/d; $call deny $g/a 1 5 1; $call deny $g/a/b 1 9 1
        try $g/a/b /dev/full; try $g/a/b /dev/zero; try $g/a/b /dev/urandom
        $call deny $g/c 1 5 0; $call deny $g/c/d 1 9; try $g/c/d /dev/full; try $g/c/d /dev/zero";
    let both = "load: ok\nattach: ok\n";
    let expected = format!(
        "{both}{both}closed\nopen\nclosed\n{both}load: ok\nattach: EPERM\nclosed\nclosed\n"
    );
    assert_eq!(run_where(&daemon, &[], script, host).ok(), expected);
    daemon.stop().0.ok();
}

#[test]
fn a_call_that_signals_interrupt_has_one_effect() {
    let script = format!("$call signals $g/a 50 {}; $call clear $g/a", 3 * machine::slowness());
    assert_eq!(run(ON, &script), "failed: 0, left over: 0\nquery: ok\n");
}

#[track_caller]
fn engine(run: impl FnOnce(&Daemon, &str) -> Output) {
    let daemon = Daemon::start_at(Place::intercepting(ON));
    let output = delegated(|_| (), || run(&daemon, &format!("{PRELUDE}{POLICY}")));
    assert_eq!(output.ok(), HELD);
    let fds = fs::read_dir(format!("/proc/{}/fd", daemon.server_pid())).unwrap();
    let names: HashSet<_> = fds
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|link| link.display().to_string())
        .collect();
    assert!(!names.iter().any(|name| name.contains("bpf")), "left over: {names:?}");
    daemon.stop().0.ok();
}

#[test]
fn runc() {
    engine(|daemon, script| oci::run("runc", daemon, oci::Container::with_users(script)));
}

#[test]
fn crun() {
    engine(|daemon, script| oci::run("crun", daemon, oci::Container::with_users(script)));
}

#[test]
fn lxc_with_an_id_map() {
    engine(|daemon, script| lxc::run(daemon, 144 * MIB, 100_000, script));
}
