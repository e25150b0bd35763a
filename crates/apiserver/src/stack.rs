// SPDX-License-Identifier: Apache-2.0
//! Room for recursion. The parser and the interpreter of CEL go down into an expression, several functions for each
//! level, and neither counts on the stack of the thread that it runs on: a deep expression would end the process.

use std::thread;

/// Bytes of address space; only what is used is taken from the memory. Enough for [`MAX_OPERATORS`] of any kind in a
/// build without optimization.
const STACK: usize = 128 * 1024 * 1024;
/// Longest expression, in bytes.
pub(crate) const MAX_EXPRESSION: usize = 16 * 1024;

/// Most operators, dots and commas in an expression: a chain of them is as deep as it is long.
pub(crate) const MAX_OPERATORS: usize = 2_000;

/// Does something with room for deep recursion, and waits for it; `None` when there is none, or when it panics.
pub(crate) fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("expression".to_owned()).stack_size(STACK);
        thread.spawn_scoped(scope, work).ok()?.join().ok()
    })
}
