//! The command line of `ambit run`: names, help, and the parsers of its values.
//!
//! Every parser reports bad input in one line that has the allowed values. Nothing here accesses
//! the system, except to read which processors are online.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use ambit_sandbox::Bind;
use ambit_sysinfo::CpuSet;
use ambit_sysinfo::KernelFiles;
use clap::Args;

use crate::config::words;
use ambit_intercept::Policy;

/// Run a command in a fresh sandbox that sees its own limits.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The command runs as root of its own user namespace, with its own processes, mounts, host name, \
clocks and control group; the network is the host's. Its /proc and /sys show the limits given \
here. Without --rootfs it sees the host's files read-only, with a private writable /tmp, /run, \
/var/tmp and /dev.

An ordinary user has the same sandbox, with one user in it. Limits hold where a control group was \
delegated to the user, as by: systemd-run --user --scope -p Delegate=yes ambit run …

Examples:
  ambit run --memory 256M --cpus 1 -- free -m
  ambit run --memory 1G --bind \"$PWD\" -- make test

Exit status: that of the command; 128 plus the signal's number when a signal ended it; 125 when \
the sandbox could not be made; 126 when the command cannot be executed; 127 when it is not there.")]
pub struct RunArgs {
    /// Most memory it may use, such as 256M (binary units K, M, G, T)
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub memory: Option<u64>,

    /// Most swap it may use on top of --memory; without it, as much as --memory
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "memory")]
    pub swap: Option<u64>,

    /// Processor time it may use, in processors: 1.5 is one and a half
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub cpus: Option<f64>,

    /// Processors it may run on, such as 0-3,8
    #[arg(long, value_name = "LIST", value_parser = cpuset)]
    pub cpuset: Option<CpuSet>,

    /// Most processes and threads it may have, the sandbox's own init included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub pids: Option<u32>,

    /// System calls that are answered: names and settings, such as view,mknod,mknod.bind; "none"
    /// for none, "view" for sysinfo and sched_getaffinity [default: view,proc; view without root]
    #[arg(long, value_name = "LIST", value_parser = intercept)]
    pub intercept: Option<Intercept>,

    /// Folder to use as its root, writable, in place of the host's files
    #[arg(long, value_name = "DIR", value_parser = folder)]
    pub rootfs: Option<PathBuf>,

    /// Show SRC of the host at DST, writable unless ":ro"; DST is SRC when left out
    #[arg(long, value_name = "SRC[:DST[:ro]]", value_parser = bind)]
    pub bind: Vec<Bind>,

    /// Device of the host, below /dev, that it may use, such as /dev/fuse
    #[arg(long, value_name = "PATH", value_parser = device)]
    pub device: Vec<PathBuf>,

    /// Its host name; run-PID when left out
    #[arg(long, value_name = "NAME", value_parser = hostname)]
    pub hostname: Option<String>,

    /// Keep the host's users: root in it is the host's root, with few capabilities
    #[arg(long)]
    pub no_userns: bool,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text} is not a size: use a number with K, M, G or T, such as 256M");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(wrong()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    // The kernel counts in signed 64 bits.
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| format!("{text} is more than any machine has: use less than 8388608T"))
}

fn memory_size(text: &str) -> Result<u64, String> {
    // Below this the kernel kills the sandbox's init before the command starts.
    const LEAST: u64 = 1 << 20;
    match size(text)? {
        bytes if bytes < LEAST => {
            Err(format!("{text} is too little to start anything: use 1M or more"))
        }
        bytes => Ok(bytes),
    }
}

fn cpus(text: &str) -> Result<f64, String> {
    // The kernel's least quota is 1 ms in a period of 100 ms.
    match text.parse::<f64>() {
        Ok(number) if (0.01..=8192.0).contains(&number) => Ok(number),
        _ => Err(format!("{text} is not a number of processors: use 0.01 or more, such as 1.5")),
    }
}

