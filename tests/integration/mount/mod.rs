//! Filesystems that containers mount: by the kernel, shifted, by a helper, or not at all. Results
//! are asserted inside the container; that nothing is left over, on the host.

mod engines;
mod helper;
mod image;
mod kernel;
mod limit;
mod nested;
mod on_fuse;
pub(crate) mod options;
mod own;
mod refused;
mod shifted;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::harness::command::{self, Output, quiet};
use crate::harness::daemon::{Daemon, Place, mounts, readable_dir};
use crate::harness::{machine, sandbox};

const MIB: u64 = 1 << 20;

/// What the daemon's containers may mount, unless a test says otherwise.
const SHIFTED: &str = "mount.enabled = true\nmount.allowed = [\"ext4\"]\nmount.shift = true\n\
                       mount.fuse = { squashfs = \"squashfuse\" }\n";

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
    pub(crate) fn run(&self, args: &[&str], script: &str) -> Output {
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
