//! The hooks of liblxc, which run in the machine's namespaces as the user who starts the container.
//!
//! `pre-start` runs before liblxc reads the seccomp profile. It leaves the shared profile at
//! `lxc.seccomp` in the daemon's folder: one that reports calls to ambit if the daemon's socket is
//! there, or else liblxc's own. Without that, containers would not start while ambit is down,
//! because liblxc insists on the socket.
//!
//! `start-host` runs when the container's mounts are made and its root is changed, and just before
//! its init is executed. The daemon attaches the files, because this process is in the machine's
//! namespaces.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ambit_worker::attach::Report;
use anyhow::{Context, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::Done;
use crate::config::Config;
use crate::{control, profile};

/// The profile of containers that have no other.
const COMMON: &str = "/usr/share/lxc/config/common.seccomp";

/// Returns the path of the seccomp profile that LXC containers share.
pub fn profile_path(config: &Config) -> PathBuf {
    config.socket("lxc.seccomp")
}

/// Runs the hook of this kind. liblxc tells it as the third argument, or in the environment with
/// `lxc.hook.version = 1`.
pub(super) fn run(arguments: &[OsString], config: &Config) -> anyhow::Result<Done> {
    let kind = arguments.get(2).cloned().or_else(|| std::env::var_os("LXC_HOOK_TYPE"));
    match kind.as_deref().and_then(OsStr::to_str) {
        Some("pre-start") => {
            leave_profile(config, Path::new(COMMON))?;
            Ok(Done::Silent)
        }
        Some("start-host") => attach(config),
        Some(other) => bail!("lxc.hook.{other} is no hook of ambit: pre-start and start-host are"),
        None => bail!("--lxc is for lxc.hook.pre-start and lxc.hook.start-host of liblxc"),
    }
}

/// Has the daemon attach the files to the container that is about to start.
fn attach(config: &Config) -> anyhow::Result<Done> {
    let pid = std::env::var("LXC_PID").context("LXC_PID is not set")?;
    let pid: u32 = pid.parse().with_context(|| format!("LXC_PID={pid:?} is no process id"))?;
    let name = std::env::var("LXC_NAME").unwrap_or_default();
    let name: String = name.chars().filter(|char| !char.is_control()).take(64).collect();
    // After those of lxcfs, whose hook has run in the container before.
    let question = format!("attach --replace {pid}");
    let report: Report = control::ask_for(&config.socket("control.sock"), &question)
        .with_context(|| format!("the container {name}"))?;
    if report.shown() == 0 {
        bail!("the container {name}: {report}");
    }
    Ok(Done::Equipped(format!("the container {name}: {report}")))
}

/// Leaves the shared profile when the daemon starts and ends: containers that users start read it, and
/// their hooks may not write it.
pub fn leave_shared_profile(config: &Config) {
    let base = Path::new(COMMON);
    if base.exists()
        && let Err(error) = leave_profile(config, base)
    {
        tracing::debug!("the profile of LXC containers is left as it is: {error:#}");
    }
}

/// Leaves the profile that fits: with ambit's rules only if its socket can be connected to.
fn leave_profile(config: &Config, base: &Path) -> anyhow::Result<()> {
    let is_served = is_served(&config.socket("lxc.sock"));
    let own = match fs::read_to_string(base) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        read => Some(read.with_context(|| format!("cannot read {}", base.display()))?),
    };
    let text = match (is_served, own) {
        (true, own) => profile::shared_lxc(config, own.as_deref().map(|own| (base, own)))?,
        (false, Some(own)) => own,
        (false, None) => "2\ndenylist\n".to_owned(),
    };
    let path = profile_path(config);
    if fs::read_to_string(&path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    replace(&path, &text).with_context(|| format!("cannot write {}", path.display()))
}

fn is_served(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let address = SocketAddrUnix::new(path);
    match (socket, address) {
        (Ok(socket), Ok(address)) => connect(&socket, &address).is_ok(),
        _ => false,
    }
}

/// Replaces a file in one step: other containers may be starting.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".lxc.seccomp.{}", std::process::id()));
    fs::write(&temporary, text)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_reports_calls_only_while_the_socket_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs::write(&base, "2\ndenylist\n[all]\nkexec_load errno 1\n").unwrap();
        let mut config = Config::default();
        config.daemon.runtime_dir = folder.path().join("run");
        let left = |config: &Config| {
            leave_profile(config, &base).unwrap();
            fs::read_to_string(profile_path(config)).unwrap()
        };
        assert_eq!(left(&config), fs::read_to_string(&base).unwrap());
        let kind = SocketType::SEQPACKET;
        let socket = rustix::net::socket(AddressFamily::UNIX, kind, None).unwrap();
        let address = SocketAddrUnix::new(config.socket("lxc.sock")).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        // Nothing listens yet.
        assert_eq!(left(&config), fs::read_to_string(&base).unwrap());
        rustix::net::listen(&socket, 8).unwrap();
        let text = left(&config);
        assert!(text.contains("kexec_load errno 1") && text.contains("sysinfo notify"), "{text}");
        drop(socket);
        assert_eq!(left(&config), fs::read_to_string(&base).unwrap());
        let entries = fs::read_dir(&config.daemon.runtime_dir).unwrap().count();
        assert_eq!(entries, 2, "the profile and the socket");
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        let kind = ["name", "lxc", "mount"].map(OsString::from);
        let error = run(&kind, &Config::default()).map(drop).unwrap_err().to_string();
        assert!(error.contains("lxc.hook.mount is no hook of ambit"), "{error}");
    }
}
