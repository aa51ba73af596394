//! What ambit uses of newer kernels, since when they have it, and what is lost without it.
//!
//! A call or flag that can be tried without a consequence is tried: distributions add them to older
//! kernels. For the others the version of the kernel decides.

use std::fs::File;
use std::os::fd::AsFd;

use ambit_kernel::sys::{close_range, mount_setattr, pid_in_namespace, procmap_query, release};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::Finding;

/// A call or flag.
struct Feature {
    name: &'static str,
    /// The version that has it.
    since: (u32, u32),
    /// True if this kernel has it. `None` if that cannot be tried.
    is_there: Option<fn() -> bool>,
    /// What does not work without it.
    without: &'static str,
}

const fn tried(
    name: &'static str,
    since: (u32, u32),
    is_there: fn() -> bool,
    without: &'static str,
) -> Feature {
    Feature { name, since, is_there: Some(is_there), without }
}

const fn by_version(name: &'static str, since: (u32, u32), without: &'static str) -> Feature {
    Feature { name, since, is_there: None, without }
}

/// All of them, the oldest first.
const FEATURES: [Feature; 17] = [
    tried("pidfd_open", (5, 3), has_pidfd_open, "no keeper, and no `ambit run`"),
    by_version("SECCOMP_USER_NOTIF_FLAG_CONTINUE", (5, 5), "no system call can be answered"),
    tried("openat2", (5, 6), has_openat2, "no attach, no `ambit run`, no mounts and nodes"),
    tried(
        "STATX_MNT_ID",
        (5, 8),
        has_mount_ids,
        "no attach, no mount.fuse, no device nodes below /dev",
    ),
    by_version("LOOP_CONFIGURE", (5, 8), "images cannot be mounted by the kernel"),
    by_version("SECCOMP_IOCTL_NOTIF_ADDFD", (5, 9), "no device programs of containers (bpf)"),
    tried(
        "CLOSE_RANGE_CLOEXEC",
        (5, 11),
        close_range::has_close_on_exec,
        "nothing: descriptors are looked up in /proc instead",
    ),
    by_version(
        "start times in time namespaces",
        (5, 11),
        "CLOCK_BOOTTIME in `ambit run` is the machine's",
    ),
    tried(
        "mount_setattr",
        (5, 12),
        mount_setattr::is_supported,
        "no mount.shift; files of the host in `ambit run` belong\n         \
         to user 65534; attributes are set by remounts",
    ),
    by_version("MOUNT_ATTR_NOSYMFOLLOW", (5, 14), "mounts with nosymfollow are refused"),
    by_version(
        "further mounts of a FUSE connection",
        (5, 15),
        "an overlay that was unmounted is not mounted again\n         after the server was replaced",
    ),
    by_version(
        "/proc/pressure for all users",
        (5, 13),
        "only root of the machine sets triggers on pressure",
    ),
    by_version("SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP", (6, 6), "nothing: answers take longer"),
    by_version(
        "FUSE_NOTIFY_RESEND",
        (6, 9),
        "a read fails if the server is killed while it answers",
    ),
    tried(
        "NS_GET_PID_FROM_PIDNS",
        (6, 11),
        has_pid_ioctl,
        "processes of a container are searched, which takes longer;\n         \
         ids of other processes' threads are not found",
    ),
    tried("PROCMAP_QUERY", (6, 11), has_procmap_query, "nothing: mappings are read as text"),
    by_version("setxattrat", (6, 13), "nothing: programs cannot call it either"),
];

/// Looks for all of them. What everything needs is essential.
pub(super) fn findings() -> impl Iterator<Item = Finding> {
    FEATURES.iter().map(|feature| {
        let (major, minor) = feature.since;
        let is_there = match feature.is_there {
            Some(is_there) => is_there(),
            None => release::is_at_least(feature.since),
        };
        let state = match is_there {
            true => Ok(String::new()),
            false => Err(format!("Linux {major}.{minor} has it")),
        };
        // What else is needed to serve is older.
        let essential = feature.since <= (5, 5);
        Finding { name: feature.name, state, essential, without: feature.without }
    })
}

fn has_pidfd_open() -> bool {
    pidfd_open(getpid(), PidfdFlags::empty()).is_ok()
}

fn has_openat2() -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::empty()).is_ok()
}

fn has_mount_ids() -> bool {
    let found = rustix::fs::statx(CWD, "/", AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID);
    found.is_ok_and(|found| found.stx_mask & StatxFlags::MNT_ID.bits() != 0)
}

fn has_pid_ioctl() -> bool {
    let id = i32::try_from(std::process::id()).unwrap_or(1);
    let own = File::open("/proc/self/ns/pid");
    own.is_ok_and(|own| pid_in_namespace::pid_from_namespace(own.as_fd(), id).is_ok())
}

fn has_procmap_query() -> bool {
    let maps = File::open("/proc/self/maps");
    maps.is_ok_and(|maps| procmap_query::end_of_mapping(maps.as_fd(), 0, 0).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_fits_the_terminal() {
        for feature in FEATURES {
            let text = Finding {
                name: feature.name,
                state: Err("Linux 6.13 has it".to_owned()),
                essential: false,
                without: feature.without,
            };
            let text = text.to_string();
            assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        }
    }
}
