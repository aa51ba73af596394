//! Checks the sources of network filesystems against the policy.
//!
//! The kernel's client has the host's rights: it reaches what the host may reach, with the host's
//! credentials, and the server talks to the kernel. So a source that the policy does not list must
//! never be mounted. Mount programs also look the server's address up and pass it as an option: the
//! source and all such options must match a pattern, and so must a port that is not the usual one.
//! A source must name its folder without `.`, `..` and `//`: the server resolves them, so they
//! would lead out of what a pattern lists. Start reading at [`check`].

use ambit_kernel::text::shown::shown;

use super::filesystem::Filesystem;
use super::options::Item;

/// Options whose value is the server that is used instead of the source.
const SERVERS: [&[u8]; 6] = [b"addr", b"ip", b"mountaddr", b"mounthost", b"unc", b"mon_addr"];

/// Options with a port, and the usual ones. Another port is listed as `port=N`.
const PORTS: [(&[u8], &[&[u8]]); 1] = [(b"port", &[b"2049", b"445", b"564", b"0"])];

/// A source that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("mount.sources has no pattern for {0} from {1:?}: add {0}={1}")]
    Unlisted(String, String),
    #[error("the source {0:?} has an empty part, \".\" or \"..\": name the folder without")]
    Winding(String),
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
    let names = servers.filter_map(|item| item.value.as_deref().map(<[u8]>::to_vec));
    let source = source.unwrap_or_default();
    let ports = items.iter().filter(|item| {
        let usual = PORTS.iter().find(|(key, _)| *key == item.key);
        usual.is_some_and(|(_, usual)| !usual.contains(&item.value.as_deref().unwrap_or_default()))
    });
    let ports = ports.map(|item| item.to_string().into_bytes());
    for name in std::iter::once(source.to_vec()).chain(names).chain(ports) {
        if is_winding(&name) {
            return Err(Error::Winding(shown(&name)));
        }
        let listed = std::str::from_utf8(&name)
            .is_ok_and(|name| patterns.iter().any(|pattern| fits(pattern, filesystem, name)));
        if !listed {
            return Err(Error::Unlisted(filesystem.name().to_owned(), shown(&name)));
        }
    }
    Ok(())
}

/// True if a part of the path is empty, `.` or `..`. The two slashes at the start of a share
/// (`//server/share`, `\\server\share`) and one at the end are none.
fn is_winding(name: &[u8]) -> bool {
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    let name = match name {
        [first, second, rest @ ..] if is_slash(first) && is_slash(second) => rest,
        name => name,
    };
    let name = match name {
        [rest @ .., last] if is_slash(last) => rest,
        name => name,
    };
    // The folder of `server:/folder` begins with a slash.
    let mut parts = name.split(is_slash);
    let first = parts.next().unwrap_or_default();
    let is_odd = |part: &[u8]| matches!(part, b"" | b"." | b"..");
    matches!(first.rsplit(|&byte| byte == b':').next(), Some(b"." | b"..")) || parts.any(is_odd)
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
        assert!(checked(&["*"], "nfs", "filer:/", ""), "the root of a server");
        let nameless = check(&["nfs=a*".into()], Filesystem::new("nfs"), Some(b"a\xff"), &[]);
        assert!(nameless.unwrap_err().to_string().contains("add nfs="));
    }

    #[test]
    fn a_source_does_not_lead_out_of_what_is_listed() {
        let patterns = ["nfs=filer:/export/*", "//filer/*", "9p=share*"];
        for (kind, source) in [
            ("nfs", "filer:/export/x/../../secret"),
            ("nfs", "filer:/export/."),
            ("nfs", "filer:/export//x"),
            ("cifs", "//filer/share/.."),
            ("cifs", "//filer/share\\..\\x"),
            ("cifs", "//filer//share"),
            ("9p", "share/../x"),
        ] {
            let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            let source = Some(source.as_bytes());
            let error = check(&patterns, Filesystem::new(kind), source, &[]).unwrap_err();
            assert!(error.to_string().contains("without"), "{source:?}: {error}");
        }
        assert!(checked(&patterns, "nfs", "filer:/export/a..b/.c/", ""));
    }

    #[test]
    fn another_port_must_be_listed() {
        let patterns = ["nfs=filer:/export/*", "nfs=port=2050"];
        assert!(checked(&patterns, "nfs", "filer:/export/x", "port=2049"));
        assert!(checked(&patterns, "nfs", "filer:/export/x", "port=2050"));
        assert!(!checked(&patterns, "nfs", "filer:/export/x", "port=22"));
        assert!(!checked(&patterns, "nfs", "filer:/export/x", "port"));
    }
}
