//! The command line of runc and crun: whether it creates a container, and of which bundle.
//!
//! runc takes options with one dash too (urfave/cli). Neither takes options behind the container's
//! id. An option that is not known here has no value of its own; if it has one, no command is found,
//! and the container is not equipped.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Options before the command that have a value.
const GLOBAL: &[&str] =
    &["root", "log", "log-format", "log-level", "criu", "rootless", "cgroup-manager"];

/// Options of `create` and `run` that have a value.
const COMMAND: &[&str] =
    &["bundle", "b", "config", "f", "console-socket", "pid-file", "pidfd-socket", "preserve-fds"];

/// A command that creates a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The path of its config.json.
    pub(super) config: PathBuf,
    /// True for `run`, which waits for the container.
    pub(super) is_run: bool,
}

/// Returns the container that these arguments create. `None` for all other commands.
pub(super) fn parse(args: &[OsString]) -> Option<Start> {
    let mut args = args.iter();
    let command = options(&mut args, GLOBAL, |_, _| ())?;
    let is_run = match command.to_str()? {
        "create" => false,
        "run" => true,
        _ => return None,
    };
    let (mut bundle, mut config) = (PathBuf::from("."), PathBuf::from("config.json"));
    options(&mut args, COMMAND, |name, value| match name {
        b"bundle" | b"b" => bundle = value.into(),
        // Of crun: another name of the file.
        b"config" | b"f" => config = value.into(),
        _ => {}
    });
    Some(Start { config: bundle.join(config), is_run })
}

/// Reads options, and returns the first argument that is none.
fn options<'a>(
    args: &mut impl Iterator<Item = &'a OsString>,
    with_value: &[&str],
    mut take: impl FnMut(&[u8], &Path),
) -> Option<&'a OsStr> {
    while let Some(arg) = args.next() {
        let Some(name) = arg.as_bytes().strip_prefix(b"-").filter(|name| !name.is_empty()) else {
            return Some(arg);
        };
        if name == b"-" {
            return args.next().map(OsString::as_os_str);
        }
        let is_short = !name.starts_with(b"-");
        let name = name.strip_prefix(b"-").unwrap_or(name);
        let path = |bytes| Path::new(OsStr::from_bytes(bytes));
        let has_value = |name: &[u8]| with_value.iter().any(|one| one.as_bytes() == name);
        if let Some(at) = name.iter().position(|byte| *byte == b'=') {
            take(&name[..at], path(&name[at + 1..]));
        } else if has_value(name) {
            take(name, Path::new(args.next()?));
        } else if is_short && matches!(name, [_, b'/' | b'.', ..]) && has_value(&name[..1]) {
            // crun takes -b/folder.
            take(&name[..1], path(&name[1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<(String, bool)> {
        let args: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        let start = parse(&args)?;
        Some((start.config.to_str().unwrap().to_owned(), start.is_run))
    }

    #[test]
    fn the_bundle_of_create_and_run_is_found() {
        for (line, path) in [
            // containerd's shim.
            (
                "--root /run/r --log /b/log.json --log-format json --systemd-cgroup create \
                 --bundle /b --pid-file /b/init.pid --console-socket /tmp/c web",
                "/b/config.json",
            ),
            // conmon.
            (
                "--systemd-cgroup --root=/run/crun create --bundle=/b --pid-file p id",
                "/b/config.json",
            ),
            ("--root create create id", "./config.json"),
            ("--debug --log run create -b=b id --bundle /c", "b/config.json"),
            ("-root x -debug create -bundle /b id", "/b/config.json"),
            ("--cgroup-manager cgroupfs --log-level debug create -b /b -f other id", "/b/other"),
            ("create -b/b --config=/c.json id", "/c.json"),
            ("create --no-pivot --preserve-fds 3 -b ../b", "../b/config.json"),
            ("create -- id --bundle /b", "./config.json"),
            ("create", "./config.json"),
        ] {
            assert_eq!(parsed(line), Some((path.to_owned(), false)), "{line}");
        }
        assert_eq!(parsed("run --detach -b /b c"), Some(("/b/config.json".to_owned(), true)));
    }

    #[test]
    fn other_commands_create_nothing() {
        for line in [
            "",
            "--version",
            "--root",
            "--root create",
            "--root create start id",
            "start create",
            "exec id create",
            "--log run state id",
            "--unknown value create -b /b id",
            "- create",
            "restore --bundle /b id",
            "spec --bundle /b",
        ] {
            assert_eq!(parsed(line), None, "{line}");
        }
    }
}
