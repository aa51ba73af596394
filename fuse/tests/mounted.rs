#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
//! The overlay on a real mount: a dead one is replaced, a busy mount point refused, serving ended,
//! and a killed server taken over. Needs root and /dev/fuse, and fails without.

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ambit_fuse::{Error, MountOptions, Overlay, Restored, Submount, Visit, mount, visit};
use ambit_sysinfo::{View, Views};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

#[path = "fixtures/container.rs"]
mod container;

/// Environment variable of the process that serves until it is killed.
const SERVE_AT: &str = "AMBIT_TEST_SERVE_AT";

/// The same for a server that answers nothing.
const NEVER_ANSWERS: &str = "AMBIT_TEST_NEVER_ANSWERS";

/// A directory that is unmounted and removed when the test ends, however it ends.
struct TestDir(tempfile::TempDir);

impl TestDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn overlay(&self) -> PathBuf {
        self.0.path().join("made/overlay")
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        for path in [self.overlay(), self.0.path().join("bind")] {
            while rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).is_ok() {}
        }
    }
}

/// Answers some requests, then blocks every caller for ever.
struct Stuck {
    view: Arc<View>,
    left: AtomicU64,
}

impl Views for Stuck {
    fn view(&self, _: u32) -> Result<Arc<View>, ambit_sysinfo::Error> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        while left.is_err() {
            thread::park();
        }
        Ok(Arc::clone(&self.view))
    }
}

/// Blocks these threads until they are taken off the list.
struct Hangs {
    view: Arc<View>,
    threads: Mutex<Vec<u32>>,
    changed: Condvar,
}

impl Views for Hangs {
    fn view(&self, tid: u32) -> Result<Arc<View>, ambit_sysinfo::Error> {
        let threads = self.threads.lock().unwrap();
        drop(self.changed.wait_while(threads, |threads| threads.contains(&tid)).unwrap());
        Ok(Arc::clone(&self.view))
    }
}

/// Answers nothing, and creates a file at the first request.
struct NeverAnswers(PathBuf);

impl Views for NeverAnswers {
    fn view(&self, _: u32) -> Result<Arc<View>, ambit_sysinfo::Error> {
        self.wait()
    }

    fn host(&self) -> Option<Arc<ambit_sysinfo::Host>> {
        self.wait()
    }
}

impl NeverAnswers {
    fn wait<T>(&self) -> T {
        fs::write(&self.0, "").unwrap();
        loop {
            thread::park();
        }
    }
}

/// No test: the predecessor, in a process of its own. It sends its device and INIT record to its
/// standard input, a socket, and serves until it is killed.
#[test]
fn predecessor() {
    let Some(path) = std::env::var_os(SERVE_AT) else { return };
    if std::env::var_os(NEVER_ANSWERS).is_some() {
        let asked = Path::new(&path).with_file_name("asked");
        let visitor = in_child;
        let options = MountOptions { triggers: false, visitor, ..MountOptions::new(path) };
        drop(Overlay::mount(options, Arc::new(NeverAnswers(asked))));
        return;
    }
    // Two files, with two requests each: LOOKUP, which may need the size, and OPEN.
    let views = Stuck { view: Arc::new(container::view()), left: AtomicU64::new(4) };
    let overlay = Overlay::mount(MountOptions::new(path), Arc::new(views)).unwrap();
    let pressure = overlay.submount(Submount::Pressure);
    let pressure = pressure.as_ref().map(|(device, record)| (device.as_fd(), record.as_slice()));
    for (device, record) in
        [Some((overlay.device(), overlay.init_record())), pressure].into_iter().flatten()
    {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut descriptors = SendAncillaryBuffer::new(&mut space);
        let device = [device];
        assert!(descriptors.push(SendAncillaryMessage::ScmRights(&device)));
        let record = [IoSlice::new(record)];
        let flags = SendFlags::empty();
        rustix::net::sendmsg(std::io::stdin(), &record, &mut descriptors, flags).unwrap();
    }
    loop {
        thread::park();
    }
}

/// What keeps a connection alive: its device and INIT record.
type Handover = (OwnedFd, Vec<u8>);

/// Starts a predecessor and receives its device and INIT record.
fn start_predecessor(path: &Path) -> (Child, OwnedFd, Vec<u8>) {
    let (child, (device, record), _) = start_predecessor_with_pressure(path);
    (child, device, record)
}

