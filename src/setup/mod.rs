//! `ambit setup`: finds the engines of a machine, and has them equip their containers.
//!
//! Every file is read and its new text made before the first one is written. What cannot be done is
//! said, and does not keep the rest from being done. Nothing is recorded: running it again does
//! nothing more, after a crash the rest, and `--undo` takes away what is ambit's. Start reading at
//! [`run`], then `pieces`.

mod auto;
mod block;
mod containerd;
mod docker;
mod edit;
mod engines;
mod files;
mod json;
mod pieces;
mod reload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ambit_kernel::output::{one_line, print};
use anyhow::{Context as _, bail};

use crate::config::print::wrapped;
use crate::config::{Config, DEFAULT_PATH};
use crate::oci_runtime;
use edit::{Context, Edit};
use engines::Engine;
use files::Files;
use pieces::Piece;

/// The arguments of `ambit setup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0; 1 if something could not be done; 2 for bad input. Nothing is restarted: what has to \
be is said.

Examples:
  ambit setup --dry-run       what would be written, and why
  ambit setup                 all engines that are found
  ambit setup --undo docker")]
pub struct SetupArgs {
    /// Which engines: without any, all that are found
    #[arg(value_name = "ENGINE")]
    engines: Vec<Engine>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Take away what is ambit's: without engines, all of it
    #[arg(long)]
    undo: bool,
    /// Work on the files below a folder, for packages and images; no daemon is told
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where the program is installed [default: where it is; /usr/bin/ambit with --root]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// How wide the output is.
const WIDTH: usize = 80;

/// Runs `ambit setup`. `config_file` is the configuration that was named.
pub fn run(args: &SetupArgs, config_file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let files = Files::below(&args.root)?;
    if files.are_own() && !args.dry_run && !rustix::process::geteuid().is_root() {
        bail!("setup needs root, because it writes to /etc: use sudo, or --dry-run to see what");
    }
    let program = match (&args.program, files.are_own()) {
        (Some(program), _) => program.clone(),
        (None, true) => oci_runtime::own_program()?,
        (None, false) => "/usr/bin/ambit".into(),
    };
    if !program.is_absolute() {
        bail!("--program {}: use an absolute path", program.display());
    }
    let path = config_file.unwrap_or(Path::new(DEFAULT_PATH));
    let config = match files.read(path)? {
        Some(text) => Config::parse(&text, path)?,
        None if config_file.is_some() => bail!("there is no {}", path.display()),
        None => Config::default(),
    };
    let cx = Context { files: &files, program: &program, config: &config, config_file };

    let found = find(&files);
    let named = |engine: &Engine| args.engines.is_empty() || args.engines.contains(engine);
    if !args.undo {
        report_found(&found, &args.engines)?;
    }
    let wanted = |piece: Piece| {
        let using = Engine::all().iter().filter(|engine| {
            let program = found.iter().find(|(found, _)| found == *engine);
            let counts = program.is_some() || !args.engines.is_empty() || args.undo;
            let pieces = engine.pieces(program.map(|(_, program)| program.as_path()));
            counts && named(engine) && pieces.contains(&piece)
        });
        using.copied().collect::<Vec<_>>()
    };
    // With names, what other engines need stays.
    let kept = |piece: Piece| {
        found.iter().any(|(engine, program)| {
            !named(engine) && engine.pieces(Some(program)).contains(&piece)
        })
    };
    let pieces = pieces::ALL.into_iter().map(|piece| (piece, wanted(piece)));
    let pieces = pieces.filter(|(piece, using)| !(using.is_empty() || args.undo && kept(*piece)));
    let steps: Vec<Step> = pieces
        .map(|(piece, using)| {
            let edit = if args.undo { piece.undo(&cx) } else { piece.setup(&cx) };
            Step { piece, path: piece.path(&cx), using, edit }
        })
        .filter(|step| !matches!(step.edit, Ok(Edit::Nothing)))
        .collect();
    if steps.is_empty() {
        print(if args.undo { "nothing of ambit is there\n" } else { "nothing to do\n" })?;
    }

    let mut outcome = Outcome::default();
    for step in steps {
        step.take(args, &files, &mut outcome)?;
    }
    outcome.reload(args, &cx)?;
    if args.dry_run && !outcome.changed.is_empty() {
        print("\nnothing was changed, because of --dry-run\n")?;
    }
    Ok(ExitCode::from(u8::from(outcome.has_failed)))
}

/// Returns the engines that are there, with their programs.
fn find(files: &Files) -> Vec<(Engine, PathBuf)> {
    let find = |engine: &Engine| engine.find(files).map(|program| (*engine, program));
    Engine::all().iter().filter_map(find).collect()
}

fn report_found(found: &[(Engine, PathBuf)], named: &[Engine]) -> anyhow::Result<()> {
    for (engine, program) in found {
        print(format_args!("found   {:<11} {}\n", engine.name(), program.display()))?;
    }
    let is_found = |engine: &Engine| found.iter().any(|(found, _)| found == engine);
    let missing: Vec<_> = Engine::all().iter().filter(|engine| !is_found(engine)).collect();
    let missing: Vec<_> = missing.into_iter().map(|engine| engine.name()).collect();
    if !missing.is_empty() {
        paragraph("absent", &missing.join(", "))?;
    }
    if found.is_empty() && named.is_empty() {
        paragraph(
            "",
            "No engine was found. Name one, and its files are written before it is installed.",
        )?;
    }
    Ok(print("\n")?)
}

/// Prints a word, and prose beside it.
fn paragraph(word: &str, prose: &str) -> anyhow::Result<()> {
    let text = wrapped(prose, WIDTH, "        ");
    Ok(print(format_args!("{word:<8}{}\n", text.trim_start()))?)
}

/// A file, and what is done to it.
struct Step {
    piece: Piece,
    path: PathBuf,
    using: Vec<Engine>,
    edit: anyhow::Result<Edit>,
}

impl Step {
    /// Changes the file, and says so.
    fn take(self, args: &SetupArgs, files: &Files, outcome: &mut Outcome) -> anyhow::Result<()> {
        let (mut word, mut note) = match &self.edit {
            Ok(Edit::Nothing | Edit::Same) => ("same", None),
            Ok(Edit::Skip(reason)) => ("left", Some(reason.clone())),
            Ok(Edit::Change { text: None, note }) => ("remove", note.clone()),
            Ok(Edit::Change { note, .. }) if files.has(&self.path) => ("change", note.clone()),
            Ok(Edit::Change { note, .. }) => ("write", note.clone()),
            Err(error) => ("failed", Some(one_line(error))),
        };
        if let Ok(Edit::Change { text, .. }) = &self.edit {
            if args.undo && !args.dry_run && self.piece == Piece::Docker {
                outcome.docker = self.take_from_docker(files);
            }
            let done = match text {
                _ if args.dry_run => Ok(()),
                Some(text) => files.write(&self.path, text),
                None => files.remove(&self.path),
            };
            match done {
                Ok(()) => outcome.changed.push(self.piece),
                Err(error) => (word, note) = ("failed", Some(one_line(&error))),
            }
            if text.is_none() && !args.dry_run {
                let folders = self.piece.folders().iter();
                folders.for_each(|folder| files.remove_empty(Path::new(folder)));
            }
        }
        outcome.has_failed |= word == "failed";
        print(format_args!("{word:<8}{}\n", self.path.display()))?;
        if !args.undo {
            let using: Vec<_> = self.using.iter().map(|engine| engine.name()).collect();
            paragraph("", &format!("{}: {}", using.join(", "), self.piece.purpose()))?;
        }
        note.map_or(Ok(()), |note| paragraph("", &note))
    }

