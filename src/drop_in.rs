//! `ambit drop-in`: the files with which engines equip every container by themselves. The copies in
//! `contrib` are what this prints.

use std::path::{Path, PathBuf};

use ambit_kernel::output;
use serde_json::json;

use crate::config::Config;
use crate::hook;

/// How long an engine waits for the hook, in seconds. The hook gives up before.
const TIMEOUT: u32 = 5;

/// The arguments of `ambit drop-in`.
#[derive(Debug, clap::Args)]
pub struct DropInArgs {
    /// Which one
    #[arg(value_name = "KIND")]
    kind: Kind,
    /// Where the program is installed
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/ambit")]
    program: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// For /usr/share/lxc/config/common.conf.d/ambit.conf: hooks and profile of all LXC containers
    Lxc,
    /// For /usr/share/containers/oci/hooks.d/ambit.json: the hook of Podman, CRI-O and Buildah
    Hooks,
    /// For /etc/containers/containers.conf.d/ambit.conf: the runtimes of Podman's containers
    Containers,
    /// For /etc/cdi/ambit.json: the device ambit/view=all of Docker, containerd and Podman
    Cdi,
    /// For /usr/lib/systemd/system/ambit.socket: sockets that outlive the daemon
    Socket,
}

/// Prints a drop-in. `file` is the configuration that was named.
pub fn run(args: &DropInArgs, config: &Config, file: Option<&Path>) -> anyhow::Result<()> {
    Ok(output::print(text(args.kind, &args.program, config, file))?)
}

/// The device for helpers that open it. The device policy of LXC's common.conf allows it.
const FUSE: &str = "
# For helpers of mount.fuse that are not linked with libfuse 3.
lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file,optional 0 0
";

/// Returns the text of a drop-in. `file` is the configuration that was named.
pub(crate) fn text(kind: Kind, program: &Path, config: &Config, file: Option<&Path>) -> String {
    text_with(kind, program, config, file, config.policies.all.has_helpers())
}

/// Returns the text of a drop-in, and the one that it had before helpers were granted or after.
pub(crate) fn texts(
    kind: Kind,
    program: &Path,
    config: &Config,
    file: Option<&Path>,
) -> [String; 2] {
    let has_helpers = config.policies.all.has_helpers();
    [has_helpers, !has_helpers].map(|helpers| text_with(kind, program, config, file, helpers))
}

fn text_with(
    kind: Kind,
    program: &Path,
    config: &Config,
    file: Option<&Path>,
    has_helpers: bool,
) -> String {
    let words = words(file);
    let socket = |name| config.socket(name).display().to_string();
    let hook = || hook(program, file);
    let pretty = |value: &serde_json::Value| format!("{value:#}\n");
    match kind {
        Kind::Lxc => format!(
            "\
# Every container that includes common.conf sees its own bounds: its files are
# covered before its init is executed, and its calls of sysinfo(2) and
# sched_getaffinity(2) are answered. `ambit drop-in lxc` prints this file.

# The profile is common.seccomp with ambit's rules, or as it is while ambit is
# down; the hook pre-start leaves it there.
lxc.hook.pre-start = {program} {words} --lxc
lxc.hook.start-host = {program} {words} --lxc
lxc.seccomp.profile = {profile}
lxc.seccomp.notify.proxy = unix:{proxy}
{fuse}",
            program = program.display(),
            words = words.join(" "),
            profile = hook::shared_profile(config).display(),
            proxy = socket("lxc.sock"),
            fuse = if has_helpers { FUSE } else { "" },
        ),
        Kind::Hooks => pretty(&json!({
            "version": "1.0.0",
            "hook": hook(),
            "when": { "always": true },
            "stages": ["createContainer"],
        })),
        Kind::Containers => podman(program),
        Kind::Cdi => {
            let mut hook = hook();
            hook["hookName"] = "createContainer".into();
            pretty(&json!({
                // The oldest version that has all of this: engines refuse versions that are newer
                // than they are.
                "cdiVersion": "0.5.0",
                "kind": "ambit/view",
                "devices": [{ "name": "all", "containerEdits": { "hooks": [hook] } }],
            }))
        }
        Kind::Socket => format!(
            "\
[Unit]
Description=Sockets of ambit for container engines and commands
Documentation=file:///usr/share/doc/ambit/README.md
# What connects while the daemon is down or is restarted waits, and starts it.

[Socket]
ListenStream={control}
ListenStream={oci}
ListenSequentialPacket={lxc}
# The daemon opens lxc.sock to all users: containers that they start name it too.
SocketMode=0600
DirectoryMode=0755
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
",
            control = socket("control.sock"),
            oci = socket("oci.sock"),
            lxc = socket("lxc.sock"),
        ),
    }
}

