//! The configuration file (TOML): a struct for each section, every key with a default.
//!
//! The structs are declared with `settings!`, those of `[intercept]` next to the handlers. An
//! error names file, line and column, and the allowed values.

mod document;
pub mod layers;
pub mod print;
#[cfg(test)]
mod tests;
pub mod words;

pub use document::{Mistake, unknown_key, what_fits};

use std::io::Read;
use std::path::{Path, PathBuf};

use ambit_sysinfo::policy::{
    BootTime, CpuPolicy, MemoryLimit, PossibleCpus, StealPolicy, SwapPolicy, ViewOf, WeightFormula,
};
use ambit_worker::attach::Unmasked;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use ambit_intercept::settings::{self, settings};
use ambit_intercept::{Matcher, Policies, Policy};

/// The default path. The file need not exist.
pub const DEFAULT_PATH: &str = "/etc/ambit/ambit.toml";

/// The prefix of the settings' names in LXD and Incus.
pub const LXD: &str = "security.syscalls.intercept.";

/// The size limit in bytes.
const LARGEST: u64 = 1 << 20;

/// How many characters of an error are shown.
const LONGEST: usize = 400;

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `[daemon]`
    pub daemon: Daemon,
    /// `[overlay]`
    pub overlay: Overlay,
    /// `[attach]`
    pub attach: Attach,
    /// `[audit]`
    pub audit: Audit,
    /// `[intercept]` and `[[container]]`: which system calls are answered for which containers.
    pub policies: Policies,
}

settings! {
    /// The daemon itself.
    pub struct Daemon {
        /// The folder of the sockets `control.sock`, `oci.sock` and `lxc.sock`.
        pub runtime_dir: PathBuf = "/run/ambit".into();
        /// What is logged: `error`, `warn`, `info`, `debug` or `trace`.
        pub log: LogLevel = LogLevel::default();
        check Daemon::is_relative;
    }
}

settings! {
    /// The virtual files, and what they show.
    pub struct Overlay {
        /// The folder that the shared tree is mounted on.
        pub mount: PathBuf = "/var/lib/ambit".into();
        /// How many processors a container sees: `quota` is its cpuset, capped by its quota rounded
        /// up; `cpuset` is the cpuset alone; `weight` is as `quota`, and at most what its CPU shares
        /// or weight stand for, rounded up.
        pub cpu_view: CpuPolicy = CpuPolicy::default();
        /// How many CPU shares stand for one processor with `cpu_view = "weight"`.
        pub weight_base: u64 = 1024, within 2..=262_144;
        /// How container engines compute `cpu.weight` from CPU shares (cgroup v2): `quadratic` is
        /// runc since 1.3.2 and crun since 1.23; `linear` is earlier ones; `systemd` is systemd, LXD
        /// and Incus.
        pub weight_formula: WeightFormula = WeightFormula::default();
        /// What a container sees as stolen time: `none` is nothing; `throttled` is the time for
        /// which a quota kept it from running, which is idle time otherwise.
        pub steal: StealPolicy = StealPolicy::default();
        /// What `possible` in `/sys/devices/system/cpu` and `node` shows: `machine` is what
        /// programs with an entry for each processor need; `view` is what the container sees.
        pub possible: PossibleCpus = PossibleCpus::default();
        /// Which limit is a container's memory: `max` is `memory.max`; `high` is `memory.high`
        /// where it is below (cgroup v2).
        pub memory_limit: MemoryLimit = MemoryLimit::default();
        /// How much swap a container sees: `limit` is what it may use; `host` is the machine's size
        /// with the container's own usage; `none` is no swap.
        pub swap: SwapPolicy = SwapPolicy::default();
        /// Which boot time a container without a time namespace sees: `host` is the machine's,
        /// which `ps` needs; `container` is the start of its first process.
        pub btime: BootTime = BootTime::default();
        /// Whose numbers a process in a container sees: `container` is the container's; `caller` is
        /// its own control group's, for services with limits of their own.
        pub view_of: ViewOf = ViewOf::default();
        /// How many milliseconds the kernel may show a container its `/proc/meminfo` again without
        /// asking (Linux 6.9); 0: it always asks. For containers that are attached from now on.
        pub lease: u64 = 20, within 0..=100;
        /// The label of the files where the kernel has SELinux, which containers must be allowed to
        /// read. Empty: the files get no label of their own.
        pub selinux_context: String = "system_u:object_r:container_file_t:s0".into();
        /// How many threads serve files.
        pub threads: usize = 2, within 1..=8;
        check Overlay::is_relative;
    }
}

