//! Which handlers answer, for everything or for one container.
//!
//! The names, the defaults and the order all come from [`HANDLERS`]; there is no second list.

use std::fmt;
use std::sync::Arc;

use super::handler::Cost;
use super::settings::Settings;
use super::syscalls::HANDLERS;

/// A choice of handlers, with their settings. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Policy {
    on: u64,
    settings: Arc<Settings>,
}

const _: () = assert!(HANDLERS.len() <= 64, "a policy has one bit per handler");

impl Policy {
    /// Nothing is answered.
    #[must_use]
    pub fn none() -> Self {
        Self { on: 0, settings: Arc::default() }
    }

    /// The same handlers with these settings.
    #[must_use]
    pub fn with(self, settings: Settings) -> Self {
        Self { settings: Arc::new(settings), ..self }
    }

    /// What goes with the handlers.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Does one of the handlers act?
    #[must_use]
    pub fn acts(&self) -> bool {
        let mut handlers = HANDLERS.iter().enumerate();
        handlers.any(|(at, handler)| self.has(at) && handler.cost() != Cost::Inline)
    }

    /// Exactly the handlers of these names. Blanks around names and empty names are ignored,
    /// so that a comma list can be split and passed on.
    ///
    /// # Errors
    /// There is no handler of that name.
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

    /// Switches one handler on or off.
    ///
    /// # Errors
    /// There is no handler of that name.
    pub fn set(&mut self, name: &str, on: bool) -> Result<(), UnknownCall> {
        let name = name.trim();
        if name.is_empty() {
            return Ok(());
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

    /// What a container may have that asks for these names, given the configured policy: a
    /// handler that grants something must be configured, any other may be asked for. Unknown
    /// names are returned for the log.
    pub(super) fn requested<'a>(&self, list: &'a str) -> (Self, Vec<&'a str>) {
        let mut policy = Self { on: 0, settings: Arc::clone(&self.settings) };
        let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        let unknown = names.filter(|name| policy.set(name, true).is_err()).collect();
        let harmless = Self::all_where(|description| !description.privileged);
        policy.on &= self.on | harmless.on;
        (policy, unknown)
    }

    /// Only those of its handlers that grant something.
    #[must_use]
    pub fn privileged(&self) -> Self {
        let some = Self::all_where(|description| description.privileged);
        Self { on: self.on & some.on, settings: Arc::clone(&self.settings) }
    }

    /// Is the handler with this index in [`HANDLERS`] on?
    #[must_use]
    pub(super) fn has(&self, index: usize) -> bool {
        self.on >> index & 1 == 1
    }

    /// The names of the handlers that are on.
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
    /// What every handler says of itself.
    fn default() -> Self {
        Self::all_where(|description| description.default_on)
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// A name that no handler has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no system call {name:?} can be answered; known are: {}", known())]
pub struct UnknownCall {
    /// The name.
    pub name: String,
}

fn known() -> String {
    let names: Vec<_> = HANDLERS.iter().map(|handler| handler.describe().name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysinfo_is_answered_by_default() {
        assert_eq!(Policy::default().names().collect::<Vec<_>>(), ["sysinfo"]);
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
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = Policy::from_names(["sysinf"]).unwrap_err().to_string();
        assert!(error.contains("\"sysinf\""), "{error}");
        for handler in HANDLERS {
            assert!(error.contains(handler.describe().name), "{error}");
        }
    }

    #[test]
    fn a_container_gets_what_is_harmless() {
        let (policy, unknown) = Policy::none().requested("sched_getaffinity, nonsense");
        assert_eq!(policy.names().collect::<Vec<_>>(), ["sched_getaffinity"]);
        assert_eq!(unknown, ["nonsense"]);
        assert_eq!(Policy::default().requested("").0, Policy::none());
    }
}
