//! Device nodes and opaque marks that containers make: which ones, where, as whom. What a container
//! must not gain is asserted on the host.

use std::fs;
use std::time::Instant;

use crate::harness::command::{self, Output};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{cgroup, lxc, machine, oci, sandbox};

const MIB: u64 = 1 << 20;
const ON: &str = "mknod = true\nsetxattr = true\n";

fn daemon(lines: &str) -> Daemon {
    Daemon::start_at(Place::intercepting(lines))
}

#[track_caller]
fn run(daemon: &Daemon, script: &str) -> Output {
    let script = format!("cd /tmp; {script}");
    sandbox::run(daemon, &["--intercept", "mknod,setxattr"], &script)
}

/// Ends a daemon, and makes sure that nothing of it or for it is left.
#[track_caller]
fn leaves_nothing(daemon: Daemon) {
    let fds = fs::read_dir(format!("/proc/{}/fd", daemon.server_pid())).unwrap().count();
    assert!(fds < 100, "the daemon has {fds} descriptors");
    let until = Instant::now() + machine::patience(10);
    // A worker ends by itself, or its container's cgroup could not be removed.
    while !workers().is_empty() {
        assert!(Instant::now() < until, "left over: {:?}", workers());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    daemon.stop().0.ok();
}

fn workers() -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    // A zombie has no command line.
    all.filter(|entry| {
        let text = |file| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        text("comm") == "ambit-act\n" && !text("cmdline").is_empty()
    })
    .map(|entry| entry.file_name().to_string_lossy().into_owned())
    .collect()
}

#[test]
fn harmless_devices_are_made_and_work() {
    let daemon = daemon(ON);
    let script = "for d in 'null 3' 'zero 5' 'full 7' 'random 8' 'urandom 9'; do set -- $d; mknod $1 c 1 $2; done
        mknod -m 620 tty c 5 0; mknod console c 5 1; stat -c '%n %t:%T %a %u:%g' *
        echo hidden >null; cat null; head -c3 zero | wc -c; head -c9 urandom | wc -c; cp /etc/passwd full; true";
    let output = run(&daemon, script);
    assert_eq!(
        output.stdout,
        "console 5:1 644 0:0\nfull 1:7 644 0:0\nnull 1:3 644 0:0\nrandom 1:8 644 0:0\n\
         tty 5:0 620 0:0\nurandom 1:9 644 0:0\nzero 1:5 644 0:0\n3\n9\n"
    );
    assert!(output.stderr.contains("No space left"), "{}", output.stderr);
    leaves_nothing(daemon);
}

#[test]
fn all_other_nodes_are_left_to_the_kernel() {
    let daemon = daemon(ON);
    let script = "mkdir at; /mnt/node_call edges /tmp/at; ls at
        unshare -Urm /mnt/node_call make at/nested 1 3
        setpriv --bounding-set=-mknod /mnt/node_call make at/bounded 1 3
        setpriv --reuid 1000 --clear-groups /mnt/node_call make at/user 1 3
        /mnt/node_call make /usr/null 1 3; /mnt/node_call make /proc/null 1 3
        /mnt/node_call make at/fuse 10 229";
    let expected = "at the end: ok\nendless: ENAMETOOLONG\ncut off: EFAULT\nnowhere: EFAULT\n\
        no path: EFAULT\nempty: ENOENT\nby a folder: ok\nby O_PATH: ok\nby the folder: ok\n\
        closed: EBADF\nnegative: EBADF\nby a file: ENOTDIR\nabsolute: ok\nexists: EEXIST\n\
        a dangling link: EEXIST\nby a link: ok\nby a loop: ELOOP\na slash: ENOENT\n\
        a huge number: ok\na disk: EPERM\nmemory: EPERM\na whiteout: ok\na fifo: ok\n\
        through /proc: ok\n\
        absolute\naround\nby-cwd\nby-fd\nby-link\nby-path\ndangling\nfifo\nfile\nhuge\nloop\nmagic\n\
        the-end\nwhite\n\
        EPERM\nEPERM\nEACCES\nEROFS\nEPERM\nEPERM\n";
    assert_eq!(run(&daemon, script).ok(), expected);
    leaves_nothing(daemon);
}

