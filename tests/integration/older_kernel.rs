//! On an older kernel: some of the other tests, with what is newer than Linux 5.10 refused by a filter
//! (`tests/programs/older_kernel.c`).

use crate::harness::command::{self, quiet};
use crate::harness::machine;

/// Tests that use what has a fallback.
const TESTS: [&str; 7] = [
    "attach::rules::all_mount_namespaces_of_a_container_are_equipped",
    "attach::rules::the_copies_are_private_even_if_the_overlay_is_shared",
    "mount::helper::a_helper_mounts_on_a_folder_with_files_with_the_attributes_of_the_call",
    "mount::helper::a_helper_serves_as_the_caller_and_ends_with_the_mount",
    "older_kernel::inside::affinity_is_that_of_the_container_by_number_too",
    "older_kernel::inside::mounts_of_a_sandbox_are_restricted",
    "older_kernel::inside::shifted_owners_need_another_kernel",
];

#[test]
fn what_an_older_kernel_lacks_has_a_fallback() {
    let program = std::env::current_exe().unwrap();
    let mut run = quiet(machine::program("older_kernel").to_str().unwrap());
    let run =
        run.arg(program).args(["--test-threads=1", "--exact", "--include-ignored"]).args(TESTS);
    let printed = command::run(run).ok();
    let all = format!("test result: ok. {} passed", TESTS.len());
    assert!(printed.contains(&all), "{printed}");
}

/// These are run by the test above, and true on any kernel before 5.12.
mod inside {
    use crate::harness::daemon::Daemon;
    use crate::harness::sandbox;
    use crate::mount::Stage;

    #[test]
    #[ignore = "for an older kernel"]
    fn mounts_of_a_sandbox_are_restricted() {
        let daemon = Daemon::start();
        let script = "for f in /usr/x /sys/x /proc/sys/kernel/hostname; do
                ( : >$f ) 2>/dev/null && echo \"$f is written\"; done
            awk '$5 ~ \"^/(|usr|sys)$\" && $6 !~ /^ro/ || $5 ~ \"^/(tmp|run)$\" && $6 !~ /nosuid/ ||
                $5 == \"/dev/shm\" && $6 !~ /nosuid,nodev,noexec/' /proc/self/mountinfo
            awk '$5 == \"/\"' /proc/self/mountinfo | wc -l";
        assert_eq!(sandbox::run(&daemon, &[], script).ok(), "1\n");
    }

    #[test]
    #[ignore = "for an older kernel"]
    fn affinity_is_that_of_the_container_by_number_too() {
        let daemon = Daemon::start();
        let script = "sleep 9 & python3 -c \"
import os, threading
show = lambda id: print(len(os.sched_getaffinity(id)))
thread = threading.Thread(target=lambda: ready.wait()); ready = threading.Event(); thread.start()
[show(id) for id in (0, os.getpid(), thread.native_id, 1, $!)]; ready.set()
try: os.sched_getaffinity(4000)
except ProcessLookupError: print('none')\"; kill $!";
        let printed = sandbox::run(&daemon, &["--cpus", "1"], script).ok();
        assert_eq!(printed, "1\n1\n1\n1\n1\nnone\n");
    }

    #[test]
    #[ignore = "for an older kernel"]
    fn shifted_owners_need_another_kernel() {
        let stage = Stage::new(
            "mount.enabled = true\nmount.allowed = [\"squashfs\"]\nmount.shift = true\n",
        );
        let text = stage.run(&[], "/mnt/mount_call /run/i/squashfs m squashfs 1").stdout;
        assert!(text.starts_with("EOPNOTSUPP\n"), "{text}");
        let said = stage.leaves_nothing().stderr;
        assert!(said.contains("mount.shift needs Linux 5.12"), "{said}");
    }
}