fn cpuset(text: &str) -> Result<CpuSet, String> {
    let wanted = CpuSet::parse(text.as_bytes())
        .filter(|set| !set.is_empty())
        .ok_or_else(|| format!("{text} is not a list of processors: use numbers such as 0-3,8"))?;
    let file = "/sys/devices/system/cpu/online";
    let mut online = Vec::new();
    KernelFiles::sysfs()
        .and_then(|sys| sys.read("devices/system/cpu/online", &mut online))
        .map_err(|error| format!("cannot read {file}: {error}"))?;
    let online = CpuSet::parse(&online).ok_or_else(|| format!("{file} is not a list"))?;
    if wanted.intersection(&online) != wanted {
        return Err(format!("{text} is not all there: this machine has processors {online}"));
    }
    Ok(wanted)
}

/// The value of `--intercept`.
#[derive(Debug, Clone)]
pub struct Intercept {
    pub policy: Policy,
    /// The first setting in the list, if there is one; without any, those of the configuration
    /// apply.
    pub setting: Option<String>,
}

/// What is answered if nothing is asked for. A procfs is mounted with rights that only root has.
pub(super) fn default_intercept(is_root: bool) -> Intercept {
    let names = if is_root { "view,proc" } else { "view" };
    intercept(names).expect("these are names of calls")
}

fn intercept(text: &str) -> Result<Intercept, String> {
    if text == "none" {
        return Ok(Intercept { policy: Policy::none(), setting: None });
    }
    let words = text.split(',').map(str::trim);
    let name = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let setting = words.map(name).find(|word| words::is_setting(word));
    Ok(Intercept { policy: words::parse(text)?, setting })
}

fn folder(text: &str) -> Result<PathBuf, String> {
    let path = resolve(text)?;
    if path.is_dir() { Ok(path) } else { Err(format!("{text} is not a folder")) }
}

fn bind(text: &str) -> Result<Bind, String> {
    let mut parts = text.split(':');
    let source = parts.next().unwrap_or_default();
    let (target, mode) = (parts.next(), parts.next());
    if source.is_empty() || parts.next().is_some() {
        return Err(format!("{text} is not SRC, SRC:DST or SRC:DST:ro"));
    }
    let read_only = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(format!("{other} is not ro or rw, in {text}")),
    };
    let place = resolve(source)?;
    let target = match target {
        // The target is the source as given, unless that has a `..`, whose meaning depends on
        // links.
        None | Some("") => std::path::absolute(source)
            .ok()
            .filter(|path| !path.components().any(|part| part == Component::ParentDir))
            .unwrap_or_else(|| place.clone()),
        Some(target) => PathBuf::from(target),
    };
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if !target.is_absolute() || target == Path::new("/") || !target.components().all(plain) {
        return Err(format!(
            "{} is not a place in the sandbox: use an absolute path below / without ..",
            target.display()
        ));
    }
    Ok(Bind { source: place, target, read_only })
}

fn device(text: &str) -> Result<PathBuf, String> {
    use std::os::unix::fs::FileTypeExt;

    let path = resolve(text)?;
    let kind = std::fs::metadata(&path).map_err(|error| format!("{text}: {error}"))?.file_type();
    if !path.starts_with("/dev") || !(kind.is_block_device() || kind.is_char_device()) {
        return Err(format!("{text} is not a device below /dev"));
    }
    Ok(path)
}

fn hostname(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if text.is_empty() || text.len() > 64 || !text.bytes().all(good) {
        return Err(format!("{text} is not a host name: use up to 64 letters, digits, - and ."));
    }
    Ok(text.to_owned())
}

