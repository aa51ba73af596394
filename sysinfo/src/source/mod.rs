//! Reads a container's cgroup files into a [`Sample`]: those of each cgroup version, chosen for each
//! controller.
//!
//! A source keeps its files open between samples, because opening a file costs ten times as much as
//! reading it. They can be closed at any time; the next sample opens them again. A source must
//! never read a file of an ancestor as if it were the container's. Start reading at [`Source`].

mod cpuacct;
pub(crate) mod huge;
mod niced;
pub(crate) mod nodes;
pub(crate) mod stats;
mod throttled;
mod v1;
mod v2;

use std::borrow::Cow;
use std::sync::Arc;

use ambit_kernel::text::scan;
use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;

use self::throttled::Throttled;
use self::v1::Legacy;
use self::v2::Unified;
use crate::Error;
use crate::clock;
use crate::context::Options;
use crate::hierarchy::{Controller, Hierarchies, Mount};
use crate::kernel_file::KeptFile;
use crate::limit::Limit;
use crate::membership::Membership;
use crate::policy::StealPolicy;
use crate::sample::{Busy, MemoryStat, Sample};
use crate::stats::StatSet;

/// The files of one container: v2, v1, or both on a hybrid host.
#[derive(Debug)]
pub struct Source {
    versions: [Option<Box<dyn Version>>; 2],
    /// `None` unless the policy shows it.
    throttled: Option<Throttled>,
    threads: Option<CgroupFile>,
}

impl Source {
    /// Returns the files of a container in these cgroups.
    pub fn new(hierarchies: &Hierarchies, membership: &Membership, options: &Options) -> Self {
        let cgroup = |controller| {
            let (mount, cgroup, _) = hierarchies.cgroup_with(controller, membership)?;
            Some(Cgroup::new(mount, cgroup))
        };
        Self {
            versions: [
                Unified::new(hierarchies, membership, options).map(|files| Box::new(files) as _),
                Legacy::new(hierarchies, membership, options).map(|files| Box::new(files) as _),
            ],
            throttled: cgroup(Controller::Cpu)
                .filter(|_| options.steal == StealPolicy::Throttled)
                .map(|cgroup| Throttled::new(&cgroup)),
            threads: cgroup(Controller::Pids).map(|cgroup| cgroup.file("pids.current")),
        }
    }

    /// Adds the values of these groups to an empty sample. The buffer holds the texts of files and
    /// should be reused: one for each thread, because there are many containers and few threads.
    ///
    /// # Errors
    /// A file that exists cannot be read, or its cgroup was removed. A file that the kernel does
    /// not have is no error.
    pub fn sample(
        &mut self,
        groups: StatSet,
        sample: &mut Sample,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        for files in self.versions.iter_mut().flatten() {
            if groups.contains(StatSet::MEMORY) {
                files.memory(sample, buffer)?;
            }
            if groups.contains(StatSet::PROCESSORS) {
                files.processors(sample, buffer)?;
            }
            if groups.contains(StatSet::USAGE) {
                files.usage(&mut sample.busy, buffer)?;
            }
        }
        if groups.contains(StatSet::TIMES)
            && let Some(throttled) = &mut self.throttled
        {
            sample.busy.throttled = throttled.read(buffer)?;
        }
        if groups.contains(StatSet::THREADS)
            && let Some(file) = &mut self.threads
        {
            sample.threads = file.read(buffer)?.and_then(scan::decimal);
        }
        Ok(())
    }

    /// Continues the division of processor time from `used`, which was read of the same cgroup by a
    /// predecessor or by a source that this one replaces.
    pub fn resume(&mut self, used: &Busy) {
        self.versions.iter_mut().flatten().for_each(|files| files.resume(used));
    }

    /// Closes the kept descriptors; the next sample opens them again.
    pub fn close(&mut self) {
        let versions = self.versions.iter_mut().flatten().flat_map(|version| version.files());
        let throttled = self.throttled.iter_mut().flat_map(|throttled| &mut throttled.0);
        versions.chain(throttled).chain(&mut self.threads).for_each(CgroupFile::close);
    }
}

/// The files of one container in the hierarchies of one cgroup version. Each group of values is
/// added to the sample where this version has its controller.
trait Version: std::fmt::Debug + Send {
    fn memory(&mut self, sample: &mut Sample, buffer: &mut Vec<u8>) -> Result<(), Error>;
    fn processors(&mut self, sample: &mut Sample, buffer: &mut Vec<u8>) -> Result<(), Error>;
    fn usage(&mut self, busy: &mut Busy, buffer: &mut Vec<u8>) -> Result<(), Error>;
    fn resume(&mut self, used: &Busy);
    fn files(&mut self) -> Box<dyn Iterator<Item = &mut CgroupFile> + '_>;
}

