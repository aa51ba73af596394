//! The cgroups of a process in each hierarchy: the text of `/proc/<pid>/cgroup`. A container's
//! cgroups are those of its first process, cut to the root of the container's cgroup namespace.
//! Nothing that the container writes may lead to a cgroup of another one. Start reading at
//! `Membership::at_root`.

use ambit_kernel::text::control_groups;

use crate::controller::Controller;
use crate::hash::fnv1a;

/// systemd moves itself into this child of the container's cgroup. The suffix is cut, also for
/// containers without a cgroup namespace.
const INIT_SCOPE: &str = "/init.scope";

/// The cgroups of one process, as the kernel lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    text: Box<str>,
    /// The same text with each path cut to the root of the container's cgroup namespace, if that
    /// is another one.
    at_root: Option<Box<str>>,
}

impl std::hash::Hash for Membership {
    /// Hashes the text alone, as [`Self::key`] does for counter records.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Membership {
    /// Parses the text of `/proc/<pid>/cgroup`.
    pub fn parse(text: &[u8]) -> Self {
        Self { text: String::from_utf8_lossy(text).into(), at_root: None }
    }

    /// Parses the text of a container's first process and cuts each path to the root of the
    /// container's cgroup namespace. `outside` and `inside` are the text of the daemon, as read
    /// outside and inside of that namespace; `init` is that of the first process as read inside.
    ///
    /// Only the depth of the root is taken from those, never a name: the result is always the
    /// cgroup of the first process or an ancestor of it.
    pub(crate) fn at_root(text: &[u8], outside: &[u8], inside: &[u8], init: &[u8]) -> Self {
        let plain = Self::parse(text);
        let path_in = |text, id| lines(text).find(|line| line.0 == id).map(|line| line.2);
        let mut at_root = String::with_capacity(plain.text.len());
        for (id, names, path) in lines(text) {
            let [outside, inside, init] = [outside, inside, init].map(|text| path_in(text, id));
            let depth = root_depth(outside, inside, init);
            let path = depth.map_or(path, |depth| first_parts(path, depth));
            at_root.extend([id, ":", names, ":", path, "\n"]);
        }
        let at_root = (*at_root != *plain.text).then(|| at_root.into());
        Self { at_root, ..plain }
    }

    /// Returns the path in the hierarchy with this number, as the kernel lists it.
    pub(crate) fn whole_path(&self, hierarchy: &str) -> Option<&str> {
        lines(self.text.as_bytes()).find(|(number, _, _)| *number == hierarchy).map(|line| line.2)
    }

    /// Returns the cgroups with each path that is below this one cut to it.
    pub(crate) fn cut(&self, to: &str) -> Self {
        let mut text = String::with_capacity(self.text.len());
        for (number, names, path) in lines(self.text.as_bytes()) {
            let rest = path.strip_prefix(to);
            let is_below = rest.is_some_and(|rest| rest.starts_with('/'));
            text.extend([number, ":", names, ":", if is_below { to } else { path }, "\n"]);
        }
        Self { text: text.into(), at_root: None }
    }

    /// True if it was parsed from this text.
    pub fn has_text(&self, text: &[u8]) -> bool {
        self.text.as_bytes() == text
    }

    /// Returns a hash of the text, the same in every process and release.
    pub fn key(&self) -> u64 {
        fnv1a(self.text.as_bytes())
    }

    /// The cgroup in the unified hierarchy, `/init.scope` cut.
    pub fn unified(&self) -> Option<&str> {
        self.lines().find(|(id, names, _)| *id == "0" && names.is_empty()).map(|(_, _, path)| path)
    }

    /// The cgroup in the v1 hierarchy of a controller, `/init.scope` cut.
    pub fn legacy(&self, controller: Controller) -> Option<&str> {
        self.legacy_named(controller.legacy_name())
    }

    /// The cgroup in the v1 hierarchy of a controller by its kernel's name, `/init.scope` cut.
    pub(crate) fn legacy_named(&self, controller: &str) -> Option<&str> {
        self.lines()
            .find(|(_, names, _)| names.split(',').any(|name| name == controller))
            .map(|(_, _, path)| path)
    }

    /// Returns a name for the container: the last component of its longest cgroup path.
    pub fn name(&self) -> &str {
        let longest = self.lines().map(|(_, _, path)| path).max_by_key(|path| path.len());
        longest
            .and_then(|path| path.rsplit('/').next())
            .filter(|name| !name.is_empty())
            .unwrap_or("/")
    }

    /// Returns the longest cgroup path, for messages.
    pub fn path(&self) -> &str {
        self.lines().map(|(_, _, path)| path).max_by_key(|path| path.len()).unwrap_or("/")
    }

    fn lines(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let text = self.at_root.as_ref().unwrap_or(&self.text);
        lines(text.as_bytes()).map(|(id, names, path)| {
            let path = path.strip_suffix(INIT_SCOPE).unwrap_or(path);
            (id, names, if path.is_empty() { "/" } else { path })
        })
    }
}

/// Number, controllers and path of each line that is UTF-8.
fn lines(text: &[u8]) -> impl Iterator<Item = (&str, &str, &str)> {
    control_groups::lines(text).filter_map(|(id, names, path)| {
        let text = |part| std::str::from_utf8(part).ok();
        Some((text(id)?, text(names)?, text(path)?))
    })
}