/// The same, with those of the filesystem with triggers.
fn start_predecessor_with_pressure(path: &Path) -> (Child, Handover, Handover) {
    let (child, ours) = start(path, SERVE_AT);
    (child, receive(&ours), receive(&ours))
}

/// Starts a process that serves; returns it with the other end of its socket.
fn start(path: &Path, how: &str) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "predecessor"])
        .env(how, path)
        .env(SERVE_AT, path)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, ours)
}

fn receive(from: &UnixStream) -> Handover {
    let mut record = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut descriptors = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut record)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(from, &mut parts, &mut descriptors, flags).unwrap();
    record.truncate(received.bytes);
    let device = descriptors.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    (device.expect("the predecessor sends its device"), record)
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn path_of(overlay: &Overlay) -> &Path {
    overlay.path().unwrap()
}

fn mount_fixed(path: &Path) -> Result<Overlay, Error> {
    Overlay::mount(MountOptions::new(path), container::Fixed::new())
}

#[test]
fn mounts_serves_and_ends() {
    let dir = TestDir::new();
    let overlay = mount_fixed(&dir.overlay()).unwrap();
    for path in ambit_fuse::FILES.iter().map(|file| file.path) {
        let text = fs::read_to_string(path_of(&overlay).join(path)).unwrap();
        assert!(text.ends_with('\n') || path.ends_with("/uevent"), "{path}");
    }
    let names: Vec<_> = fs::read_dir(path_of(&overlay).join("sys/devices/system/cpu"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    let files = ["online", "possible", "present", "offline", "isolated", "kernel_max", "uevent"];
    assert_eq!(names[..7], files);
    assert_eq!(names[7..], ["cpu0", "cpu2"], "the processors of this container");
    let cpu = path_of(&overlay).join("sys/devices/system/cpu");
    assert!(fs::metadata(cpu.join("cpu2")).unwrap().is_dir());
    for hidden in ["cpu1", "cpu02", "cpufreq", "vulnerabilities"] {
        assert!(!fs::exists(cpu.join(hidden)).unwrap(), "{hidden}");
    }
    let write = File::options().write(true).open(path_of(&overlay).join("proc/meminfo"));
    assert_eq!(write.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let path = path_of(&overlay).to_owned();
    overlay.unmount().unwrap();
    assert_eq!(fs::read_dir(path).unwrap().count(), 0, "nothing stays mounted");
}

#[test]
fn a_bind_does_not_keep_an_ended_server_alive() {
    let dir = TestDir::new();
    let overlay = mount_fixed(&dir.overlay()).unwrap();
    let bind = dir.0.path().join("bind");
    fs::write(&bind, "").unwrap();
    rustix::mount::mount_bind(path_of(&overlay).join("proc/uptime"), &bind).unwrap();
    assert_eq!(fs::read_to_string(&bind).unwrap(), "61.23 9.00\n");
    overlay.unmount().unwrap();
    assert_eq!(fs::read(&bind).unwrap_err().kind(), std::io::ErrorKind::NotConnected);
}

#[test]
fn what_is_alive_is_left_alone() {
    let dir = TestDir::new();
    let overlay = mount_fixed(&dir.overlay()).unwrap();
    let second = mount_fixed(path_of(&overlay)).unwrap_err();
    assert!(matches!(second, Error::Busy { .. }), "{second}");
    assert!(second.to_string().contains("ambit (fuse.ambit)"), "{second}");
    // Another filesystem is left alone unless it is empty.
    let bind = dir.0.path().join("bind");
    fs::create_dir(&bind).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &bind, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
    fs::write(bind.join("data"), "").unwrap();
    let other = mount_fixed(&bind).unwrap_err();
    assert!(matches!(other, Error::Busy { .. }), "{other}");
    fs::remove_file(bind.join("data")).unwrap();
    mount_fixed(&bind).unwrap().unmount().unwrap();
    assert!(fs::read(path_of(&overlay).join("proc/stat")).is_ok());
    overlay.unmount().unwrap();
}

#[test]
fn the_mount_of_a_dead_server_is_replaced() {
    let dir = TestDir::new();
    let path = dir.overlay();
    let (child, device, _) = start_predecessor(&path);
    // Cached attributes must not make a dead server look alive.
    assert!(fs::metadata(&path).unwrap().is_dir());
    drop(device);
    kill(child);
    let overlay = mount_fixed(&path).unwrap();
    assert_eq!(fs::read_to_string(path.join("proc/uptime")).unwrap(), "61.23 9.00\n");
    overlay.unmount().unwrap();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the dead mount is gone too");
}

/// Environment variable of the process that makes a visit.
const VISIT: &str = "AMBIT_TEST_VISIT";

/// No test: the visitor, with the overlay as standard input.
#[test]
fn visitor() {
    if std::env::var_os(VISIT).is_some() {
        let overlay = std::io::stdin();
        Visit::Names { overlay: overlay.as_fd() }.run().unwrap();
    }
}

fn in_child(visit: Visit<'_>, _: Duration) -> rustix::io::Result<()> {
    let Visit::Names { overlay, .. } = visit else { return visit.run() };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "visitor"])
        .env(VISIT, "")
        .env_remove(SERVE_AT)
        .stdin(Stdio::from(overlay.try_clone_to_owned().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.wait().unwrap();
    Ok(())
}

#[test]
fn a_server_that_is_killed_while_names_are_looked_up_ends() {
    let dir = TestDir::new();
    // Its threads answer nothing.
    let (mut child, ..) = start(&dir.overlay(), NEVER_ANSWERS);
    let asked = dir.0.path().join("made/asked");
    while !asked.exists() {
        thread::yield_now();
    }
    child.kill().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            // Only an abort ends state D.
            let flags = rustix::mount::UnmountFlags::FORCE;
            let _ = rustix::mount::unmount(dir.overlay(), flags);
            panic!("a server that was killed waits for itself");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_was_unmounted_is_attached_again() {
    let dir = TestDir::new();
    let overlay = mount_fixed(&dir.overlay()).unwrap();
    let path = path_of(&overlay).to_owned();
    let bind = dir.0.path().join("bind");
    fs::write(&bind, "").unwrap();
    rustix::mount::mount_bind(path.join("proc/uptime"), &bind).unwrap();
    let detach = |path: &Path| {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
    };
    let memory = path.join("proc/pressure/memory");
    assert_eq!(overlay.restore().unwrap(), Restored::Nothing);
    for gone in [&path, &path.join("proc/pressure")] {
        detach(gone);
        assert_eq!(overlay.restore().unwrap(), Restored::Mounts(Vec::new()));
        assert_eq!(fs::read_to_string(path.join("proc/uptime")).unwrap(), "61.23 9.00\n");
        // Without the files that have triggers, the filesystem is read-only.
        let refused = fs::write(&memory, "some 150000 2000000").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()));
        assert_eq!(overlay.restore().unwrap(), Restored::Nothing);
    }
    // The last mount of all.
    detach(&bind);
    detach(&path);
    assert_eq!(overlay.restore().unwrap(), Restored::Mounts(Vec::new()));
    assert_eq!(fs::read_to_string(path.join("proc/uptime")).unwrap(), "61.23 9.00\n");
    assert!(!overlay.is_finished());
    overlay.unmount().unwrap();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "nothing stays mounted");
}

#[test]
fn a_foreign_mount_at_the_mount_point_stays() {
    let dir = TestDir::new();
    let overlay = mount_fixed(&dir.overlay()).unwrap();
    let path = path_of(&overlay).to_owned();
    rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &path, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
    fs::write(path.join("data"), "").unwrap();
    assert!(matches!(overlay.restore().unwrap_err(), Error::Busy { .. }));
    assert!(path.join("data").exists());
    overlay.unmount().unwrap();
    assert!(path.join("data").exists());
}

#[test]
fn files_with_triggers_whose_connection_was_aborted_are_served_anew() {
    let dir = TestDir::new();
    let overlay = mount_fixed(&dir.overlay()).unwrap();
    let path = path_of(&overlay).to_owned();
    let pressure = path.join("proc/pressure");
    // MNT_FORCE aborts the connection even if the unmount fails.
    let _ = rustix::mount::unmount(&pressure, rustix::mount::UnmountFlags::FORCE);
    while !overlay.is_aborted(Submount::Pressure) {
        thread::yield_now();
    }
    assert_eq!(overlay.restore().unwrap(), Restored::Mounts(vec![Submount::Pressure]));
    assert!(fs::read_to_string(pressure.join("io")).unwrap().starts_with("some avg10="));
    assert_eq!(overlay.restore().unwrap(), Restored::Nothing);
    overlay.unmount().unwrap();
}

#[test]
fn a_successor_answers_what_was_in_flight() {
    let dir = TestDir::new();
    let path = dir.overlay();
    let (child, device, record) = start_predecessor(&path);
    let kept = File::open(path.join("proc/meminfo")).unwrap();
    let mut start = [0; 100];
    kept.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(fs::read_to_string(path.join("proc/loadavg")).unwrap(), "0.50 0.25 0.12 2/9 77\n");

    let readers: Vec<_> = (0..3)
        .map(|_| {
            let stat = path.join("proc/stat");
            thread::spawn(move || {
                let mut text = String::new();
                File::open(stat).and_then(|mut file| file.read_to_string(&mut text)).map(|_| text)
            })
        })
        .collect();
    // The predecessor answers nothing more: two requests block its threads, one stays in the queue.
    // If they come later, the successor answers them all the same.
    thread::sleep(Duration::from_millis(100));
    kill(child);

    let options = MountOptions::new(&path);
    let successor = Overlay::takeover(device, &record, options, container::Fixed::new()).unwrap();
    for reader in readers {
        let text = reader.join().unwrap().unwrap();
        assert!(text.starts_with("cpu  30 0 12 900"), "{text}");
    }
    // A file that stayed open can be read on.
    let mut rest = Vec::new();
    (&kept).read_to_end(&mut rest).unwrap();
    assert!(rest.starts_with(&start));
    assert!(successor.counters().adopted >= 1);
    assert!(mount::prepare(&path, visit::in_place).is_err(), "the successor's mount is alive");
    drop(kept);
    successor.unmount().unwrap();
}

#[test]
fn the_files_with_triggers_are_taken_over_too() {
    let dir = TestDir::new();
    let path = dir.overlay();
    let (child, (device, record), (second, second_record)) = start_predecessor_with_pressure(&path);
    let memory = path.join("proc/pressure/memory");
    assert!(fs::metadata(&memory).unwrap().is_file());
    kill(child);
    let options = MountOptions::new(&path);
    let successor = Overlay::takeover(device, &record, options, container::Fixed::new()).unwrap();
    successor.takeover_submount(Submount::Pressure, second, &second_record).unwrap();
    assert!(fs::read_to_string(&memory).unwrap().starts_with("some avg10="));
    // There is no kernel's file behind these numbers.
    let refused = fs::write(&memory, "some 150000 2000000").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()));
    successor.unmount().unwrap();
}

