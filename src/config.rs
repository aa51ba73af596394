//! The configuration file (TOML): one struct per section, every key with a default.
//!
//! An unknown key, a value of the wrong kind or a name that is no system call is an error that
//! names file, line and column. The file is read by root only and decides nothing by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ambit_sysinfo::cpu::CpuPolicy;
use ambit_sysinfo::policy;
use serde::Deserialize;
use toml::Spanned;

use crate::intercept::{self, Words};
use crate::notify::{Matcher, Policies, Policy};

/// Read when `--config` names no other; it need not exist.
pub const DEFAULT_PATH: &str = "/etc/ambit/ambit.toml";

/// The whole configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[daemon]`
    pub daemon: Daemon,
    /// `[overlay]`
    pub overlay: Overlay,
    /// `[audit]`
    pub audit: Audit,
    /// `[intercept]`: names of system calls, each `true` or `false`, and what goes with them.
    intercept: Words,
    /// `[[container]]`: what is different for some.
    #[serde(rename = "container")]
    containers: Vec<Spanned<ContainerSection>>,
}

/// `[[container]]`: containers that are answered in another way. What is given fits, with `*` for
/// any text; the first section that fits counts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ContainerSection {
    id: Option<String>,
    metadata: Option<String>,
    cookie: Option<String>,
    cgroup: Option<String>,
    annotations: BTreeMap<String, String>,
    /// Changes what `[intercept]` says.
    intercept: Words,
}

impl ContainerSection {
    fn matcher(&self) -> Matcher {
        let Self { id, metadata, cookie, cgroup, annotations, .. } = self.clone();
        Matcher { id, metadata, cookie, cgroup, annotations }
    }
}

/// `[daemon]`: the process itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Daemon {
    /// Where the sockets are: `control.sock`, `oci.sock`, `lxc.sock`.
    pub runtime_dir: PathBuf,
    /// What is logged: `error`, `warn`, `info`, `debug` or `trace`.
    pub log: LogLevel,
}

/// `[audit]`: which acts of containers were granted and refused.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// The file that they are logged to, one line of JSON each; none by default.
    pub file: Option<PathBuf>,
}

/// `[overlay]`: the virtual files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overlay {
    /// Where the shared tree is mounted.
    pub mount: PathBuf,
    /// How many processors a container sees.
    pub cpu_view: CpuView,
    /// Which processors and memory nodes a container is told that there could be.
    pub possible: Possible,
    /// Which limit is a container's memory.
    pub memory_limit: MemoryLimit,
    /// How much swap a container sees.
    pub swap: Swap,
    /// Which boot time a container sees.
    pub btime: BootTime,
    /// Threads that serve files.
    pub threads: usize,
}

/// How many processors a container sees.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuView {
    /// Its cpuset, capped by its quota rounded up.
    #[default]
    Quota,
    /// Its cpuset.
    Cpuset,
}

/// Which processors and memory nodes a container is told that there could be.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Possible {
    /// The machine's: what programs with an entry for each processor need.
    #[default]
    Machine,
    /// Those it sees.
    View,
}

/// Which limit is a container's memory.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryLimit {
    /// `memory.max`.
    #[default]
    Max,
    /// `memory.high` where it is tighter.
    High,
}

/// How much swap a container sees.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Swap {
    /// What it may use.
    #[default]
    Limit,
    /// What the machine has, less its own usage.
    Host,
    /// None.
    None,
}

/// Which boot time a container without a time namespace sees.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootTime {
    /// The machine's.
    #[default]
    Host,
    /// When its first process started.
    Container,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
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

impl Default for Daemon {
    fn default() -> Self {
        Self { runtime_dir: "/run/ambit".into(), log: LogLevel::default() }
    }
}

