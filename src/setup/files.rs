//! Files below a root: `/`, or the folder that a package or an image is made in.
//!
//! Links are followed within the root. A file is replaced by renaming a new one, with its mode and
//! owner, so that a crash leaves the old one or the new one.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use ambit_kernel::sys::errno::to_errno;
use anyhow::{Context, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// The files below a root.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    pub(super) fn below(root: &Path) -> anyhow::Result<Self> {
        let root = root.canonicalize().with_context(|| root.display().to_string())?;
        if !root.is_dir() {
            bail!("{} is not a folder", root.display());
        }
        Ok(Self { root })
    }

    /// True if these are the files of this machine.
    pub(super) fn are_own(&self) -> bool {
        self.root == Path::new("/")
    }

    /// True if something is at this path.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.resolve(path).is_ok()
    }

    /// Returns the names in a folder; none if it cannot be read.
    pub(super) fn names(&self, path: &Path) -> Vec<PathBuf> {
        let Ok(Ok(entries)) = self.resolve(path).map(fs::read_dir) else { return Vec::new() };
        entries.flatten().map(|entry| path.join(entry.file_name())).collect()
    }

    /// Returns the text of a file, or `None` if there is none.
    pub(super) fn read(&self, path: &Path) -> anyhow::Result<Option<String>> {
        let read = || -> io::Result<Option<String>> {
            let real = match self.resolve(path) {
                Ok(real) => real,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            // Opening a FIFO would wait for a writer.
            let wait = OFlags::NONBLOCK.bits().cast_signed();
            let file = OpenOptions::new().read(true).custom_flags(wait).open(real)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            let mut bytes = Vec::new();
            file.take(LARGEST + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > LARGEST {
                return Err(io::Error::other("it has more than 1 MiB"));
            }
            let text = String::from_utf8(bytes);
            text.map(Some).map_err(|_| io::Error::other("it is no text in UTF-8"))
        };
        read().with_context(|| format!("cannot read {}", path.display()))
    }

    /// Replaces a file, or makes it and the folders above it.
    ///
    /// # Errors
    /// It cannot be written. It is as it was then.
    pub(super) fn write(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        self.replace(path, text)
            .with_context(|| format!("cannot write {}, which is as it was", path.display()))
    }

    fn replace(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        let real = self.real(path)?;
        let (Some(folder), Some(name)) = (real.parent(), real.file_name()) else {
            bail!("it is no file");
        };
        fs::create_dir_all(folder)?;
        let old = match fs::symlink_metadata(&real) {
            Ok(old) if old.is_symlink() => bail!("it is a link to nothing: remove the link"),
            Ok(old) => Some(old),
            Err(_) => None,
        };
        // No engine reads a file with such a name.
        let new = folder.join(format!(".{}.ambit-setup", name.display()));
        // Of a run that was killed.
        let _ = fs::remove_file(&new);
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            if let Some(old) = &old {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
            let mode = old.as_ref().map_or(0o644, |old| old.mode() & 0o7777);
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()?;
            fs::rename(&new, &real)?;
            File::open(folder)?.sync_all()
        };
        write().inspect_err(|_| _ = fs::remove_file(&new))?;
        Ok(())
    }

    /// Removes a file.
    pub(super) fn remove(&self, path: &Path) -> anyhow::Result<()> {
        let remove = || fs::remove_file(self.real(path)?);
        remove().with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Removes a folder if it is empty.
    pub(super) fn remove_empty(&self, path: &Path) {
        if let Ok(real) = self.real(path) {
            let _ = fs::remove_dir(real);
        }
    }

    /// Returns the path of something that exists, with all links resolved below the root.
    fn resolve(&self, path: &Path) -> rustix::io::Result<PathBuf> {
        let root = File::open(&self.root).map_err(to_errno)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let found = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?;
        let link = format!("/proc/self/fd/{}", found.as_raw_fd());
        fs::read_link(link).map_err(|_| Errno::NOENT)
    }

    /// Like [`Self::resolve`], also of what does not exist yet.
    fn real(&self, path: &Path) -> io::Result<PathBuf> {
        match (self.resolve(path), path.parent(), path.file_name()) {
            (Ok(real), ..) => Ok(real),
            (Err(Errno::NOENT), Some(folder), Some(name)) => Ok(self.real(folder)?.join(name)),
            (Err(error), ..) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn files() -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::below(folder.path()).unwrap();
        (folder, files)
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_leaves_nothing_beside_it() {
        let (folder, files) = files();
        let path = Path::new("/etc/x.json");
        files.write(path, "a").unwrap();
        let real = folder.path().join("etc/x.json");
        assert_eq!(real.metadata().unwrap().mode() & 0o7777, 0o644);
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        // Left by a run that was killed.
        fs::write(folder.path().join("etc/.x.json.ambit-setup"), "half").unwrap();
        files.write(path, "b").unwrap();
        assert_eq!(files.read(path).unwrap().as_deref(), Some("b"));
        assert_eq!(real.metadata().unwrap().mode() & 0o7777, 0o640);
        assert_eq!(files.names(Path::new("/etc")), [path]);
    }

    #[test]
    fn links_are_followed_within_the_root() {
        let (folder, files) = files();
        fs::create_dir_all(folder.path().join("srv")).unwrap();
        fs::write(folder.path().join("srv/real"), "a").unwrap();
        symlink("/srv/real", folder.path().join("link")).unwrap();
        symlink("/../../srv", folder.path().join("folder")).unwrap();
        files.write(Path::new("/link"), "b").unwrap();
        files.write(Path::new("/folder/new"), "c").unwrap();
        assert!(folder.path().join("link").is_symlink());
        assert_eq!(fs::read_to_string(folder.path().join("srv/real")).unwrap(), "b");
        assert_eq!(fs::read_to_string(folder.path().join("srv/new")).unwrap(), "c");
    }

    #[test]
    fn a_link_to_nothing_is_an_error_and_stays() {
        let (folder, files) = files();
        symlink("/gone", folder.path().join("link")).unwrap();
        let error = format!("{:#}", files.write(Path::new("/link"), "x").unwrap_err());
        assert!(error.contains("a link to nothing"), "{error}");
        assert!(folder.path().join("link").is_symlink());
    }

    #[test]
    fn what_is_no_text_is_an_error() {
        let (folder, files) = files();
        fs::write(folder.path().join("bytes"), [0xFF, 0xFE]).unwrap();
        let error = format!("{:#}", files.read(Path::new("/bytes")).unwrap_err());
        assert_eq!(error, "cannot read /bytes: it is no text in UTF-8");
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(files.read(Path::new("/folder")).is_err());
        assert_eq!(files.read(Path::new("/bytes/x")).unwrap(), None);
        assert_eq!(files.read(Path::new("/none")).unwrap(), None);
    }
}
