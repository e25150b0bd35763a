// SPDX-License-Identifier: Apache-2.0
//! Supervised tasks: every one has a name, a span and an owner.
//!
//! Two kinds. A *service* runs for the component's whole life: when it ends, fails or panics, the component
//! fails with its name ([`Supervisor::run`]). A *job* (a connection, a request) may end at any time; only its panic
//! or error is reported in the log.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::drain::DrainWatch;

/// Why a component ended.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A service returned an error.
    #[error("{component}: task {task} failed: {reason}")]
    Failed {
        /// The component's name.
        component: String,
        /// The task's name.
        task: String,
        /// The error as text, with its causes.
        reason: String,
    },
    /// A service ended although nothing asked it to.
    #[error("{component}: task {task} ended unexpectedly")]
    Ended {
        /// The component's name.
        component: String,
        /// The task's name.
        task: String,
    },
    /// A service panicked.
    #[error("{component}: task {task} panicked: {message}")]
    Panicked {
        /// The component's name.
        component: String,
        /// The task's name.
        task: String,
        /// The panic's message, when it is text.
        message: String,
    },
}

/// The owner of a component's tasks; clones share it.
#[derive(Clone, Debug)]
pub struct Tasks {
    component: Arc<str>,
    tracker: TaskTracker,
    ended: mpsc::UnboundedSender<TaskError>,
    drain: DrainWatch,
}

/// Receives what went wrong with a component's services; see [`Tasks::new`].
#[derive(Debug)]
pub struct Supervisor {
    ended: mpsc::UnboundedReceiver<TaskError>,
    tracker: TaskTracker,
    drain: DrainWatch,
}

impl Tasks {
    /// Tasks of one component, and the supervisor whose [`Supervisor::run`] waits for them.
    pub fn new(component: &str, drain: DrainWatch) -> (Self, Supervisor) {
        let (tx, rx) = mpsc::unbounded_channel();
        let tracker = TaskTracker::new();
        let tasks =
            Self { component: component.into(), tracker: tracker.clone(), ended: tx, drain: drain.clone() };
        (tasks, Supervisor { ended: rx, tracker, drain })
    }

    /// The drain that this component's tasks obey.
    pub fn drain(&self) -> DrainWatch {
        self.drain.clone()
    }

    /// Spawns a service: it may end only once a drain has started.
    pub fn spawn<F, E>(&self, name: &str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let span = tracing::info_span!("task", component = %self.component, task = name);
        let (component, task) = (self.component.to_string(), name.to_owned());
        let (ended, drain) = (self.ended.clone(), self.drain.clone());
        #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
        let handle = tokio::spawn(future.instrument(span));
        self.track(async move {
            let error = match handle.await {
                Ok(Ok(())) if drain.is_started() => return,
                Ok(Ok(())) => TaskError::Ended { component, task },
                Ok(Err(e)) => TaskError::Failed { component, task, reason: format!("{e:#}") },
                Err(e) if e.is_cancelled() => return,
                Err(e) => TaskError::Panicked { component, task, message: panic_message(e.into_panic()) },
            };
            tracing::error!(%error, "a service ended");
            let _ = ended.send(error);
        });
    }

    /// Spawns a job: it may end at any time; an error or panic is logged with its name.
    pub fn spawn_job<F, E>(&self, name: &str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let span = tracing::debug_span!("job", component = %self.component, job = name);
        let name = name.to_owned();
        // By `map`: a block that waits for the future would hold it twice, where it was and where it is waited for.
        let reported = future.map(move |ended| {
            if let Err(error) = ended {
                tracing::debug!(job = %name, error = %format!("{error:#}"), "job failed");
            }
        });
        self.track(reported.instrument(span));
    }

    fn track<F: Future<Output = ()> + Send + 'static>(&self, future: F) {
        // TaskTracker spawns through tokio; the tracker is what makes the owner known.
        drop(self.tracker.spawn(future));
    }
}

impl Supervisor {
    /// Waits until a service fails (its error) or until a drain has started and every task has ended (`Ok`).
    ///
    /// # Errors
    /// The first service that failed, panicked or ended unexpectedly, by name.
    pub async fn run(mut self) -> Result<(), TaskError> {
        tokio::select! {
            biased;
            Some(error) = self.ended.recv() => return Err(error),
            () = self.drain.started() => {}
        }
        self.tracker.close();
        tokio::select! {
            () = self.tracker.wait() => {}
            () = self.drain.forced() => {}
        }
        Ok(())
    }
}

fn panic_message(payload: Box<dyn std::any::Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => {
            other.downcast_ref::<&str>().map_or_else(|| "not a text".to_owned(), |text| (*text).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use super::*;
    use crate::drain;

    #[tokio::test]
    async fn a_service_that_panics_brings_its_component_down_by_name() {
        let (_trigger, watch) = drain::channel();
        let (tasks, supervisor) = Tasks::new("node", watch);
        tasks.spawn("listener", async {
            if true {
                panic!("boom");
            }
            Ok::<(), Infallible>(())
        });
        let error = supervisor.run().await.unwrap_err();
        assert_eq!(error.to_string(), "node: task listener panicked: boom");
    }

    #[tokio::test]
    async fn a_job_may_fail_without_harm_and_drain_waits_for_it() {
        let (trigger, watch) = drain::channel();
        let (tasks, supervisor) = Tasks::new("node", watch);
        tasks.spawn_job("connection", async { Err("reset") });
        let mut drain = tasks.drain();
        tasks.spawn("listener", async move {
            drain.started().await;
            Ok::<(), Infallible>(())
        });
        drop(tasks);
        let (run, ()) = tokio::join!(supervisor.run(), trigger.start(Duration::from_secs(1)));
        run.unwrap();
    }
}
