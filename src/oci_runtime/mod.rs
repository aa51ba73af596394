//! `ambit oci-runtime`, or ambit under the name `ambit-runtime`, `runc` or `crun`: equips the
//! container that an engine is about to create, and then **is** the OCI runtime (execve).
//!
//! For `create` and `run` it merges the hook and the seccomp profile into the bundle's config.json
//! (`bundle.rs`). It changes nothing else: arguments, descriptors, environment, signals, output and
//! exit status are the runtime's. It never keeps a container from starting: what it cannot do is
//! logged. Start reading at [`run`].

mod arguments;
mod bundle;
mod fuse_device;
mod program;

pub(crate) use program::own as own_program;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ambit_kernel::output::{complain, one_line};
use anyhow::bail;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::config::Config;
use crate::hook::log;

/// How long a socket may refuse connections because too many wait there.
const DEADLINE: Duration = Duration::from_millis(500);

/// The inode of the machine's first user namespace (`PROC_USER_INIT_INO` of
/// include/linux/proc_ns.h).
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// The arguments of `ambit oci-runtime`.
#[derive(Debug, clap::Args)]
pub struct RuntimeArgs {
    /// The OCI runtime: a name such as crun, or a path [default: attach.runtime of the
    /// configuration, or else runc, or else crun]
    #[arg(long, value_name = "NAME|PATH")]
    runtime: Option<PathBuf>,
    /// The arguments of the runtime
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    args: Vec<OsString>,
}

/// Returns the arguments if the program has the name of a runtime.
pub fn by_its_name(args: &[OsString]) -> Option<RuntimeArgs> {
    let (name, args) = args.split_first()?;
    let runtime = match Path::new(name).file_name().and_then(OsStr::to_str)? {
        name @ ("runc" | "crun") => Some(name.into()),
        "ambit-runtime" => None,
        _ => return None,
    };
    Some(RuntimeArgs { runtime, args: args.to_vec() })
}

/// Equips the container if the arguments create one, and becomes the runtime. `file` is the
/// configuration that was named. Returns only if there is no runtime.
pub fn run(args: &RuntimeArgs, file: Option<&Path>) -> ExitCode {
    let config = Config::load(file).map_err(anyhow::Error::from);
    let configured = config.as_ref().ok().and_then(|config| config.attach.runtime.clone());
    let runtime = match program::find(args.runtime.clone().or(configured).as_deref()) {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("ambit: oci-runtime: {}", one_line(&error)));
            return ExitCode::from(127);
        }
    };
    if let Some(start) = arguments::parse(&args.args) {
        match config.and_then(|config| equip(&start.config, &config, file)) {
            Ok(None) => {}
            Ok(Some(note)) => say(&start, &note),
            Err(error) => {
                let follows =
                    "the container shows the machine's numbers until `ambit attach --all`";
                say(&start, &format!("{}; {follows}", one_line(&error)));
            }
        }
    }
    // Not `execv` of nix: Rust's runtime ignores SIGPIPE, and `exec` sets it back.
    let error = Command::new(&runtime).arg0(&runtime).args(&args.args).exec();
    complain(format_args!("ambit: oci-runtime: cannot run {}: {error}", runtime.display()));
    ExitCode::from(126)
}

/// Logs a line. Standard error of `create` is that of the container, so it is used for `run`, and
/// where there is no log.
fn say(start: &arguments::Start, text: &str) {
    let text = format!("oci-runtime: {text}");
    if !log::send(log::WARNING, &text) || start.is_run {
        complain(format_args!("ambit: {text}"));
    }
}

/// Merges hook and profile into a config.json. Returns what cannot be merged.
fn equip(path: &Path, config: &Config, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let wanted = bundle::Wanted { config, hook: crate::drop_in::hook(&program::own()?, file) };
    if let Err(reason) = is_root().and_then(|()| is_served(&config.socket("oci.sock"))) {
        // It may have been merged when the daemon was there: the runtime would not start it now.
        bundle::change(path, |spec| wanted.withdraw(spec))?;
        return Err(reason);
    }
    bundle::change(path, |spec| wanted.merge(spec))
}

/// # Errors
/// This process is not the machine's root, and only that may connect to the sockets.
fn is_root() -> anyhow::Result<()> {
    let is_first = match std::fs::metadata("/proc/self/ns/user") {
        Ok(namespace) => namespace.ino() == FIRST_USER_NAMESPACE,
        // A kernel without user namespaces.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if !rustix::process::geteuid().is_root() || !is_first {
        bail!("only containers of root are equipped at their start");
    }
    Ok(())
}

fn is_served(path: &Path) -> anyhow::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let address = SocketAddrUnix::new(path)?;
    let start = Instant::now();
    loop {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(()),
            // Too many connections wait.
            Err(Errno::AGAIN | Errno::INTR) if start.elapsed() < DEADLINE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => bail!("{}: {error}: does the daemon run?", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{bind, listen};

    use super::*;

    #[test]
    fn a_name_of_a_runtime_is_recognized() {
        let named = |name: &str| {
            by_its_name(&[name.into(), "--version".into()]).map(|args| (args.runtime, args.args))
        };
        let version = vec![OsString::from("--version")];
        assert_eq!(named("/usr/libexec/ambit/runc"), Some((Some("runc".into()), version.clone())));
        assert_eq!(named("crun"), Some((Some("crun".into()), version.clone())));
        assert_eq!(named("/usr/bin/ambit-runtime"), Some((None, version)));
        assert_eq!(named("/usr/bin/ambit"), None);
        assert!(by_its_name(&[]).is_none());
    }

    #[test]
    fn a_socket_that_does_not_accept_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("oci.sock");
        let said = is_served(&path).unwrap_err().to_string();
        assert!(said.contains("does the daemon run?"), "{said}");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert!(is_served(&path).is_err(), "nothing listens yet");
        listen(&socket, 0).unwrap();
        is_served(&path).unwrap();
        // Nothing accepts, and one connection waits already.
        assert!(is_served(&path).is_err());
    }

    #[test]
    fn without_a_daemon_the_bundle_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let text = r#"{ "root": {"path": "x"}, "linux": {} }"#;
        std::fs::write(&path, text).unwrap();
        let mut config = Config::default();
        config.daemon.runtime_dir = folder.path().to_owned();
        // The reason depends on who runs the tests.
        assert!(equip(&path, &config, None).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
