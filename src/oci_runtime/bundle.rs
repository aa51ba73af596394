//! What is merged into a bundle's config.json: the hook, the seccomp profile, and `/dev/fuse` for
//! helpers. All else in it stays.
//!
//! Merging again changes nothing. The file is replaced in one step, with its owner and mode.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rustix::fs::{Mode, OFlags, open};
use serde_json::{Map, Value, json};

use super::fuse_device;
use crate::config::Config;
use crate::{hook, profile};

/// The longest config.json, in bytes.
const LONGEST: u64 = 16 << 20;

/// What containers get.
pub(super) struct Wanted<'a> {
    /// What is reported, and to which socket.
    pub(super) config: &'a Config,
    pub(super) hook: Value,
}

impl Wanted<'_> {
    /// Merges the hook and the profile. Returns why the profile is left as it is.
    pub(super) fn merge(&self, spec: &mut Map<String, Value>) -> anyhow::Result<Option<String>> {
        if is_left_alone(spec) {
            return Ok(None);
        }
        let hooks = table(spec, "hooks")?.entry("createContainer").or_insert(Value::Null);
        if hooks.is_null() {
            *hooks = json!([]);
        }
        let hooks = hooks.as_array_mut().context("hooks.createContainer is no list")?;
        if !hooks.iter().any(|one| self.is_hook(one)) {
            hooks.push(self.hook.clone());
        }
        let linux = table(spec, "linux")?;
        let base = linux.get("seccomp").filter(|base| !base.is_null()).map(Value::to_string);
        match profile::shared_oci(self.config, base.as_deref()) {
            Ok(Some(profile)) => {
                linux.insert("seccomp".to_owned(), profile);
                // A runtime does not start a container whose device the machine lacks.
                let is_given = self.config.policies.all.has_helpers()
                    && fuse_device::is_for(linux)
                    && Path::new("/dev/fuse").exists();
                if is_given {
                    fuse_device::add_node(linux)?;
                    fuse_device::allow(table(linux, "resources")?)?;
                }
            }
            Ok(None) => {}
            Err(error) => return Ok(Some(format!("its calls are not answered: {error:#}"))),
        }
        Ok(None)
    }

    /// Takes reports to ambit out of the profile: while no socket is served the runtime would not
    /// start the container.
    pub(super) fn withdraw(&self, spec: &mut Map<String, Value>) -> anyhow::Result<()> {
        if is_left_alone(spec) {
            return Ok(());
        }
        let linux = table(spec, "linux")?;
        let Some(base) = linux.get("seccomp").filter(|base| !base.is_null()) else { return Ok(()) };
        if let Some(profile) = profile::withdrawn_oci(self.config, &base.to_string())? {
            linux.insert("seccomp".to_owned(), profile);
        }
        Ok(())
    }

    /// True for a hook of ambit.
    fn is_hook(&self, one: &Value) -> bool {
        let path = one["path"].as_str().map(Path::new);
        let is_ambit = path.is_some_and(|path| {
            path.file_name() == Some("ambit".as_ref())
                || self.hook["path"].as_str().map(Path::new) == Some(path)
        });
        let args = one["args"].as_array();
        is_ambit && args.and_then(|args| args.get(1)).is_some_and(|arg| arg == "hook")
    }
}

fn is_left_alone(spec: &Map<String, Value>) -> bool {
    let annotations = spec.get("annotations").and_then(Value::as_object);
    let said = annotations.and_then(|all| all.get(hook::ANNOTATION)?.as_str());
    said.is_some_and(hook::is_no)
}

/// Returns a table, which is made if it is not there.
fn table<'a>(
    spec: &'a mut Map<String, Value>,
    name: &str,
) -> anyhow::Result<&'a mut Map<String, Value>> {
    let table = spec.entry(name).or_insert(Value::Null);
    if table.is_null() {
        *table = json!({});
    }
    table.as_object_mut().with_context(|| format!("{name} is no table"))
}

