//! Containers that do their worst: paths and memory that change while they are looked at, callers
//! that die and whose numbers others get, helpers that do not do what helpers do, floods. Nothing
//! is gained, no other caller hangs, and afterwards the host is as it was.

mod all;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::command::{self, Output, quiet};
use crate::harness::daemon::readable_dir;
use crate::harness::host::Host;
use crate::harness::{machine, sandbox};
use crate::mount::Stage;

const ALL: &str = "mknod = true\nsetxattr = true\nsched_setscheduler.enabled = true\nsched_setscheduler.priority = 1\n\
                   mount.enabled = true\nmount.allowed = [\"ext4\"]\nmount.shift = true\n";
const CALLS: &str = "sysinfo,mknod,setxattr,sched_setscheduler,mount";

/// A daemon that answers every call, and the host as it is without containers.
struct Attack {
    stage: Stage,
    host: Host,
}

impl Attack {
    #[track_caller]
    fn on(lines: &str) -> Self {
        let stage = Stage::new(lines);
        // What the daemon makes when it is needed for the first time is there now.
        let attack = Self { host: Host::with(stage.daemon()), stage };
        attack.run("/mnt/node_call make n 1 3; /mnt/mount_call /run/i/ext4 m ext4 1; umount m");
        Self { host: Host::with(attack.stage.daemon()), ..attack }
    }

    fn bind(&self) -> String {
        format!("{}:/run/i", self.stage.folder().display())
    }

    fn command(&self, script: &str) -> std::process::Command {
        let bind = self.bind();
        let args = ["--intercept", CALLS, "--bind", &bind];
        sandbox::command(self.stage.daemon(), &args, &format!("mkdir /tmp/m; cd /tmp; {script}"))
    }

    /// A script in a container, with the images in `/run/i`, in `/tmp` with an empty folder `m`.
    #[track_caller]
    fn run(&self, script: &str) -> Output {
        command::run(&mut self.command(script))
    }

    /// Makes sure that the daemon still answers, that nothing is left over, and ends it.
    #[track_caller]
    fn ends(self) -> String {
        let works = || assert_eq!(self.run("/mnt/node_call make n 1 3").ok(), "ok\n", "as before");
        works();
        self.host.is_as_it_was(self.stage.daemon(), works);
        self.stage.leaves_nothing().stderr
    }
}

/// Milliseconds of an attack: long enough for many rounds.
fn span(ms: u32) -> u32 {
    ms * machine::slowness().min(4)
}

/// Seconds after which a helper hangs.
fn deadline() -> u32 {
    if machine::slowness() == 1 { 3 } else { 10 }
}

/// A folder of the host that no container is given, with an image in it; all users may write it.
fn outside() -> tempfile::TempDir {
    let outside = readable_dir();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    outside
}

/// True if the folder is unchanged, nothing is mounted on it, and no output names it.
#[track_caller]
fn is_untouched(folder: &Path) {
    let content: Vec<_> = fs::read_dir(folder).unwrap().flatten().collect();
    assert!(content.is_empty(), "{content:?}");
    let mut names = [0; 4096];
    let length = rustix::fs::listxattr(folder, &mut names).unwrap();
    assert!(!String::from_utf8_lossy(&names[..length]).contains("overlay"));
    let inside = quiet("findmnt").arg(folder).output().unwrap();
    assert!(inside.stdout.is_empty(), "{inside:?}");
}

#[test]
fn paths_that_change_never_lead_out_of_the_container() {
    let attack = Attack::on(ALL);
    let outside = outside();
    let way = format!("../../../../../../..{}", outside.path().display());
    let ms = span(800);
    let script =
        format!("/mnt/hostile flip /tmp {way} /run/i/ext4 {ms}; grep -c /tmp/m /proc/mounts");
    let text = attack.run(&script).stdout;
    assert!(text.starts_with("made 1 marked 1 mounted 1\n"), "each way was gone at times: {text}");
    is_untouched(outside.path());
    attack.ends();
}

