//! Which users of the host are the sandbox's users: the id range, and the user namespace.
//!
//! The namespace is made by a process that does nothing else and ends at once; what remains is a
//! descriptor of it, so that mounts can be idmapped before anything lives in it.

use std::fs::File;
use std::os::fd::OwnedFd;

use ambit_kernel::sys::fork::{Fork, fork};
use anyhow::{Context, Result, bail};
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use rustix::process::Signal;

use super::channel::{Channel, Message};

/// How many ids a sandbox gets: what a distribution's user database needs.
const COUNT: u32 = 65_536;
/// Where the range starts when root has none of its own.
const BASE: u32 = 100_000;

/// Who owns files that are made for the sandbox.
#[derive(Debug)]
pub(super) struct Owners {
    /// The sandbox's root, as the host numbers it.
    pub(super) uid: u32,
    /// The sandbox's root group, as the host numbers it.
    pub(super) gid: u32,
    /// The user namespace; none when the host's users are kept.
    pub(super) namespace: Option<OwnedFd>,
    /// True if an ordinary user runs the sandbox, who is its only user (`rootless`).
    pub(super) is_rootless: bool,
}

impl Owners {
    /// The host's own users.
    pub(super) fn host() -> Self {
        Self { uid: 0, gid: 0, namespace: None, is_rootless: false }
    }

    /// A new user namespace with root's range from `/etc/subuid` and `/etc/subgid`.
    pub(super) fn fresh() -> Result<Self> {
        let (uid, gid) = (range("/etc/subuid"), range("/etc/subgid"));
        let namespace = Some(user_namespace(uid, gid, COUNT)?);
        Ok(Self { uid, gid, namespace, is_rootless: false })
    }

    /// A new user namespace with one user, who is root of the present one.
    pub(super) fn single() -> Result<Self> {
        let namespace = Some(user_namespace(0, 0, 1)?);
        Ok(Self { uid: 0, gid: 0, namespace, is_rootless: true })
    }
}

/// Makes a user namespace with `count` users and groups, whose root has these numbers here.
fn user_namespace(uid: u32, gid: u32, count: u32) -> Result<OwnedFd> {
    let (ours, theirs) = Channel::pair()?;
    let child = match fork().context("cannot fork")? {
        Fork::Child => {
            drop(ours);
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            match nix::sched::unshare(CloneFlags::CLONE_NEWUSER) {
                Ok(()) => {
                    let _ = theirs.send(&Message::Built, &[]);
                    // Until the parent hangs up.
                    let _ = theirs.receive();
                }
                Err(error) => theirs.fail(&anyhow::anyhow!(
                    "cannot make a user namespace: unshare: {error}: allow it in \
                         /proc/sys/user/max_user_namespaces or use --no-userns"
                )),
            }
            std::process::exit(0);
        }
        Fork::Parent(child) => child,
    };
    drop(theirs);
    let namespace = ours.expect(&Message::Built).and_then(|()| {
        let write = |file: &str, base: u32| {
            let path = format!("/proc/{child}/{file}");
            std::fs::write(&path, format!("0 {base} {count}\n"))
                .with_context(|| format!("cannot map ids from {base} on: write {path}"))
        };
        write("uid_map", uid)?;
        write("gid_map", gid)?;
        let path = format!("/proc/{child}/ns/user");
        Ok(OwnedFd::from(File::open(&path).with_context(|| format!("cannot open {path}"))?))
    });
    drop(ours);
    waitpid(child, None).context("cannot wait for a child: waitpid")?;
    namespace
}

/// Root's range in a file of subordinate ids, when it is large enough.
fn range(file: &str) -> u32 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    parse_range(&text).unwrap_or(BASE)
}

fn parse_range(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (owner, base, count) = (fields.next()?, fields.next()?, fields.next()?);
        let (base, count) = (base.parse::<u32>().ok()?, count.trim().parse::<u32>().ok()?);
        let fits = count >= COUNT && base.checked_add(COUNT).is_some();
        (matches!(owner, "root" | "0") && base > 0 && fits).then_some(base)
    })
}

/// Becomes root of the sandbox's user namespace, with every capability in it.
pub(super) fn become_root_in(namespace: &OwnedFd, is_rootless: bool) -> Result<()> {
    use nix::unistd::{Gid, Uid};

    nix::sched::setns(namespace, CloneFlags::CLONE_NEWUSER)
        .context("cannot enter the user namespace: setns")?;
    // An ordinary user's groups stay, and can be mapped nowhere.
    if !is_rootless {
        nix::unistd::setgroups(&[]).context("cannot drop groups: setgroups")?;
    }
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(group, group, group).context("cannot change group: setresgid")?;
    nix::unistd::setresuid(user, user, user).context("cannot change user: setresuid")?;
    // Changing ids makes a process undumpable, and its /proc files then belong to the host.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .context("cannot become dumpable: prctl")?;
    Ok(())
}

/// Makes new files belong to the sandbox's root for as long as it lives. Needed on idmapped
/// mounts, where the host's root has no number that could be stored.
#[derive(Debug)]
pub(super) struct ActingAs(());

impl ActingAs {
    pub(super) fn root_of(owners: &Owners) -> Result<Self> {
        use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

        let (user, group) = (Uid::from_raw(owners.uid), Gid::from_raw(owners.gid));
        setfsgid(group);
        setfsuid(user);
        let acting = Self(());
        // setfsuid(2) has no error: asking again shows whether it worked.
        if setfsuid(user) != user || setfsgid(group) != group {
            bail!("cannot act as user {user}: setfsuid");
        }
        Ok(acting)
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
        nix::unistd::setfsgid(nix::unistd::Gid::from_raw(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_range_is_found_by_name_or_number() {
        assert_eq!(parse_range("alice:100000:65536\nroot:500000:65536\n"), Some(500_000));
        assert_eq!(parse_range("0:300000:1000000"), Some(300_000));
    }

    #[test]
    fn ranges_that_are_too_small_or_overflow_are_passed_over() {
        for text in ["", "root:100000:1000", "root:4294967000:65536", "root:x:65536", "root"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
        assert_eq!(parse_range("root:100000:10\nroot:200000:65536"), Some(200_000));
    }
}
