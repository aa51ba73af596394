//! The engines that `ambit setup` knows, how each is found, and which pieces equip its containers.

use std::path::{Path, PathBuf};

use super::files::Files;
use super::pieces::Piece;

/// A container engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Engine {
    /// LXC
    Lxc,
    /// Podman, and Buildah
    Podman,
    /// Docker
    Docker,
    /// containerd, with Kubernetes or without
    Containerd,
    /// CRI-O
    #[value(name = "cri-o", alias = "crio")]
    CriO,
    /// Incus
    Incus,
    /// LXD
    Lxd,
    /// Proxmox VE
    #[value(alias = "pve")]
    Proxmox,
    /// systemd-nspawn
    #[value(alias = "systemd-nspawn")]
    Nspawn,
}

impl Engine {
    /// Returns all of them.
    pub(super) fn all() -> &'static [Self] {
        clap::ValueEnum::value_variants()
    }

    /// Returns the name on the command line.
    pub(super) fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self)
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns the program by which it is found.
    pub(super) fn find(self, files: &Files) -> Option<PathBuf> {
        let anywhere = |name: &str| {
            let folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
            folders.map(|folder| Path::new(folder).join(name)).to_vec()
        };
        let paths: Vec<PathBuf> = match self {
            Self::Lxc => anywhere("lxc-start"),
            Self::Podman => [anywhere("podman"), anywhere("buildah")].concat(),
            Self::Docker => [anywhere("dockerd"), vec!["/snap/bin/docker".into()]].concat(),
            Self::Containerd => anywhere("containerd"),
            Self::CriO => anywhere("crio"),
            Self::Incus => {
                let own =
                    ["/usr/libexec/incus/incusd", "/usr/lib/incus/incusd", "/opt/incus/bin/incusd"];
                [anywhere("incusd"), own.map(PathBuf::from).to_vec()].concat()
            }
            Self::Lxd => [anywhere("lxd"), vec!["/snap/bin/lxd".into()]].concat(),
            Self::Proxmox => anywhere("pct"),
            Self::Nspawn => anywhere("systemd-nspawn"),
        };
        paths.into_iter().find(|path| files.has(path))
    }

    /// Returns what equips its containers. `found` is its program, if it is there.
    pub(super) fn pieces(self, found: Option<&Path>) -> &'static [Piece] {
        // An engine in a snap reads none of the machine's files.
        if found.is_some_and(|path| path.starts_with("/snap")) {
            return &[Piece::Auto];
        }
        match self {
            Self::Lxc | Self::Proxmox => &[Piece::Lxc],
            Self::Podman => &[Piece::Hooks, Piece::Runtimes, Piece::Cdi],
            Self::Docker => &[Piece::Docker, Piece::Cdi, Piece::Auto],
            Self::Containerd => {
                &[Piece::ContainerdFile, Piece::ContainerdBlock, Piece::Cdi, Piece::Auto]
            }
            Self::CriO => &[Piece::Hooks],
            Self::Incus | Self::Lxd => &[Piece::Lxc, Piece::Auto],
            Self::Nspawn => &[Piece::Auto],
        }
    }
}
