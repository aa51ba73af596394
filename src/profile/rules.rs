//! The calls that a policy has reported, with the conditions on their arguments, from the handlers.
//!
//! A profile may refuse all calls that it does not list. A call that is reported with some
//! arguments only must then be allowed with all others. No format has a "not", so the complement is
//! written as conditions of which at least one holds if none of the handler's does.

use libseccomp::ScmpSyscall;

use ambit_intercept::{HANDLERS, Policy};

/// The rule for a call in a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) syscall: &'static str,
    /// The call is reported if one of these holds, or always if the list is empty.
    pub(super) conditions: Vec<Condition>,
    /// True if the libseccomp of this machine knows the call.
    pub(super) known: bool,
}

/// A condition: the masked argument equals the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) mask: u64,
    pub(super) value: u64,
}

/// The most conditions of a complement. Beyond that, all calls are reported.
const MANY: usize = 64;

/// Returns the rules of the handlers of a policy.
pub(super) fn of(policy: &Policy) -> Vec<Rule> {
    let on: Vec<_> = policy.names().collect();
    let handlers = HANDLERS.iter().filter(|handler| on.contains(&handler.describe().name));
    let rules = handlers.flat_map(|handler| {
        handler.describe().syscalls.iter().map(|syscall| Rule {
            syscall,
            conditions: handler
                .reported(syscall)
                .iter()
                .map(|&(argument, mask, value)| Condition { argument, mask, value })
                .collect(),
            known: ScmpSyscall::from_name(syscall).is_ok(),
        })
    });
    // Handlers of one call have the same conditions.
    let mut seen = std::collections::HashSet::new();
    rules.filter(|rule: &Rule| seen.insert(rule.syscall)).collect()
}

impl Rule {
    /// Returns the complement: conditions of which one holds exactly if none of the rule's does.
    /// `None` if there are too many, or if they are about several arguments.
    pub(super) fn otherwise(&self) -> Option<Vec<Condition>> {
        let argument = self.conditions.first()?.argument;
        let mut others = vec![Condition { argument, mask: 0, value: 0 }];
        for condition in &self.conditions {
            if condition.argument != argument {
                return None;
            }
            let each = others.iter().flat_map(|other| other.against(*condition));
            others = fewest(each.collect());
            if others.len() > MANY {
                return None;
            }
        }
        Some(others)
    }
}

impl Condition {
    /// Returns conditions for the values that match this condition and not the other: at least one
    /// bit differs.
    fn against(self, other: Self) -> impl Iterator<Item = Self> {
        let bits = (0..u64::BITS).map(|at| 1 << at).filter(move |bit| other.mask & bit != 0);
        bits.filter_map(move |bit| {
            let different = !other.value & bit;
            let fixed = self.mask & bit != 0;
            (!fixed || self.value & bit == different).then_some(Self {
                mask: self.mask | bit,
                value: self.value | different,
                ..self
            })
        })
    }

    fn covers(self, other: Self) -> bool {
        self.mask & !other.mask == 0 && other.value & self.mask == self.value
    }
}

/// Removes conditions that another one covers.
fn fewest(mut all: Vec<Condition>) -> Vec<Condition> {
    all.sort_by_key(|condition| condition.mask.count_ones());
    let mut kept: Vec<Condition> = Vec::new();
    for condition in all {
        if !kept.iter().any(|other| other.covers(condition)) {
            kept.push(condition);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<Rule> {
        of(&Policy::from_names(HANDLERS.iter().map(|handler| handler.describe().name)).unwrap())
    }

    fn holds(conditions: &[Condition], value: u64) -> bool {
        conditions.iter().any(|condition| value & condition.mask == condition.value)
    }

    #[test]
    fn every_call_of_every_handler_has_a_rule() {
        let rules = all();
        for handler in HANDLERS {
            for syscall in handler.describe().syscalls {
                assert!(rules.iter().any(|rule| rule.syscall == *syscall), "{syscall}");
            }
        }
        assert!(of(&Policy::none()).is_empty());
    }

    #[test]
    fn the_complement_of_device_nodes_has_four_conditions() {
        let mknod = all().into_iter().find(|rule| rule.syscall == "mknod").unwrap();
        assert_eq!(mknod.otherwise().unwrap().len(), 4);
    }

    proptest! {
        /// A call is reported, or goes on as before, and never both.
        #[test]
        fn other_arguments_are_all_others(value: u64, narrow in 0..0x20_0000_u64, at in 0..64_u32) {
            for rule in all().iter().filter(|rule| !rule.conditions.is_empty()) {
                // Too many: then all calls are reported.
                let Some(others) = rule.otherwise() else { continue };
                let near = rule.conditions.iter().map(|one| one.value ^ 1 << at);
                let exact = rule.conditions.iter().map(|one| one.value | value & !one.mask);
                for value in near.chain(exact).chain([value, narrow, 0xc0ed_0000 | narrow]) {
                    let reported = holds(&rule.conditions, value);
                    prop_assert!(reported != holds(&others, value), "{} {value:#x}", rule.syscall);
                }
            }
        }
    }
}
