//! The command line of lxcfs: short options that can be joined, and long ones with `=` or a blank,
//! before or after the mount point.
//!
//! Options of all versions of lxcfs are accepted, so that no unit file or hook must be changed.
//! Options without a meaning here are ignored, some of them with a notice.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The action of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Serve(Serve),
    Version,
    /// Print the usage, because of `-h` or because the mount point is missing.
    Usage,
    /// Usage error: two options exclude each other, or a value is missing.
    Wrong(String),
}

/// The options of serving.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option")]
pub struct Serve {
    pub mount: PathBuf,
    pub pid_file: PathBuf,
    /// Log more.
    pub debug: bool,
    /// Show containers their own load averages, not the machine's.
    pub loadavg: bool,
    pub no_swap: bool,
    /// Hide compressed swap.
    pub no_zswap: bool,
    /// Cap processors by the quota.
    pub cfs: bool,
    /// Allow triggers on pressure files.
    pub psi_poll: bool,
    /// Notices about ignored options.
    pub notices: Vec<String>,
}

/// Parses the arguments after the program's name.
pub fn parse(args: Vec<OsString>) -> Request {
    let mut parser = Parser { args: args.into_iter(), ..Parser::default() };
    parser.all().and_then(|()| parser.finish()).unwrap_or_else(|request| request)
}

#[derive(Default)]
struct Parser {
    args: std::vec::IntoIter<OsString>,
    mounts: Vec<PathBuf>,
    pid_file: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    foreground: bool,
    serve: Serve,
}

impl Parser {
    fn all(&mut self) -> Result<(), Request> {
        while let Some(arg) = self.args.next() {
            let bytes = arg.as_bytes();
            match bytes {
                b"--" => self.mounts.extend(self.args.by_ref().map(PathBuf::from)),
                [b'-', b'-', long @ ..] => self.long(long)?,
                [b'-', short @ ..] if !short.is_empty() => self.short(short)?,
                _ => self.mounts.push(arg.into()),
            }
        }
        Ok(())
    }

    fn long(&mut self, option: &[u8]) -> Result<(), Request> {
        let mut halves = option.splitn(2, |&byte| byte == b'=');
        let name = String::from_utf8_lossy(halves.next().unwrap_or_default()).into_owned();
        let value = halves.next();
        match &*name {
            "debug" => self.serve.debug = true,
            "foreground" => self.foreground = true,
            "help" => return Err(Request::Usage),
            "version" => return Err(Request::Version),
            "enable-loadavg" => self.serve.loadavg = true,
            "disable-swap" => self.serve.no_swap = true,
            "disable-zswap" => self.serve.no_zswap = true,
            "enable-cfs" => self.serve.cfs = true,
            "pidfile" => self.pid_file = Some(self.value("--pidfile", value)?),
            "runtime-dir" => self.runtime_dir = Some(self.value("--runtime-dir", value)?),
            "enable-psi-poll" => self.serve.psi_poll = true,
            // ambit always uses pidfds.
            "enable-pidfd" => {}
            "enable-cgroup" => {
                self.serve.notices.push("--enable-cgroup: /cgroup is not served".to_owned());
            }
            _ => self.serve.notices.push(format!("--{name} is ignored")),
        }
        Ok(())
    }

    fn short(&mut self, options: &[u8]) -> Result<(), Request> {
        for (at, option) in options.iter().enumerate() {
            // The value of an option follows at once or as the next argument.
            let rest = Some(&options[at + 1..]).filter(|rest| !rest.is_empty());
            match option {
                b'd' => self.serve.debug = true,
                b'f' => self.foreground = true,
                b'h' => return Err(Request::Usage),
                b'v' => return Err(Request::Version),
                b'l' => self.serve.loadavg = true,
                b'u' => self.serve.no_swap = true,
                b's' => {}
                b'p' => {
                    self.pid_file = Some(self.value("-p", rest)?);
                    return Ok(());
                }
                b'o' => {
                    let options = self.value("-o", rest)?;
                    self.serve.notices.push(format!("-o {} is ignored", options.display()));
                    return Ok(());
                }
                other => self.serve.notices.push(format!("-{} is ignored", char::from(*other))),
            }
        }
        Ok(())
    }

    fn value(&mut self, option: &str, joined: Option<&[u8]>) -> Result<PathBuf, Request> {
        let value = joined.map(|value| OsString::from_vec(value.to_vec()));
        let value = value.or_else(|| self.args.next());
        value.map(PathBuf::from).ok_or_else(|| Request::Wrong(format!("{option} needs a value")))
    }

    fn finish(self) -> Result<Request, Request> {
        if self.serve.debug && self.foreground {
            return Err(Request::Wrong("-d and -f exclude each other".to_owned()));
        }
        let [mount] = <[PathBuf; 1]>::try_from(self.mounts).map_err(|_| Request::Usage)?;
        let runtime_dir = self.runtime_dir.unwrap_or_else(|| "/run".into());
        let pid_file = self.pid_file.unwrap_or_else(|| runtime_dir.join("lxcfs.pid"));
        Ok(Request::Serve(Serve { mount, pid_file, ..self.serve }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of(line: &str) -> Request {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    fn serve(line: &str) -> Serve {
        match of(line) {
            Request::Serve(serve) => serve,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn options_are_accepted_in_every_form() {
        let plain = serve("/var/lib/lxcfs");
        assert_eq!(plain.mount, Path::new("/var/lib/lxcfs"));
        assert_eq!(plain.pid_file, Path::new("/run/lxcfs.pid"));
        assert!(!plain.loadavg && !plain.no_swap && !plain.cfs && plain.notices.is_empty());
        for line in ["-p /a /m", "-p/a /m", "--pidfile=/a /m", "--pidfile /a /m", "/m -lp /a"] {
            assert_eq!(serve(line).pid_file, Path::new("/a"), "{line}");
        }
        let all = serve("-flus --enable-cfs --enable-pidfd --runtime-dir /r /m");
        assert!(all.loadavg && all.no_swap && all.cfs && all.notices.is_empty());
        let newer = serve("--enable-psi-poll --disable-zswap /m");
        assert!(newer.no_zswap && newer.psi_poll && !newer.no_swap && newer.notices.is_empty());
        assert_eq!(all.pid_file, Path::new("/r/lxcfs.pid"));
    }

    #[test]
    fn options_without_a_meaning_have_a_notice() {
        let serve = serve("-o allow_other,nonempty --enable-cgroup --from-the-future -z /m");
        assert_eq!(serve.notices.len(), 4, "{:?}", serve.notices);
        assert_eq!(serve.notices[0], "-o allow_other,nonempty is ignored");
    }

    #[test]
    fn usage_version_and_usage_errors_are_recognised() {
        assert_eq!(of(""), Request::Usage);
        assert_eq!(of("-f -h /m"), Request::Usage);
        assert_eq!(of("/a /b"), Request::Usage);
        assert_eq!(of("--version"), Request::Version);
        assert!(matches!(of("-d -f /m"), Request::Wrong(_)));
        assert!(matches!(of("/m -p"), Request::Wrong(_)));
    }
}
