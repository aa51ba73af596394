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
fn as_many_filesystems_exist_as_the_policy_allows() {
    let lines = "mount = true\n\"mount.allowed\" = [\"squashfs\"]\n\"limit.mounts\" = 2\n";
    let stage = Stage::new(lines);
    // What is unmounted may live a moment longer in the kernel.
    let script = "mkdir a b c; try() { /mnt/mount_call /run/i/squashfs /tmp/$1 squashfs 1; }
         soon() { for i in $(seq 100); do try $1 | grep ok && return; sleep 0.1; done; }
         try a; try b; try c; umount a; soon c; umount b c; soon a; umount a";
    let output = stage.run(&[], script);
    assert_eq!(output.stdout.matches("ok\n").count(), 4, "{output:?}");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("ENOSPC") && said.contains("limit.mounts"), "{said}");
}

#[test]
fn helpers_count_as_filesystems() {
    let lines = "mount = true\n\"mount.allowed\" = [\"ext4\"]\n\"limit.mounts\" = 2\n\
                 \"mount.fuse\" = { squashfs = \"squashfuse\" }\n";
    let stage = Stage::new(lines);
    let script = "mkdir a b c; try() { /mnt/mount_call /run/i/$2 /tmp/$1 $2 ${3-1}; }
         soon() { for i in $(seq 100); do try $1 squashfs | grep ok && return; sleep 0.1; done; }
         try a squashfs; try b ext4 0; try c squashfs; pgrep -xc squashfuse
         umount a; soon c; pkill -9 -x squashfuse; sleep 0.2; try a squashfs; umount c; soon a; umount a b";
    let output = stage.run(&[], script);
    let text = &output.stdout;
    assert_eq!(text.matches("ok\n").count(), 4, "{output:?}");
    assert!(text.contains("ok\nok\nENOSPC\n1\nok\nENOSPC\nok\n"), "{output:?}");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("ENOSPC") && said.contains("limit.mounts"), "{said}");
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
fn a_mount_that_is_there_is_the_containers_but_not_its_superblock() {
    let stage = Stage::new(SHIFTED);
    let again = "mkdir -p other; /mnt/mount_call again m other";
    let script = format!(
        "mount -t ext4.image /run/i/ext4 m; {again}; mount -t squashfs.image /run/i/squashfs m; {again}
         mount -t ext4.image -o ro /run/i/ext4 m; mount -o remount,bind,rw m 2>/dev/null || echo locked; umount m"
    );
    let text = stage.run(&[], &script).ok();
    let kernels = "fspick: ok\nan option: ok\nreconfigure: EPERM\nremount: EPERM\ndevices: EPERM\n\
        devices by remount: EPERM\nread-only: ok\nwritable: ok\nopen_tree: ok\na copy: ok\n\
        its end: ok\na move: ok\numount: ok\n";
    // A helper's superblock was made as the container, which may do with it what it likes.
    let helpers = kernels.replace("EPERM", "ok");
    assert_eq!(text, format!("{kernels}{helpers}locked\n"));
    stage.leaves_nothing();
}

#[test]
fn filesystems_of_the_network_come_from_where_the_policy_says() {
    let stage = Stage::new(
        "mount = true\n\"mount.allowed\" = [\"9p\", \"nfs\"]\n\"mount.sources\" = [\"9p=share-?\"]\n",
    );
    let script = "/mnt/mount_call share m 9p 0; /mnt/mount_call share-1 m nfs 0 addr=10.0.0.1
        /mnt/mount_call share-1 m 9p 0 trans=fd,rfdno=3,wfdno=3; /mnt/mount_call - m 9p 0
        /mnt/mount_call share-1 m 9p 0 trans=none";
    let text = stage.run(&[], script).ok();
    let answers: Vec<_> = text.lines().collect();
    assert_eq!(answers[..4], ["EPERM"; 4], "{text}");
    // By the kernel: there is no such share, or no such filesystem.
    assert!(answers[4] != "EPERM" && answers[4] != "ok", "{text}");
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("add 9p=share") && said.contains("add nfs=share-1"), "{said}");
    assert!(said.contains("not mounted: "), "{said}");
}

