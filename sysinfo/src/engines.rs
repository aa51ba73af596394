//! The cgroup paths that container engines make, and the container that a path belongs to.
//!
//! A path tells the engine and the id or the name of a container. It proves nothing: a container
//! with a delegated cgroup can make a child of any name. The result is therefore always the path
//! itself or an ancestor of it, never another cgroup. Start reading at [`find`].

use ambit_kernel::text::control_groups;

/// The cgroup that an engine made for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineCgroup<'a> {
    /// The engine, or [`UNKNOWN`] if the id alone shows that an engine made it.
    pub engine: &'static str,
    /// The id or the name of the container, as the cgroup has it.
    pub id: &'a str,
    /// The path down to this cgroup.
    pub path: &'a str,
}

/// The engine of a cgroup whose name is an id of 64 hexadecimal digits, and no known engine's.
pub const UNKNOWN: &str = "unknown";

/// How an engine names the cgroup of a container.
enum Name {
    /// The prefix, the id and `.scope`: a systemd scope.
    Scope(&'static str),
    /// The prefix and an id of 64 hexadecimal digits, with or without `.scope`.
    Hash(&'static str),
    /// The prefix and the id.
    Prefix(&'static str),
    /// An instance of a systemd service template.
    Service(&'static str),
    /// The id, in a cgroup of this name.
    Below(&'static str),
    /// `parent:NAME:id`: the systemd name of a scope, used as a path.
    Colons(&'static str),
}

/// The names of each engine's cgroups, by the sources of the engines. The first match counts.
const NAMES: [(&str, Name); 22] = [
    ("docker", Name::Scope("docker-")),
    ("buildkit", Name::Below("buildkit")),
    ("docker", Name::Below("docker")),
    // `--cgroups=split` puts the container beside conmon.
    ("podman", Name::Hash("libpod-payload-")),
    ("podman", Name::Hash("libpod-")),
    ("cri-o", Name::Hash("crio-")),
    ("containerd", Name::Scope("cri-containerd-")),
    ("containerd", Name::Colons("cri-containerd")),
    ("containerd", Name::Scope("nerdctl-")),
    // That of `ctr`, in its default namespace.
    ("containerd", Name::Below("default")),
    ("buildah", Name::Prefix("buildah-")),
    // LXC, LXD and Incus, with and without a systemd unit above.
    ("lxc", Name::Prefix("lxc.payload.")),
    ("lxc", Name::Below("lxc.payload")),
    ("lxc", Name::Below("lxc")),
    // Machines of systemd-machined; those of libvirt's QEMU driver are no containers.
    ("nspawn", Name::Scope("machine-")),
    ("nspawn", Name::Service("systemd-nspawn@")),
    ("apptainer", Name::Scope("apptainer-")),
    ("runc", Name::Scope("runc-")),
    ("crun", Name::Scope("crun-")),
    ("youki", Name::Scope("youki-")),
    ("kubernetes", Name::Below("pod")),
    (UNKNOWN, Name::Hash("")),
];

/// The cgroup of `ambit run` is named after its process.
const SANDBOX: &str = "run-";

/// Returns the innermost container of an engine that a cgroup path belongs to.
pub fn find(path: &str) -> Option<EngineCgroup<'_>> {
    all(path).last()
}

/// Returns the containers of engines that a cgroup path belongs to, the outermost first.
pub fn all(path: &str) -> impl Iterator<Item = EngineCgroup<'_>> {
    let (mut parents, mut parent, mut end) = ("", "", 0);
    path.split('/').filter_map(move |part| {
        end += part.len();
        let found = container(parents, parent, part);
        (parents, parent) = (&path[..end], part);
        let path = parents;
        end += 1;
        found.map(|(engine, id)| EngineCgroup { engine, id, path })
    })
}

/// Returns the container of the text of `/proc/<pid>/cgroup`, and the number of the hierarchy that
/// shows it. That of cgroup v2 is looked at first.
pub fn find_in(text: &[u8]) -> Option<(&str, EngineCgroup<'_>)> {
    let unified = paths(text).filter(|(number, _)| *number == "0");
    let legacy = paths(text).filter(|(number, _)| *number != "0");
    unified.chain(legacy).find_map(|(number, path)| Some((number, find(path)?)))
}

/// Number and path of each hierarchy in the text of `/proc/<pid>/cgroup`.
fn paths(text: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    control_groups::lines(text).filter_map(|(number, _, path)| {
        Some((std::str::from_utf8(number).ok()?, std::str::from_utf8(path).ok()?))
    })
}

impl EngineCgroup<'_> {
    /// Returns the id or the name as the engine shows it. systemd escapes characters in the names
    /// of units as `\xNN`.
    pub fn name(&self) -> String {
        let mut name = String::with_capacity(self.id.len());
        let mut rest = self.id;
        while let Some(at) = rest.find("\\x") {
            let byte = rest.get(at + 2..at + 4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            let Some(byte) = byte.filter(u8::is_ascii_graphic) else { break };
            name.push_str(&rest[..at]);
            name.push(char::from(byte));
            rest = &rest[at + 4..];
        }
        name + rest
    }
}

/// Returns engine and id if this part of a path is the cgroup of a container.
fn container<'a>(parents: &str, parent: &str, part: &'a str) -> Option<(&'static str, &'a str)> {
    if part.is_empty() || part.contains("conmon") || part.strip_suffix(".slice").is_some() {
        return None;
    }
    if parent == "ambit" && part.starts_with(SANDBOX) {
        return Some(("ambit", part));
    }
    NAMES.iter().find_map(|(engine, name)| Some((*engine, name.id(parents, parent, part)?)))
}

impl Name {
    fn id<'a>(&self, parents: &str, parent: &str, part: &'a str) -> Option<&'a str> {
        let scope = part.strip_suffix(".scope");
        let id = match *self {
            Self::Scope(prefix) => scope?.strip_prefix(prefix)?,
            Self::Hash("") => {
                let part = scope.map_or(part, |part| part.rsplit('-').next().unwrap_or(part));
                is_hash(part).then_some(part)?
            }
            Self::Hash(prefix) => {
                let id = scope.unwrap_or(part).strip_prefix(prefix)?;
                is_hash(id).then_some(id)?
            }
            Self::Prefix(prefix) => part.strip_prefix(prefix)?,
            Self::Service(prefix) => part.strip_suffix(".service")?.strip_prefix(prefix)?,
            // The kubelet's cgroup of a pod, with the cgroupfs driver.
            Self::Below("pod") => {
                let in_pod = parent.starts_with("pod") && parents.contains("kubepods");
                in_pod.then_some(part)?
            }
            Self::Below(folder) => (parent == folder && part != "buildkit").then_some(part)?,
            Self::Colons(marker) => {
                let (before, id) = part.rsplit_once(':')?;
                (before.rsplit(':').next() == Some(marker)).then_some(id)?
            }
        };
        (!id.is_empty() && !id.starts_with("qemu\\x2d")).then_some(id)
    }
}

/// True for an id of 64 hexadecimal digits.
fn is_hash(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash() -> String {
        "0f".repeat(32)
    }

    #[test]
    fn paths_of_every_engine() {
        let hash = hash();
        for (path, engine, id) in [
            ("/system.slice/docker-HASH.scope", "docker", "HASH"),
            ("/docker/HASH", "docker", "HASH"),
            ("/docker/HASH/init", "docker", "HASH"),
            ("/docker/buildkit/k3jx", "buildkit", "k3jx"),
            ("/machine.slice/libpod-HASH.scope/container", "podman", "HASH"),
            ("/libpod_parent/libpod-HASH", "podman", "HASH"),
            ("/user.slice/a.service/libpod-payload-HASH", "podman", "HASH"),
            ("/kubepods.slice/kubepods-pod1.slice/crio-HASH.scope", "cri-o", "HASH"),
            ("/kubepods/burstable/podb-1/crio-HASH", "cri-o", "HASH"),
            ("/kubepods.slice/k.slice/cri-containerd-HASH.scope", "containerd", "HASH"),
            ("/kubepods-pod1.slice:cri-containerd:HASH", "containerd", "HASH"),
            ("/system.slice/nerdctl-HASH.scope", "containerd", "HASH"),
            ("/kubepods/besteffort/pod0a-1/HASH", "kubernetes", "HASH"),
            ("/default/HASH", "containerd", "HASH"),
            ("/default/web", "containerd", "web"),
            ("/ecs/task/HASH", UNKNOWN, "HASH"),
            ("/system.slice/new-HASH.scope", UNKNOWN, "HASH"),
            ("/lxc.payload.web/init.scope", "lxc", "web"),
            ("/lxc.payload/web", "lxc", "web"),
            ("/lxc/web/system.slice/a.service", "lxc", "web"),
            ("/lxc.payload.project_web", "lxc", "project_web"),
            ("/machine.slice/machine-a\\x2db.scope/payload", "nspawn", "a\\x2db"),
            ("/machine.slice/systemd-nspawn@web.service/payload", "nspawn", "web"),
            ("/user.slice/runc-web.scope", "runc", "web"),
            ("/system.slice/crun-web.scope", "crun", "web"),
            ("/ambit/run-12", "ambit", "run-12"),
            ("/buildah-buildah123", "buildah", "buildah123"),
            // The innermost one counts.
            ("/lxc.payload.web/system.slice/docker-HASH.scope", "docker", "HASH"),
        ] {
            let (path, id) = (path.replace("HASH", &hash), id.replace("HASH", &hash));
            let found = find(&path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!((found.engine, found.id), (engine, &*id), "{path}");
        }
    }

    #[test]
    fn what_engines_run_beside_containers_is_none() {
        let hash = hash();
        for path in [
            "",
            "/",
            "/init.scope",
            "/system.slice/docker.service",
            "/docker",
            "/docker/buildkit",
            "/machine.slice/libpod-conmon-HASH.scope",
            "/kubepods.slice/k.slice/crio-conmon-HASH.scope",
            "/libpod_parent/conmon",
            "/lxc.monitor.web",
            "/lxc",
            "/kubepods/burstable/pod0a-1",
            "/kubepods.slice/kubepods-pod1.slice",
            "/machine.slice/machine-qemu\\x2d1\\x2dweb.scope",
            "/user.slice/user-0.slice/session-1.scope",
            "/slurm/uid_0/job_1/step_0",
        ] {
            let path = path.replace("HASH", &hash);
            assert_eq!(find(&path), None, "{path}");
        }
    }

    #[test]
    fn a_path_is_cut_at_the_container() {
        assert_eq!(find("/lxc.payload.web/a/b").unwrap().path, "/lxc.payload.web");
        assert_eq!(find("/a/docker/x/docker/y/z").unwrap().path, "/a/docker/x/docker/y");
        let text = b"4:memory:/docker/x/y\n1:name=systemd:/docker/x\n0::/\n";
        let (hierarchy, found) = find_in(text).unwrap();
        assert_eq!((hierarchy, found.path), ("4", "/docker/x"));
    }

    #[test]
    fn names_of_units_are_unescaped() {
        let name = |id| EngineCgroup { engine: "nspawn", id, path: "" }.name();
        assert_eq!(name("a\\x2db\\x2dc"), "a-b-c");
        assert_eq!(name("a\\x2"), "a\\x2");
        assert_eq!(name("a\\x0ab"), "a\\x0ab");
    }
}
