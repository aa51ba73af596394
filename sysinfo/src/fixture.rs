//! Cgroup hierarchies of plain files, for unit tests.

use std::path::Path;

use crate::hierarchy::Hierarchies;

/// Writes a file below a folder, and makes the folders above it.
pub(crate) fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Writes files into a new folder, and finds the hierarchies that the text of a mountinfo has there.
pub(crate) fn hierarchies<P: AsRef<str>>(
    mounts: &[u8],
    files: &[(P, &str)],
) -> (tempfile::TempDir, Hierarchies) {
    let root = tempfile::tempdir().unwrap();
    files.iter().for_each(|(path, text)| write(root.path(), path.as_ref(), text));
    let found = Hierarchies::from_mountinfo(mounts, root.path()).unwrap();
    (root, found)
}
