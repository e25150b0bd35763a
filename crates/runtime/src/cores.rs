// SPDX-License-Identifier: Apache-2.0
//! One single-threaded runtime per core: a connection stays on the core that accepted it.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

/// A worker thread with a `current_thread` runtime of its own.
#[derive(Debug)]
pub struct Worker<T> {
    /// Its index, 0-based.
    pub index: usize,
    thread: JoinHandle<io::Result<T>>,
}

impl<T> Worker<T> {
    /// Waits for the worker to end.
    ///
    /// # Errors
    /// The runtime could not be built, or the worker panicked.
    pub fn join(self) -> io::Result<T> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("worker thread panicked")))
    }
}

/// Starts `count` workers (at least one); each runs the future that `make(index)` builds on its own thread.
///
/// The future need not be `Send`: it never leaves its thread.
///
/// # Errors
/// A thread could not be started.
pub fn spawn<T, F, Fut>(name: &str, count: usize, make: F) -> io::Result<Vec<Worker<T>>>
where
    T: Send + 'static,
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    (0..count.max(1))
        .map(|index| {
            let make = make.clone();
            let thread = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let local = tokio::task::LocalSet::new();
                Ok(local.block_on(&runtime, make(index)))
            })?;
            Ok(Worker { index, thread })
        })
        .collect()
}

/// How many workers a process should have: the value of `requested` (`"4"` or `"50%"`), else one per core.
///
/// # Errors
/// The text is neither a positive number nor a percentage in 1..=100.
pub fn worker_count(requested: Option<&str>) -> Result<usize, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let Some(text) = requested else { return Ok(cores) };
    let wrong =
        || format!("worker threads: expected a positive number or a percentage such as 50%, got {text:?}");
    if let Some(percent) = text.strip_suffix('%') {
        let percent: usize = percent.parse().map_err(|_| wrong())?;
        if !(1..=100).contains(&percent) {
            return Err(wrong());
        }
        return Ok((cores * percent).div_ceil(100).max(1));
    }
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(wrong()),
    }
}
