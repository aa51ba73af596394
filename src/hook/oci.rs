//! The createContainer hook of OCI runtimes.
//!
//! runc and crun start it in the container's mount namespace, when the container's mounts are made
//! and its root is not changed yet: the machine's mounts are still there, and the overlay with them.
//! So the files are covered by this process, without the daemon. The process id in the state is of
//! no use, because it may be 1, or 0: the first process of the container is an ancestor of this one.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use ambit_fuse::lease_nodes;
use ambit_kernel::text::status::Status;
use ambit_sysinfo::FirstProcess;
use ambit_worker::attach::{self, Facts, Options, Report, Unmasked};
use anyhow::{Context, bail};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::Deserialize;

use super::Done;
use crate::config::Config;

/// The longest state, and the longest config.json, in bytes.
const LONGEST_STATE: u64 = 1 << 20;
const LONGEST_CONFIG: u64 = 16 << 20;

/// The most ancestors that are looked at.
const ANCESTORS: usize = 8;

/// The annotation that leaves a container alone with `no`.
pub(crate) const ANNOTATION: &str = "ambit.view";

/// The state of a container (runtime specification, "State"): what is used of it.
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    bundle: PathBuf,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// What is used of a config.json.
#[derive(Debug, Deserialize)]
struct Bundle {
    root: Root,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    masked_paths: Option<Vec<PathBuf>>,
    #[serde(default)]
    readonly_paths: Option<Vec<PathBuf>>,
}

#[derive(Debug, Deserialize)]
struct Root {
    path: PathBuf,
}

/// Covers the files of the container whose state is on standard input.
pub(super) fn run(config: &Config) -> anyhow::Result<Done> {
    let state: State = parse(std::io::stdin().lock(), LONGEST_STATE).context(
        "the state of a container is expected on standard input: this is a createContainer hook",
    )?;
    let name: String = state.id.chars().filter(|char| !char.is_control()).take(64).collect();
    if state.says_no() {
        return Ok(Done::Equipped(format!("the container {name} is left alone: {ANNOTATION}=no")));
    }
    let said = cover(&state, config).with_context(|| format!("the container {name}"))?;
    Ok(Done::Equipped(format!("the container {name}: {said}")))
}

fn cover(state: &State, config: &Config) -> anyhow::Result<String> {
    let bundle = Bundle::read(&state.bundle)?;
    let open = |path: &Path| -> anyhow::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty())
            .with_context(|| format!("cannot open {}", path.display()))
    };
    // Whatever root the bundle names, the mounts of the machine are not touched. The namespace of
    // process 1 cannot be told without rights over it, and then nothing can be mounted there either.
    let namespace = |process: &str| rustix::fs::stat(format!("/proc/{process}/ns/mnt"));
    if let (Ok(own), Ok(first)) = (namespace("self"), namespace("1"))
        && own.st_ino == first.st_ino
    {
        bail!("this hook runs in the machine's mount namespace: it must be a createContainer hook");
    }
    let folder = open(&state.bundle.join(&bundle.root.path))?;
    let mount = &config.overlay.mount;
    let overlay = open(mount)?;
    let own = rustix::fs::stat("/proc/self/ns/pid").context("stat of /proc/self/ns/pid")?;
    let facts = Facts::collect(&overlay, own.st_ino, vec!["1".to_owned()])
        .map_err(|error| anyhow::anyhow!("{}: {error}: does the daemon run?", mount.display()))?;
    let leased = first_process().map(lease_nodes::names).unwrap_or_default();
    let mut copies = |targets: &[&str]| {
        Ok(targets.iter().map(|target| attach::copy_for(&overlay, &leased, target)).collect())
    };
    let mut report = Report::default();
    for tree in ["proc", "sys"] {
        let targets: Vec<String> = ambit_fuse::bind_points()
            .filter(|target| Path::new(target).starts_with(tree))
            .map(str::to_owned)
            .collect();
        // What is hidden later is still visible here, and no visible copy may be left.
        let unmasked = match bundle.hides(tree) {
            true => Unmasked::HiddenLater,
            false => config.attach.unmasked,
        };
        let options = Options { replace: true, unmasked };
        let done = attach::cover(folder.as_fd(), &targets, &facts, options, &mut copies)?;
        report.targets.extend(done.targets);
    }
    if report.shown() == 0 {
        bail!("{report}");
    }
    Ok(report.to_string())
}

