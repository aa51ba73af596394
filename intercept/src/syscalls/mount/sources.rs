//! Checks the sources of network filesystems against the policy.
//!
//! The kernel's client has the host's rights: it reaches what the host may reach, with the host's
//! credentials, and the server talks to the kernel. So a source that the policy does not list must
//! never be mounted. Mount programs also look the server's address up and pass it as an option: the
//! source and all such options must match a pattern. Start reading at [`check`].

use super::filesystem::Filesystem;
use super::options::Item;

/// Options whose value is the server that is used instead of the source.
const SERVERS: [&[u8]; 6] = [b"addr", b"ip", b"mountaddr", b"mounthost", b"unc", b"mon_addr"];

/// A source that the policy does not list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "mount.sources has no pattern for {filesystem} from {source_name:?}: add {filesystem}={source_name}"
)]
pub(super) struct Error {
    filesystem: String,
    source_name: String,
}

/// Checks that the source and all options that name the server are listed.
pub(super) fn check(
    patterns: &[String],
    filesystem: Filesystem<'_>,
    source: Option<&[u8]>,
    items: &[Item],
) -> Result<(), Error> {
    if !filesystem.is_remote() {
        return Ok(());
    }
    let servers = items.iter().filter(|item| SERVERS.contains(&&*item.key));
    let names = servers.filter_map(|item| item.value.as_deref());
    for name in std::iter::once(source.unwrap_or_default()).chain(names) {
        let listed = std::str::from_utf8(name)
            .is_ok_and(|name| patterns.iter().any(|pattern| fits(pattern, filesystem, name)));
        if !listed {
            return Err(Error {
                filesystem: filesystem.name().to_owned(),
                source_name: String::from_utf8_lossy(name).into_owned(),
            });
        }
    }
    Ok(())
}

/// True if the source matches a pattern such as `SOURCE` or `TYPE=SOURCE`.
fn fits(pattern: &str, filesystem: Filesystem<'_>, name: &str) -> bool {
    let is_type = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let pattern = match pattern.split_once('=') {
        Some((kind, pattern)) if is_type(kind) => {
            if kind != filesystem.name() {
                return false;
            }
            pattern
        }
        _ => pattern,
    };
    wildmatch::WildMatch::new(pattern).matches(name)
}

#[cfg(test)]
mod tests {
    use super::super::options::split;
    use super::*;

    fn checked(patterns: &[&str], kind: &str, source: &str, data: &str) -> bool {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let items = split(data.as_bytes());
        check(&patterns, Filesystem::new(kind), Some(source.as_bytes()), &items).is_ok()
    }

    #[test]
    fn a_source_that_is_not_listed_is_refused() {
        let patterns = ["nfs=filer:/export/*", "//filer/*"];
        assert!(checked(&patterns, "nfs", "filer:/export/home", "vers=3"));
        assert!(checked(&patterns, "cifs", "//filer/share", ""));
        assert!(!checked(&patterns, "nfs4", "filer:/export/home", ""), "another type");
        assert!(!checked(&patterns, "nfs", "filer:/etc", ""));
        assert!(!checked(&[], "9p", "share", ""));
        assert!(checked(&[], "ext4", "/dev/vda", "") && checked(&[], "hugetlbfs", "none", ""));
    }

    #[test]
    fn an_option_that_names_a_server_must_be_listed() {
        let patterns = ["nfs=filer:/export/*", "nfs=10.0.0.5"];
        assert!(checked(&patterns, "nfs", "filer:/export/x", "addr=10.0.0.5,vers=4"));
        assert!(!checked(&patterns, "nfs", "filer:/export/x", "addr=10.0.0.5,addr=10.0.0.6"));
        assert!(checked(&["*"], "cifs", "//a/b", "ip=10.0.0.6,unc=//c/d"));
        let nameless = check(&["nfs=a*".into()], Filesystem::new("nfs"), Some(b"a\xff"), &[]);
        assert!(nameless.unwrap_err().to_string().contains("add nfs="));
    }
}