impl Default for Overlay {
    fn default() -> Self {
        Self {
            mount: "/var/lib/ambit".into(),
            cpu_view: CpuView::default(),
            possible: Possible::default(),
            memory_limit: MemoryLimit::default(),
            swap: Swap::default(),
            btime: BootTime::default(),
            threads: 2,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Its content is wrong.
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl Config {
    /// Reads the named file, or the default one if that exists.
    ///
    /// # Errors
    /// The file cannot be read or its content is wrong.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with_text(path).map(|(config, _)| config)
    }

    /// The same, with the text of the file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_text(path: Option<&Path>) -> Result<(Self, String), ConfigError> {
        let text = read(path)?;
        let config = Self::parse(&text, path.unwrap_or(Path::new(DEFAULT_PATH)))?;
        Ok((config, text))
    }

    /// The configuration, of which only the places of the daemon's sockets and files are right if
    /// something else in the file is wrong: a mistake in it must not keep `status` and `stop` from a
    /// daemon that runs. The second value says what is wrong if the folder of the sockets was not
    /// found for it.
    ///
    /// # Errors
    /// The file cannot be read.
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

    /// Takes the text of a file; the path is for its errors.
    ///
    /// # Errors
    /// The content is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let error = |at: usize, reason: &str| {
            let before = &text[..text.floor_char_boundary(at)];
            ConfigError::Content {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.chars().rev().take_while(|&c| c != '\n').count() + 1,
                reason: reason.lines().collect::<Vec<_>>().join("; "),
            }
        };
        let config: Self = toml::from_str(text)
            .map_err(|e| error(e.span().map_or(0, |span| span.start), &with_hint(e.message())))?;
        config.build().map_err(|(at, reason)| error(at, &reason))?;
        for (key, path) in
            [("runtime_dir", &config.daemon.runtime_dir), ("mount", &config.overlay.mount)]
        {
            if !path.is_absolute() {
                let at = text.find(key).unwrap_or(0);
                return Err(error(at, &format!("{key} must be an absolute path")));
            }
        }
        if config.audit.file.as_ref().is_some_and(|file| !file.is_absolute()) {
            let at = text.find("file").unwrap_or(0);
            return Err(error(at, "file must be an absolute path"));
        }
        if !(1..=8).contains(&config.overlay.threads) {
            let at = text.find("threads").unwrap_or(0);
            return Err(error(at, "threads must be between 1 and 8"));
        }
        Ok(config)
    }

    /// Which system calls are answered, for all containers and for some.
    #[must_use]
    pub fn policies(&self) -> Policies {
        // Mistakes were refused when the file was read.
        self.build().unwrap_or_default()
    }

    /// Settings without effect, because the call they belong to is off wherever they hold. A setting
    /// of `[intercept]` may be there for a section that switches the call on.
    #[must_use]
    pub fn idle_settings(&self) -> Vec<String> {
        let Policies { all, sections } = self.policies();
        let sections: Vec<_> = sections.into_iter().map(|(_, policy)| policy).collect();
        let idle = |words: &Words, policies: &[&Policy]| {
            let settings = words.keys().filter_map(|word| {
                let setting = word.get_ref();
                let call = intercept::switch_of(setting)?;
                let is_on = policies.iter().any(|policy| policy.names().any(|name| name == call));
                (!is_on).then(|| format!("{setting} has no effect without {call} = true"))
            });
            settings.collect::<Vec<_>>()
        };
        let everywhere: Vec<_> = std::iter::once(&all).chain(&sections).collect();
        let mut idle_ones = idle(&self.intercept, &everywhere);
        for (section, policy) in self.containers.iter().zip(&sections) {
            idle_ones.extend(idle(&section.get_ref().intercept, &[policy]));
        }
        // Where one section has all that a call needs, it may be on elsewhere without it.
        let nothing = everywhere.iter().flat_map(|policy| intercept::grant_nothing(policy));
        let reasons: BTreeMap<_, _> = nothing.collect();
        for (call, reason) in reasons {
            let has_it = |policy: &&&Policy| policy.names().any(|name| name == call);
            let grants_nothing = |policy: &&Policy| {
                intercept::grant_nothing(policy).iter().any(|(idle, _)| *idle == call)
            };
            if everywhere.iter().filter(has_it).all(grants_nothing) {
                idle_ones.push(reason.to_owned());
            }
        }
        idle_ones
    }

    fn build(&self) -> Result<Policies, (usize, String)> {
        let all = intercept::apply(&self.intercept, Policy::default())?;
        let section = |section: &Spanned<ContainerSection>| {
            let (at, section) = (section.span().start, section.get_ref());
            let matcher = section.matcher();
            if matcher.is_empty() {
                let keys = "id, cgroup, cookie, metadata or annotations";
                return Err((at, format!("say which containers these are: {keys}")));
            }
            Ok((matcher, intercept::apply(&section.intercept, all.clone())?))
        };
        let sections = self.containers.iter().map(section).collect::<Result<_, _>>()?;
        Ok(Policies { all, sections })
    }

    /// A socket of the daemon.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.daemon.runtime_dir.join(name)
    }
}