#[test]
fn permissions_masks_and_owners_are_the_callers() {
    let daemon = daemon(ON);
    let script = "umask 077; mknod masked c 1 3; stat -c %a masked; umask 022
        mkdir -m 2775 shared; chgrp 33 shared; mknod shared/n c 1 3; stat -c %u:%g shared/n
        mkdir -m 555 closed; chown 7:8 closed; mknod closed/n c 1 3; stat -c %u:%g closed/n
        as='setpriv --reuid 1000 --regid 1000 --groups 44 --inh-caps +mknod --ambient-caps +mknod'
        mkdir -m 700 roots; mkdir -m 775 groups; chgrp 44 groups; mkdir -m 777 open
        for d in roots groups open; do $as /mnt/node_call make $d/n 1 3; done; stat -c %u:%g groups/n open/n";
    let expected = "600\n0:33\n0:0\nEACCES\nok\nok\n1000:1000\n1000:1000\n";
    assert_eq!(run(&daemon, script).ok(), expected);
    leaves_nothing(daemon);
}

#[test]
fn more_devices_are_made_as_configured() {
    let daemon = daemon("mknod.enabled = true\nmknod.devices = [\"10:229\", \"1:11\"]\n");
    let script = "for d in '10 229' '1 11' '1 3' '1 1'; do /mnt/node_call make n $d; rm -f n; done";
    assert_eq!(run(&daemon, script).ok(), "ok\nok\nok\nEPERM\n");
    leaves_nothing(daemon);
}

/// A long name is cut off in the middle of a letter, and then is no text.
#[test]
fn a_callers_name_may_be_any_bytes() {
    let daemon = daemon(ON);
    let script = r#"python3 -c 'import ctypes, os
ctypes.CDLL(None).prctl(15, b"Uid: \xc3", 0, 0, 0)
os.mknod("n", 0o20644, os.makedev(1, 3))
print(open("/proc/self/comm", "rb").read(), os.stat("n").st_rdev == os.makedev(1, 3))'"#;
    assert_eq!(run(&daemon, script).ok(), "b'Uid: \\xc3\\n' True\n");
    leaves_nothing(daemon);
}

#[test]
fn no_node_is_made_while_the_call_is_off() {
    let daemon = daemon("setxattr = false\n");
    let script = "/mnt/node_call make n 1 3; mkdir d; /mnt/node_call opaque d";
    let output = run(&daemon, script);
    let note = "the configuration grants mknod, setxattr to no container: the kernel answers";
    assert!(output.stderr.contains(note), "{output:?}");
    assert_eq!(output.ok(), "EPERM\nEPERM\n");
    leaves_nothing(daemon);
}

#[test]
fn no_device_is_made_on_a_filesystem_that_forbids_devices() {
    let daemon = daemon(ON);
    let script = "mkdir own nodev; mount -t tmpfs own own; mount -t tmpfs -o nodev nodev nodev
        for d in own nodev own; do /mnt/node_call make $d/n 1 3; ls $d; done";
    assert_eq!(run(&daemon, script).ok(), "EPERM\nEPERM\nEPERM\n");
    leaves_nothing(daemon);
}

/// What debootstrap and tar do in a folder of the host.
#[test]
fn nodes_work_in_folders_that_are_shown_where_they_can_be_made() {
    let (on, off) = (daemon(ON), daemon("setxattr = false\n"));
    let folder = readable_dir();
    let shown = format!("{}:/run/shown", folder.path().display());
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    let args = ["--intercept", "mknod", "--bind", &shown];
    let script =
        "cd /run/shown; /mnt/node_call make null 1 3; echo x >null && echo written; rm -f null
        grep ' /run/shown ' /proc/self/mountinfo | grep -c nodev";
    assert_eq!(sandbox::run(&on, &args, script).stdout, "ok\nwritten\n0\n");
    let refused = sandbox::run(&off, &args, script).stdout;
    assert!(refused.starts_with("EPERM\n") && refused.ends_with("\n1\n"), "{refused}");
    leaves_nothing(on);
    leaves_nothing(off);
}

/// In a container whose `/dev` was mounted in its user namespace.
const BOUND: &str = "cd /dev; mkdir sub; umask 027; /mnt/node_call make n 1 3; umask 022
    /mnt/node_call make /dev/sub/z 1 5; /mnt/node_call make n 1 3
    stat -c '%n %t:%T %a %u:%g' n sub/z; echo hidden >n && cat n; head -c3 sub/z | wc -c
    rm n 2>/dev/null || echo busy; umount n && rm n && ls n 2>/dev/null || echo gone
    mkdir other; mount -t tmpfs other other; /mnt/node_call make other/n 1 3; ls other
    mkdir /root/own; mount -t tmpfs own /root/own; /mnt/node_call make /root/own/n 1 3; ls /root/own
    /mnt/node_call make disk 8 0";
