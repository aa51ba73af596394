//! The command line.

use crate::limits::Given;
use crate::text;

pub(crate) const HELP: &str = "\
Says whether what programs read inside a container agrees with itself and with
the container's limits. Run it inside the container.

Usage: ambit-verify [OPTIONS]

Limits are read from control group files. These options replace them; then the
numbers must be exactly these:
      --memory SIZE     512M, 1.5G, or bytes; the machine's size if that is less
      --swap SIZE       swap without memory
      --cpus NUMBER     a quota, such as 1.5
      --cpuset LIST     such as 0-1,4

      --no-calls        do not judge system calls: for a program that entered the
                        container from outside, without its seccomp filter
      --json            JSON instead of a table
      --junit[=FILE]    JUnit XML into a file, or instead of a table
  -h, --help
  -V, --version

Status: 0 nothing contradicts, 1 something does, 2 wrong usage or a failure.
";

/// What is asked for.
#[derive(Debug, PartialEq)]
pub(crate) enum Args {
    Help,
    Version,
    Verify(Options),
}

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) given: Given,
    /// System calls are not judged.
    pub(crate) no_calls: bool,
    pub(crate) json: bool,
    /// `Some(None)` is standard output.
    pub(crate) junit: Option<Option<String>>,
    /// Another folder than `/` with `proc` and `sys`, for tests: system calls are left out.
    pub(crate) root: Option<String>,
}

pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Args, String> {
    let given = Given::default();
    let mut options = Options { given, no_calls: false, json: false, junit: None, root: None };
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let (name, mut value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        let takes = ["--memory", "--swap", "--cpus", "--cpuset", "--root"].contains(&&*name);
        if takes || name == "--junit" {
            value = value.or_else(|| args.next_if(|next| !next.starts_with("--")));
        } else if value.is_some() {
            return Err(format!("{name} takes no value"));
        }
        let text = match (&value, takes) {
            (Some(text), _) => text.as_str(),
            (None, true) => return Err(format!("{name} needs a value")),
            (None, false) => "",
        };
        let wrong = |example: &str| format!("{name} {text:?} is not like {example}");
        match &*name {
            "-h" | "--help" => return Ok(Args::Help),
            "-V" | "--version" => return Ok(Args::Version),
            "--no-calls" => options.no_calls = true,
            "--json" => options.json = true,
            "--junit" => options.junit = Some(value.filter(|file| file != "-")),
            "--root" => options.root = value,
            "--memory" => {
                let bytes = text::parse_size(text).filter(|bytes| *bytes > 0);
                options.given.memory = Some(bytes.ok_or_else(|| wrong("512M"))?);
            }
            "--swap" => {
                options.given.swap =
                    Some(text::parse_size(text).ok_or_else(|| wrong("512M or 0"))?);
            }
            "--cpus" => {
                let quota = text::number(Some(text)).filter(|quota| *quota > 0.0);
                options.given.quota = Some(quota.ok_or_else(|| wrong("1.5"))?);
            }
            "--cpuset" => {
                let set = text::list(text).filter(|set| !set.is_empty());
                options.given.cpuset = Some(set.ok_or_else(|| wrong("0-1,4"))?);
            }
            _ => return Err(format!("unknown argument {name}; --help lists what there is")),
        }
    }
    if options.json && options.junit == Some(None) {
        return Err("--json and --junit cannot both go to standard output; use --junit=FILE".into());
    }
    Ok(Args::Verify(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &str) -> Result<Args, String> {
        parse(args.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_taken_in_both_forms() {
        let Ok(Args::Verify(options)) =
            of("--memory 512M --swap=0 --cpus 1.5 --cpuset 0-1 --junit out.xml --json")
        else {
            panic!()
        };
        assert_eq!((options.given.memory, options.given.swap), (Some(512 << 20), Some(0)));
        assert_eq!(options.given.quota, Some(1.5));
        assert_eq!((options.json, options.junit), (true, Some(Some("out.xml".into()))));
        let Ok(Args::Verify(options)) = of("--junit --cpus 1") else { panic!() };
        assert_eq!(options.junit, Some(None));
    }

    #[test]
    fn wrong_usage_is_an_error_that_says_what_is_right() {
        for (args, message) in [
            ("--memory", "--memory needs a value"),
            ("--memory 1X", "--memory \"1X\" is not like 512M"),
            ("--cpus 0", "--cpus \"0\" is not like 1.5"),
            ("--cpuset 3-1", "--cpuset \"3-1\" is not like 0-1,4"),
            ("--json=x", "--json takes no value"),
            ("file", "unknown argument file; --help lists what there is"),
        ] {
            assert_eq!(of(args), Err(message.into()));
        }
        assert!(of("--json --junit").is_err());
    }
}