settings! {
    /// How `ambit attach`, hooks, the daemon and `ambit oci-runtime` equip containers.
    pub struct Attach {
        /// Attach the files to every container of an engine when it starts, and to all that run when
        /// the daemon starts, reads its configuration again, or mounts its files anew.
        pub auto: bool = false;
        /// Containers that `auto` leaves alone: each pattern fits the name or id of a container, or
        /// the path of its control group. Containers in them are left alone too.
        pub exclude: Vec<String> = Vec::new(), such as r#"["ci-*", "/kubepods/*"]"#;
        /// What is done where the whole of `/proc` or `/sys` is visible, which nested containers
        /// need: `keep` keeps a visible one at `/dev/.ambit`; `skip` leaves its files alone.
        pub unmasked: Unmasked = Unmasked::default();
        /// The OCI runtime that `ambit oci-runtime` becomes: a name or an absolute path. Without it
        /// `runc`, or else `crun`.
        pub runtime: Option<PathBuf> = None, such as r#""/usr/bin/crun""#;
    }
}

settings! {
    /// The log of calls that change something.
    pub struct Audit {
        /// A file that gets a line of JSON for each such call that was granted or refused. Its
        /// folder must exist.
        pub file: Option<PathBuf> = None, such as r#""/var/log/ambit/audit.log""#;
        check Audit::is_relative;
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl Daemon {
    fn is_relative(&self) -> Option<settings::WrongValue> {
        relative("runtime_dir", Some(&self.runtime_dir))
    }
}

impl Overlay {
    fn is_relative(&self) -> Option<settings::WrongValue> {
        relative("mount", Some(&self.mount))
    }
}

impl Audit {
    fn is_relative(&self) -> Option<settings::WrongValue> {
        relative("file", self.file.as_deref())
    }
}

fn relative(key: &str, path: Option<&Path>) -> Option<settings::WrongValue> {
    let path = path.filter(|path| !path.is_absolute())?;
    Some((key.to_owned(), format!("{path:?} is not possible: use an absolute path")))
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Content {
        path: PathBuf,
        line: usize,
        column: usize,
        /// The error, and the allowed values.
        reason: String,
    },
}

impl Config {
    /// Reads the named file, or the default one if that exists.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with_text(path).map(|(config, _)| config)
    }

    /// Like [`Self::load`], and also returns the text of the file.
    pub fn load_with_text(path: Option<&Path>) -> Result<(Self, String), ConfigError> {
        let text = read(path)?;
        let config = Self::parse(&text, path.unwrap_or(Path::new(DEFAULT_PATH)))?;
        Ok((config, text))
    }

    /// Reads a configuration of which only the paths of the daemon's sockets and files are valid if
    /// the rest of the file is not: an error in it must not keep `status` and `stop` from a running
    /// daemon. The second value is the error if not even `runtime_dir` could be read.
    pub fn places(path: Option<&Path>) -> Result<(Self, Option<ConfigError>), ConfigError> {
        let text = read(path)?;
        let error = match Self::parse(&text, path.unwrap_or(Path::new(DEFAULT_PATH))) {
            Ok(config) => return Ok((config, None)),
            Err(error) => error,
        };
        let (document, _) = toml::de::DeTable::parse_recoverable(&text);
        let folder = |section: &str, key: &str| {
            let section = document.get_ref().get(section)?.get_ref();
            let folder = PathBuf::from(section.get(key)?.get_ref().as_str()?);
            folder.is_absolute().then_some(folder)
        };
        let mut places = Self::default();
        if let Some(mount) = folder("overlay", "mount") {
            places.overlay.mount = mount;
        }
        let Some(runtime_dir) = folder("daemon", "runtime_dir") else {
            return Ok((places, Some(error)));
        };
        places.daemon.runtime_dir = runtime_dir;
        Ok((places, None))
    }

    /// Parses the text of a file. The path is used in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::read(text).map_err(|mistake| {
            let before = &text[..text.floor_char_boundary(mistake.at)];
            ConfigError::Content {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.chars().rev().take_while(|&c| c != '\n').count() + 1,
                // A quoted value may be long, and have line breaks.
                reason: mistake
                    .to_string()
                    .chars()
                    .map(|char| if char.is_control() { ' ' } else { char })
                    .take(LONGEST)
                    .collect(),
            }
        })
    }

    fn read(text: &str) -> Result<Self, Mistake> {
        let mut document = DeTable::parse(text).map_err(|error| syntax(&error, text))?.into_inner();
        let all = document::take_table(&mut document, "intercept")?.unwrap_or_default();
        let below = |mistake: Mistake| mistake.below("intercept");
        let mut config = Self {
            daemon: document::take(&mut document, "daemon")?,
            overlay: document::take(&mut document, "overlay")?,
            attach: document::take(&mut document, "attach")?,
            audit: document::take(&mut document, "audit")?,
            policies: Policies::for_all(layers::policy(&[&all]).map_err(below)?),
        };
        let sections = document.remove("container");
        for section in sections.map(sections_of).transpose()?.unwrap_or_default() {
            config.policies.sections.push(section_over(&all, section)?);
        }
        match document.iter().next() {
            None => Ok(config),
            Some((key, _)) => {
                let known = ["daemon", "overlay", "attach", "audit", "intercept", "container"];
                Err(Mistake::new(key.span().start, "", unknown_key(key.get_ref(), &known)))
            }
        }
    }

    /// Returns a message for each setting that is valid and has no effect.
    pub fn notes(&self) -> Vec<String> {
        let all = words::grant_nothing(&self.policies.all);
        let sections = self.policies.sections.iter().enumerate();
        let more = sections.flat_map(|(at, (_, policy))| {
            let reasons = words::grant_nothing(policy).into_iter();
            let more = reasons.filter(|reason| !all.contains(reason));
            more.map(move |reason| format!("[[container]] {}: {reason}", at + 1))
        });
        all.iter().map(|reason| format!("[intercept]: {reason}")).chain(more).collect()
    }

    /// A socket of the daemon.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.daemon.runtime_dir.join(name)
    }
}