/// The text of the named file, or of the default one if that exists.
fn read(path: Option<&Path>) -> Result<String, ConfigError> {
    let wanted = path.unwrap_or(Path::new(DEFAULT_PATH));
    match std::fs::read_to_string(wanted) {
        Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            Ok(String::new())
        }
        read => read.map_err(|source| ConfigError::Read { path: wanted.to_owned(), source }),
    }
}

impl From<CpuView> for CpuPolicy {
    fn from(view: CpuView) -> Self {
        match view {
            CpuView::Quota => Self::Quota,
            CpuView::Cpuset => Self::Cpuset,
        }
    }
}

impl From<Possible> for policy::Possible {
    fn from(possible: Possible) -> Self {
        match possible {
            Possible::Machine => Self::Machine,
            Possible::View => Self::View,
        }
    }
}

impl From<MemoryLimit> for policy::MemoryLimit {
    fn from(limit: MemoryLimit) -> Self {
        match limit {
            MemoryLimit::Max => Self::Max,
            MemoryLimit::High => Self::High,
        }
    }
}

impl From<Swap> for policy::SwapPolicy {
    fn from(swap: Swap) -> Self {
        match swap {
            Swap::Limit => Self::Limit,
            Swap::Host => Self::Host,
            Swap::None => Self::None,
        }
    }
}

impl From<BootTime> for policy::BootTime {
    fn from(btime: BootTime) -> Self {
        match btime {
            BootTime::Host => Self::Host,
            BootTime::Container => Self::Container,
        }
    }
}

