//! Writes the man pages, the shell completions and the commented configuration file that a package
//! contains, from the definitions of the command line and of the configuration:
//! `cargo run --example manual -- FOLDER VERIFY`, where VERIFY is the program `ambit-verify`.
//!
//! Files in FOLDER are replaced. It is a program of its own so that `ambit` does not contain it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ambit::{Cli, default_file};
use anyhow::{Context, ensure};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(verify)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: manual FOLDER VERIFY");
    };
    let completions = folder.join("completions");
    for needed in [&folder, &completions] {
        fs::create_dir_all(needed).with_context(|| needed.display().to_string())?;
    }
    commands(&Cli::command(), &folder)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "ambit", &completions)?;
    }
    let configuration = default_file();
    fs::write(folder.join("ambit.toml"), &configuration)?;
    let page = Page {
        name: "ambit.toml",
        section: "5",
        summary: "configuration of ambit",
        introduction: "The daemon and the commands of ambit(1) read /etc/ambit/ambit.toml, or the \
                       file that --config names. It is TOML. Every key has a default, and an \
                       unknown key is an error. The following file has all keys as comments.",
        text: &configuration,
    };
    page.write(&folder)?;
    let page = Page {
        name: "ambit-verify",
        section: "1",
        summary: "check what programs read inside a container",
        introduction: "It reads what programs read inside a container, and prints what agrees and \
                       what contradicts what.",
        text: &help(&verify)?,
    };
    page.write(&folder)
}

/// Writes a page for the command and for each of its subcommands that is not hidden.
fn commands(command: &clap::Command, folder: &Path) -> anyhow::Result<()> {
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let page = |command: &clap::Command| {
        let mut roff = Vec::new();
        Man::new(command.clone()).render(&mut roff)?;
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        fs::write(folder.join(format!("{name}.1")), roff)
    };
    page(&command)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        page(subcommand)?;
    }
    Ok(())
}

/// A page whose main part is a text that another part of ambit prints.
struct Page<'a> {
    name: &'a str,
    section: &'a str,
    summary: &'a str,
    introduction: &'a str,
    text: &'a str,
}

impl Page<'_> {
    fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let mut roff = Roff::new();
        roff.control("TH", [self.name, self.section]);
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("{} - {}", self.name, self.summary))]);
        roff.control("SH", ["DESCRIPTION"]);
        roff.text([roman(self.introduction)]);
        roff.control("PP", []);
        roff.control("nf", []);
        for line in self.text.lines() {
            match line {
                "" => roff.control("sp", []),
                line => roff.text([roman(line)]),
            };
        }
        roff.control("fi", []);
        roff.control("SH", ["SEE ALSO"]);
        roff.text([bold("ambit"), roman("(1)")]);
        let path = folder.join(format!("{}.{}", self.name, self.section));
        fs::write(&path, roff.render()).with_context(|| path.display().to_string())
    }
}

/// Returns what a program prints for `--help`.
fn help(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg(OsStr::new("--help"))
        .output()
        .with_context(|| program.display().to_string())?;
    ensure!(output.status.success(), "{} --help: {}", program.display(), output.status);
    Ok(String::from_utf8(output.stdout)?)
}