const BOUND_SAYS: &str = "ok\nok\nEEXIST\nn 1:3 640 0:0\nsub/z 1:5 644 0:0\n3\nbusy\ngone\n\
    EPERM\nEPERM\nEPERM\n";

#[test]
fn devices_are_mounted_below_dev_where_nodes_are_forbidden() {
    let daemon = daemon("mknod.enabled = true\nmknod.bind = true\n");
    // A caller that may not mount gets no node either, and no file is left.
    let script = format!(
        "mount -t tmpfs dev /dev; mkdir /tmp/r; mount --bind /tmp/r /root
         setpriv --bounding-set=-sys_admin /mnt/node_call make /dev/few 1 3; ls /dev; {BOUND}"
    );
    assert_eq!(run(&daemon, &script).ok(), format!("EPERM\n{BOUND_SAYS}"));
    let inside = oci::run("runc", &daemon, oci::Container::with_users(BOUND));
    assert_eq!(inside.ok(), BOUND_SAYS);
    leaves_nothing(daemon);
}

#[test]
fn every_thread_word_size_and_root_is_served() {
    let daemon = daemon(ON);
    let calls = machine::runnable(&["node_call", "node_call-32"]);
    let script: String = calls
        .iter()
        .map(|call| format!("/mnt/{call} thread n; rm n; mkdir d; /mnt/{call} opaque d; rmdir d\n"))
        .collect();
    let chroot = "mkdir -p r/usr r/mnt r/at; mount --bind /usr r/usr; mount --bind /mnt r/mnt
        ln -s usr/lib r/lib; ln -s usr/lib64 r/lib64; ln -s /at r/link
        chroot r /mnt/node_call make /link/n 1 3; ls r/at; chroot r /mnt/node_call make ../../x 1 3; ls r | grep x";
    let text = run(&daemon, &format!("{script}{chroot}")).ok();
    assert_eq!(text, format!("{}ok\nn\nok\nx\n", "ok\nok\n".repeat(calls.len())));
    leaves_nothing(daemon);
}

#[test]
fn a_thread_may_change_its_identity_between_calls() {
    let daemon = daemon(ON);
    let script =
        "/mnt/node_call changes /tmp && find . -type c | sort | xargs stat -c '%n %a %u:%g'";
    let says = "first: ok\nsame: ok\nmask: ok\nno mask: ok\nno capability: EPERM\ncapability: ok\n\
        group: ok\nuser: EACCES\ngroups: ok\nrelative: ok\nanother folder: ok\nroot: ok\n\
        the old root: ok\nby a folder: ok\nnested: EPERM\n";
    let made = "./by-folder 644 0:0\n./capability 644 0:0\n./first 644 0:0\n./group 644 0:33\n\
        ./groups/user 644 1000:0\n./mask 600 0:0\n./no-mask 644 0:0\n./old-root 644 0:0\n\
        ./relative 644 0:0\n./same 644 0:0\n./sub/relative 644 0:0\n./sub/root 644 0:0\n";
    assert_eq!(run(&daemon, script).ok(), format!("{says}{made}"));
    leaves_nothing(daemon);
}

#[test]
fn the_folder_of_a_caller_can_be_unmounted_after_its_end() {
    let daemon = daemon(ON);
    let script = "mkdir m; busy=0
        for i in 1 2 3 4 5 6 7 8 9 10; do
            mount -t tmpfs t m; mkdir m/usr m/mnt; mount --bind /usr m/usr; mount --bind /mnt m/mnt
            ln -s usr/lib usr/lib64 m; chroot m /mnt/node_call make /x 1 3
            umount m/usr m/mnt; umount m 2>/dev/null || { busy=$((busy + 1)); umount -l m; }
        done; echo $busy";
    let text = run(&daemon, script).ok();
    let busy = text.strip_prefix(&"EPERM\n".repeat(10)).unwrap_or_else(|| panic!("{text}"));
    // Both see the end at the same time, and the unmount may come first now and then.
    assert!(busy.trim().parse::<u32>().unwrap() < 5, "{text}");
    leaves_nothing(daemon);
}

#[test]
fn one_worker_makes_all_but_the_first_node_of_a_caller() {
    let daemon = daemon(ON);
    let script = "/mnt/node_call loop /tmp/n 5000";
    let mut making =
        command::start(&mut sandbox::command(&daemon, &["--intercept", "mknod"], script));
    let mut seen = std::collections::BTreeSet::new();
    while !making.ended() {
        seen.extend(workers());
    }
    making.finish(machine::patience(10)).ok();
    // The first call does not tell that others follow.
    assert!(seen.len() <= 2, "{seen:?}");
    leaves_nothing(daemon);
}

