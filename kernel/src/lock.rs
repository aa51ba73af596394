//! Locks a mutex also after a thread has panicked while it held it: a panic costs one request its
//! answer, and no other request its service.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks the mutex. What it guards must be valid whenever a holder can panic.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