/// Returns what a limit leaves, exact only if that is below `bound`: `memory.stat`, which is
/// expensive, is read only if the limit is near.
fn left(
    limit: Limit,
    bound: Limit,
    (usage, stat): (&mut CgroupFile, &mut CgroupFile),
    parse: impl FnOnce(&[u8]) -> MemoryStat,
    buffer: &mut Vec<u8>,
) -> Result<Limit, Error> {
    if limit == Limit::Unlimited {
        return Ok(Limit::Unlimited);
    }
    let Some(usage) = usage.read(buffer)?.and_then(scan::decimal) else {
        return Ok(Limit::Unlimited);
    };
    if limit.less(usage).min(bound) == bound {
        return Ok(bound);
    }
    let stat = stat.read(buffer)?.map(parse).unwrap_or_default();
    Ok(limit.less(usage - stat.reclaimable(usage)))
}

/// Nanoseconds after which a missing file is looked for again. A controller can be enabled for a
/// cgroup while its processes run (`systemctl set-property`), without any event. Each attempt costs
/// a failing open(2); if all controllers are enabled, there is none.
const MISSING_BOUND: u64 = 500_000_000;

/// A cgroup in one hierarchy.
#[derive(Debug, Clone)]
struct Cgroup(Arc<(Mount, Box<str>)>);

impl Cgroup {
    fn new(mount: &Mount, path: &str) -> Self {
        Self(Arc::new((mount.clone(), path.into())))
    }

    fn file(&self, name: impl Into<Cow<'static, str>>) -> CgroupFile {
        CgroupFile { cgroup: self.clone(), name: name.into(), kept: None, missing: 0 }
    }
}

/// One file of one cgroup, opened when first read. There are thousands: the cgroup is shared, and
/// the path is made when the file is opened.
#[derive(Debug)]
struct CgroupFile {
    cgroup: Cgroup,
    name: Cow<'static, str>,
    kept: Option<KeptFile>,
    /// Time of the last failed attempt to open it; 0 if it did not fail.
    missing: u64,
}

impl CgroupFile {
    /// Returns the content; `None` if there is no such file.
    fn read<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Result<Option<&'b [u8]>, Error> {
        if self.kept.is_none() {
            if self.missing != 0 && clock::now().saturating_sub(self.missing) < MISSING_BOUND {
                return Ok(None);
            }
            self.kept = KeptFile::open(self.mount().root(), &self.path())
                .map_err(|source| self.error(source))?;
            if self.kept.is_none() {
                self.check_cgroup()?;
                self.missing = clock::now();
            }
        }
        let Some(kept) = &self.kept else { return Ok(None) };
        match kept.read(buffer) {
            Ok(text) => Ok(Some(text)),
            // EOPNOTSUPP: the file has no content in this state of the cgroup (threaded, or PSI
            // off).
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(None),
            // ENODEV: the cgroup was removed, or its controller disabled. The next sample opens the
            // file again.
            Err(error) => {
                self.kept = None;
                Err(self.error(error))
            }
        }
    }

    /// Returns the path of its cgroup, relative to the root of the mount.
    fn cgroup(&self) -> &str {
        &self.cgroup.0.1
    }

    fn mount(&self) -> &Mount {
        &self.cgroup.0.0
    }

    /// Returns its path, relative to the root of the mount.
    fn path(&self) -> String {
        match self.cgroup() {
            "" => self.name.clone().into_owned(),
            cgroup => format!("{cgroup}/{}", self.name),
        }
    }

    /// Fails if the cgroup does not exist. Else a removed cgroup would be taken for one without a
    /// controller, and be shown the numbers of an ancestor.
    fn check_cgroup(&self) -> Result<(), Error> {
        let cgroup = match self.cgroup() {
            "" => ".",
            below => below,
        };
        rustix::fs::accessat(self.mount().root(), cgroup, Access::EXISTS, AtFlags::empty())
            .map_err(|errno| self.error(errno.into()))
    }

    fn close(&mut self) {
        self.kept = None;
        self.missing = 0;
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error::Read { file: self.mount().path().join(self.path()).display().to_string(), source }
    }
}

/// Iterates over a cgroup and its ancestors, the nearest first, the root (the empty path) last.
fn lineage(cgroup: &str) -> impl Iterator<Item = &str> {
    let mut next = Some(cgroup);
    std::iter::from_fn(move || {
        let this = next?;
        next = match this.rfind('/') {
            Some(slash) => Some(&this[..slash]),
            None if this.is_empty() => None,
            None => Some(""),
        };
        Some(this)
    })
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(text: &[u8]) {
    v1::parse(text);
    v2::parse(text);
}

/// Makes a sample of texts instead of files: usage, limit, memory.stat, swap usage, swap limit,
/// quota, processor time, processors.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn sample_of(legacy: bool, texts: [&[u8]; 8]) -> Sample {
    let mut sample = if legacy { v1::sample_of(&texts) } else { v2::sample_of(&texts) };
    sample.cpus = crate::CpuSet::parse(texts[7]);
    sample.threads = ambit_kernel::text::scan::decimal(texts[7]);
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineage_ends_at_the_root() {
        assert_eq!(lineage("a/b/c").collect::<Vec<_>>(), ["a/b/c", "a/b", "a", ""]);
        assert_eq!(lineage("").collect::<Vec<_>>(), [""]);
    }
}
