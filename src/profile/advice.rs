//! Advice beside a profile: what an engine lacks, what the configuration does not grant, and what
//! else a container needs.

use std::fmt::Write;
use std::path::Path;

use super::rules::Rule;
use super::{Contents, Engine};
use ambit_intercept::{HANDLERS, Policies, Policy};

/// Returns warnings about the use of the profile.
pub(super) fn general(
    engine: Engine,
    rules: &[Rule],
    policy: &Policy,
    policies: &Policies,
    socket: &Path,
) -> Vec<String> {
    let mut said = Vec::new();
    let unknown: Vec<_> =
        rules.iter().filter(|rule| !rule.known).map(|rule| rule.syscall).collect();
    if !unknown.is_empty() {
        said.push(format!(
            "{} is unknown to the libseccomp of this machine; an engine with the same leaves the \
             rule out, and the kernel runs the call",
            unknown.join(", ")
        ));
    }
    let ungranted = policies.ungranted(policy);
    if !ungranted.is_empty() {
        said.push(format!(
            "the configuration grants {} to no container: such calls are reported and left to the \
             kernel until it has",
            ungranted.join(", ")
        ));
    }
    if policy.names().any(|name| name == "mount") && policies.all.has_helpers() {
        let how = match engine {
            Engine::Lxc => {
                "lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file,optional 0 0, and \
                 lxc.cgroup2.devices.allow = c 10:229 rwm"
            }
            Engine::Oci => "--device /dev/fuse of podman and docker",
        };
        said.push(format!(
            "helpers of mount.fuse that are linked with libfuse 2, such as fuse2fs of Debian 12, need \
             /dev/fuse in the container: {how}"
        ));
    }
    let socket = socket.display();
    match engine {
        Engine::Oci => {
            said.push(format!(
                "containers start only while ambit serves {socket}; the runtime must be runc 1.1, crun \
                 0.19 or later, and Docker 23.0 or later: 20.10 drops listenerPath"
            ));
        }
        Engine::Lxc => {
            said.push(format!(
                "containers start only while ambit serves {socket}; while it does not later, reported \
                 calls fail with ENOSYS"
            ));
            if acts(policy) {
                said.push(
                    "liblxc passes on one call of a container at a time, and waits 30 s for its answer"
                        .to_owned(),
                );
            }
        }
    }
    said
}

fn acts(policy: &Policy) -> bool {
    let privileged = HANDLERS.iter().map(|handler| handler.describe()).filter(|one| one.privileged);
    policy.names().any(|name| privileged.clone().any(|one| one.name == name))
}

/// Returns the configuration with which a container uses the profile in this file.
pub(super) fn usage(
    engine: Engine,
    file: &Path,
    contents: &Contents<'_>,
    overlay: &Path,
) -> String {
    let file = file.display();
    match engine {
        Engine::Oci => format!(
            "runc, crun:     \"seccomp\" of \"linux\" in config.json\n\
             podman, docker: --security-opt seccomp={file}\n"
        ),
        Engine::Lxc => {
            let mut text = format!(
                "lxc.seccomp.profile = {file}\nlxc.seccomp.notify.proxy = unix:{}\n",
                contents.socket.display()
            );
            if let Some(label) = contents.label {
                let _ = writeln!(text, "lxc.seccomp.notify.cookie = {label}");
            }
            for point in ambit_fuse::bind_points() {
                let from = overlay.join(point);
                let _ = writeln!(
                    text,
                    "lxc.mount.entry = {} {point} none bind,optional 0 0",
                    from.display()
                );
            }
            text
        }
    }
}
