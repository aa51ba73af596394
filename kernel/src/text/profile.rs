//! `/proc/<tid>/attr/apparmor/current`.

/// Returns the profile without its mode, of text such as `lxc-container-default-cgns (enforce)`.
pub fn parse(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?.trim_end_matches(['\n', '\0']);
    let name = text.rsplit_once(" (").map_or(text, |(name, _)| name);
    (!name.is_empty() && name != "unconfined").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_named_without_their_mode() {
        assert_eq!(parse(b"lxc-default (enforce)\n"), Some("lxc-default".into()));
        assert_eq!(parse(b"a//&:b:c (mixed)"), Some("a//&:b:c".into()));
        assert_eq!((parse(b"unconfined\n"), parse(b"")), (None, None));
    }
}