    /// Has a dockerd that runs use runc, before its file loses the keys.
    fn take_from_docker(&self, files: &Files) -> Option<anyhow::Result<()>> {
        reload::docker(files)?;
        let give = || {
            let text = files.read(&self.path)?.unwrap_or_default();
            reload::give_docker(files, &self.path, &docker::with_runc(&text)?)
        };
        Some(give().context("new containers have the runtime ambit until dockerd is restarted"))
    }
}

/// What was changed.
#[derive(Default)]
struct Outcome {
    /// Whether a running dockerd was given runc before the file was changed.
    docker: Option<anyhow::Result<()>>,
    changed: Vec<Piece>,
    has_failed: bool,
}

impl Outcome {
    /// Has the daemons read what has changed, and says what the user has to restart.
    fn reload(&mut self, args: &SetupArgs, cx: &Context<'_>) -> anyhow::Result<()> {
        let has = |piece| self.changed.contains(&piece);
        let (files, dry) = (cx.files, args.dry_run);
        let mut daemons = Vec::new();
        if has(Piece::Docker) {
            let running = reload::docker(files).is_some();
            let done = match self.docker.take() {
                Some(given) => given.map(|()| true),
                None if dry => Ok(running),
                None => reload::reload_docker(files),
            };
            daemons.push(("docker", done, "it reads its file when it starts"));
        }
        if has(Piece::Auto) {
            let done = if dry { Ok(true) } else { reload::reload_ambit(files, cx.config) };
            daemons.push(("ambit", done, "its daemon does not run"));
        }
        let containerd = has(Piece::ContainerdFile) || has(Piece::ContainerdBlock);
        if !files.are_own() {
            return Ok(());
        }
        if containerd || !daemons.is_empty() {
            print("\n")?;
        }
        for (name, done, otherwise) in daemons {
            match done {
                Ok(true) => paragraph("reload", name)?,
                Ok(false) => paragraph("later", &format!("{name}: {otherwise}"))?,
                Err(error) => {
                    self.has_failed = true;
                    paragraph("failed", &format!("reload of {name}: {}", one_line(&error)))?;
                }
            }
        }
        if containerd {
            let prose = "systemctl restart containerd: it reads its file only then. Its \
                         containers go on running.";
            paragraph("to do", prose)?;
        }
        Ok(())
    }
}