#[test]
fn no_path_leads_out_of_the_container() {
    let attack = Attack::on(ALL);
    let outside = outside();
    let image = outside.path().join("image");
    fs::copy(attack.stage.folder().join("ext4"), &image).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o666)).unwrap();
    let way = outside.path().display();
    let text = attack.run(&format!("/mnt/hostile out {way} /run/i/ext4")).ok();
    assert_eq!(text.lines().count(), 36, "{text}");
    assert!(!text.contains(": ok"), "{text}");
    fs::remove_file(image).unwrap();
    is_untouched(outside.path());
    attack.ends();
}

#[test]
fn arguments_that_change_during_the_call_are_read_once() {
    let attack = Attack::on(ALL);
    fs::create_dir(attack.stage.folder().join("own")).unwrap();
    let own = attack.stage.folder().join("own");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
    let script = format!(
        "mkdir /tmp/c; /mnt/hostile change /tmp/c /run/i/own/file /run/i/ext4 {}",
        span(800)
    );
    let text = attack.run(&script).stdout;
    assert!(text.starts_with("made 1 marked 1 ") && text.contains("gained 0\n"), "{text}");
    let (mut names, mut value) = ([0; 4096], [0; 16]);
    let length = rustix::fs::listxattr(own.join("file"), &mut names).unwrap();
    let names = String::from_utf8_lossy(&names[..length]);
    let marks: Vec<_> = names.split('\0').filter(|name| name.starts_with("trusted")).collect();
    assert_eq!(marks, ["trusted.overlay.opaque"]);
    let length = rustix::fs::getxattr(own.join("file"), marks[0], &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    let log = attack.ends();
    assert!(!log.contains("filesystem=\"debugfs\""), "{log}");
}

#[test]
fn unusual_bytes_in_paths_are_handled_as_by_the_kernel() {
    let attack = Attack::on(ALL);
    let text = attack.run("/mnt/hostile bytes /tmp/m /run/i/ext4; /mnt/hostile marks /tmp/m").ok();
    let expected = "commas without an end: ok\nno words: ok\na second string: ok\n\
        a late option: EPERM\nbehind the page: ok\ncut off by the page: EINVAL\n\
        the last one counts: EPERM\na value with equal signs: EPERM\nno text: EINVAL\n\
        a value that is no text: EINVAL\nlines: EPERM\na long word: EINVAL\na long value: EINVAL\n\
        at the end: ok\nendless path: ENAMETOOLONG\nendless name: ERANGE\ncut off name: EFAULT\n\
        no path: EFAULT\nno name: EFAULT\nno value: EFAULT\nnull: EFAULT\nempty path: ENOENT\n\
        odd flags: EINVAL\na huge size: E2BIG\na huge size that looks small: E2BIG\n\
        a device: EPERM\n";
    assert_eq!(text, expected);
    attack.ends();
}

#[test]
fn files_that_block_do_not_delay_other_callers() {
    let lines = format!(
        "{ALL}mount.fuse = {{ squashfs = \"squashfuse\" }}\nmount.deadline = {}\n",
        deadline() - 1
    );
    let attack = Attack::on(&lines);
    let script = "mkfifo fifo; /mnt/node_call make fifo/n 1 3; /mnt/node_call make fifo 1 3
        /mnt/node_call opaque fifo; /mnt/mount_call fifo m ext4 0; /mnt/mount_call fifo m squashfs 0
        /mnt/mount_call /run/i/ext4 fifo ext4 0; /mnt/mount_call /dev/tty m ext4 0
        /mnt/mount_call /dev/zero m ext4 0; /mnt/mount_call /dev/zero m squashfs 0
        /mnt/mount_call /run/i/ext4 /dev/null ext4 0; /mnt/node_call make /dev/null/n 1 3";
    let text = attack.run(script).ok();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "ENOTDIR",
            "EEXIST",
            "EPERM",
            "ENOTBLK",
            "ETIMEDOUT",
            "ENOTDIR",
            "ENXIO",
            "ENOTBLK",
            "EINVAL",
            "ENOTDIR",
            "ENOTDIR"
        ]
    );
    attack.ends();
}

