//! Rows of the result: what a reader shows, and whether it agrees with the rest.

use crate::files::Unread;

/// The better one comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    Agrees,
    /// It cannot be told here.
    Untold,
    Contradicts,
}

impl Mark {
    pub(crate) fn symbol(self) -> char {
        match self {
            Self::Agrees => '✓',
            Self::Untold => '–',
            Self::Contradicts => '✗',
        }
    }
}

/// One reader's answer about one subject.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) subject: &'static str,
    pub(crate) reader: String,
    pub(crate) mark: Mark,
    pub(crate) shown: String,
    pub(crate) reason: String,
    /// In bytes, seconds, or as a count.
    pub(crate) value: Option<f64>,
    /// Between which values it may be; `None` for what does not change by itself.
    pub(crate) between: Option<(f64, f64)>,
}

/// Collects rows.
#[derive(Debug, Default)]
pub(crate) struct Rows(pub(crate) Vec<Row>);

impl Rows {
    pub(crate) fn add(
        &mut self,
        subject: &'static str,
        reader: impl Into<String>,
        shown: impl Into<String>,
        value: Option<f64>,
        (mark, reason): (Mark, String),
    ) {
        let (reader, shown) = (reader.into(), shown.into());
        self.0.push(Row { subject, reader, mark, shown, reason, value, between: None });
    }

    /// A value that changes by itself, read between two others: it must lie between those.
    pub(crate) fn add_between(
        &mut self,
        subject: &'static str,
        reader: impl Into<String>,
        value: f64,
        (least, most): (f64, f64),
        print: impl Fn(f64) -> String,
        (agrees, other): (&str, &str),
    ) {
        let inside = (least..=most).contains(&value);
        let reason = if inside {
            agrees.to_owned()
        } else {
            format!("{other}: {} just before and after", span(least, most, &print))
        };
        let mark = if inside { Mark::Agrees } else { Mark::Contradicts };
        self.0.push(Row {
            subject,
            reader: reader.into(),
            mark,
            shown: print(value),
            reason,
            value: Some(value),
            between: Some((least, most)),
        });
    }

    /// A reader that gave no answer. Where the kernel may lack the file, its absence is no
    /// contradiction.
    pub(crate) fn unread(
        &mut self,
        subject: &'static str,
        reader: impl Into<String>,
        why: &Unread,
        optional: bool,
    ) {
        let mark = match why {
            Unread::Missing if optional => Mark::Untold,
            Unread::Refused(_) => Mark::Untold,
            _ => Mark::Contradicts,
        };
        self.add(subject, reader, "", None, (mark, why.to_string()));
    }

    /// Whether another look could find agreement.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.0.iter().any(|row| row.mark == Mark::Contradicts && row.between.is_some())
    }

    /// Takes each row's best result of several looks: what changes by itself agrees if it agrees
    /// once.
    pub(crate) fn merge(&mut self, look: Self) {
        for row in look.0 {
            let same = |old: &&mut Row| (old.subject, &old.reader) == (row.subject, &row.reader);
            match self.0.iter_mut().find(same) {
                Some(old) => {
                    let between = match (old.between, row.between) {
                        (Some(old), Some(new)) => Some((old.0.min(new.0), old.1.max(new.1))),
                        (old, new) => old.or(new),
                    };
                    if row.mark < old.mark {
                        *old = row;
                    }
                    old.between = between;
                }
                None => self.0.push(row),
            }
        }
    }

    /// Puts rows of one subject next to each other.
    pub(crate) fn sort(&mut self) {
        let mut subjects: Vec<&str> = Vec::new();
        for row in &self.0 {
            if !subjects.contains(&row.subject) {
                subjects.push(row.subject);
            }
        }
        self.0.sort_by_key(|row| subjects.iter().position(|subject| *subject == row.subject));
    }

    /// After the last look: what lies where the others were at some time contradicts nothing.
    pub(crate) fn settle(&mut self) {
        for row in &mut self.0 {
            if let (Mark::Contradicts, Some(value), Some((least, most))) =
                (row.mark, row.value, row.between)
                && (least..=most).contains(&value)
            {
                row.mark = Mark::Untold;
                row.reason = "it changes too quickly here to be compared".into();
            }
        }
    }

    /// Leaves open what system calls show: a filter of the container would answer them, and this
    /// program does not have it.
    pub(crate) fn leave_calls(&mut self) {
        let is_call = |reader: &str| {
            ["sysinfo(2)", "sched_getaffinity(2)", "sysconf("]
                .iter()
                .any(|call| reader.starts_with(call))
        };
        for row in self.0.iter_mut().filter(|row| is_call(&row.reader)) {
            row.mark = Mark::Untold;
            row.reason = "run ambit-verify inside the container to judge system calls".into();
        }
    }

    pub(crate) fn count(&self, mark: Mark) -> usize {
        self.0.iter().filter(|row| row.mark == mark).count()
    }
}

fn span(least: f64, most: f64, print: impl Fn(f64) -> String) -> String {
    let (least, most) = (print(least), print(most));
    if least == most { least } else { format!("{least} to {most}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(value: f64, between: (f64, f64)) -> Rows {
        let mut rows = Rows::default();
        rows.add_between(
            "free",
            "sysinfo(2)",
            value,
            between,
            |value| value.to_string(),
            ("as x", "x"),
        );
        rows
    }

    #[test]
    fn calls_are_left_open_without_the_filter_of_the_container() {
        let mut rows = Rows::default();
        let wrong = || (Mark::Contradicts, "the machine's".to_owned());
        for reader in ["sysinfo(2) totalram", "sysconf(_SC_PHYS_PAGES)", "/proc/meminfo MemTotal"] {
            rows.add("memory size", reader, "1", None, wrong());
        }
        rows.leave_calls();
        let marks: Vec<_> = rows.0.iter().map(|row| row.mark).collect();
        assert_eq!(marks, [Mark::Untold, Mark::Untold, Mark::Contradicts]);
    }

    #[test]
    fn one_look_that_agrees_is_enough() {
        let mut rows = look(5.0, (1.0, 2.0));
        assert!(rows.is_unsettled());
        rows.merge(look(3.0, (3.0, 3.0)));
        rows.merge(look(9.0, (3.0, 3.0)));
        rows.settle();
        assert_eq!((rows.0.len(), rows.0[0].mark, rows.is_unsettled()), (1, Mark::Agrees, false));
    }

    #[test]
    fn what_moved_past_all_looks_is_not_told_and_what_lies_outside_contradicts() {
        let mut rows = look(5.0, (1.0, 2.0));
        rows.merge(look(5.0, (7.0, 8.0)));
        rows.settle();
        assert_eq!(rows.0[0].mark, Mark::Untold);
        let mut rows = look(50.0, (1.0, 2.0));
        rows.merge(look(50.0, (7.0, 8.0)));
        rows.settle();
        assert_eq!(rows.0[0].mark, Mark::Contradicts);
        assert_eq!(rows.0[0].reason, "x: 1 to 2 just before and after");
    }
}