fn words(file: Option<&Path>) -> Vec<String> {
    let file = file.map(|file| format!("--config={}", file.display()));
    ["hook".to_owned()].into_iter().chain(file).collect()
}

/// Returns the createContainer hook of OCI runtimes, with the configuration that was named.
pub(crate) fn hook(program: &Path, file: Option<&Path>) -> serde_json::Value {
    let args: Vec<_> = ["ambit".to_owned()].into_iter().chain(words(file)).collect();
    json!({ "path": program, "args": args, "timeout": TIMEOUT })
}

/// Returns the folder where ambit has the names of the runtimes that it becomes: `/usr/libexec/ambit`
/// for `/usr/bin/ambit`.
pub(crate) fn wrappers(program: &Path) -> PathBuf {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    prefix.join("libexec/ambit")
}

/// Where Podman looks for a runtime after ambit's. The first program that is there is used, so that
/// containers start when ambit is removed.
const RUNTIME_FOLDERS: [&str; 7] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/sbin",
    "/bin",
    "/run/current-system/sw/bin",
];

fn podman(program: &Path) -> String {
    let own = wrappers(program);
    let own = own.display();
    let mut text = "\
# Podman starts its containers by `ambit oci-runtime`, which equips them and is
# then crun or runc, or by those themselves where ambit is not installed.
# `ambit drop-in containers` prints this file.
[engine.runtimes]
"
    .to_owned();
    for name in ["crun", "runc"] {
        text += &format!("{name} = [\n    \"{own}/{name}\",\n");
        for folder in RUNTIME_FOLDERS {
            text += &format!("    \"{folder}/{name}\",\n");
        }
        text += "]\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contrib_has_what_is_printed() {
        for (kind, name, file) in [
            (Kind::Lxc, "lxc", "lxc/ambit.conf"),
            (Kind::Hooks, "hooks", "containers/hooks.json"),
            (Kind::Containers, "containers", "containers/containers.conf"),
            (Kind::Cdi, "cdi", "cdi/ambit.json"),
            (Kind::Socket, "socket", "systemd/ambit.socket"),
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(file);
            let printed = text(kind, Path::new("/usr/bin/ambit"), &Config::default(), None);
            let renew = format!("cargo run --profile suite -- drop-in {name} > contrib/{file}");
            let stored = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(stored == printed, "contrib/{file} is stale; renew it with: {renew}");
        }
    }

    #[test]
    fn lxc_containers_get_the_device_where_helpers_are_granted() {
        let mut config = Config::default();
        let [without, with] = texts(Kind::Lxc, Path::new("/x"), &config, None);
        assert!(!without.contains("/dev/fuse") && with.contains("= /dev/fuse dev/fuse none bind"));
        let granted = "mount,mount.fuse=ext4=fuse2fs";
        config.policies.all = crate::config::words::parse(granted).unwrap();
        assert_eq!(text(Kind::Lxc, Path::new("/x"), &config, None), with);
    }

    #[test]
    fn paths_are_those_of_program_and_configuration() {
        let mut config = Config::default();
        config.daemon.runtime_dir = "/run/other".into();
        let file = Some(Path::new("/etc/other.toml"));
        let lxc = text(Kind::Lxc, Path::new("/opt/ambit"), &config, file);
        let hook = "lxc.hook.start-host = /opt/ambit hook --config=/etc/other.toml --lxc\n";
        assert!(lxc.contains(hook) && lxc.contains("unix:/run/other/lxc.sock\n"), "{lxc}");
        let hooks = text(Kind::Hooks, Path::new("/opt/ambit"), &config, file);
        assert!(hooks.contains("--config=/etc/other.toml") && hooks.contains("/opt/ambit"));
        assert!(
            text(Kind::Socket, Path::new("/x"), &config, file).contains("=/run/other/oci.sock")
        );
    }
}
