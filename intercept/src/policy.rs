//! A policy: which handlers answer, with their settings, for all containers or for one.
//!
//! The names, the defaults and the order all come from [`HANDLERS`]; there is no second list. An
//! annotation of a container must never switch on a handler that is privileged and not configured
//! (`Policy::requested`).

use std::fmt;
use std::sync::Arc;

use super::settings::nearest;
use super::syscalls::{HANDLERS, Settings, VIEW};
use crate::syscalls::handler::Run;

/// A choice of handlers, with their settings. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Policy {
    /// One bit per handler, in the order of [`HANDLERS`].
    on: u64,
    settings: Arc<Settings>,
}

const _: () = assert!(HANDLERS.len() <= 64, "a policy has one bit per handler");

impl Policy {
    /// Returns the policy without handlers.
    pub fn none() -> Self {
        Self { on: 0, settings: Arc::default() }
    }

    /// Returns the same handlers with these settings.
    #[must_use]
    pub fn with(self, settings: Settings) -> Self {
        Self { settings: Arc::new(settings), ..self }
    }

    /// Returns the settings of the handlers.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// True if it grants mounts by helpers, some of which need `/dev/fuse` in the container.
    pub fn has_helpers(&self) -> bool {
        self.names().any(|name| name == "mount") && !self.settings.mount.fuse.is_empty()
    }

    /// True if one of the handlers may need a privileged operation.
    pub fn needs_operations(&self) -> bool {
        let mut handlers = HANDLERS.iter().enumerate();
        handlers.any(|(at, handler)| self.has(at) && handler.placement() != Run::Inline)
    }

    /// Returns the policy with exactly these handlers. Blanks around names and empty names are
    /// ignored, so that a list can be split at its commas and passed.
    pub fn from_names<I>(names: I) -> Result<Self, UnknownCall>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut policy = Self::none();
        for name in names {
            policy.set(name.as_ref(), true)?;
        }
        Ok(policy)
    }

    /// Switches one handler on or off, or those that `view` is short for.
    pub fn set(&mut self, name: &str, on: bool) -> Result<(), UnknownCall> {
        let name = name.trim();
        if name.is_empty() {
            return Ok(());
        }
        if name == "view" {
            return VIEW.iter().try_for_each(|name| self.set(name, on));
        }
        let index = HANDLERS
            .iter()
            .position(|handler| handler.describe().name == name)
            .ok_or_else(|| UnknownCall { name: name.to_owned() })?;
        if on {
            self.on |= 1 << index;
        } else {
            self.on &= !(1 << index);
        }
        Ok(())
    }

    /// Returns the policy of a container whose annotation asks for these names. It has a privileged
    /// handler only if this policy has it; it may ask for any other handler. Also returns the
    /// unknown names, for the log.
    pub(super) fn requested<'a>(&self, list: &'a str) -> (Self, Vec<&'a str>) {
        let mut policy = Self { on: 0, settings: Arc::clone(&self.settings) };
        let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        let unknown = names.filter(|name| policy.set(name, true).is_err()).collect();
        let harmless = Self::all_where(|description| !description.privileged);
        policy.on &= self.on | harmless.on;
        (policy, unknown)
    }

    /// Returns the policy with only those of its handlers that are privileged.
    #[must_use]
    pub fn privileged(&self) -> Self {
        let some = Self::all_where(|description| description.privileged);
        Self { on: self.on & some.on, settings: Arc::clone(&self.settings) }
    }

    /// True if the handler with this index in [`HANDLERS`] is on.
    pub(super) fn has(&self, index: usize) -> bool {
        self.on >> index & 1 == 1
    }

    /// True if the handler of this name is on.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.names().any(|one| one == name)
    }

    /// Returns the names of the handlers that are on.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        HANDLERS
            .iter()
            .enumerate()
            .filter(|(index, _)| self.has(*index))
            .map(|(_, handler)| handler.describe().name)
    }

    fn all_where(which: impl Fn(super::Description) -> bool) -> Self {
        let bits = HANDLERS.iter().enumerate();
        let chosen = bits.filter(|(_, handler)| which(handler.describe()));
        Self { on: chosen.fold(0, |on, (index, _)| on | 1 << index), ..Self::none() }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Settings::default().into()
    }
}

impl From<Settings> for Policy {
    /// Returns the policy with the handlers that are enabled in the settings.
    fn from(settings: Settings) -> Self {
        let on = settings.enabled().iter().rev().fold(0, |bits, on| bits << 1 | u64::from(*on));
        Self { on, settings: Arc::new(settings) }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// A name that no handler has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no system call {name:?} can be answered; {}", hint(name))]
pub struct UnknownCall {
    /// The name.
    pub name: String,
}

fn hint(name: &str) -> String {
    let names = HANDLERS.iter().map(|handler| handler.describe().name);
    let known: Vec<_> = ["view"].into_iter().chain(names).collect();
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Section;
    use super::*;

    #[test]
    fn the_calls_of_view_are_answered_by_default() {
        assert_eq!(Policy::default().names().collect::<Vec<_>>(), VIEW);
        assert_eq!(Policy::from_names(["view"]).unwrap(), Policy::default());
    }

    #[test]
    fn every_handler_has_its_settings() {
        for (at, handler) in HANDLERS.iter().enumerate() {
            let name = handler.describe().name;
            let table = Settings::TABLE.key(name).and_then(|key| key.table);
            assert!(table.and_then(|table| table.key("enabled")).is_some(), "{name}");
            let text = format!("{name} = {{ enabled = true }}\n");
            let policy = Policy::from(toml::from_str::<Settings>(&text).unwrap());
            assert!(policy.has(at), "{name}");
        }
    }

    #[test]
    fn names_choose_handlers() {
        let policy = Policy::from_names(" sysinfo, sched_getaffinity ,".split(',')).unwrap();
        assert_eq!(policy.names().collect::<Vec<_>>(), ["sysinfo", "sched_getaffinity"]);
        let mut less = policy.clone();
        less.set("sysinfo", false).unwrap();
        assert_eq!(less.names().collect::<Vec<_>>(), ["sched_getaffinity"]);
        assert_eq!(Policy::from_names([""; 0]).unwrap(), Policy::none());
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = Policy::from_names(["sysinf"]).unwrap_err().to_string();
        assert!(error.contains("\"sysinf\"") && error.contains("mean sysinfo?"), "{error}");
        let error = Policy::from_names(["swapon"]).unwrap_err().to_string();
        for handler in HANDLERS {
            assert!(error.contains(handler.describe().name), "{error}");
        }
    }

    #[test]
    fn only_some_calls_are_privileged_or_need_operations_or_helpers() {
        let both = Policy::from_names(["sysinfo", "mknod"]).unwrap();
        assert_eq!(both.privileged().names().collect::<Vec<_>>(), ["mknod"]);
        assert!(both.needs_operations() && !Policy::default().needs_operations());
        let mut settings = Settings::default();
        assert!(!Policy::from_names(["mount"]).unwrap().has_helpers());
        settings.mount.fuse.insert("ext4".into(), "fuse2fs".into());
        assert!(Policy::from_names(["mount"]).unwrap().with(settings.clone()).has_helpers());
        assert!(!Policy::default().with(settings).has_helpers());
    }

    #[test]
    fn a_container_may_ask_for_calls_that_are_not_privileged() {
        let (policy, unknown) = Policy::none().requested("sched_getaffinity, nonsense");
        assert_eq!(policy.names().collect::<Vec<_>>(), ["sched_getaffinity"]);
        assert_eq!(unknown, ["nonsense"]);
        assert_eq!(Policy::default().requested("").0, Policy::none());
    }
}
