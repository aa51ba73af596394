//! A daemon of our own: its sockets and its mount are in a temporary folder, and both are gone
//! when it is dropped.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::command::{self, Output, Running, quiet};
use super::machine::{self, AMBIT};

/// A daemon that serves.
#[derive(Debug)]
pub(crate) struct Daemon {
    running: Option<Running>,
    place: Place,
}

/// The folder of a daemon, which may outlive it.
#[derive(Debug)]
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: readable_dir() };
        fs::create_dir(place.mount()).unwrap();
        let text = format!(
            "[daemon]\nruntime_dir = \"{}\"\n[overlay]\nmount = \"{}\"\n\
             [intercept]\nsysinfo = true\nsched_getaffinity = true\n",
            place.runtime().display(),
            place.mount().display(),
        );
        fs::write(place.config(), text).unwrap();
        place
    }

    /// One with these lines in `[intercept]` too.
    pub(crate) fn intercepting(lines: &str) -> Self {
        let place = Self::new();
        let text = fs::read_to_string(place.config()).unwrap();
        fs::write(place.config(), text + lines).unwrap();
        place
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("ambit.toml")
    }

    pub(crate) fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn serve(&self) -> Command {
        let mut serve = quiet(AMBIT);
        serve.arg("serve").arg("--config").arg(self.config());
        serve
    }

    /// `ambit WORDS… --config` with its configuration.
    #[track_caller]
    pub(crate) fn ambit(&self, words: &[&str]) -> Output {
        command::run(quiet(AMBIT).args(words).arg("--config").arg(self.config()))
    }

    /// The pid of the daemon that answers here.
    fn answers(&self) -> Option<u32> {
        let mut ask = quiet(AMBIT);
        let output = command::run(ask.args(["status", "--json", "--config"]).arg(self.config()));
        let status: serde_json::Value = serde_json::from_str(&output.stdout).ok()?;
        u32::try_from(status["pid"].as_u64()?).ok()
    }

    pub(crate) fn is_mounted(&self) -> bool {
        mounts().contains(&format!(" {} ", self.mount().display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_mounted() {
            let _ = rustix::mount::unmount(self.mount(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The mounts of this namespace.
pub(crate) fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// A temporary folder that a container's mapped root may pass.
pub(crate) fn readable_dir() -> TempDir {
    let dir = TempDir::with_prefix("ambit-test-").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

impl Daemon {
    /// Starts one and waits until it serves.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::start_at(Place::new())
    }

    /// Starts one where another has been.
    #[track_caller]
    pub(crate) fn start_at(place: Place) -> Self {
        let mut serve = place.serve();
        Self::start_by(place, &mut serve, true)
    }

    /// Starts one with a command that is its parent.
    #[track_caller]
    pub(crate) fn start_below(place: Place, parent: &mut Command) -> Self {
        Self::start_by(place, parent, false)
    }

    #[track_caller]
    fn start_by(place: Place, serve: &mut Command, itself: bool) -> Self {
        machine::needs(&[]);
        let mut running = command::start(serve);
        let deadline = Instant::now() + machine::patience(10);
        // What a killed predecessor left (sockets, a mount, attributes in the cache) looks like a
        // daemon: only its own answer tells.
        while place.answers().is_none_or(|pid| itself && pid != running.pid()) {
            assert!(
                !running.ended() && Instant::now() < deadline,
                "the daemon does not serve: {:?}",
                running.printed()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { running: Some(running), place }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().pid()
    }

    /// A file of the overlay, `proc/meminfo` for instance.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.place.mount().join(name)
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.place.runtime().join(name)
    }

    /// Waits until it has ended, as it was told to.
    #[track_caller]
    pub(crate) fn ended(mut self) -> &'static str {
        self.running.take().unwrap().finish(machine::patience(20)).ok();
        if self.place.is_mounted() { "mounted" } else { "unmounted" }
    }

    /// Its place, when its process has ended as it was told to.
    #[track_caller]
    pub(crate) fn ended_at(mut self) -> Place {
        self.running.take().unwrap().finish(machine::patience(20)).ok();
        std::mem::replace(&mut self.place, Place { dir: readable_dir() })
    }

    /// `ambit status --json`, if it is answered.
    pub(crate) fn try_status(&self) -> Option<serde_json::Value> {
        let mut ask = quiet(AMBIT);
        let said =
            command::run(ask.args(["status", "--json", "--config"]).arg(self.place.config()));
        serde_json::from_str(&said.stdout).ok()
    }

    /// `ambit status --json`. Where a machine is too slow for the five seconds that the command
    /// has, it is asked again.
    #[track_caller]
    pub(crate) fn status(&self) -> serde_json::Value {
        let until = Instant::now() + machine::patience(5);
        loop {
            let mut ask = quiet(AMBIT);
            ask.args(["status", "--json", "--config"]).arg(self.place.config());
            let said = command::run(&mut ask);
            if !said.stderr.contains("the daemon does not answer") || Instant::now() >= until {
                return serde_json::from_str(&said.ok()).expect("status --json prints JSON");
            }
        }
    }

    /// Sends a signal to its first process.
    pub(crate) fn signal(&self, signal: Signal) {
        self.running.as_ref().unwrap().signal(signal);
    }

    /// The last lines of its log.
    pub(crate) fn log(&mut self) -> String {
        let (_, log) = self.running.as_mut().unwrap().printed();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// The process that serves now.
    pub(crate) fn server_pid(&self) -> u32 {
        u32::try_from(self.status()["server_pid"].as_u64().unwrap()).unwrap()
    }

    /// Ends it as a service manager does.
    #[track_caller]
    pub(crate) fn stop(mut self) -> (Output, &'static str) {
        let running = self.running.take().unwrap();
        running.signal(Signal::TERM);
        let output = running.finish(machine::patience(10));
        (output, if self.place.is_mounted() { "mounted" } else { "unmounted" })
    }

    /// Kills the keeper alone: the server goes on.
    pub(crate) fn lose_keeper(mut self) -> Place {
        let running = self.running.take().unwrap();
        running.signal(Signal::KILL);
        running.finish(machine::patience(10));
        std::mem::replace(&mut self.place, Place { dir: readable_dir() })
    }

    /// Kills it, the keeper too; what it leaves stays.
    pub(crate) fn kill(mut self) -> Place {
        let running = self.running.take().unwrap();
        running.signal_group(Signal::KILL);
        running.finish(machine::patience(10));
        std::mem::replace(&mut self.place, Place { dir: readable_dir() })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        if running.ended() {
            let (_, stderr) = running.printed();
            assert!(std::thread::panicking(), "the daemon ended by itself: {stderr}");
            return;
        }
        running.signal(Signal::TERM);
        let deadline = Instant::now() + machine::patience(5);
        while !running.ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