/// runc removes the control groups as soon as the init has ended, and warns about each one in which
/// there is still a process.
#[test]
fn the_end_of_a_container_that_made_nodes_has_no_warning() {
    let daemon = daemon(ON);
    let by_init = "exec python3 -c 'import os; os.mknod(\"n\", 0o20600, os.makedev(1, 3))'";
    let by_others = "mknod n c 1 3; mknod n c 1 3 2>/dev/null || :";
    for script in [by_init, by_others].repeat(3) {
        let script = format!("cd /root; {script}");
        let output = oci::run("runc", &daemon, oci::Container::with_users(&script));
        assert_eq!((output.status, &*output.stderr), (0, ""), "{}", output.stdout);
    }
    leaves_nothing(daemon);
}

#[test]
fn killed_workers_are_replaced() {
    let daemon = daemon(ON);
    let script = "echo begun; /mnt/node_call signals /tmp/n 3000 0; /mnt/node_call make /tmp/m 1 3";
    let mut making =
        command::start(&mut sandbox::command(&daemon, &["--intercept", "mknod"], script));
    making.wait_for("begun", machine::patience(10));
    for _ in 0..40 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        for worker in workers() {
            let worker = rustix::process::Pid::from_raw(worker.parse().unwrap()).unwrap();
            let _ = rustix::process::kill_process(worker, rustix::process::Signal::KILL);
        }
    }
    let text = making.finish(machine::patience(60)).ok();
    let (calls, last) = text.split_once("failed: ").unwrap();
    // One that was killed in the middle of its task has made the node, or has not. If it was just
    // about to start, the kernel answered.
    for line in calls.lines().filter(|line| *line != "begun") {
        assert!(["EINTR", "EPERM", "not there ENOENT"].contains(&line), "{text}");
    }
    assert!(last.ends_with("\nok\n"), "{text}");
    leaves_nothing(daemon);
}

