//! Attach: covers files of a container's `/proc` and `/sys` with those of the overlay, while the
//! container runs or is being made.
//!
//! [`cover`] works in the mount namespace that the calling process is in, on detached copies of the
//! overlay's files, and moves each onto its target. It is used by a child of the broker that has
//! entered a running container's mount namespace (`container.rs`), and by an OCI hook, which the
//! runtime starts there.
//!
//! A target is covered only if it lies on a procfs of the container's own pid namespace, or on a
//! sysfs, and if that mount is in no peer group of the machine: a container that is being made still
//! shares the machine's mounts, and what is mounted on them would appear on the machine. Everything
//! is looked up by descriptor, and symbolic links are not followed. There is no state: a mount of
//! attach is recognised by its attributes (`clones.rs`), so that [`uncover`] removes what attach made
//! and no bind mount of an engine.
//!
//! Start reading at [`cover`].

mod clones;
mod container;
mod facts;
mod probe;
mod report;
mod tree;
mod visible;

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::mount::MoveMountFlags;
use serde::{Deserialize, Serialize};

pub use clones::{copy, copy_for, is_marked};
pub(super) use container::run;
pub use container::{Action, AttachOrder, DEADLINE};
pub use facts::{Facts, LEASES};
pub use report::{Outcome, Report};
use tree::{State, Tree, Verdicts};

use super::error::Error;

/// What attach may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Cover the files of another program, such as lxcfs, that still serves them.
    pub replace: bool,
    /// What is done with a container whose `/proc` or `/sys` is fully visible.
    pub unmasked: Unmasked,
}

/// What is done with a container whose `/proc` or `/sys` is fully visible. One covered file forbids
/// user namespaces inside to mount a procfs or sysfs of their own (`mount_too_revealing` in the
/// kernel's `fs/namespace.c`), which nested containers need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmasked {
    /// A fully visible mount is kept beside, at `/dev/.ambit`.
    #[default]
    Keep,
    /// Its files are left alone.
    Skip,
    /// Nothing: the engine hides parts of it later, before the container's first instruction.
    #[serde(skip)]
    HiddenLater,
}

/// Returns detached copies of the overlay's files for these targets, such as `proc/meminfo`, in the
/// same order. Called in the container's mount namespace, and must return to it.
pub type Copies<'a> = dyn FnMut(&[&str]) -> Result<Vec<Result<OwnedFd, Error>>, Error> + 'a;

/// Covers the targets that exist below a root, which lie in the mount namespace of this process.
///
/// `root` is a descriptor (`O_PATH`) of the folder with the container's `/proc` and `/sys`. The
/// process must be single-threaded. Targets that a rule leaves alone are no error: the report names
/// the reason.
pub fn cover(
    root: BorrowedFd<'_>,
    targets: &[String],
    facts: &Facts,
    options: Options,
    copies: &mut Copies<'_>,
) -> Result<Report, Error> {
    let mounts = facts.mounts()?;
    let mut report = Report { namespaces: 1, ..Report::default() };
    for (name, targets) in trees(targets) {
        let outcomes = match Tree::open(root, name, &mounts, facts) {
            Ok(Some(tree)) => cover_tree(root, &tree, &targets, facts, options, copies)?,
            Ok(None) => vec![Outcome::Absent; targets.len()],
            Err(reason) => vec![Outcome::Left(reason); targets.len()],
        };
        report.targets.extend(targets.iter().map(|&target| target.to_owned()).zip(outcomes));
    }
    Ok(report)
}

/// Removes the mounts that [`cover`] has made below a root.
pub fn uncover(root: BorrowedFd<'_>, targets: &[String], facts: &Facts) -> Result<Report, Error> {
    let mounts = facts.mounts()?;
    let mut report = Report { namespaces: 1, ..Report::default() };
    for (name, targets) in trees(targets) {
        let outcomes = match Tree::open(root, name, &mounts, facts) {
            Ok(Some(tree)) => targets.iter().map(|target| tree.uncover(target)).collect(),
            Ok(None) => vec![Outcome::Absent; targets.len()],
            Err(reason) => vec![Outcome::Left(reason); targets.len()],
        };
        if !outcomes.iter().any(|outcome| matches!(outcome, Outcome::Left(_))) {
            visible::forget(root, name, &mounts);
        }
        report.targets.extend(targets.iter().map(|&target| target.to_owned()).zip(outcomes));
    }
    Ok(report)
}

/// Returns the targets by the folder that they are in, `proc` and `sys`.
fn trees(targets: &[String]) -> [(&'static str, Vec<&str>); 2] {
    let below = |name: &str| {
        let is_below =
            |target: &&str| target.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        targets.iter().map(String::as_str).filter(is_below).collect()
    };
    [("proc", below("proc")), ("sys", below("sys"))]
}

/// Covers the targets of one tree. Returns an outcome for each.
fn cover_tree(
    root: BorrowedFd<'_>,
    tree: &Tree<'_>,
    targets: &[&str],
    facts: &Facts,
    options: Options,
    copies: &mut Copies<'_>,
) -> Result<Vec<Outcome>, Error> {
    let mut verdicts = Verdicts::default();
    let states: Vec<State> =
        targets.iter().map(|target| tree.state(target, facts, options, &mut verdicts)).collect();
    let is_open = |state: &State| matches!(state, State::Open | State::Dead);
    if states.iter().any(is_open)
        && let Err(reason) = visible::keep(root, tree, facts, options.unmasked)
    {
        let left = |state: State| match state {
            State::Open | State::Dead => Outcome::Left(reason.clone()),
            State::Settled(outcome) => outcome,
        };
        return Ok(states.into_iter().map(left).collect());
    }
    let wanted: Vec<&str> = targets
        .iter()
        .zip(&states)
        .filter(|(_, state)| is_open(state))
        .map(|(&target, _)| target)
        .collect();
    let made = if wanted.is_empty() { Vec::new() } else { copies(&wanted)? };
    let mut made = made.into_iter();
    let mut placed = Vec::new();
    let outcomes = targets.iter().zip(states).map(|(target, state)| {
        let dead = match state {
            State::Settled(outcome) => return outcome,
            State::Open => None,
            State::Dead => Some(&verdicts),
        };
        let copy = match made.next() {
            Some(Ok(copy)) => copy,
            Some(Err(error)) => return Outcome::Left(error.message),
            None => return Outcome::Left("there is no copy of it".to_owned()),
        };
        let outcome = attach(tree, target, &copy, dead);
        placed.extend(outcome.is_ok().then_some(copy));
        outcome.unwrap_or_else(Outcome::Left)
    });
    let outcomes = outcomes.collect();
    clones::mark_attached(&placed, facts)?;
    Ok(outcomes)
}

/// Moves a copy onto its target, after the dead mounts there have been removed.
fn attach(
    tree: &Tree<'_>,
    target: &str,
    copy: &OwnedFd,
    dead: Option<&Verdicts>,
) -> Result<Outcome, String> {
    if let Some(verdicts) = dead {
        tree.clear(target, verdicts)?;
    }
    let place = tree.place(target).map_err(|errno| format!("openat2: {errno}"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(copy, "", &place, "", flags)
        .map_err(|errno| format!("move_mount: {errno}"))?;
    Ok(if dead.is_some() { Outcome::Replaced } else { Outcome::Covered })
}