/// Computes how many levels below the root of the hierarchy the root of a cgroup namespace is, from
/// the daemon's path outside and inside of it. `None` for the root itself, which is no container,
/// and if the first process was moved out of its namespace.
fn root_depth(outside: Option<&str>, inside: Option<&str>, init: Option<&str>) -> Option<usize> {
    let is_up = |part: &&str| *part == "..";
    let parts = |path| str::split(path, '/').filter(|part| !part.is_empty());
    if init.is_none_or(|path| parts(path).next().is_some_and(|part| is_up(&part))) {
        return None;
    }
    let up = parts(inside?).take_while(is_up).count();
    let common = parts(outside?).count().checked_sub(parts(inside?).count() - up)?;
    Some(common + up).filter(|&depth| depth > 0)
}

/// Returns the first `count` components of a path.
fn first_parts(path: &str, count: usize) -> &str {
    let end = path.match_indices('/').nth(count).map_or(path.len(), |(at, _)| at);
    &path[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_cut_to_the_root_of_the_cgroup_namespace() {
        let cut = |init: &str, own: &str, own_inside: &str, init_inside: &str| {
            let line = |path: &str| format!("0::{path}\n").into_bytes();
            let [init, own, own_inside, init_inside] =
                [init, own, own_inside, init_inside].map(line);
            let cut = Membership::at_root(&init, &own, &own_inside, &init_inside);
            assert!(cut.has_text(&init), "changes are still seen in the file's own text");
            cut.unified().unwrap().to_owned()
        };
        let own = "/system.slice/ambit.service";
        for (init, own_inside, init_inside, wanted) in [
            ("/system.slice/d.scope/init", "/../ambit.service", "/init", "/system.slice/d.scope"),
            ("/system.slice/d.scope", "/../ambit.service", "/", "/system.slice/d.scope"),
            ("/docker/ab/init/x", "/../../system.slice/ambit.service", "/init/x", "/docker/ab"),
            // The namespace was made before the engine moved the process: its root is no container.
            (
                "/docker/ab/init",
                "/system.slice/ambit.service",
                "/docker/ab/init",
                "/docker/ab/init",
            ),
            // Moved out of its namespace from outside.
            ("/other/ab", "/../../system.slice/ambit.service", "/../../other/ab", "/other/ab"),
        ] {
            assert_eq!(cut(init, own, own_inside, init_inside), wanted);
        }
        // A name inside that looks like the container's own changes nothing.
        let forged = cut("/s/d/init", "/", "/../..", "/d/init");
        assert_eq!(forged, "/s/d");
        // The daemon runs in the container's own cgroup.
        assert_eq!(cut("/s/d/init", "/s/d/me", "/me", "/init"), "/s/d");
    }

    #[test]
    fn each_hierarchy_has_a_root_of_its_own() {
        let init = b"4:memory:/docker/ab\n1:name=systemd:/docker/ab/init.scope\n0::/\n";
        let own = b"4:memory:/\n1:name=systemd:/system.slice\n0::/\n";
        let inside = b"4:memory:/../..\n1:name=systemd:/../../system.slice\n0::/\n";
        let init_inside = b"4:memory:/\n1:name=systemd:/init.scope\n0::/\n";
        let membership = Membership::at_root(init, own, inside, init_inside);
        assert_eq!(membership.legacy(Controller::Memory), Some("/docker/ab"));
        assert_eq!(membership.unified(), Some("/"));
        assert_eq!(membership.path(), "/docker/ab");
    }

    proptest! {
        /// Whatever the texts say, the result is the first process's cgroup or an ancestor of it.
        #[test]
        fn no_text_leads_to_another_cgroup(
            init in "(/[ab.]{1,2}){0,4}", texts in prop::array::uniform3("0::(/(\\.\\.|a|b)){0,4}\n"),
        ) {
            let text = format!("0::{init}\n");
            let [own, inside, its] = &texts;
            let cut = Membership::at_root(
                text.as_bytes(), own.as_bytes(), inside.as_bytes(), its.as_bytes());
            let path = cut.unified().unwrap();
            let rest = init.strip_prefix(path.trim_end_matches('/'));
            prop_assert!(rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')), "{path}");
        }
    }

    #[test]
    fn hybrid_text_with_colons_and_init_scope() {
        let text = b"4:memory:/lxc/a:b\n2:cpu,cpuacct:/lxc/a:b/init.scope\n0::/init.scope\n";
        let membership = Membership::parse(text);
        assert_eq!(membership.legacy(Controller::Memory), Some("/lxc/a:b"));
        assert_eq!(membership.legacy(Controller::Cpuacct), Some("/lxc/a:b"));
        assert_eq!(membership.legacy(Controller::Pids), None);
        assert_eq!(membership.unified(), Some("/"));
        assert_eq!(membership.name(), "a:b");
    }

    #[test]
    fn the_key_of_a_record_never_changes() {
        let key = Membership::parse(b"0::/system.slice/a.service\n").key();
        assert_eq!(key, 17_227_843_585_455_975_194);
    }
}