#[test]
fn a_helper_of_the_host_serves_where_there_is_none() {
    let lines = "mount = true\n\"mount.fuse\" = { squashfs = \"host:/usr/bin/squashfuse\", \
                 ext4 = \"host:/usr/bin/fuse2fs\" }\n";
    let stage = Stage::new(lines);
    // A root without a single library.
    let script = "mkdir -p r/proc r/m r/dev; cp /mnt/mount_call-static r/call; cp /run/i/squashfs r
        mount --rbind /proc r/proc; touch r/dev/fuse; mount --bind /dev/fuse r/dev/fuse; ln r/squashfs r/-o
        chroot r /call squashfs m squashfs 0; cat r/m/hello; grep -o 'fuse.squashfs [^ ]*' /proc/self/mountinfo
        p=$(grep -l ^/usr/bin/squashfuse /proc/[0-9]*/cmdline | cut -d/ -f3 | head -1)
        for n in mnt pid net ipc uts cgroup user; do
            [ $(readlink /proc/$p/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo other $n; done
        [ \"$(cat /proc/$p/cgroup)\" = \"$(cat /proc/self/cgroup)\" ] && echo same groups
        sh -c \"echo x >>/proc/$p/exe\" 2>/dev/null && echo written
        readlink /proc/$p/exe /proc/$p/fd/* | sort -u | grep -v -e /dev/null -e /dev/fuse -e anon_inode -e memfd
        umount r/m; chroot r /call -o m squashfs 1; cat r/m/hello; umount r/m
        cp /run/i/ext4 r; chroot r /call ext4 m ext4 0; echo deep >r/m/file; umount r/m
        for i in 1 2 3 4 5 6 7 8 9; do grep -q ^/usr/bin/fuse2fs /proc/[0-9]*/cmdline || break; sleep .2; done
        e2fsck -fn r/ext4 >/dev/null 2>&1 && echo clean";
    let text = stage.run(&["--device", "/dev/fuse"], script).ok();
    let expected = "ok\nhello\nfuse.squashfs squashfs\nsame groups\n/tmp/r/squashfs\n\
                    ok\nhello\nok\nclean\n";
    assert_eq!(text, expected);
    stage.leaves_nothing();
}

#[test]
fn a_helper_of_the_host_is_static_or_glibcs() {
    let folder = readable_dir();
    for (name, program) in [("fuse-swarm", "hostile-static"), ("fuse-exit", "hostile")] {
        std::os::unix::fs::symlink(machine::program(program), folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("script"), "#!/bin/sh\n").unwrap();
    let place = folder.path().display();
    let stage = Stage::new(&format!(
        "mount = true\n\"mount.fuse\" = {{ ext4 = \"host:{place}/fuse-swarm\", \
         xfs = \"host:{place}/fuse-exit\", btrfs = \"host:{place}/script\", \
         \"fuse.squashfuse\" = \"host:/usr/bin/squashfuse\" }}\n"
    ));
    let script = "for t in ext4 xfs btrfs; do /mnt/mount_call /run/i/ext4 m $t 0; done
        /mnt/mount_call fsopen fuse.squashfuse; /mnt/mount_call /run/i/squashfs m fuse.squashfuse 0
        cat m/hello; grep -o 'fuse.squashfuse .*squashfs ' /proc/self/mountinfo; umount m";
    let expected = "EINVAL\nEIO\nENOEXEC\nENOSYS\nok\nhello\nfuse.squashfuse /run/i/squashfs \n";
    assert_eq!(stage.run(&[], script).ok(), expected);
    let said = stage.leaves_nothing().stderr;
    assert!(said.contains("exit status 3") && said.contains("is a script"), "{said}");
}

#[test]
fn huge_pages_belong_to_users_of_the_container() {
    let stage = Stage::new("mount = true\n\"mount.allowed\" = [\"hugetlbfs\"]\n");
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("hugetlbfs") {
        assert_eq!(stage.run(&[], "/mnt/mount_call none m hugetlbfs 0").ok(), "ENODEV\n");
        stage.leaves_nothing();
        return machine::not_on_this_kernel("hugetlbfs");
    }
    let script = "mount -t hugetlbfs -o uid=5,gid=6,mode=750 none m; stat -c '%u:%g %a' m; umount m
        mount -t hugetlbfs none m; stat -c %u:%g m; umount m; /mnt/mount_call none m hugetlbfs 0 uid=70000
        /mnt/mount_call none m hugetlbfs 0 uid=x";
    assert_eq!(stage.run(&[], script).ok(), "5:6 750\n0:0\nEPERM\nEINVAL\n");
    stage.leaves_nothing();
}

#[test]
fn owners_are_shifted_or_the_mount_is_refused() {
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("squashfs") {
        return machine::not_on_this_kernel("squashfs");
    }
    let stage =
        Stage::new("mount = true\n\"mount.allowed\" = [\"squashfs\"]\n\"mount.shift\" = true\n");
    let script = "/mnt/mount_call /run/i/squashfs m squashfs 1; stat -c %u:%g m/hello; umount m";
    let text = stage.run(&[], script).stdout;
    let said = stage.leaves_nothing().stderr;
    // squashfs can be idmapped since Linux 6.2.
    if text.starts_with("EOPNOTSUPP\n") {
        assert!(said.contains("cannot shift the owners of squashfs"), "{said}");
    } else {
        assert_eq!(text, "ok\n0:0\n");
    }
}

/// What containers write with their users, the host finds with the same numbers on the image, and the
/// other way round.
#[test]
fn filesystems_with_owners_are_shifted_both_ways() {
    let makers: [(&str, &[&str]); 3] = [
        ("ext4", &["mke2fs", "-qFt", "ext4"]),
        ("xfs", &["mkfs.xfs", "-q"]),
        ("btrfs", &["mkfs.btrfs", "-q"]),
    ];
    let names = makers.map(|(name, _)| format!("{name:?}")).join(", ");
    let stage = Stage::new(&format!(
        "mount = true\n\"mount.allowed\" = [{names}]\n\"mount.shift\" = true\n"
    ));
    for (name, maker) in makers {
        let _ = Command::new("modprobe").arg("-q").arg(name).status();
        if !fs::read_to_string("/proc/filesystems").unwrap().contains(name) {
            machine::not_on_this_kernel(name);
            continue;
        }
        machine::needs(&maker[..1]);
        let (image, on_host) = (stage.folder().join("owned"), readable_dir());
        let at = on_host.path().to_str().unwrap();
        fs::File::create(&image).unwrap().set_len(320 * MIB).unwrap();
        tool(maker[0], &maker[1..], &[&image]);
        fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        // On the host, with the numbers that are on the image.
        let look = |script: &str| {
            let device = Loop::of(&image);
            let script = format!(
                "mount -t {name} {} {at} && cd {at} && {script}; cd /; umount {at}",
                device.0
            );
            command::run(quiet("sh").args(["-c", &script])).ok()
        };
        assert_eq!(look("touch of_host; chown 5:6 of_host; stat -c %u:%g ."), "0:0\n", "{name}");
        let script = format!(
            "/mnt/mount_call /run/i/owned m {name} 0; stat -c %u:%g m m/of_host; cd m
             touch of_root of_user; chown 7:8 of_user; stat -c %u:%g of_*; cd ..; umount m"
        );
        let text = stage.run(&[], &script).ok();
        assert_eq!(text, "ok\n0:0\n5:6\n5:6\n0:0\n7:8\n", "{name}");
        assert_eq!(look("stat -c %u:%g of_*"), "5:6\n0:0\n7:8\n", "{name}");
        fs::remove_file(&image).unwrap();
    }
    stage.leaves_nothing();
}

#[test]
fn errors_mean_what_the_documentation_says() {
    let stage = Stage::new(
        "mount = true\n\"mount.allowed\" = [\"ext4\", \"hugetlbfs\", \"nosuchfs\"]\n\
         \"mount.fuse\" = { xfs = \"nosuchhelper\" }\n",
    );
    let private = stage.folder().join("private");
    fs::copy(stage.folder().join("ext4"), &private).unwrap();
    fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // Nobody in the container.
    std::os::unix::fs::chown(&private, Some(700_000), Some(700_000)).unwrap();
    let script = "at() { /mnt/mount_call $1 $2 $3 0 $4; }; mkdir -m 700 closed; mkdir closed/m; chown 7 closed
        at /run/i/private m ext4; at /run/i/ext4/x m ext4; at /run/i/nothing m ext4; at /run/i/ext4 nothing ext4
        at /dev/null m ext4; at /run/i/junk m ext4; at /run/i/ext4 m ext4 no_such_option
        at /run/i/ext4 m nosuchfs; at /run/i/ext4 m xfs; at /run/i/ext4 /run/i/junk ext4
        mkdir l u w; at none m tmpfs; umount m; at none m overlay lowerdir=l,upperdir=u,workdir=w; umount m";
    let expected = "EACCES ENOTDIR ENOENT ENOENT ENOTBLK EINVAL EINVAL ENODEV ENODEV ENOTDIR ok ok";
    let text = stage.run(&[], script).ok();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    let said = stage.leaves_nothing().stderr;
    assert!(
        !said.contains("filesystem=\"tmpfs\"") && !said.contains("\"overlay\""),
        "the kernel's: {said}"
    );
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
    mount -t ext3 image m 2>/dev/null || echo refused
    mkdir t; echo packed >t/f; chown 33:44 t/f; mksquashfs t packed >/dev/null
    mount -t squashfs.image packed m && cat m/f && stat -c %u:%g m/f; umount m";

#[track_caller]
fn engine(run: impl Fn(&Daemon) -> Output) {
    let stage = Stage::new(&SHIFTED.replace("squashfuse", "host:/usr/bin/squashfuse"));
    let text = run(&stage.daemon).ok();
    assert!(text.contains("clean\nrefused\npacked\n33:44\n") && text.starts_with("0 "), "{text}");
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
