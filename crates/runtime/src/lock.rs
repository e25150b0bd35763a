// SPDX-License-Identifier: Apache-2.0
//! Locks whose holders never leave a value half changed: a panic elsewhere does not spoil them.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