/// A superblock that is being made holds up `sync` on the host for as long as its image is
/// withheld.
#[test]
fn images_that_a_container_serves_itself_are_not_read() {
    let attack = Attack::on(ALL);
    let bind = attack.bind();
    let args = ["--intercept", CALLS, "--bind", &bind, "--device", "/dev/fuse"];
    let script = "mkdir /tmp/m /tmp/o /tmp/x; cd /tmp; /mnt/hung_memory serve m >said & hung=$!
        until grep -q mounted said; do sleep 0.05; done
        /mnt/mount_call m/image x ext4 1
        mount -t overlay o -o lowerdir=m:x,userxattr o; /mnt/mount_call o/image x ext4 1; umount o
        cp /run/i/ext4 own; /mnt/mount_call own x ext4 1; umount x
        /mnt/mount_call \"$(printf '/a\\nforged\\rforged')\" x ext4 1; kill $hung";
    let text = command::run(&mut sandbox::command(attack.stage.daemon(), &args, script)).stdout;
    let overlay = fs::read_to_string("/proc/filesystems").unwrap().contains("overlay");
    let overlaid = if overlay { "EACCES" } else { "ENOENT" };
    assert_eq!(text, format!("EACCES\n{overlaid}\nok\nENOENT\n"));
    let log = attack.ends();
    assert!(log.contains("a filesystem of the container's own"), "{log}");
    assert!(log.contains("/a\\nforged\\rforged"), "no line of its own: {log}");
}

#[test]
fn nested_user_namespaces_gain_nothing() {
    let attack = Attack::on(ALL);
    let script = "unshare -Urm sh -c 'mkdir d; /mnt/node_call make n 1 3; /mnt/node_call opaque d
        /mnt/mount_call /run/i/ext4 /tmp/m ext4 0; chrt -f 1 true 2>/dev/null && echo gained; ls'";
    assert_eq!(attack.run(script).ok(), "EPERM\nEPERM\nEPERM\nd\nm\n");
    attack.ends();
}

#[test]
fn a_hundred_threads_flood_every_call() {
    let attack = Attack::on(ALL);
    let ms = span(1000);
    let mut flood = attack.command(&format!("exec /mnt/hostile flood 100 {ms}"));
    let mut flooding = command::start(&mut flood);
    flooding.wait_for("begun", machine::patience(10));
    let script = "for i in 1 2 3; do busybox free >/dev/null && /mnt/node_call make n$i 1 3; done
        /mnt/mount_call /run/i/ext4 m ext4 1";
    assert_eq!(attack.run(script).ok(), "ok\n".repeat(4), "another container");
    assert!(flooding.finish(machine::patience(60)).ok().ends_with("flooded\n"));
    // And one that is killed in the middle of it.
    let mut flooding = command::start(&mut attack.command("exec /mnt/hostile flood 100 600000"));
    flooding.wait_for("begun", machine::patience(10));
    std::thread::sleep(std::time::Duration::from_millis(200));
    flooding.signal(Signal::KILL);
    flooding.finish(machine::patience(20));
    let lines = attack.ends().lines().count();
    assert!(lines < 3000, "{lines} lines in the log");
}

