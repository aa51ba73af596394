//! `scripts/install-toolchain` on machines without a Rust that is new enough. The installer is a
//! stand-in: what rustup's own one does is not tried here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::harness::command::{Output, quiet, run};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install-toolchain");

/// A home, and a folder of programs that are found before the machine's.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for folder in ["home", "bin"] {
            fs::create_dir(machine.path(folder)).unwrap();
        }
        // No package of Debian is a candidate, whatever this machine's apt knows.
        machine.program("bin/apt-cache", "exit 0");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn rust(&self, folder: &str, version: &str) {
        for name in ["cargo", "rustc"] {
            let says = format!("echo '{name} {version} (0123456 2026-01-01)'");
            self.program(&format!("{folder}/{name}"), &says);
        }
    }

    /// An installer that installs this version as rustup's does, and says its arguments.
    fn installer(&self, version: &str) {
        self.rust("new", version);
        let home = self.path("home/.cargo").display().to_string();
        let new = self.path("new").display().to_string();
        self.program(
            "installer",
            &format!("echo \"installer: $*\"; mkdir -p {home}; cp -r {new} {home}/bin"),
        );
    }

    fn install(&self) -> Output {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        run(quiet(SCRIPT)
            .env_clear()
            .env("HOME", self.path("home"))
            .env("PATH", path)
            .env("AMBIT_RUSTUP_INSTALLER", format!("file://{}", self.path("installer").display())))
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_new_toolchain_is_installed_beside_one_that_is_too_old() {
    let machine = Machine::new();
    machine.rust("bin", "1.63.0");
    machine.installer("1.999.0");
    let old = text(&machine.path("bin/rustc"));
    let said = machine.install().ok();
    assert!(said.contains("Rust 1.63.0 is older than "), "{said}");
    assert!(said.contains("installer: -y --no-modify-path --default-toolchain stable"), "{said}");
    assert!(said.contains("Rust 1.999.0 builds ambit"), "{said}");
    assert_eq!(text(&machine.path("bin/rustc")), old);
    // The second time it is found, and nothing is said.
    assert_eq!(machine.install().ok(), "");
}

#[test]
fn a_rustup_that_is_there_installs_the_toolchain_for_the_folder_alone() {
    let machine = Machine::new();
    machine.rust("bin", "1.63.0");
    machine.rust("new", "1.999.0");
    let (bin, new) = (machine.path("bin"), machine.path("new"));
    machine.program(
        "bin/rustup",
        &format!(
            "echo \"rustup: $*\"; [ \"$1\" = toolchain ] || cp {}/* {}/",
            new.display(),
            bin.display()
        ),
    );
    let said = machine.install().ok();
    let root = env!("CARGO_MANIFEST_DIR");
    let minimum = env!("CARGO_PKG_RUST_VERSION");
    assert!(said.contains(&format!("rustup: toolchain install {minimum} ")), "{said}");
    assert!(said.contains(&format!("rustup: override set {minimum} --path {root}\n")), "{said}");
    assert!(!said.contains("default"), "{said}");
}

#[test]
fn an_installer_that_cannot_be_read_is_an_error_that_says_what_to_do() {
    let machine = Machine::new();
    machine.rust("bin", "1.63.0");
    let output = machine.install();
    assert_eq!(output.status, 1, "{}", output.stdout);
    assert!(output.stderr.contains("installer cannot be read; install Rust "), "{}", output.stderr);
}

#[test]
fn an_installer_that_installs_an_old_toolchain_is_an_error() {
    let machine = Machine::new();
    machine.rust("bin", "1.63.0");
    machine.installer("1.64.0");
    let output = machine.install();
    assert_eq!(output.status, 1, "{}", output.stdout);
    assert!(output.stderr.contains("1.64.0 Rust is found"), "{}", output.stderr);
}