/// Returns the first process of the pid namespace that this process is in, if it is an ancestor.
/// `/proc` is the machine's.
fn first_process() -> Option<FirstProcess> {
    let (mut process, mut depth) = ("self".to_owned(), 0);
    for _ in 0..ANCESTORS {
        let text = std::fs::read(format!("/proc/{process}/status")).ok()?;
        let pids: Vec<u32> = Status(&text).numbers("NSpid:").collect();
        depth = depth.max(pids.len());
        if pids.len() < depth {
            return None;
        }
        if pids.last() == Some(&1) {
            return FirstProcess::read(*pids.first()?);
        }
        process = Status(&text).numbers("PPid:").next()?.to_string();
    }
    None
}

impl Bundle {
    fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("config.json");
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        parse(file, LONGEST_CONFIG).with_context(|| path.display().to_string())
    }

    /// True if the runtime hides something in `/proc` or `/sys` after the hook, or makes it
    /// read-only.
    fn hides(&self, tree: &str) -> bool {
        let tree = Path::new("/").join(tree);
        self.linux.as_ref().is_some_and(|linux| {
            let paths = [&linux.masked_paths, &linux.readonly_paths];
            paths.into_iter().flatten().flatten().any(|path| path.starts_with(&tree))
        })
    }
}

fn parse<T: serde::de::DeserializeOwned>(from: impl Read, longest: u64) -> anyhow::Result<T> {
    let mut text = Vec::new();
    from.take(longest + 1).read_to_end(&mut text)?;
    if text.len() as u64 > longest {
        bail!("it has more than {longest} bytes");
    }
    Ok(serde_json::from_slice(&text)?)
}

impl State {
    fn says_no(&self) -> bool {
        let said = self.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
        said.is_some_and(|said| is_no(said))
    }
}

/// True if this value of the annotation leaves a container alone.
pub(crate) fn is_no(said: &str) -> bool {
    ["no", "false", "off"].contains(&said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(text: &str) -> anyhow::Result<State> {
        parse(text.as_bytes(), LONGEST_STATE)
    }

    #[test]
    fn states_of_runc_and_crun_are_read() {
        let runc =
            r#"{"ociVersion":"1.0.2-dev","id":"a","status":"creating","pid":1,"bundle":"/b"}"#;
        let crun = r#"{"ociVersion":"1.0","id":"a","pid":0,"root":"/r","bundle":"/b",
            "status":"created","owner":"root","annotations":{"ambit.view":"no","x":"y"}}"#;
        assert!(!state(runc).unwrap().says_no());
        assert!(state(crun).unwrap().says_no());
        assert!(!state(r#"{"id":"a","bundle":"/b","annotations":null}"#).unwrap().says_no());
    }

    #[test]
    fn other_input_is_an_error() {
        for text in ["", "{}", "[1]", r#"{"id":"a"}"#, r#"{"id":7,"bundle":"/b"}"#] {
            assert!(state(text).is_err(), "{text}");
        }
        let endless = std::io::repeat(b' ');
        let error = parse::<State>(endless, LONGEST_STATE).unwrap_err().to_string();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
    }

    #[test]
    fn root_and_masked_paths_are_those_of_the_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        let config = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs","readonly":true},
            "linux":{"maskedPaths":["/proc/kcore","/system"],"readonlyPaths":["/syst/x"]}}"#;
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        let read = Bundle::read(bundle.path()).unwrap();
        assert_eq!(read.root.path, Path::new("rootfs"));
        assert!(read.hides("proc") && !read.hides("sys"));
        let read: Bundle = parse(&config.replace("/syst/", "/sys/").into_bytes()[..], 999).unwrap();
        assert!(read.hides("sys"));
        std::fs::write(bundle.path().join("config.json"), "{}").unwrap();
        let error = format!("{:#}", Bundle::read(bundle.path()).unwrap_err());
        assert!(error.contains("config.json: missing field `root`"), "{error}");
    }
}
