//! The server dies, is replaced, stopped and started: no read or call of a container fails.

mod crash;
mod faults;
mod frozen;
mod keeper;
mod lxc;
mod mounts;
mod requests;
mod torture;
mod unmounted;
mod upgrade;

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::daemon::{Daemon, readable_dir};
use crate::harness::{command, machine, sandbox};

/// Before Linux 6.9 the kernel does not send again what a dead server had read.
pub(crate) fn resends() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 9) {
        eprintln!("not on this kernel: requests in flight are not sent again ({release})");
    }
    version >= (6, 9)
}

/// A number from the environment, for the long form of a test.
pub(crate) fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

pub(crate) fn kill_server(daemon: &Daemon) -> u32 {
    let server = daemon.server_pid();
    let pid = Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    server
}

/// The next read that is answered. Where the kernel can send again what the dead server had read,
/// that is the very next one.
fn next_read(daemon: &Daemon) -> String {
    loop {
        match fs::read_to_string(daemon.file("proc/meminfo")) {
            Ok(text) => return text,
            Err(error) if resends() => panic!("{error}"),
            Err(error) => eprintln!("unavoidable before Linux 6.9: {error}"),
        }
    }
}

/// Programs that look at everything until a file appears, one in each of some containers.
pub(crate) fn survivors(
    daemon: &Daemon,
    count: usize,
) -> (tempfile::TempDir, Vec<command::Running>) {
    let stop = readable_dir();
    let bind = format!("{}:/srv:ro", stop.path().display());
    let script = "echo ready; exec /mnt/survivor /srv/stop 65536 /tmp/node";
    let args = ["--memory", "64M", "--intercept", "sysinfo,mknod", "--bind", &bind];
    let mut running: Vec<_> =
        (0..count).map(|_| command::start(&mut sandbox::command(daemon, &args, script))).collect();
    running.iter_mut().for_each(|one| one.wait_for("ready", machine::patience(60)));
    (stop, running)
}
