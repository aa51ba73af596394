//! The files that equip containers: for each, its path and its text after `ambit setup` and
//! `ambit setup --undo`.
//!
//! Nothing is recorded: a file or a part of one is ours if it is what ambit writes. A file of
//! ambit's that differs was changed by its user, and is left alone.

use std::path::{Path, PathBuf};

use super::edit::{Context, Edit, gone, whole};
use super::files::Files;
use super::{auto, containerd, docker};
use crate::drop_in::{self, Kind};

/// A file, or a part of one, that equips containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    Lxc,
    Hooks,
    Runtimes,
    Cdi,
    Docker,
    ContainerdFile,
    ContainerdBlock,
    Auto,
}

/// All pieces, in the order in which they are written. The daemon comes last: it attaches what the
/// engines have started.
pub(super) const ALL: [Piece; 8] = [
    Piece::Lxc,
    Piece::Hooks,
    Piece::Runtimes,
    Piece::Cdi,
    Piece::Docker,
    Piece::ContainerdFile,
    Piece::ContainerdBlock,
    Piece::Auto,
];

impl Piece {
    pub(super) fn path(self, cx: &Context<'_>) -> PathBuf {
        match self {
            Self::Lxc => "/usr/share/lxc/config/common.conf.d/ambit.conf".into(),
            Self::Hooks => "/usr/share/containers/oci/hooks.d/ambit.json".into(),
            Self::Runtimes => "/etc/containers/containers.conf.d/ambit.conf".into(),
            Self::Cdi => "/etc/cdi/ambit.json".into(),
            Self::Docker => docker::path(cx.files),
            Self::ContainerdFile => containerd::DROP_IN.into(),
            Self::ContainerdBlock => containerd::CONFIG.into(),
            Self::Auto => auto::path(cx.config_file),
        }
    }

    /// Returns what it does, for its user.
    pub(super) fn purpose(self) -> &'static str {
        match self {
            Self::Lxc => "hooks and seccomp profile of all containers",
            Self::Hooks => "a hook in all containers",
            Self::Runtimes => "starts all containers by ambit oci-runtime",
            Self::Cdi => "the device ambit/view=all, for containers that ask for it",
            Self::Docker => "the runtime ambit, which new containers have by default",
            Self::ContainerdFile | Self::ContainerdBlock => {
                "the runtime ambit, for pods whose RuntimeClass has the handler ambit"
            }
            Self::Auto => "[attach] auto: the daemon attaches containers that start",
        }
    }

    /// Returns the folders that are made with it, and are removed with it if they are empty.
    pub(super) fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Hooks => &[
                "/usr/share/containers/oci/hooks.d",
                "/usr/share/containers/oci",
                "/usr/share/containers",
            ],
            Self::Runtimes => &["/etc/containers/containers.conf.d", "/etc/containers"],
            Self::Cdi => &["/etc/cdi"],
            Self::Auto => &["/etc/ambit"],
            _ => &[],
        }
    }

    /// Returns what is done to its file.
    ///
    /// # Errors
    /// The file is left as it is, for this reason.
    pub(super) fn setup(self, cx: &Context<'_>) -> anyhow::Result<Edit> {
        let path = self.path(cx);
        let text = cx.files.read(&path)?;
        if let Some(kind) = self.drop_in() {
            return whole(text.as_deref(), &drop_in_texts(kind, cx));
        }
        match self {
            Self::Docker => docker::setup(text.as_deref(), cx),
            Self::ContainerdFile => containerd::setup_file(text.as_deref(), cx),
            Self::ContainerdBlock => containerd::setup_block(text.as_deref(), cx),
            _ => auto::setup(text.as_deref(), &path),
        }
    }

    /// Returns what is done to its file to take the piece away.
    ///
    /// # Errors
    /// The file is left as it is, for this reason.
    pub(super) fn undo(self, cx: &Context<'_>) -> anyhow::Result<Edit> {
        let path = self.path(cx);
        let Some(text) = cx.files.read(&path)? else { return Ok(Edit::Nothing) };
        if let Some(kind) = self.drop_in() {
            return match is_of_package(cx.files, &path) {
                true => Ok(Edit::Skip("a part of the package ambit, which removes it".to_owned())),
                false => gone(&text, &drop_in_texts(kind, cx)),
            };
        }
        match self {
            Self::Docker => docker::undo(&text, cx),
            Self::ContainerdFile => containerd::undo_file(&text, cx),
            Self::ContainerdBlock => containerd::undo_block(&text, cx),
            _ => auto::undo(&text),
        }
    }

    fn drop_in(self) -> Option<Kind> {
        match self {
            Self::Lxc => Some(Kind::Lxc),
            Self::Hooks => Some(Kind::Hooks),
            Self::Runtimes => Some(Kind::Containers),
            Self::Cdi => Some(Kind::Cdi),
            _ => None,
        }
    }
}

fn drop_in_texts(kind: Kind, cx: &Context<'_>) -> [String; 2] {
    drop_in::texts(kind, cx.program, cx.config, cx.config_file)
}

/// True if dpkg has installed the file with ambit.
fn is_of_package(files: &Files, path: &Path) -> bool {
    let list = files.read(Path::new("/var/lib/dpkg/info/ambit.list")).ok().flatten();
    list.is_some_and(|list| list.lines().any(|line| Path::new(line) == path))
}
