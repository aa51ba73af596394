//! What attach did in a container, target by target.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What happened to a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A mount was made on it.
    Covered,
    /// A dead mount was removed, and a mount was made.
    Replaced,
    /// It has a mount of this overlay already.
    Already,
    /// The container has no such file.
    Absent,
    /// The mount of attach was removed.
    Removed,
    /// Nothing was changed, for this reason.
    Left(String),
}

/// What happened in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The targets, such as `proc/meminfo`, in the container's first mount namespace.
    pub targets: Vec<(String, Outcome)>,
    /// How many mount namespaces the container has.
    pub namespaces: usize,
    /// How many of them were not looked at, because there are too many.
    pub skipped: usize,
    /// Why targets were left alone in the other mount namespaces, for the first of them.
    pub elsewhere: Option<String>,
}

impl Report {
    /// Returns how many targets have this outcome.
    pub fn count(&self, outcome: &Outcome) -> usize {
        self.targets.iter().filter(|(_, one)| one == outcome).count()
    }

    /// Returns how many targets show the container's own numbers now.
    pub fn shown(&self) -> usize {
        [Outcome::Covered, Outcome::Replaced, Outcome::Already]
            .iter()
            .map(|outcome| self.count(outcome))
            .sum()
    }

    /// True if files were covered or uncovered in the container's first mount namespace.
    pub fn has_changed(&self) -> bool {
        let changes = [Outcome::Covered, Outcome::Replaced, Outcome::Removed];
        changes.iter().any(|outcome| self.count(outcome) > 0)
    }

    /// Returns the reasons for which targets were left alone, each with its targets.
    pub fn left(&self) -> Vec<(&str, Vec<&str>)> {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for (target, outcome) in &self.targets {
            let Outcome::Left(reason) = outcome else { continue };
            match reasons.iter_mut().find(|(known, _)| known == reason) {
                Some((_, targets)) => targets.push(target),
                None => reasons.push((reason, vec![target])),
            }
        }
        reasons
    }

    /// Adds the report of another mount namespace of the container.
    pub(super) fn add(&mut self, other: Self) {
        if self.namespaces == 0 {
            self.targets = other.targets;
        } else if self.elsewhere.is_none() {
            self.elsewhere =
                other.targets.into_iter().find_map(|(target, outcome)| match outcome {
                    Outcome::Left(reason) => Some(format!("/{target}: {reason}")),
                    _ => None,
                });
        }
        self.namespaces += 1;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (outcome, what) in [
            (Outcome::Covered, "covered"),
            (Outcome::Replaced, "replaced"),
            (Outcome::Already, "covered before"),
            (Outcome::Removed, "uncovered"),
        ] {
            match self.count(&outcome) {
                0 => {}
                1 => parts.push(format!("1 file {what}")),
                count => parts.push(format!("{count} files {what}")),
            }
        }
        for (reason, targets) in self.left() {
            let first = targets.first().copied().unwrap_or_default();
            let more = match targets.len() {
                0 | 1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            parts.push(format!("/{first}{more} left alone: {reason}"));
        }
        if parts.is_empty() {
            parts.push("nothing to do".to_owned());
        }
        if self.namespaces > 1 {
            parts.push(format!("{} mount namespaces", self.namespaces));
        }
        if let Some(reason) = &self.elsewhere {
            parts.push(format!("in another one: {reason}"));
        }
        if self.skipped > 0 {
            parts.push(format!("{} mount namespaces left alone: too many", self.skipped));
        }
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[(&str, Outcome)]) -> Report {
        let targets = outcomes.iter().map(|(name, one)| ((*name).to_owned(), one.clone()));
        Report { targets: targets.collect(), ..Report::default() }
    }

    #[test]
    fn a_report_names_each_reason_once() {
        let left = || Outcome::Left("tmpfs covers it".to_owned());
        let mut all = Report::default();
        all.add(report(&[
            ("proc/stat", Outcome::Covered),
            ("proc/meminfo", left()),
            ("proc/swaps", left()),
            ("proc/uptime", Outcome::Absent),
        ]));
        all.add(report(&[("proc/stat", left())]));
        assert_eq!(
            all.to_string(),
            "1 file covered; /proc/meminfo and 1 more left alone: tmpfs covers it; \
             2 mount namespaces; in another one: /proc/stat: tmpfs covers it"
        );
        assert_eq!((all.shown(), all.namespaces), (1, 2));
        assert_eq!(Report::default().to_string(), "nothing to do");
    }
}
