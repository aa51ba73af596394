//! Every call, by every kind of caller: granted, refused, with bad arguments, by a thread, by a
//! 32-bit program, after a chroot, from a nested user namespace, and while it is off. The same
//! script runs in a container of each engine, so that the results can be compared.

use std::fs;

use crate::harness::command::Output;
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{lxc, machine, oci, sandbox};
use crate::sched;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 144;
const ON: &str = "mknod.enabled = true\nmknod.devices = [\"5:2\"]\nsetxattr = true\n\
                  sched_setscheduler.enabled = true\nsched_setscheduler.priority = 10\nsched_setscheduler.nice = 10\n\
                  mount.enabled = true\nmount.allowed = [\"ext4\"]\nmount.shift = true\n";

/// What `node_call table` says where calls are answered.
const GRANTED: &str = "mknod: ok
mknod of what is there: EEXIST
mknod by an absolute path: ok
mknod in a folder: ok
mknod of memory: EPERM
mknod nowhere: EFAULT
mknod of a whiteout: ok
setxattr: ok
lsetxattr: ok
fsetxattr: ok
setxattr of another: EPERM
setxattr nowhere: EFAULT
setpriority: ok
setpriority beyond: EACCES
setpriority of nothing: EINVAL
sched_setattr: ok
sched_setscheduler beyond: EPERM
sched_setscheduler of nothing: EINVAL
sysinfo: 144
processors: 1
";

/// And where the kernel judges.
fn refused() -> String {
    let rights = |line: &str| match line {
        "mknod: ok"
        | "mknod by an absolute path: ok"
        | "mknod in a folder: ok"
        | "setxattr: ok"
        | "lsetxattr: ok"
        | "fsetxattr: ok"
        | "sched_setattr: ok" => line.replace("ok", "EPERM"),
        "setpriority: ok" => line.replace("ok", "EACCES"),
        other => other.to_owned(),
    };
    GRANTED.lines().map(|line| rights(line) + "\n").collect()
}

/// What an image builder does: unpack device nodes and the whiteouts of both kinds, and set what
/// programs set.
const TOOLS: &str = r#"python3 - <<'P'
import tarfile
tar = tarfile.open("layer.tar", "w")
def add(name, kind, major=0, minor=0, mode=0o666):
    entry = tarfile.TarInfo(name)
    entry.type, entry.devmajor, entry.devminor, entry.mode = kind, major, minor, mode
    tar.addfile(entry)
add("dev", tarfile.DIRTYPE, mode=0o755)
for name, major, minor in ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), \
        ("urandom", 1, 9), ("tty", 5, 0), ("console", 5, 1), ("ptmx", 5, 2):
    add("dev/" + name, tarfile.CHRTYPE, major, minor)