/// What TOML says, and what is meant most likely.
fn with_hint(message: &str) -> String {
    let hint = match message.contains("dotted key") {
        true => "; a setting with a dot is quoted, such as \"mount.allowed\"",
        false => "",
    };
    format!("{message}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("a.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = parse("").unwrap();
        assert_eq!(config.overlay.mount, Path::new("/var/lib/ambit"));
        assert_eq!(config.socket("oci.sock"), Path::new("/run/ambit/oci.sock"));
        assert_eq!(config.policies().all.names().collect::<Vec<_>>(), ["sysinfo"]);
    }

    #[test]
    fn the_places_are_found_in_a_file_with_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        let places = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let (Config { daemon, overlay, .. }, error) = Config::places(Some(&file)).unwrap();
            let shown = [daemon.runtime_dir, overlay.mount].map(|path| path.display().to_string());
            (shown, error.map(|error| error.to_string()))
        };
        let (ours, usual) = (["/x", "/y"], ["/run/ambit", "/var/lib/ambit"]);
        let both = "[daemon]\nruntime_dir = \"/x\"\n[overlay]\nmount = \"/y\"\n";
        for wrong in ["", "mistake = 1\n", "mistake\n", "[intercept]\nmknod = {\n", "log = \"\n"] {
            assert_eq!(
                places(&format!("{both}{wrong}")),
                (ours.map(str::to_owned), None),
                "{wrong}"
            );
        }
        assert_eq!(places("[intercept\nx = 1\n[daemon]\nruntime_dir = '/x'\n").0[0], "/x");
        assert_eq!(places("[daemon]\nlog = \"info\"\n"), (usual.map(str::to_owned), None));
        let (paths, error) = places("[daemon\nruntime_dir = /x\n");
        assert!(paths == usual && error.clone().unwrap().contains("a.toml:1:"), "{error:?}");
        // It names another daemon than the usual one.
        assert!(Config::places(Some(&folder.path().join("none"))).is_err());
    }

    #[test]
    fn calls_are_switched_by_name() {
        let config = parse("[intercept]\nsysinfo = false\nsched_getaffinity = true\n").unwrap();
        assert_eq!(config.policies().all.names().collect::<Vec<_>>(), ["sched_getaffinity"]);
    }

    #[test]
    fn mounts_have_settings_of_their_own() {
        let text = "[intercept]\nmount = true\n\"mount.allowed\" = [\"xfs\"]\n\
                    \"mount.fuse\" = { ext4 = \"fuse2fs\" }\n\"mount.shift\" = true\n";
        let all = parse(text).unwrap().policies().all;
        let mounts = &all.settings().mount;
        assert_eq!((&*mounts.allowed, mounts.shift), (&["xfs".to_owned()][..], true));
        assert_eq!(mounts.fuse["ext4"], "fuse2fs");
        for (wrong, line) in [
            ("\"mount.allowd\" = [\"xfs\"]", "a.toml:2:1: mount.allowd is unknown; known are"),
            ("\"mount.allowed\" = true", "a.toml:2:1: mount.allowed: use a list"),
            ("\"mount.deadline\" = 100", "a.toml:2:1: mount.deadline must be"),
            ("mount = [\"ext4\"]", "a.toml:2:1: mount: use true or false"),
            ("mknod = \"yes\"", "a.toml:2:1: mknod: use true or false"),
            (
                "mount.shift = true",
                "a.toml:2:1: mount: use true or false; a setting with a dot is quoted",
            ),
            ("\"mount.allowed\" = \"ext4\"", "a.toml:2:1: mount.allowed: use a list"),
            (
                "\"mount.allowed\" = [\"ext4\", \"proc\"]",
                "a.toml:2:1: mount.allowed: proc is never",
            ),
            ("\"mount.fuse\" = { ext4 = \"\" }", "a.toml:2:1: mount.fuse: \"ext4\" needs"),
            ("\"mknod.devices\" = [\"1:1\"]", "a.toml:2:1: mknod.devices: 1:1 is"),
            ("\"sched.nice\" = -5", "a.toml:2:1: sched.nice: use how far"),
            (
                "\"mount.allowed\" = [\"ext4\"]\n\"mount.fuse\" = { ext4 = \"fuse2fs\" }",
                "a.toml:3:1: ext4 is in both",
            ),
        ] {
            let error = parse(&format!("[intercept]\n{wrong}\n")).unwrap_err();
            assert!(error.starts_with(line), "{error}");
        }
    }

    #[test]
    fn some_containers_get_more() {
        let text = "[intercept]\nmknod = true\n\
                    [[container]]\nid = \"ci-*\"\n[container.intercept]\nmount = true\n\
                    \"mount.allowed\" = [\"ext4\"]\n\
                    [[container]]\ncgroup = \"/lxc/*\"\nintercept = { sysinfo = false }\n";
        let policies = parse(text).unwrap().policies();
        let names = |policy: &Policy| policy.names().collect::<Vec<_>>().join(",");
        assert_eq!(names(&policies.all), "sysinfo,mknod");
        let [ci, lxc] = &*policies.sections else { panic!("two sections") };
        assert_eq!((names(&ci.1), names(&lxc.1)), ("sysinfo,mknod,mount".into(), "mknod".into()));
        assert_eq!(ci.1.settings().mount.allowed, ["ext4"]);
        assert_eq!(lxc.0.cgroup.as_deref(), Some("/lxc/*"));
        for (wrong, line) in [
            ("intercept = { mknod = true }", "a.toml:1:1: say which"),
            ("name = \"x\"", "a.toml:2:1: unknown field `name`"),
            ("id = \"x\"\nintercept = { mknood = true }", "a.toml:3:15: no system call"),
        ] {
            let error = parse(&format!("[[container]]\n{wrong}\n")).unwrap_err();
            assert!(error.starts_with(line), "{error}");
        }
    }

    #[test]
    fn settings_without_their_call_are_told() {
        let idle = |text: &str| parse(text).unwrap().idle_settings();
        let shift = "[intercept]\n\"mount.shift\" = true\nnested = true\n";
        assert_eq!(idle(shift), ["mount.shift has no effect without mount = true"]);
        let section =
            |words| format!("{shift}[[container]]\nid = \"a\"\nintercept = {{ {words} }}\n");
        let nothing = ["mount grants nothing without mount.allowed or mount.fuse"];
        assert_eq!(idle(&section("mount = true")), nothing);
        assert_eq!(idle(&section("mount = true, \"mount.allowed\" = [\"ext4\"]")), [""; 0]);
        let everywhere = "[intercept]\nbpf = true\n[[container]]\nid = \"a\"\n";
        assert_eq!(idle(everywhere), ["bpf grants nothing without bpf.devices"]);
        let some = format!("{everywhere}intercept = {{ \"bpf.devices\" = true }}\n");
        assert_eq!(idle(&some), [""; 0]);
        let both = idle(&section(
            "\"bpf.devices\" = true, mount = true, \"mount.fuse\" = { ext4 = \"x\" }",
        ));
        assert_eq!(both, ["bpf.devices has no effect without bpf = true"]);
    }

    #[test]
    fn policies_are_chosen_by_name() {
        let text = "[overlay]\npossible = \"view\"\nmemory_limit = \"high\"\nswap = \"none\"\nbtime = \"container\"\n";
        let overlay = parse(text).unwrap().overlay;
        assert_eq!(policy::MemoryLimit::from(overlay.memory_limit), policy::MemoryLimit::High);
        assert_eq!(policy::SwapPolicy::from(overlay.swap), policy::SwapPolicy::None);
        assert_eq!(policy::Possible::from(overlay.possible), policy::Possible::View);
        let error = parse("[overlay]\npossible = \"all\"\n").unwrap_err();
        assert!(error.starts_with("a.toml:2:12: ") && error.contains("`machine`"), "{error}");
        assert_eq!(policy::BootTime::from(overlay.btime), policy::BootTime::Container);
        let error = parse("[overlay]\nswap = \"some\"\n").unwrap_err();
        assert!(error.starts_with("a.toml:2:8: ") && error.contains("`limit`"), "{error}");
    }

    #[test]
    fn mistakes_are_located() {
        let error = parse("[overlay]\nmuont = \"/x\"\n").unwrap_err();
        assert!(error.starts_with("a.toml:2:1: unknown field `muont`"), "{error}");
        let error = parse("[overlay]\ncpu_view = \"all\"\n").unwrap_err();
        assert!(error.starts_with("a.toml:2:12: ") && error.contains("`quota`"), "{error}");
        let dotted = "[intercept]\nmount = true\nmount.allowed = [\"ext4\"]\n";
        let error = parse(dotted).unwrap_err();
        assert!(error.starts_with("a.toml:3:1: ") && error.contains("is quoted"), "{error}");
        let error = parse("[intercept]\nsysinfo = true\nsisinfo = true\n").unwrap_err();
        assert!(error.starts_with("a.toml:3:1: ") && error.contains("sysinfo"), "{error}");
        let error = parse("[daemon]\nruntime_dir = \"run\"\n").unwrap_err();
        assert!(error.starts_with("a.toml:2:1: ") && error.contains("absolute"), "{error}");
        let error = parse("[audit]\nfile = \"audit.log\"\n").unwrap_err();
        assert!(error.starts_with("a.toml:2:1: ") && error.contains("absolute"), "{error}");
        assert!(parse("[daemon\n").unwrap_err().starts_with("a.toml:1:"));
    }
}
