//! Filesystems that containers mount: by the kernel, shifted, by a helper, or not at all. What is
//! gained is asserted inside, what must not be left over on the host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::harness::command::{self, Output, quiet};
use crate::harness::daemon::{Daemon, Place, mounts, readable_dir};
use crate::harness::{cgroup, lxc, machine, oci, sandbox};

const MIB: u64 = 1 << 20;

/// What the daemon's containers may mount, unless a test says otherwise.
const SHIFTED: &str = "mount = true\n\"mount.allowed\" = [\"ext4\"]\n\"mount.shift\" = true\n\
                       \"mount.fuse\" = { squashfs = \"squashfuse\" }\n";

/// A daemon with these lines, and a folder of images: `ext4`, `squashfs`, `junk`.
pub(crate) struct Stage {
    daemon: Daemon,
    folder: tempfile::TempDir,
    mounts: usize,
}

impl Stage {
    #[track_caller]
    pub(crate) fn new(lines: &str) -> Self {
        machine::needs(&["mke2fs", "e2fsck", "mksquashfs", "squashfuse", "fuse2fs"]);
        let folder = readable_dir();
        let path = |name: &str| folder.path().join(name);
        fs::File::create(path("ext4")).unwrap().set_len(16 * MIB).unwrap();
        fs::write(path("junk"), vec![b'x'; 1 << 20]).unwrap();
        fs::create_dir(path("tree")).unwrap();
        fs::write(path("tree/hello"), "hello\n").unwrap();
        tool("mke2fs", &["-q", "-F", "-t", "ext4"], &[&path("ext4")]);
        tool("mksquashfs", &[], &[&path("tree"), &path("squashfs")]);
        // Where the folder's owners cannot be mapped, the container's root is a stranger to it.
        for (name, mode) in [("", 0o777), ("ext4", 0o666), ("junk", 0o666), ("squashfs", 0o644)] {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(path(name), permissions).unwrap();
        }
        let daemon = Daemon::start_at(Place::intercepting(lines));
        Self { daemon, folder, mounts: mounts().lines().count() }
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn image(&self) -> std::path::PathBuf {
        self.folder.path().join("ext4")
    }

    /// A script in `ambit run`, with the images in `/run/i` and an empty folder `/tmp/m`.
    #[track_caller]
    fn run(&self, args: &[&str], script: &str) -> Output {
        let bind = format!("{}:/run/i", self.folder.path().display());
        let args = [&["--intercept", "mount", "--bind", &bind], args].concat();
        sandbox::run(&self.daemon, &args, &format!("mkdir /tmp/m; cd /tmp; {script}"))
    }

    /// Ends the daemon, and makes sure that nothing of it or for it is left.
    #[track_caller]
    pub(crate) fn leaves_nothing(self) -> Output {
        assert_eq!(mounts().lines().count(), self.mounts, "{}", mounts());
        let fds = fs::read_dir(format!("/proc/{}/fd", self.daemon.server_pid())).unwrap().count();
        assert!(fds < 100, "the daemon has {fds} descriptors");
        let until = Instant::now() + machine::patience(10);
        loop {
            let left = [uses_of(self.folder.path()), helpers()].concat();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < until, "left over: {left:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        tool("e2fsck", &["-fn"], &[&self.image()]);
        self.daemon.stop().0
    }
}

#[track_caller]
fn tool(name: &str, args: &[&str], paths: &[&Path]) {
    command::run(quiet(name).args(args).args(paths)).ok();
}

/// Loop devices whose file is in this folder.
fn uses_of(folder: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    let folder = folder.to_str().unwrap();
    files.filter(|file| file.starts_with(folder)).collect()
}

/// Processes that serve filesystems for tests, or never end by themselves.
fn helpers() -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    let ours = |line: &String| {
        ["squashfuse\0", "fuse2fs\0", "sleep\09876"].iter().any(|word| line.contains(word))
    };
    lines.filter(ours).collect()
}

/// A block device for a test, on the host.
struct Loop(String);

impl Loop {
    #[track_caller]
    fn of(image: &Path) -> Self {
        let output = command::run(quiet("losetup").args(["--find", "--show"]).arg(image)).ok();
        Self(output.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_mounted_by_plain_mount_and_unmounted_inside() {
    let stage = Stage::new(SHIFTED);
    let device = Loop::of(&stage.image());
    let script = format!(
        "mount -t ext4 {0} m && grep ' /tmp/m ' /proc/self/mountinfo
         cp /bin/sh m/program; chown 33:44 m/program; mkdir m/d; stat -c '%u:%g' m m/program
         mount -o remount,bind,dev,suid m 2>/dev/null && echo 'devices again'
         umount m && echo unmounted; ls m; mount -t ext4 -o ro {0} m && touch m/x; cmp m/program /bin/sh && echo same
         umount m",
        device.0
    );
    let output = stage.run(&["--device", &device.0], &script);
    let (text, errors) = (output.stdout.clone(), output.stderr.clone());
    output.ok();
    let line = text.lines().next().unwrap_or_default();
    assert!(
        line.contains("nosuid,nodev") && line.contains(&format!("ext4 {}", device.0)),
        "{text}"
    );
    assert!(text.contains("0:0\n33:44\nunmounted\nsame\n"), "{text}{errors}");
    assert!(errors.contains("Read-only file system"), "{errors}");
    drop(device);
    let said = stage.leaves_nothing();
    assert!(said.stderr.contains("mounted"), "the audit log: {}", said.stderr);
}

#[test]
fn an_image_is_mounted_by_its_path() {
    let stage = Stage::new(SHIFTED);
    let script = "mount -t ext4.image /run/i/ext4 m && echo deep >m/file && umount m || exit 1
         cd /run/i && /mnt/mount_call ./ext4 ../../tmp/m ext4 0x400 && cat /tmp/m/file
         grep -o 'noatime.*ext4 [^ ]*' /proc/self/mountinfo; umount /tmp/m
         mkdir -p /tmp/inner/m /tmp/inner/usr; mount --bind /usr /tmp/inner/usr
         mount --bind /mnt /tmp/inner/m; ln -s usr/lib /tmp/inner/lib; ln -s usr/lib64 /tmp/inner/lib64
         cp ext4 /tmp/inner/inside; mkdir /tmp/inner/at
         chroot /tmp/inner /m/mount_call /inside /at ext4 0; cat /tmp/inner/at/file; umount /tmp/inner/at";
    let text = stage.run(&[], script).ok();
    assert_eq!(text.matches("deep").count(), 2, "{text}");
    assert!(text.contains("idmapped - ext4 ./ext4"), "{text}");
    assert_eq!(text.matches("ok\n").count(), 2, "{text}");
    stage.leaves_nothing();
}

#[test]
fn a_helper_serves_as_the_caller_and_ends_with_the_mount() {
    let stage = Stage::new(SHIFTED);
    let script = "mount -t squashfs.image /run/i/squashfs m && cat m/hello
         grep -o 'nodev.*fuse.squashfs [^ ]*' /proc/self/mountinfo
         p=$(pgrep -x squashfuse); ps -o ppid=,uid= $p
         grep -E '^(Seccomp|CapBnd):' /proc/$p/status | tr -d '\\t'; grep CapBnd /proc/self/status | tr -d '\\t'
         for n in mnt pid net ipc uts cgroup user; do cmp /proc/$p/ns/$n /proc/self/ns/$n 2>/dev/null
             [ $(readlink /proc/$p/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo other $n; done
         [ \"$(cat /proc/$p/cgroup)\" = \"$(cat /proc/self/cgroup)\" ] && echo same groups
         umount m; for i in 1 2 3 4 5 6 7 8 9; do pgrep -x squashfuse >/dev/null || break; sleep .2; done
         pgrep -x squashfuse || echo ended";
    let text = stage.run(&[], script).ok();
    assert!(text.starts_with("hello\nnodev"), "{text}");
    assert!(text.contains("fuse.squashfs /run/i/squashfs"), "{text}");
    assert!(text.contains("\nSeccomp:2\n"), "{text}");
    let bounds: Vec<_> = text.lines().filter(|line| line.starts_with("CapBnd:")).collect();
    assert!(
        bounds.len() == 2 && bounds[0] == bounds[1],
        "no capability beyond the caller's: {text}"
    );
    let parent = text.lines().any(|line| line.split_whitespace().eq(["1", "0"]));
    assert!(parent, "a child of init, root: {text}");
    assert!(!text.contains("other") && text.contains("same groups\nended\n"), "{text}");
    stage.leaves_nothing();
}

#[test]
fn a_helper_that_mounts_by_itself_survives_the_daemon() {
    let lines = "mount = true\n\"mount.fuse\" = { ext4 = \"fuse2fs\" }\n";
    let stage = Stage::new(lines);
    let script = "mount -t ext4.image /run/i/ext4 m || exit 1; echo first >m/file; echo mounted
         while [ ! -e /run/i/go ]; do sleep .1; done
         cat m/file; echo second >>m/file; grep -o 'fuse.ext4' /proc/self/mountinfo; umount m
         for i in 1 2 3 4 5 6 7 8 9; do pgrep -x fuse2fs >/dev/null || break; sleep .2; done";
    let bind = format!("{}:/run/i", stage.folder.path().display());
    let args = ["--intercept", "mount", "--bind", &bind, "--device", "/dev/fuse"];
    let script = format!("mkdir /tmp/m; cd /tmp; {script}");
    let mut running = command::start(&mut sandbox::command(&stage.daemon, &args, &script));
    running.wait_for("mounted", machine::patience(20));
    let Stage { daemon, folder, mounts } = stage;
    let daemon = Daemon::start_at(daemon.kill());
    fs::write(folder.path().join("go"), "").unwrap();
    let text = running.finish(machine::patience(30)).ok();
    assert!(text.contains("first\nfuse.ext4\n"), "{text}");
    Stage { daemon, folder, mounts }.leaves_nothing();
}

#[test]
fn squashfs_is_mounted_directly_and_owners_are_nobody_unless_shifted() {
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("squashfs") {
        return machine::not_on_this_kernel("squashfs");
    }
    let stage = Stage::new("mount = true\n\"mount.allowed\" = [\"squashfs\"]\n");
    let script =
        "mount -t squashfs.image /run/i/squashfs m && cat m/hello; stat -c %u m/hello; umount m";
    assert_eq!(stage.run(&[], script).ok(), "hello\n65534\n");
    stage.leaves_nothing();
}

#[test]
fn what_is_not_granted_is_refused_with_the_kernels_words() {
    let stage = Stage::new(SHIFTED);
    let call = |words: &str| format!("/mnt/mount_call {words}\n");
    let script = [
        call("/run/i/ext4 m ext3 0"),
        call("/run/i/ext4 m devtmpfs 0"),
        call("/run/i/ext4 m ext4 0 errors=panic"),
        call("/run/i/ext4 m ext4 0 journal_path=/dev/vda"),
        call("/run/i/none m ext4 0"),
        call("/run/i/ext4 none ext4 0"),
        call("/run/i/junk m ext4 0"),
        call("/run/i/junk m squashfs 0"),
        call("/dev/null m ext4 0"),
        call("/run/i m ext4 0"),
        call("- m ext4 0"),
        call("/run/i/ext4 /run/i/junk ext4 0"),
        call("none m tmpfs 0"),
        "umount m\n".into(),
        call("/tmp m - 0x1000"),
        "umount m; chmod 777 m\n".into(),
        // A user of the container, and one of a namespace that the container made.
        "setpriv --reuid 1000 --clear-groups /mnt/mount_call /run/i/ext4 m ext4 0\n".into(),
        "unshare -Urm /mnt/mount_call /run/i/ext4 /tmp/m ext4 0\n".into(),
        // A mount namespace alone is nothing special.
        "unshare -m sh -c '/mnt/mount_call /run/i/ext4 /tmp/m ext4 0'\n".into(),
        "mkfifo fifo; /mnt/mount_call fifo m ext4 0\n".into(),
    ]
    .concat();
    let text = stage.run(&[], &script).ok();
    let expected = [
        "EPERM", "EPERM", "EPERM", "EPERM", "ENOENT", "ENOENT", "EINVAL", "EINVAL", "ENOTBLK",
        "EISDIR", "EINVAL", "ENOTDIR", "ok", "ok", "EPERM", "EPERM", "ok", "ENOTBLK",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("errors=panic") && said.contains("squashfs image"), "{said}");
}

#[test]
fn every_thread_and_every_word_size_is_served() {
    let stage = Stage::new(SHIFTED);
    let calls = machine::runnable(&["mount_call", "mount_call-32"]);
    let script: String = calls
        .iter()
        .map(|call| format!("/mnt/{call} thread /run/i/ext4 /tmp/m ext4; touch m/x; umount m\n"))
        .collect();
    assert_eq!(stage.run(&[], &script).ok(), "ok\n".repeat(calls.len()));
    stage.leaves_nothing();
}

#[test]
fn a_call_that_signals_interrupt_mounts_once() {
    let stage = Stage::new(SHIFTED);
    let script = format!(
        "/mnt/mount_call signals /run/i/ext4 /tmp/m ext4 {}
         grep -c ' /tmp/m ' /proc/self/mountinfo; umount m",
        5 * machine::slowness()
    );
    assert_eq!(stage.run(&[], &script).ok(), "ok\n1\n");
    stage.leaves_nothing();
}

#[test]
fn the_new_mount_api_is_whole_or_absent() {
    let stage = Stage::new(SHIFTED);
    let script = "for t in ext4 squashfs tmpfs ext3; do /mnt/mount_call fsopen $t; done";
    assert_eq!(stage.run(&[], script).ok(), "ENOSYS\nENOSYS\nok\nok\n");
    stage.leaves_nothing();
}

#[test]
fn the_device_policy_of_the_container_decides() {
    let hierarchies = cgroup::hierarchies();
    let Some(devices) = hierarchies.iter().find(|hierarchy| hierarchy.has("devices")) else {
        return machine::not_on_this_kernel("a devices controller that is a file system");
    };
    let stage = Stage::new(SHIFTED);
    let device = Loop::of(&stage.image());
    let script = format!(
        "cat /proc/self/cgroup; echo ready; while [ ! -e /run/i/go ]; do sleep .1; done
         /mnt/mount_call {0} /tmp/m ext4 0; /mnt/mount_call {0} /tmp/m ext4 1",
        device.0
    );
    let bind = format!("{}:/run/i", stage.folder.path().display());
    let args = ["--intercept", "mount", "--bind", &bind, "--device", &device.0];
    let script = format!("mkdir /tmp/m; {script}");
    let mut running = command::start(&mut sandbox::command(&stage.daemon, &args, &script));
    running.wait_for("ready", machine::patience(20));
    let place = cgroup::find(devices.root(), &format!("run-{}", running.pid()));
    fs::write(place.join("devices.deny"), "b 7:* w").unwrap();
    fs::write(stage.folder.path().join("go"), "").unwrap();
    let text = running.finish(machine::patience(30)).ok();
    assert!(text.ends_with("ready\nEPERM\nok\n"), "it may be read, not written: {text}");
    drop(device);
    stage.leaves_nothing();
}

#[test]
fn nothing_is_mounted_while_it_is_off() {
    let stage = Stage::new("\"mount.allowed\" = [\"ext4\"]\n");
    let output = stage.run(&[], "/mnt/mount_call /run/i/ext4 m ext4 0");
    assert_eq!(output.ok(), "EPERM\n");
    stage.leaves_nothing();
}

#[test]
fn odd_arguments_are_answered_as_by_the_kernel() {
    let stage = Stage::new(SHIFTED);
    let text = stage.run(&[], "/mnt/mount_call edges /run/i/ext4 /tmp/m ext4").ok();
    let expected = "at the end: ok\nodd bytes: EPERM\ndata that ends with memory: ok\n\
                    endless target: ENAMETOOLONG\nendless type: EINVAL\nendless source: EINVAL\n\
                    endless data: EINVAL\nno data: EFAULT\nno target: EFAULT\nno type: EFAULT\n\
                    no source: EFAULT\n";
    assert_eq!(text, expected);
    stage.leaves_nothing();
}

#[test]
fn helpers_that_hang_or_fail_are_told_and_end() {
    let lines = "mount = true\n\"mount.deadline\" = 2\n\
                 \"mount.fuse\" = { ext4 = \"/run/i/hang\", xfs = \"/run/i/fail\", btrfs = \"none\" }\n";
    let stage = Stage::new(lines);
    let program = |name: &str, text: &str| {
        let path = stage.folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    program("hang", "setsid sleep 9876 & sleep 9876");
    program("fail", "for i in $(seq 999); do echo words words; done 2>/dev/null; exit 3");
    let script =
        "for t in ext4 xfs btrfs; do /mnt/mount_call /run/i/ext4 m $t 0; done; pgrep sleep";
    let output = stage.run(&[], script);
    assert_eq!(output.stdout, "ETIMEDOUT\nEINVAL\nENODEV\n");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("exit status 3: words words") && said.len() < 20_000, "{said}");
    assert!(said.contains("the helper none is not in the container"), "{said}");
}

/// In a container whose files are its own: an image in its `/tmp`, mounted, written, checked.
const INSIDE: &str = "mount -t tmpfs tmp /tmp; cd /tmp; mkdir m; truncate -s 16M image
    mke2fs -q -F -t ext4 image; mount -t ext4.image image m && echo deep >m/file
    stat -c '%u %U' m/file; umount m && e2fsck -fn image >/dev/null 2>&1 && echo clean
    mount -t ext3 image m 2>/dev/null || echo refused";

#[track_caller]
fn engine(run: impl Fn(&Daemon) -> Output) {
    let stage = Stage::new(SHIFTED);
    let text = run(&stage.daemon).ok();
    assert!(text.contains("clean\nrefused\n") && text.starts_with("0 "), "{text}");
    stage.leaves_nothing();
}

#[test]
fn runc() {
    engine(|daemon| oci::run("runc", daemon, oci::Container::with_users(INSIDE)));
}

#[test]
fn crun() {
    engine(|daemon| oci::run("crun", daemon, oci::Container::with_users(INSIDE)));
}

#[test]
fn lxc_with_an_id_map() {
    engine(|daemon| lxc::run(daemon, 144 * MIB, 100_000, INSIDE));
}
