//! The policies of a configuration, and which of them a container has.
//!
//! A container has the policy of the first section that matches it, or else the policy for all. The
//! configuration may change while a container runs: [`Member`] then looks its policy up again at
//! its next call. A call that finds no change must never take a lock here. Start reading at
//! [`Policies::policy_of`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ambit_kernel::text::control_groups;
use serde::{Deserialize, Serialize};

use super::account::{Account, Accounts};
use super::policy::Policy;
use super::settings::settings;

/// The description of a container when its listener arrives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Its id: that of an OCI runtime, or the cookie of liblxc, or without one the name in LXC.
    pub id: String,
    /// `listenerMetadata` of its seccomp profile.
    pub metadata: String,
    /// `lxc.seccomp.notify.cookie`.
    pub cookie: String,
    /// The path of its cgroup.
    pub cgroup: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

settings! {
    /// What is different for some containers. What is given must all fit; `*` stands for any text,
    /// `?` for one letter. The first section that fits counts. Its table `intercept` changes what
    /// `[intercept]` says: a key that is given replaces the one there.
    pub struct Matcher {
        /// Fits the id of an OCI container; for LXC it is the cookie, or without one the name.
        pub id: Option<String> = None, such as r#""ci-*""#;
        /// Fits `listenerMetadata` of the container's seccomp profile.
        pub metadata: Option<String> = None, such as r#""web""#;
        /// Fits `lxc.seccomp.notify.cookie`.
        pub cookie: Option<String> = None, such as r#""web""#;
        /// Fits the path of its control group when it starts.
        pub cgroup: Option<String> = None, such as r#""/lxc.payload.web*""#;
        /// Each fits the annotation of that name of an OCI container.
        pub annotations: BTreeMap<String, String> = BTreeMap::new(), such as r#"{ team = "ci" }"#;
    }
}

/// True if a pattern of the configuration fits a text: `*` is any text, `?` any character.
pub fn fits(pattern: &str, text: &str) -> bool {
    wildmatch::WildMatch::new(pattern).matches(text)
}

impl Matcher {
    /// True if the section is for this container.
    pub fn matches(&self, container: &Container) -> bool {
        let field = |pattern: &Option<String>, text: &str| {
            pattern.as_ref().is_none_or(|pattern| fits(pattern, text))
        };
        let annotation = |(name, pattern): (&String, &String)| {
            container.annotations.get(name).is_some_and(|text| fits(pattern, text))
        };
        field(&self.id, &container.id)
            && field(&self.metadata, &container.metadata)
            && field(&self.cookie, &container.cookie)
            && field(&self.cgroup, &container.cgroup)
            && self.annotations.iter().all(annotation)
    }

    /// True if no key is set. Such a section would match all containers, and is an error.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The policies of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    /// For containers that no section matches.
    pub all: Policy,
    /// The first one that matches is used.
    pub sections: Vec<(Matcher, Policy)>,
}

impl Policies {
    /// Returns one policy for all containers.
    pub fn for_all(all: Policy) -> Self {
        Self { all, sections: Vec::new() }
    }

    /// Returns the calls of `policy` that none of these policies has.
    pub fn ungranted(&self, policy: &Policy) -> Vec<&'static str> {
        let all = || self.sections.iter().map(|(_, policy)| policy).chain([&self.all]);
        let granted = |name: &str| all().any(|policy| policy.names().any(|on| on == name));
        policy.names().filter(|name| !granted(name)).collect()
    }

    /// Returns the policy of this container.
    pub fn policy_of(&self, container: &Container) -> Policy {
        let own = self.sections.iter().find(|(matcher, _)| matcher.matches(container));
        let policy = own.map_or(&self.all, |(_, policy)| policy);
        let Some(list) = container.annotations.get(super::oci::ANNOTATION) else {
            return policy.clone();
        };
        let (policy, unknown) = policy.requested(list);
        if !unknown.is_empty() {
            let (container, name) = (&container.id, super::oci::ANNOTATION);
            tracing::warn!(container, ?unknown, "{name} names calls that ambit does not know");
        }
        policy
    }
}

/// The current policies. A call only reads the number of their generation.
#[derive(Debug)]
pub(super) struct Current {
    generation: AtomicU64,
    policies: Mutex<Arc<Policies>>,
}

impl Current {
    /// Generations are counted from 1: a member of generation 0 has no policy yet.
    pub(super) fn new(policies: Policies) -> Self {
        Self { generation: AtomicU64::new(1), policies: Mutex::new(Arc::new(policies)) }
    }