fn resolve(text: &str) -> Result<PathBuf, String> {
    std::fs::canonicalize(text).map_err(|error| format!("{text}: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(words: &[&str]) -> Result<RunArgs, clap::Error> {
        Line::try_parse_from([&["run"], words].concat()).map(|line| line.run)
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("5k", 5120),
            ("256M", 256 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn an_invalid_size_is_an_error_that_names_the_units() {
        assert_eq!(
            size("5X").unwrap_err(),
            "5X is not a size: use a number with K, M, G or T, such as 256M"
        );
        for bad in ["", "M", "-1", "1.5G", "5MB", "5 M", "0x10"] {
            assert!(size(bad).unwrap_err().contains("is not a size"), "{bad}");
        }
        assert!(size("99999999T").unwrap_err().contains("more than any machine"));
        assert!(memory_size("4K").unwrap_err().contains("too little"));
    }

    #[test]
    fn processors_are_numbers_above_zero() {
        assert_eq!(cpus("1.5"), Ok(1.5));
        for bad in ["0", "-1", "x", "nan", "inf", ""] {
            assert!(cpus(bad).unwrap_err().contains("number of processors"), "{bad}");
        }
    }

    #[test]
    fn processors_must_be_online() {
        assert_eq!(cpuset("0").unwrap().to_string(), "0");
        assert!(cpuset("0,8191").unwrap_err().contains("this machine has processors 0"));
        assert!(cpuset("a").unwrap_err().contains("is not a list"));
        assert!(cpuset("").unwrap_err().contains("is not a list"));
    }

    #[test]
    fn intercepts_default_to_those_that_show_limits() {
        assert!(parse(&["--", "true"]).unwrap().intercept.is_none());
        let names = |is_root| default_intercept(is_root).policy.names().collect::<Vec<_>>();
        assert_eq!(names(true), ["sysinfo", "sched_getaffinity", "proc"]);
        assert_eq!(names(false), ["sysinfo", "sched_getaffinity"]);
        let none = parse(&["--intercept", "none", "true"]).unwrap().intercept.unwrap();
        assert_eq!(none.policy, Policy::none());
        assert!(intercept("sysinf").unwrap_err().contains("did you mean sysinfo?"));
    }

    #[test]
    fn settings_are_distinguished_from_calls() {
        let both = intercept("mount,mount.allowed=ext4,mknod").unwrap();
        assert_eq!(both.setting.as_deref(), Some("mount.allowed"));
        assert_eq!(both.policy.names().collect::<Vec<_>>(), ["mknod", "mount"]);
        assert!(intercept("mount").unwrap().setting.is_none());
    }

    #[test]
    fn binds_have_up_to_three_parts() {
        let same = bind("/usr/../usr").unwrap();
        assert_eq!((same.source, same.read_only), (PathBuf::from("/usr"), false));
        assert_eq!(same.target, Path::new("/usr"));
        let other = bind("/usr:/mnt/usr:ro").unwrap();
        assert_eq!(other.target, Path::new("/mnt/usr"));
        assert!(other.read_only);
        for bad in [
            "",
            ":/x",
            "/usr:/x:ro:y",
            "/usr:x",
            "/usr:/",
            "/usr:/a/../b",
            "/usr:/x:maybe",
            "/nonexistent",
        ] {
            assert!(bind(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_relative_source_is_bound_at_its_absolute_path() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(bind(".").unwrap().target, here);
    }

    #[test]
    fn only_device_nodes_below_dev_are_accepted() {
        assert_eq!(device("/dev/null").unwrap(), Path::new("/dev/null"));
        assert!(device("/etc/passwd").unwrap_err().contains("not a device"));
    }

    #[test]
    fn swap_needs_memory_and_a_command_is_needed() {
        assert!(parse(&["--swap", "1G", "true"]).is_err());
        assert!(parse(&["--memory", "1G"]).is_err());
        let run = parse(&["--memory", "1G", "--swap", "0", "--", "ls", "-l", "--", "x"]).unwrap();
        assert_eq!(run.swap, Some(0));
        assert_eq!(run.command, ["ls", "-l", "--", "x"]);
    }

    #[test]
    fn options_after_the_command_belong_to_it() {
        let run = parse(&["ls", "--memory", "5X"]).unwrap();
        assert_eq!(run.command.len(), 3);
    }
}