/// Reads the named file, or the default one if that exists.
fn read(path: Option<&Path>) -> Result<String, ConfigError> {
    let wanted = path.unwrap_or(Path::new(DEFAULT_PATH));
    let read = || {
        let mut text = Vec::new();
        std::fs::File::open(wanted)?.take(LARGEST + 1).read_to_end(&mut text)?;
        if text.len() as u64 > LARGEST {
            return Err(std::io::Error::other("it has more than 1 MiB and is no configuration"));
        }
        String::from_utf8(text).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            std::io::Error::other(format!("line {line} is no text in UTF-8"))
        })
    };
    match read() {
        Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            Ok(String::new())
        }
        read => read.map_err(|source| ConfigError::Read { path: wanted.to_owned(), source }),
    }
}

/// Returns the error of the TOML parser, with a hint for common cases.
fn syntax(error: &toml::de::Error, text: &str) -> Mistake {
    let said = error.message().lines().collect::<Vec<_>>().join("; ");
    let at = error.span().map_or(0, |span| span.start);
    let before = &text[..text.floor_char_boundary(at)];
    let in_header = before.rsplit('\n').next().is_some_and(|line| line.starts_with('['));
    let hint = if said.contains("dotted key") || said.contains("duplicate key") && in_header {
        "; with settings, NAME = true is written NAME.enabled = true"
    } else {
        ""
    };
    Mistake::new(at, "", format!("{said}{hint}"))
}

/// Returns the tables of `[[container]]`, with their spans.
fn sections_of<'i>(
    value: toml::Spanned<DeValue<'i>>,
) -> Result<Vec<(usize, DeTable<'i>)>, Mistake> {
    let wrong =
        |at| Mistake::new(at, "container", "these are tables: write each below [[container]]");
    let at = value.span().start;
    let DeValue::Array(sections) = value.into_inner() else { return Err(wrong(at)) };
    let table = |section: toml::Spanned<DeValue<'i>>| {
        let at = section.span().start;
        match section.into_inner() {
            DeValue::Table(table) => Ok((at, table)),
            _ => Err(wrong(at)),
        }
    };
    sections.into_iter().map(table).collect()
}

/// Reads a section of `[[container]]`, laid over `[intercept]`.
fn section_over<'i>(
    all: &DeTable<'i>,
    (at, mut section): (usize, DeTable<'i>),
) -> Result<(Matcher, Policy), Mistake> {
    let below = |mistake: Mistake| mistake.below("container");
    let own = document::take_table(&mut section, "intercept").map_err(below)?.unwrap_or_default();
    let matcher: Matcher = document::read(section, &["intercept"]).map_err(below)?;
    if matcher.is_empty() {
        let keys = "id, cgroup, cookie, metadata or annotations";
        return Err(Mistake::new(at, "container", format!("say which these are: {keys}")));
    }
    let policy = layers::policy(&[all, &own]);
    Ok((matcher, policy.map_err(|mistake| below(mistake.below("intercept")))?))
}