#[test]
fn a_reused_thread_id_gets_nothing_of_the_dead_caller() {
    let last = Path::new("/proc/sys/kernel/ns_last_pid");
    if !last.exists() {
        return machine::not_on_this_kernel("choosing process numbers (CONFIG_CHECKPOINT_RESTORE)");
    }
    let attack = Attack::on(ALL);
    let outside = outside();
    let server = Pid::from_raw(attack.stage.daemon().server_pid().cast_signed()).unwrap();
    let mut reused = 0;
    for _ in 0..4 {
        let mut flooding = command::start(&mut attack.command("exec /mnt/hostile flood 12 600000"));
        flooding.wait_for("begun", machine::patience(10));
        std::thread::sleep(std::time::Duration::from_millis(50));
        // It cannot look any more: some calls are half answered.
        kill_process(server, Signal::STOP).unwrap();
        let (caller, threads) = flooder();
        kill_process(caller, Signal::KILL).unwrap();
        while Path::new(&format!("/proc/{}", caller.as_raw_nonzero())).exists() {
            std::thread::yield_now();
        }
        let victims: Vec<_> =
            threads.iter().filter_map(|&id| victim(last, id, outside.path())).collect();
        reused += victims.len();
        kill_process(server, Signal::CONT).unwrap();
        flooding.finish(machine::patience(20));
        attack.stage.daemon().status();
        for mut victim in victims {
            victim.kill().unwrap();
            victim.wait().unwrap();
        }
        is_untouched(outside.path());
    }
    assert!(reused > 0, "no number was had again");
    attack.ends();
}

/// The process that floods, and its threads.
#[track_caller]
fn flooder() -> (Pid, Vec<u32>) {
    let numbers = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        names.collect::<Vec<_>>()
    };
    let all = numbers(Path::new("/proc"));
    let floods = |pid: &&u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with("/mnt/hostile\0flood")
    };
    let pid = *all.iter().find(floods).expect("it floods");
    (Pid::from_raw(pid.cast_signed()).unwrap(), numbers(Path::new(&format!("/proc/{pid}/task"))))
}

/// A process with this number that is at home in this folder.
fn victim(last: &Path, id: u32, home: &Path) -> Option<Child> {
    fs::write(last, (id - 1).to_string()).unwrap();
    let mut child = quiet("sleep").arg("600").current_dir(home).spawn().unwrap();
    if child.id() == id {
        return Some(child);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn helpers_that_misbehave_leave_nothing_and_reveal_nothing() {
    let kinds = ["hang", "exit", "die", "flood", "fork", "swarm", "junk"];
    let helpers: Vec<_> = kinds.map(|kind| format!("{kind} = \"/run/i/fuse-{kind}\"")).into();
    let lines = format!(
        "{ALL}mount.deadline = {}\nmount.fuse = {{ {} }}\n",
        deadline(),
        helpers.join(", ")
    );
    let attack = Attack::on(&lines);
    for kind in kinds {
        let name = attack.stage.folder().join(format!("fuse-{kind}"));
        std::os::unix::fs::symlink("/mnt/hostile", name).unwrap();
    }
    let script = format!(
        "/mnt/hostile peek {} >peeked & for t in {}; do cp /run/i/ext4 $t.image
            mkdir $t; (echo $t $(/mnt/mount_call $t.image $t $t 0)) & done; wait
         sort -u peeked; grep -c [.]image /proc/self/mountinfo
         for n in $(seq 50); do pgrep fuse- >left || break; sleep 0.1; done; pgrep fuse- || echo all ended",
        span(1500),
        kinds.join(" "),
    );
    let text = attack.run(&script).stdout;
    for (kind, errno) in [
        ("hang", "ETIMEDOUT"),
        ("exit", "ENOTCONN"),
        ("die", "EIO"),
        ("flood", "ETIMEDOUT"),
        ("fork", "ETIMEDOUT"),
        ("swarm", "EINVAL"),
        ("junk", "ETIMEDOUT"),
    ] {
        assert!(text.contains(&format!("{kind} {errno}\n")), "{kind}: {text}");
    }
    // They were killed, but may need a moment to end.
    assert!(text.ends_with("\n0\nall ended\n"), "{text}");
    // Processes of ours are seen, and that is all. What the helper is given is its own already,
    // just before it has a name of its own.
    assert!(text.contains("ambit-broker stat \n"), "{text}");
    let given = ["/dev/fuse", "/dev/null", "/memfd:output (deleted)", ".image"];
    let shown = |line: &&str| {
        line.starts_with("ambit-broker fd/") && !given.iter().any(|given| line.ends_with(given))
    };
    assert_eq!(text.lines().find(shown), None, "{text}");
    let log = attack.ends();
    assert!(log.len() < 40_000, "{log}");
}