#[test]
fn layers_are_unpacked_with_their_devices_and_whiteouts() {
    let daemon = daemon(ON);
    let script =
        "mkdir -p a/dev; mknod a/dev/null c 1 3; mknod -m 600 a/dev/zero c 1 5; mknod a/.wh c 0 0
        chown 33:44 a/dev/zero; tar --xattrs -cf layer.tar -C a .; mkdir b; tar -xpf layer.tar -C b
        stat -c '%n %t:%T %a %u:%g' b/dev/* b/.wh";
    let text = run(&daemon, script).ok();
    assert_eq!(text, "b/dev/null 1:3 644 0:0\nb/dev/zero 1:5 600 33:44\nb/.wh 0:0 644 0:0\n");
    leaves_nothing(daemon);
}

#[test]
fn opaque_marks_are_set_where_the_caller_may_write() {
    let daemon = daemon(ON);
    let script = r#"mkdir o p ro; mount -t tmpfs -o ro none ro; touch f; mkfifo ff; ln -s p l; python3 - <<'P'
import os, errno
def t(path, name="trusted.overlay.opaque", value=b"y", **more):
    try: os.setxattr(path, name, value, **more); print("ok")
    except OSError as e: print(errno.errorcode[e.errno])
t("o"); t("o", flags=os.XATTR_CREATE); t("o", flags=os.XATTR_REPLACE); t("f"); t("ff")
t("p", "trusted.other"); t("p", value=b"x"); t("p", "user.x" * 50); t("missing"); t("ro")
t("l"); t("l", follow_symlinks=False); t(os.open("p", os.O_RDONLY)); t(os.open("p", os.O_PATH)); t(999)
os.chmod("f", 0); os.chown("f", 7, 7); t("f")
os.setgroups([]); os.setgid(5); os.setuid(5); t("p")
P"#;
    let expected =
        "ok EEXIST ok ok EPERM EPERM EPERM ERANGE ENOENT EROFS ok EPERM ok EBADF EBADF ok EPERM";
    let text = run(&daemon, script).ok();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    leaves_nothing(daemon);
}

#[test]
fn opaque_marks_are_set_by_setxattrat() {
    let daemon = daemon(ON);
    for call in machine::runnable(&["node_call", "node_call-32"]) {
        let text = run(&daemon, &format!("mkdir at; /mnt/{call} opaque_at /tmp/at")).ok();
        let verdicts: Vec<_> =
            text.lines().filter_map(|line| Some(line.rsplit_once(": ")?.1)).collect();
        if verdicts.iter().all(|verdict| *verdict == "ENOSYS") {
            machine::not_on_this_kernel("setxattrat(2)");
            continue;
        }
        // Some are the kernel's own to refuse; that of an unknown value is EPERM.
        let expected =
            "ok EEXIST ok EPERM ok ok ok ENOENT EBADF EPERM EPERM EFAULT EFAULT EINVAL EINVAL";
        assert_eq!(verdicts.join(" "), expected, "{call}");
    }
    leaves_nothing(daemon);
}

#[test]
fn a_call_that_signals_interrupt_makes_one_node() {
    let daemon = daemon(ON);
    let script = format!("/mnt/node_call signals /tmp/n 200 {}", 2000 * machine::slowness());
    let said = run(&daemon, &script).ok();
    assert!(said.starts_with("failed: 0\n"), "{said}");
    leaves_nothing(daemon);
}

#[test]
fn a_flood_of_one_container_leaves_others_served() {
    let daemon = daemon(ON);
    let flood = format!("/mnt/node_call flood /tmp 100 {}", 1000 * machine::slowness().min(4));
    let args = ["--intercept", "mknod,sysinfo"];
    let mut flooding =
        command::start(&mut sandbox::command(&daemon, &args, &format!("echo begun; {flood}")));
    flooding.wait_for("begun", machine::patience(10));
    let script = "for i in 1 2 3 4 5 6 7 8 9; do busybox free >/dev/null && /mnt/node_call make /tmp/n$i 1 3; done";
    let other = sandbox::run(&daemon, &args, script);
    assert_eq!(other.ok(), "ok\n".repeat(9));
    assert!(flooding.finish(machine::patience(30)).ok().ends_with("flooded\n"));
    leaves_nothing(daemon);
}

#[test]
fn killed_callers_leave_nothing() {
    let daemon = daemon(ON);
    let script = "for i in 1 2 3 4 5 6 7 8; do /mnt/node_call flood /tmp 8 5000 & p=$!; sleep .05; kill -9 $p; wait $p; done 2>/dev/null
        # What was under way when its caller was killed may be made a moment later.
        for i in 1 2 3 4 5 6 7 8 9; do sleep .3; ls node* >/dev/null 2>&1 || break; rm -f node*; done
        /mnt/node_call make n 1 3; ls";
    assert_eq!(run(&daemon, script).ok(), "ok\nn\n");
    leaves_nothing(daemon);
}

#[test]
fn the_device_policy_of_the_container_decides() {
    let hierarchies = cgroup::hierarchies();
    let Some(devices) = hierarchies.iter().find(|hierarchy| hierarchy.has("devices")) else {
        return machine::not_on_this_kernel("a devices controller that is a file system");
    };
    let daemon = daemon(ON);
    let go = readable_dir();
    let bind = format!("{}:/run/i", go.path().display());
    let script =
        "/mnt/node_call make /tmp/a 1 5; echo ready; while [ ! -e /run/i/go ]; do sleep .1; done
        /mnt/node_call make /tmp/b 1 5; /mnt/node_call make /tmp/c 1 3";
    let args = ["--intercept", "mknod", "--bind", &bind];
    let mut running = command::start(&mut sandbox::command(&daemon, &args, script));
    running.wait_for("ready", machine::patience(20));
    let place = cgroup::find(devices.root(), &format!("run-{}", running.pid()));
    fs::write(place.join("devices.deny"), "c 1:5 m").unwrap();
    fs::write(go.path().join("go"), "").unwrap();
    assert_eq!(running.finish(machine::patience(30)).ok(), "ok\nready\nEPERM\nok\n");
    leaves_nothing(daemon);
}

/// In a container whose files are its own.
const INSIDE: &str = "cd /root; mknod n c 1 3 && echo x >n && stat -c '%t:%T %u:%g' n; mkdir d
    /mnt/node_call opaque d; mkdir -m 555 e; chown 5:5 e; mknod e/n c 1 5 && echo over
    mknod sda b 8 0 2>/dev/null || echo refused; mknod w c 0 0 && echo white";

#[track_caller]
fn engine(run: impl Fn(&Daemon) -> Output) {
    let daemon = daemon(ON);
    assert_eq!(run(&daemon).ok(), "1:3 0:0\nok\nover\nrefused\nwhite\n");
    leaves_nothing(daemon);
}

crate::on_each_engine!(INSIDE);