#[test]
fn others_are_served_while_every_thread_hangs() {
    // Served as on a current kernel, and as before 6.9: with a clone of the device for each
    // session.
    for minor in [None, Some(39u32)] {
        let dir = TestDir::new();
        let path = dir.overlay();
        let (child, device, mut record) = start_predecessor(&path);
        kill(child);
        if let Some(minor) = minor {
            record[44..48].copy_from_slice(&minor.to_ne_bytes());
        }
        let views = Arc::new(Hangs {
            view: Arc::new(container::view()),
            threads: Mutex::default(),
            changed: Condvar::new(),
        });
        let options = MountOptions::new(&path);
        let overlay = Overlay::takeover(device, &record, options, views.clone()).unwrap();
        let hung: Vec<_> = (0..3)
            .map(|_| {
                let (views, uptime) = (Arc::clone(&views), path.join("proc/uptime"));
                thread::spawn(move || {
                    let tid = rustix::thread::gettid().as_raw_pid().unsigned_abs();
                    views.threads.lock().unwrap().push(tid);
                    fs::read_to_string(uptime).unwrap()
                })
            })
            .collect();
        while views.threads.lock().unwrap().len() < hung.len() {
            thread::yield_now();
        }
        let text = fs::read_to_string(path.join("proc/loadavg")).unwrap();
        assert_eq!(text, "0.50 0.25 0.12 2/9 77\n");
        assert!(hung.iter().all(|one| !one.is_finished()));
        views.threads.lock().unwrap().clear();
        views.changed.notify_all();
        for one in hung {
            assert_eq!(one.join().unwrap(), "61.23 9.00\n");
        }
        overlay.unmount().unwrap();
    }
}