add("gone", tarfile.CHRTYPE)
add(".wh.gone", tarfile.REGTYPE)
add("dev/sda", tarfile.BLKTYPE, 8, 0)
P
mkdir layer; tar -xpf layer.tar -C layer 2>&1 | grep -c 'sda: Cannot mknod'; cd layer
stat -c '%n %t:%T %a' dev/* gone; ls -A | grep -F .wh
mkdir d; setfattr -n trusted.overlay.opaque -v y d && echo marked; nice -n $((-5 - $(nice))) nice
chrt -b 0 true && echo batch; chrt -f 5 true 2>/dev/null && echo real time || echo no real time"#;

const UNPACKED: &str = "1\ndev/console 5:1 666\ndev/full 1:7 666\ndev/null 1:3 666\n\
    dev/ptmx 5:2 666\ndev/random 1:8 666\ndev/tty 5:0 666\ndev/urandom 1:9 666\ndev/zero 1:5 666\n\
    gone 0:0 666\n.wh.gone\nmarked\n-5\nbatch\n";

/// mount(2), which needs an image.
fn mounts(calls: &[&str]) -> String {
    let granted: String = calls
        .iter()
        .map(|call| {
            format!(
                "/mnt/{call} image m ext4 0; umount m; /mnt/{call} thread image m ext4; umount m
                 /mnt/{call} image m ext3 0; /mnt/{call} - m ext4 0; /mnt/{call} image missing ext4 0\n"
            )
        })
        .collect();
    format!(
        "mkdir m; truncate -s 8M image; mke2fs -q -F -t ext4 image; {granted}
         unshare -Urm /mnt/mount_call image m ext4 0
         mkdir -p r/usr r/mnt r/m; mount --rbind /usr r/usr; mount --bind /mnt r/mnt; mv image r
         ln -s usr/lib r/lib; ln -s usr/lib64 r/lib64; chroot r /mnt/mount_call /image m ext4 0; umount r/m\n"
    )
}

fn mounted(calls: &[&str]) -> String {
    "ok\nok\nEPERM\nEINVAL\nENOENT\n".repeat(calls.len()) + "EPERM\nok\n"
}

/// Runs all of it, with a function that runs a script in a container, and a folder of the
/// container.
#[track_caller]
fn tells_the_table(folder: &str, run: impl Fn(&Daemon, &str) -> Output) {
    machine::needs(&["mke2fs", "setfattr", "chrt", "tar", "python3"]);
    let nodes = machine::runnable(&["node_call", "node_call-32"]);
    let images = machine::runnable(&["mount_call", "mount_call-32"]);
    let who = ["leader", "thread", "chroot", "nested"];
    let (mut tables, mut wanted) = (String::new(), String::new());
    for (call, who) in nodes.iter().flat_map(|call| who.map(|who| (call, who))) {
        tables +=
            &format!("echo = {call} {who}; mkdir t; /mnt/{call} table $PWD/t {who}; rmdir t\n");
        let said = if who == "nested" { refused() } else { GRANTED.to_owned() };
        wanted += &format!("= {call} {who}\n{said}");
    }
    let on = Daemon::start_at(Place::intercepting(ON));
    let script = format!("cd {folder}; {tables}echo @; {}echo @; {TOOLS}", mounts(&images));
    let output = run(&on, &script);
    let parts: Vec<_> = output.stdout.split("@\n").collect();
    let [said, mounts, tools] = parts[..] else {
        panic!("{}{}", output.stdout, output.stderr);
    };
    same(said, &wanted);
    assert_eq!(mounts, mounted(&images), "{}", output.stderr);
    let time = if sched::real_time() { "real time\n" } else { "no real time\n" };
    assert_eq!(tools, format!("{UNPACKED}{time}"), "{}", output.stderr);
    drop(on);

    let off = Daemon::start();
    let script = format!(
        "cd {folder}; mkdir t m; /mnt/node_call table $PWD/t leader
         truncate -s 8M image; mke2fs -q -F -t ext4 image; /mnt/mount_call image m ext4 0"
    );
    let output = run(&off, &script);
    same(&output.stdout, &(refused() + "EPERM\n"));
}

/// Shows the first line that is another one, and what came before.
#[track_caller]
fn same(said: &str, wanted: &str) {
    let first = said.lines().zip(wanted.lines()).position(|(said, wanted)| said != wanted);
    let before = said.lines().take(first.unwrap_or(0) + 1).collect::<Vec<_>>().join("\n");
    assert!(said == wanted, "{before}\nis not {:?}", wanted.lines().nth(first.unwrap_or(0)));
}

#[test]
fn run() {
    tells_the_table("/tmp", |daemon, script| {
        let list = "sysinfo,sched_getaffinity,mknod,setxattr,sched_setscheduler,mount";
        let memory = format!("{MEMORY}M");
        let args = ["--memory", &memory, "--cpus", "1", "--intercept", list];
        sandbox::run(daemon, &args, script)
    });
}

#[test]
fn runc() {
    tells_the_table("/root", |daemon, script| {
        let container =
            oci::Container { memory: MEMORY * MIB, ..oci::Container::with_users(script) };
        oci::run("runc", daemon, container)
    });
}

#[test]
fn crun() {
    tells_the_table("/root", |daemon, script| {
        let container =
            oci::Container { memory: MEMORY * MIB, ..oci::Container::with_users(script) };
        oci::run("crun", daemon, container)
    });
}

/// What LXD's users switch on for a container that runs: nodes by a relative path, on the root and on a
/// tmpfs, an opaque mark, a device policy, and filesystems that are shifted or mounted by a helper.
#[test]
fn a_reload_grants_calls_to_a_running_container_of_lxc() {
    machine::needs(&["mke2fs", "mksquashfs", "squashfuse"]);
    let (daemon, folder) = (Daemon::start(), readable_dir());
    let script = "cd /root; mount -t tmpfs t /tmp; mkdir d /tmp/m /tmp/t; truncate -s 8M /tmp/e
        mke2fs -qFt ext4 /tmp/e; echo packed >/tmp/t/f; mksquashfs /tmp/t /tmp/s >/dev/null
        try() { for n in n /root/n /dev/new; do /mnt/node_call make $n 1 3; umount $n; rm $n; done
            /mnt/node_call opaque d; /mnt/bpf_call load; cd /tmp; call=/mnt/mount_call
            $call e /tmp/m ext4 0; stat -c %u m/lost+found; umount m
            $call s /tmp/m squashfs 0; cat m/f; umount m; cd /root; }
        try 2>/dev/null; echo ready; while [ ! -e /var/go ]; do sleep .1; done; try 2>/dev/null; true";
    let mut running = lxc::start(&daemon, MEMORY * MIB, 100_000, &[(folder.path(), "var")], script);
    running.wait_for("ready");
    let text = fs::read_to_string(daemon.place().config()).unwrap();
    let granted = "mknod.bind = true\nbpf.enabled = true\nbpf.devices = true\n\
                   mount.fuse = { squashfs = \"host:/usr/bin/squashfuse\" }\n";
    fs::write(daemon.place().config(), text + ON + granted).unwrap();
    daemon.place().ambit(&["reload"]).ok();
    fs::write(folder.path().join("go"), "").unwrap();
    let nodes = |answer: &str| format!("{answer}\n").repeat(4);
    let before = format!("{}EPERM\nEPERM\nEPERM\nready\n", nodes("EPERM"));
    let after = format!("{}ok\nok\n0\nok\npacked\n", nodes("ok"));
    assert_eq!(running.finish(machine::patience(60)).ok(), before + &after);
    daemon.stop().0.ok();
}

#[test]
fn lxc_with_an_id_map() {
    tells_the_table("/root", |daemon, script| lxc::run(daemon, MEMORY * MIB, 100_000, script));
}