    pub(super) fn get(&self) -> Arc<Policies> {
        Arc::clone(&self.policies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the policies, from the next call on.
    pub(super) fn replace(&self, policies: Policies) {
        *self.policies.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(policies);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// A container and its policy.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) container: Arc<Container>,
    policy: Policy,
    /// The generation of the policy. `None` if it was given with the listener and never changes.
    generation: Option<u64>,
    account: Option<Arc<Account>>,
}

impl Member {
    /// Returns a container whose policy is the one of the configuration.
    pub(super) fn configured(container: Container) -> Self {
        Self {
            container: Arc::new(container),
            policy: Policy::none(),
            generation: Some(0),
            account: None,
        }
    }

    /// Returns a container with a policy of its own.
    pub(super) fn fixed(id: &str, policy: Policy) -> Self {
        let container = Container { id: id.to_owned(), ..Container::default() };
        Self { container: Arc::new(container), policy, generation: None, account: None }
    }

    /// Returns its account.
    pub(super) fn account(&mut self, accounts: &Accounts) -> &Arc<Account> {
        self.account.get_or_insert_with(|| accounts.get(&self.container.id))
    }

    /// Returns its current policy.
    pub(super) fn policy(&mut self, current: &Current) -> &Policy {
        if let Some(generation) = &mut self.generation {
            let now = current.generation.load(Ordering::Acquire);
            if *generation != now {
                *generation = now;
                self.policy = current.get().policy_of(&self.container);
            }
        }
        &self.policy
    }
}

/// Returns the path of a cgroup, from a file `/proc/<pid>/cgroup`: that of cgroup v2 if the process
/// is in one, otherwise that of the first controller that has one. Empty if there is no such
/// process.
pub(super) fn cgroup_of(file: &str) -> String {
    control_groups::path(&std::fs::read(file).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, cgroup: &str) -> Container {
        Container { id: id.into(), cgroup: cgroup.into(), ..Container::default() }
    }

    fn names(policy: &Policy) -> String {
        policy.names().collect::<Vec<_>>().join(",")
    }

    #[test]
    fn the_first_section_that_matches_is_used() {
        let section = |matcher, list: [&str; 1]| (matcher, Policy::from_names(list).unwrap());
        let by_id = Matcher { id: Some("web-?".into()), ..Matcher::default() };
        let by_cgroup = Matcher { cgroup: Some("/lxc*/ci/*".into()), ..Matcher::default() };
        let policies = Policies {
            all: Policy::default(),
            sections: vec![section(by_id, ["mknod"]), section(by_cgroup, ["mount"])],
        };
        let of = |container: &Container| names(&policies.policy_of(container));
        assert_eq!(of(&container("web-1", "/lxc/ci/a")), "mknod");
        assert_eq!(of(&container("web-10", "/lxc.payload/ci/a")), "mount");
        assert_eq!(of(&container("db", "/lxc/b")), "sysinfo,sched_getaffinity");
    }

    #[test]
    fn a_section_matches_only_if_all_of_it_fits() {
        let text = |text: &str| Some(text.to_owned());
        let annotations = BTreeMap::from([("team".to_owned(), "ci*".to_owned())]);
        let matchers = [
            Matcher { id: text("a"), ..Matcher::default() },
            Matcher { metadata: text("a"), ..Matcher::default() },
            Matcher { cookie: text("a"), ..Matcher::default() },
            Matcher { cgroup: text("a"), ..Matcher::default() },
            Matcher { annotations, ..Matcher::default() },
        ];
        let fits = |one: &Container| matchers.iter().all(|matcher| matcher.matches(one));
        let [id, metadata, cookie, cgroup] = std::array::from_fn(|_| "a".to_owned());
        let annotations = [("team".into(), "ci-1".into())].into();
        assert!(fits(&Container { id, metadata, cookie, cgroup, annotations }));
        let annotations = [("team".into(), "web".into())].into();
        let other = Container { annotations, ..Container::default() };
        assert!(matchers.iter().all(|matcher| !matcher.matches(&other)));
        assert!(!matchers[4].matches(&Container::default()));
    }

    #[test]
    fn annotations_choose_a_section_and_can_only_remove_privileged_calls() {
        let annotated =
            Matcher { annotations: [("team".into(), "ci".into())].into(), ..Matcher::default() };
        let both = Policy::from_names(["sysinfo", "mknod"]).unwrap();
        let policies =
            Policies { all: Policy::default(), sections: vec![(annotated, both.clone())] };
        let mut ci = container("x", "/");
        ci.annotations.insert("team".into(), "ci".into());
        assert_eq!(policies.policy_of(&ci), both);
        ci.annotations.insert(super::super::oci::ANNOTATION.into(), "mknod,mount".into());
        assert_eq!(names(&policies.policy_of(&ci)), "mknod", "mount is not configured for it");
    }

    #[test]
    fn a_changed_configuration_applies_to_the_next_call() {
        let current = Current::new(Policies::default());
        let mut member = Member::configured(container("a", "/"));
        let mut own = Member::fixed("b", Policy::none());
        assert_eq!(names(member.policy(&current)), "sysinfo,sched_getaffinity");
        current.replace(Policies::for_all(Policy::from_names(["mknod"]).unwrap()));
        assert_eq!(names(member.policy(&current)), "mknod");
        assert_eq!(names(own.policy(&current)), "");
    }
}
