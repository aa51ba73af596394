//! What was counted goes on after a crash: the totals of `ambit status`, in memory that the keeper
//! holds too. They are noted every second and before anybody is told them, so that nobody ever sees
//! one decrease.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ambit_keeper::link::{Held, Link};
use serde::{Deserialize, Serialize};

use crate::status::{Calls, Files, MountsRestored};

/// The name with the keeper. Another layout gets another name.
const NAME: &str = "totals.1";
/// What is written at once, within one page, is never seen half.
const LONGEST: usize = 4096;

/// Everything that is counted over all containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Requests for files.
    pub files: Files,
    /// How often the overlay was attached again.
    pub mounts: MountsRestored,
    /// System calls.
    pub calls: Vec<Calls>,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.files.opened += other.files.opened;
        self.files.failed += other.files.failed;
        self.mounts.count += other.mounts.count;
        self.mounts.last = self.mounts.last.max(other.mounts.last);
        for calls in &other.calls {
            match self.calls.iter_mut().find(|own| own.name == calls.name) {
                Some(own) => {
                    own.answered += calls.answered;
                    own.granted += calls.granted;
                    own.refused += calls.refused;
                    own.late += calls.late;
                    own.continued += calls.continued;
                    own.failed += calls.failed;
                }
                // A handler that this program does not have: its predecessor or successor does.
                None => self.calls.push(calls.clone()),
            }
        }
    }
}

/// Where they are noted, and what predecessors have counted.
#[derive(Debug, Default)]
pub struct Noted {
    file: Option<File>,
    before: Totals,
    mounts: Mutex<MountsRestored>,
}

impl Noted {
    /// Counts that the overlay was attached again.
    pub(crate) fn mounts_restored(&self) {
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        mounts.count += 1;
        mounts.last = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    }

    /// Goes on where a predecessor was. Without a keeper nobody would read what is noted.
    pub(crate) fn take_over(link: &Link, held: &mut Held) -> Self {
        if !link.is_kept() {
            return Self::default();
        }
        let file = held.take_version(NAME, link).map(File::from).or_else(|| fresh(link));
        let before = file.as_ref().and_then(read).unwrap_or_default();
        Self { file, before, mounts: Mutex::default() }
    }

    /// The totals, with what this process has counted; they are noted first.
    pub(crate) fn with(&self, mut own: Totals) -> Totals {
        own.mounts = *self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        own.add(&self.before);
        if let Some(file) = &self.file
            && let Ok(mut line) = serde_json::to_vec(&own)
        {
            line.push(b'\n');
            if line.len() > LONGEST || file.write_all_at(&line, 0).is_err() {
                tracing::debug!("the totals were not noted");
            }
        }
        own
    }
}

fn fresh(link: &Link) -> Option<File> {
    let file: OwnedFd = rustix::fs::memfd_create(NAME, rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    link.store(NAME, &file);
    Some(file.into())
}

fn read(file: &File) -> Option<Totals> {
    let mut page = [0; LONGEST];
    let length = file.read_at(&mut page, 0).ok()?;
    serde_json::from_slice(page[..length].split(|&byte| byte == b'\n').next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(opened: u64, calls: &[(&str, u64)]) -> Totals {
        let calls = calls.iter().map(|&(name, answered)| Calls {
            name: name.to_owned(),
            answered,
            continued: 1,
            ..Calls::default()
        });
        Totals {
            files: Files { opened, failed: 0 },
            mounts: MountsRestored::default(),
            calls: calls.collect(),
        }
    }

    #[test]
    fn a_successor_goes_on_counting() {
        let memory = tempfile::tempfile().unwrap();
        let own = Noted { file: Some(memory.try_clone().unwrap()), ..Noted::default() };
        own.with(totals(5, &[("sysinfo", 3), ("old", 9)]));
        let before = read(&memory).unwrap();
        let successor =
            Noted { file: Some(memory.try_clone().unwrap()), before, ..Noted::default() };
        let sum = successor.with(totals(2, &[("sysinfo", 1)]));
        assert_eq!((sum.files.opened, sum.calls[0].answered, sum.calls[1].answered), (7, 4, 9));
        assert_eq!(read(&memory).unwrap(), sum);
    }
}
