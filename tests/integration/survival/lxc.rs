//! Calls that come by liblxc.

use std::fs;
use std::time::Duration;

use super::upgrade::upgrade;
use super::{kill_server, next_read, number, resends};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{lxc, machine};

/// liblxc's monitor waits 30 s for each answer, and asks nothing twice.
#[test]
fn a_call_that_liblxc_passed_on_is_answered_by_the_successor() {
    let daemon = Daemon::start_at(Place::intercepting("mknod = true\n"));
    let stop = readable_dir();
    let script = "echo ready; exec /mnt/survivor /var/stop 65536 /root/node";
    let binds = [(stop.path(), "var")];
    let mut running = lxc::start(&daemon, 64 << 20, 100_000, &binds, script);
    running.wait_for("ready");
    for turn in 0..number("AMBIT_SURVIVAL_KILLS", 12) {
        // At another moment of the loop each time.
        std::thread::sleep(Duration::from_millis(60 + turn * 7 % 40));
        if turn % 4 == 3 {
            upgrade(&daemon);
        } else {
            kill_server(&daemon);
        }
        next_read(&daemon);
    }
    fs::write(stop.path().join("stop"), "").unwrap();
    let output = running.finish(machine::patience(60)).ok();
    let calls_failed = ["sysinfo:", "mknod:", "unlink:"].iter().any(|call| output.contains(call));
    let log = daemon.stop().0.stderr;
    assert!(!calls_failed && output.contains(" failures="), "{output}\n{log}");
    assert!(!resends() || output.contains(" failures=0 "), "{output}");
}
