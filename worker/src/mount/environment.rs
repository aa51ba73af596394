//! The environment of a helper: the caller's, as execve(2) gave it to the caller's program.
//!
//! Credentials, proxies and HOME are in it. It is read through a descriptor of the caller's
//! `environ`, which was opened while the caller waited and stays with that memory. A program of the
//! host must never get a variable that tells glibc to load or read something: the container chose
//! it. Start reading at [`read`].

use std::ffi::CString;
use std::fs::File;
use std::io::Read;

/// The longest environment, in bytes. What is longer is cut after a whole variable.
const LONGEST: u64 = 128 << 10;
const PATH: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables that glibc drops for set-user-ID programs (sysdeps/generic/unsecvars.h), and others
/// that name a file for it. Those that start with `LD_` and `MALLOC_` are dropped as well.
const UNSAFE: [&str; 20] = [
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "NIS_PATH",
    "NLSPATH",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "TMPDIR",
    "TZDIR",
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "P11_KIT_DEBUG",
    "SSLKEYLOGFILE",
    "FUSERMOUNT_PROG",
    "GIO_EXTRA_MODULES",
    "GIO_MODULE_DIR",
];
/// A prefix of [`UNSAFE`] variables.
const UNSAFE_PREFIXES: [&[u8]; 2] = [b"LD_", b"MALLOC_"];

/// Reads the environment. `None` is a caller without one.
pub(super) fn read(environ: Option<File>, of_the_host: bool) -> Vec<CString> {
    let mut bytes = Vec::new();
    if let Some(file) = environ {
        // Errors are ignored: the caller has ended, or its memory cannot be read.
        let _ = file.take(LONGEST).read_to_end(&mut bytes);
    }
    let end = bytes.iter().rposition(|&byte| byte == 0).unwrap_or(0);
    for_helper(&bytes[..end], of_the_host)
}

fn for_helper(bytes: &[u8], of_the_host: bool) -> Vec<CString> {
    let is_unsafe = |name: &[u8]| {
        UNSAFE.iter().any(|one| one.as_bytes() == name)
            || UNSAFE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    // The log shows messages in English, and the errno is found by them. Names of files are in the
    // caller's encoding.
    let mut variables = vec![b"LC_MESSAGES=C".to_vec()];
    let mut has_path = false;
    for variable in bytes.split(|&byte| byte == 0) {
        let Some(at) = variable.iter().position(|&byte| byte == b'=') else { continue };
        let (name, value) = (&variable[..at], &variable[at..]);
        match name {
            b"LC_MESSAGES" | b"LANGUAGE" => {}
            b"LC_ALL" if value.len() > 1 => variables.push([b"LC_CTYPE", value].concat()),
            b"LC_ALL" => {}
            name if of_the_host && is_unsafe(name) => {}
            name => {
                has_path |= name == b"PATH";
                variables.push(variable.to_vec());
            }
        }
    }
    if !has_path {
        variables.push(PATH.to_vec());
    }
    variables.into_iter().filter_map(|variable| CString::new(variable).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str, of_the_host: bool) -> Vec<String> {
        let all = for_helper(text.as_bytes(), of_the_host);
        all.into_iter().map(|variable| variable.into_string().unwrap()).collect()
    }

    #[test]
    fn a_helper_has_the_callers_variables() {
        let text = "HOME=/root\0AWS_KEY=a=b\0PATH=/opt\0LD_PRELOAD=/x\0odd\0LC_ALL=de_DE.UTF-8";
        let expected = ["LC_MESSAGES=C", "HOME=/root", "AWS_KEY=a=b", "PATH=/opt", "LD_PRELOAD=/x"];
        assert_eq!(made(text, false), [&expected[..], &["LC_CTYPE=de_DE.UTF-8"]].concat());
        assert!(made("", false)[1].starts_with("PATH=/usr/local/sbin:"));
    }

    #[test]
    fn a_program_of_the_host_has_none_that_loads_something() {
        let text =
            "LD_PRELOAD=/x\0GLIBC_TUNABLES=y\0GCONV_PATH=.\0MALLOC_CHECK_=1\0LANG=C\0PATH=/a";
        assert_eq!(made(text, true), ["LC_MESSAGES=C", "LANG=C", "PATH=/a"]);
    }

    #[test]
    fn an_environment_that_is_too_long_ends_with_a_whole_variable() {
        let file = tempfile::tempfile().unwrap();
        let variable = format!("A={}\0", "x".repeat(1000));
        std::io::Write::write_all(&mut &file, variable.repeat(200).as_bytes()).unwrap();
        std::io::Seek::rewind(&mut &file).unwrap();
        let all = read(Some(file), true);
        assert!(
            all.len() > 100 && all.iter().all(|one| one.as_bytes().len() != 1),
            "{}",
            all.len()
        );
        let whole = |one: &&CString| one.as_bytes().starts_with(b"A=");
        assert!(all.iter().filter(whole).all(|one| one.as_bytes().len() == 1002));
    }
}