/// Changes a config.json. If the change fails or is none, the file stays as it is.
pub(super) fn change<T>(
    path: &Path,
    change: impl FnOnce(&mut Map<String, Value>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let at = || path.display().to_string();
    let (text, metadata) = read(path).with_context(at)?;
    let before: Map<String, Value> = serde_json::from_slice(&text).with_context(at)?;
    let mut spec = before.clone();
    let done = change(&mut spec).with_context(at)?;
    if spec != before {
        let text = serde_json::to_vec(&spec)?;
        replace(path, &text, &metadata).with_context(|| format!("cannot write {}", at()))?;
    }
    Ok(done)
}

fn read(path: &Path) -> anyhow::Result<(Vec<u8>, Metadata)> {
    // It does not wait if it is a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "it is no regular file");
    let mut text = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST {
        bail!("it has more than {LONGEST} bytes");
    }
    Ok((text, metadata))
}

fn replace(path: &Path, text: &[u8], before: &Metadata) -> io::Result<()> {
    // A link stays one.
    let path = path.canonicalize()?;
    let temporary = path.with_file_name(format!(".config.json.ambit-{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text)?;
        fchown(&file, Some(before.uid()), Some(before.gid()))?;
        file.set_permissions(Permissions::from_mode(before.mode() & 0o7777))?;
        std::fs::rename(&temporary, &path)
    };
    write().inspect_err(|_| _ = std::fs::remove_file(&temporary))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ENGINES: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"x":[18446744073709551615,-1],
        "linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["read","sysinfo"],"action":"SCMP_ACT_ALLOW"}]}}}"#;

    fn merged(text: &str) -> (Map<String, Value>, Option<String>) {
        let config = Config::default();
        let wanted = wanted(&config);
        let mut spec = serde_json::from_str(text).unwrap();
        let note = wanted.merge(&mut spec).unwrap();
        let once = spec.clone();
        assert_eq!(wanted.merge(&mut spec).unwrap(), note);
        assert_eq!(spec, once, "merging again changes nothing");
        (spec, note)
    }

    fn wanted(config: &Config) -> Wanted<'_> {
        let hook = crate::drop_in::hook(Path::new("/usr/bin/ambit"), None);
        Wanted { config, hook }
    }

    #[test]
    fn hook_and_profile_are_merged_once() {
        let (spec, note) = merged(ENGINES);
        assert_eq!(note, None);
        let hooks = &spec["hooks"]["createContainer"];
        assert_eq!(hooks.as_array().unwrap().len(), 1);
        assert_eq!(hooks[0]["args"], json!(["ambit", "hook"]));
        let seccomp = &spec["linux"]["seccomp"];
        assert_eq!(seccomp["listenerPath"], "/run/ambit/oci.sock");
        assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ERRNO");
        let before: Value = serde_json::from_str(ENGINES).unwrap();
        assert_eq!((&spec["root"], &spec["x"]), (&before["root"], &before["x"]));
    }

    #[test]
    fn hooks_of_drop_ins_and_of_others_stay() {
        let text = r#"{"linux":null,"hooks":{"prestart":[{"path":"/a"}],"createContainer":
            [{"path":"/bin/other"},{"path":"/opt/ambit","args":["ambit","hook","--required"]}]}}"#;
        let (spec, _) = merged(text);
        let before: Value = serde_json::from_str(text).unwrap();
        assert_eq!(spec["hooks"], before["hooks"]);
    }

    #[test]
    fn a_privileged_container_gets_a_profile_that_allows_all_else() {
        for text in ["{}", r#"{"linux":{}}"#, r#"{"linux":{"seccomp":null},"hooks":null}"#] {
            let (spec, note) = merged(text);
            let seccomp = &spec["linux"]["seccomp"];
            assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ALLOW");
            let rules = seccomp["syscalls"].as_array().unwrap();
            assert!(rules.iter().all(|rule| rule["action"] == "SCMP_ACT_NOTIFY"), "{seccomp}");
            assert_eq!(note, None);
        }
    }

    #[test]
    fn another_listener_stays_and_the_hook_is_merged() {
        let text = r#"{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/o",
            "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}}}"#;
        let (spec, note) = merged(text);
        assert!(note.unwrap().contains("mkdir to the listener /o"));
        assert_eq!(spec["linux"]["seccomp"]["listenerPath"], "/o");
        assert_eq!(spec["hooks"]["createContainer"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_container_with_the_annotation_is_left_alone() {
        let text = r#"{"annotations":{"ambit.view":"no"},"linux":{}}"#;
        let (spec, _) = merged(text);
        assert_eq!(spec, serde_json::from_str(text).unwrap());
    }

    /// The bundle of a container that is started again while ambit is down.
    #[test]
    fn reports_are_withdrawn() {
        let config = Config::default();
        for text in [ENGINES, "{}"] {
            let (mut spec, _) = merged(text);
            wanted(&config).withdraw(&mut spec).unwrap();
            let seccomp = &spec["linux"]["seccomp"];
            assert!(!seccomp.to_string().contains("NOTIFY"), "{seccomp}");
            assert!(seccomp.get("listenerPath").is_none(), "{seccomp}");
            let once = spec.clone();
            wanted(&config).withdraw(&mut spec).unwrap();
            assert_eq!(spec, once);
        }
        let mut spec = serde_json::from_str::<Map<_, _>>(ENGINES).unwrap();
        let before = spec.clone();
        wanted(&config).withdraw(&mut spec).unwrap();
        assert_eq!(spec, before, "it reports nothing to ambit");
    }

    #[test]
    fn the_file_is_replaced_with_its_owner_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let link = folder.path().join("link");
        fs::write(&path, "{}").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("config.json", &link).unwrap();
        let set = |spec: &mut Map<String, Value>| {
            spec.insert("a".into(), json!(1));
            Ok(())
        };
        change(&link, set).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), r#"{"a":1}"#);
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // No change, and a failed one, leave the file as it is.
        change(&path, set).unwrap();
        assert!(change(&path, |_| -> anyhow::Result<()> { bail!("no") }).is_err());
        assert_eq!(fs::metadata(&path).unwrap().ino(), after.ino());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_unreadable_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let error = |path: &Path| format!("{:#}", change(path, |_| Ok(())).unwrap_err());
        assert!(error(&path).contains("config.json: No such file"));
        assert!(error(folder.path()).contains("no regular file"));
        fs::write(&path, "[1]").unwrap();
        assert!(error(&path).contains("config.json: invalid type"), "{}", error(&path));
        File::create(&path).unwrap().set_len(LONGEST + 1).unwrap();
        assert!(error(&path).contains("more than 16777216 bytes"));
        let config = Config::default();
        let mut spec = serde_json::from_str(r#"{"linux":3}"#).unwrap();
        assert!(wanted(&config).merge(&mut spec).is_err());
    }
}
