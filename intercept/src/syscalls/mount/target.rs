//! A target below an open file of the caller, such as `/proc/self/fd/7`, by which OCI runtimes
//! name it.
//!
//! The process that mounts is another one, for which the link leads to a file of its own. So the
//! path is resolved from the caller's descriptor. Start reading at [`split`].

/// Splits a target into the descriptor and the path that starts there, `.` if there is none. `None`
/// for any other path.
pub(super) fn split(target: &[u8]) -> Option<(i32, Vec<u8>)> {
    let rest = ["/proc/self/fd/", "/proc/thread-self/fd/"]
        .iter()
        .find_map(|folder| target.strip_prefix(folder.as_bytes()))?;
    let end = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let (name, path) = rest.split_at(end);
    let number: i32 = std::str::from_utf8(name).ok()?.parse().ok()?;
    // The kernel knows no other spelling of a number, such as 07.
    if number.to_string().as_bytes() != name {
        return None;
    }
    Some((number, [b".", path].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_through_a_descriptor_starts_there() {
        let found = |path: &str| split(path.as_bytes());
        assert_eq!(found("/proc/self/fd/7"), Some((7, b".".to_vec())));
        assert_eq!(found("/proc/thread-self/fd/12/a/../b"), Some((12, b"./a/../b".to_vec())));
        for other in ["/proc/self/fd/", "/proc/self/fd/07", "/proc/self/fd/-1", "/proc/self/cwd"] {
            assert_eq!(found(other), None, "{other}");
        }
        for other in ["proc/self/fd/7", "/proc/1/fd/7", "/proc/self/fd/99999999999", "", "/mnt"] {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
