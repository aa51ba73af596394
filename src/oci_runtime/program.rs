//! Which program is the runtime: never ambit itself, which may have its name.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where runtimes are looked for.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// The runtimes of which the first that is there is used.
const DEFAULT: [&str; 2] = ["runc", "crun"];

/// Returns the path of this program.
pub(crate) fn own() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("cannot read /proc/self/exe")?;
    // An upgrade has replaced it in this moment.
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or(path.clone(), PathBuf::from))
}

/// Returns the path of the runtime with this name or path, or of the default.
pub(super) fn find(wanted: Option<&Path>) -> anyhow::Result<PathBuf> {
    let own = std::fs::metadata("/proc/self/exe").context("cannot read /proc/self/exe")?;
    find_in(wanted, &FOLDERS.map(Path::new), &own)
}

fn find_in(wanted: Option<&Path>, folders: &[&Path], own: &Metadata) -> anyhow::Result<PathBuf> {
    let other = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        let is_own = (found.dev(), found.ino()) == (own.dev(), own.ino());
        Some(!is_own && found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if let Some(path) = wanted.filter(|path| path.components().count() > 1) {
        return match other(path) {
            Some(true) => Ok(path.to_owned()),
            Some(false) => bail!("{} is no OCI runtime", path.display()),
            None => bail!("{}: there is no such program", path.display()),
        };
    }
    let names = wanted.map_or(DEFAULT.map(Path::new).to_vec(), |name| vec![name]);
    let mut paths =
        names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    match paths.find(|path| other(path) == Some(true)) {
        Some(path) => Ok(path),
        None => bail!(
            "there is no {} in {}: install it, or name another one as attach.runtime",
            names.iter().map(|name| name.display().to_string()).collect::<Vec<_>>().join(", no "),
            folders.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_next_program_that_is_not_ambit_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for sub in ["1", "2", "3"] {
            fs::create_dir(at(sub)).unwrap();
        }
        let program = |name: &str, mode| {
            fs::write(at(name), name).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        program("ambit", 0o755);
        symlink(at("ambit"), at("1/runc")).unwrap();
        fs::hard_link(at("ambit"), at("1/crun")).unwrap();
        symlink(at("gone"), at("2/runc")).unwrap();
        program("2/crun", 0o644);
        program("3/crun", 0o755);
        let folders = [at("1"), at("2"), at("3")];
        let folders: Vec<_> = folders.iter().map(PathBuf::as_path).collect();
        let own = fs::metadata(at("ambit")).unwrap();
        let find = |wanted: Option<&Path>| {
            find_in(wanted, &folders, &own).map_err(|error| error.to_string())
        };
        assert_eq!(find(Some(Path::new("crun"))).unwrap(), at("3/crun"));
        assert!(find(Some(Path::new("runc"))).unwrap_err().starts_with("there is no runc in "));
        assert_eq!(find(None).unwrap(), at("3/crun"), "there is no other runc");
        program("3/runc", 0o700);
        assert_eq!(find(None).unwrap(), at("3/runc"));
        assert_eq!(find(Some(&at("3/runc"))).unwrap(), at("3/runc"));
        assert!(find(Some(&at("1/runc"))).unwrap_err().ends_with("1/runc is no OCI runtime"));
        assert!(find(Some(&at("2/crun"))).is_err() && find(Some(&at("3"))).is_err());
        assert!(find(Some(&at("4"))).unwrap_err().contains("no such program"));
    }

    #[test]
    fn the_own_program_is_an_absolute_path() {
        assert!(own().unwrap().is_absolute() && own().unwrap().exists());
    }
}
