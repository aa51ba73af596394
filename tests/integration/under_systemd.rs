//! ambit as a service of a real systemd, with the unit that we ship.

use crate::harness::{cgroup, command, machine};
use crate::survival::resends;

#[test]
fn a_real_systemd_brings_it_back() {
    machine::needs(&["systemctl", "unshare"]);
    if !cgroup::memory_is_v2() || !resends() {
        // survival/keeper.rs has a stand-in for its descriptor store.
        return machine::not_on_this_kernel("a systemd of our own: cgroup v2 and Linux 6.9");
    }
    let here = env!("CARGO_MANIFEST_DIR");
    let mut script = command::quiet(&format!("{here}/tests/programs/under_systemd.sh"));
    script.arg(machine::AMBIT).arg(format!("{here}/contrib/systemd/ambit.service"));
    script.arg(machine::programs()).arg("6");
    let said = command::start(&mut script).finish(machine::patience(60)).ok();
    for wanted in [
        "killed the keeper 6 times",
        "restarted 2 times",
        "stopped",
        "reloaded",
        " failures=0 ",
        "restarted with a mistake: the configuration file is wrong: ",
        // A first start is not tried again and again.
        "a mistake: failed, status 78",
        "ambit.toml:7:1",
        "\nended",
    ] {
        assert!(said.contains(wanted), "{wanted:?} is missing:\n{said}");
    }
}
