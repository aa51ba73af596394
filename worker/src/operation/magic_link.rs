//! Paths through the caller's own magic links: `/proc/self/fd/7/name`, `/proc/thread-self/cwd`.
//!
//! A worker cannot follow them: they would lead to its own files. Once it has found that the path of
//! an operation fails at one ([`Reply::MagicLink`](super::Reply)), the operation is tried again from
//! the file to which the link leads, which is pinned as the rest of the caller is. Links of other
//! processes are left to the kernel. Start reading at [`MagicLink::split`].

use rustix::fs::{PROC_SUPER_MAGIC, statfs};

/// A magic link in the caller's `/proc/self` or `/proc/thread-self`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MagicLink {
    /// True for that of the calling thread, false for that of its process.
    pub of_thread: bool,
    /// The file to which it leads.
    pub target: Target,
}

/// The file to which a magic link leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The root.
    Root,
    /// The working directory.
    Folder,
    /// An open file.
    Descriptor(i32),
}

impl MagicLink {
    /// Splits an absolute path into the link and the rest, which starts at the link's target; `None`
    /// for a path that is the link itself. `None` for any other path.
    pub fn split(path: &[u8]) -> Option<(Self, Option<Vec<u8>>)> {
        let mut rest = path.strip_prefix(b"/")?;
        let mut next = || loop {
            let end = rest.iter().position(|&byte| byte == b'/');
            let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
            if name.is_empty() && after.is_empty() {
                return None;
            }
            rest = after.get(1..).unwrap_or_default();
            if !matches!(name, b"" | b".") {
                return Some((name, end.is_some()));
            }
        };
        if next()?.0 != b"proc" {
            return None;
        }
        let of_thread = match next()?.0 {
            b"self" => false,
            b"thread-self" => true,
            _ => return None,
        };
        let (target, goes_on) = match next()? {
            (b"root", goes_on) => (Target::Root, goes_on),
            (b"cwd", goes_on) => (Target::Folder, goes_on),
            (b"fd", true) => {
                let (number, goes_on) = next()?;
                let fd: i32 = std::str::from_utf8(number).ok()?.parse().ok()?;
                // The kernel knows no other spelling of a number, such as 07.
                let is_name = fd >= 0 && fd.to_string().as_bytes() == number;
                (Target::Descriptor(fd), is_name.then_some(goes_on)?)
            }
            _ => return None,
        };
        let rest = rest.iter().position(|&byte| byte != b'/').map_or(&b"."[..], |at| &rest[at..]);
        Some((Self { of_thread, target }, goes_on.then(|| rest.to_vec())))
    }

    /// Returns the path of the link in `/proc/<tid>` of a thread of this process.
    pub(super) fn path(self, process: i32) -> String {
        let folder = if self.of_thread { ".".to_owned() } else { format!("../{process}") };
        match self.target {
            Target::Root => format!("{folder}/root"),
            Target::Folder => format!("{folder}/cwd"),
            Target::Descriptor(fd) => format!("{folder}/fd/{fd}"),
        }
    }
}

/// True if such links are where [`MagicLink::split`] expects them: the caller, whose root this
/// process has, could have its own files at `/proc`, or none.
pub(super) fn are_there() -> bool {
    statfs("/proc").is_ok_and(|found| found.f_type == PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_through_a_link_starts_at_its_target() {
        let split = |path: &str| {
            let (link, rest) = MagicLink::split(path.as_bytes())?;
            Some((link.path(7), rest.map(|rest| String::from_utf8(rest).unwrap())))
        };
        let found = |link: &str, rest: Option<&str>| Some((link.into(), rest.map(str::to_owned)));
        assert_eq!(split("/proc/self/fd/3/null"), found("../7/fd/3", Some("null")));
        assert_eq!(split("//proc/./self//fd/3//a/../b/"), found("../7/fd/3", Some("a/../b/")));
        assert_eq!(split("/proc/thread-self/cwd/a"), found("./cwd", Some("a")));
        assert_eq!(split("/proc/self/root/a"), found("../7/root", Some("a")));
        assert_eq!(split("/proc/self/fd/12"), found("../7/fd/12", None));
        assert_eq!(split("/proc/self/cwd//"), found("../7/cwd", Some(".")));
        for path in
            ["", "/", "/proc", "/proc/self", "/proc/self/fd", "/proc/self/fd/", "/proc/1/cwd/a"]
        {
            assert_eq!(split(path), None, "{path}");
        }
        for path in
            ["proc/self/cwd/a", "/proc/self/fd/03/a", "/proc/self/fd/-1/a", "/proc/self/exe/a"]
        {
            assert_eq!(split(path), None, "{path}");
        }
        assert_eq!(split("/proc/self/../self/cwd/a"), None);
        assert_eq!(split("/proc/self/fd/99999999999/a"), None);
    }
}
