//! The monitors of users other than root.
//!
//! Every user may connect to liblxc's socket, because a drop-in for all containers of the machine
//! names it, and liblxc does not start a container without it. But what such a monitor sends is not
//! trusted: it chooses the descriptors, and could name the process of another user. So all of its
//! calls are left to the kernel, and its descriptors are never taken: closing one waits for the
//! filesystem that it belongs to, which may be the user's own.

use std::sync::Arc;

use ambit_sysinfo::{Accounts, Budget, Charge, Owner, Resource};

/// The most connections of all users together, and of one user.
const CONNECTIONS: usize = 256;
const OF_ONE: usize = 64;

/// How long a connection rests after an answer, in nanoseconds.
pub(super) const REST: u64 = 1_000_000;

/// Bounds the connections of users.
#[derive(Debug)]
pub(super) struct UserConnections {
    accounts: Accounts,
    budget: Arc<Budget>,
}

impl UserConnections {
    pub(super) fn new() -> Self {
        let budget = Budget::with_most(Resource::Connections, CONNECTIONS, OF_ONE);
        Self { accounts: Accounts::default(), budget }
    }

    /// Admits a connection of a user. `None` if the user has too many.
    pub(super) fn admit(&self, user: u32) -> Option<Charge> {
        let account = self.accounts.get(Owner::User(user));
        self.budget.charge(Some(&account), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_with_many_connections_leaves_room_for_others() {
        let users = UserConnections::new();
        let mut held: Vec<_> = (0..OF_ONE).map(|_| users.admit(1000).unwrap()).collect();
        assert!(users.admit(1000).is_none());
        assert!(users.admit(1001).is_some());
        held.pop();
        assert!(users.admit(1000).is_some(), "one has ended");
    }
}
