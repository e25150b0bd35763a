// SPDX-License-Identifier: Apache-2.0
//! Workers: one thread for each core, each with a runtime and connections to backends of its own. A client's connection to a
//! gateway, or a node proxy's tunnel to a waypoint, is served by one of them from its first byte to its last: no lock and no
//! wake-up of another core is on the way of its requests. A node proxy has a tunnel for each of its own cores.
//!
//! Who accepts hands a connection to the worker that has the fewest. The kernel's own way (SO_REUSEPORT) draws lots, and some
//! tens of connections are shared out unevenly by it.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use meltemi_runtime::{Tasks, cores};
use tokio::sync::mpsc;

use crate::context::Context;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;
/// What to do with the worker's own context.
type Job = Box<dyn FnOnce(Arc<Context>) -> Work + Send>;

/// The workers of a proxy. They end when this is dropped and nothing is served any more.
#[derive(Debug)]
pub(crate) struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    /// Without a bound of its own: each job has a place among the connections.
    jobs: mpsc::UnboundedSender<(Job, Open)>,
    open: Arc<AtomicUsize>,
}

/// A connection of a worker, until it is dropped.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` of them, each with a context of its own.
    ///
    /// # Errors
    /// A thread could not be started.
    pub(crate) fn start(count: usize, context: &Context, tasks: &Tasks) -> io::Result<Self> {
        let start = |_| {
            let (sender, jobs) = mpsc::unbounded_channel();
            let own = Arc::new(context.for_worker(count));
            let parts = Arc::new(Mutex::new(Some((own, jobs))));
            let started = cores::spawn("requests", 1, move |_| {
                let parts = parts.lock().unwrap_or_else(PoisonError::into_inner).take();
                async move {
                    if let Some((context, jobs)) = parts {
                        work(context, jobs).await;
                    }
                }
            })?;
            tasks.spawn("worker", async move {
                let join = move || started.into_iter().try_for_each(cores::Worker::join);
                tokio::task::spawn_blocking(join).await.map_err(io::Error::other)?
            });
            Ok(Worker { jobs: sender, open: Arc::default() })
        };
        (0..count).map(start).collect::<io::Result<Vec<_>>>().map(Self)
    }

    /// Has a job done by the worker with the fewest; without workers by the runtime of the caller, with the context `own`.
    pub(crate) fn give<F>(&self, own: &Arc<Context>, job: impl FnOnce(Arc<Context>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let job: Job = Box::new(move |context| Box::pin(job(context)));
        match self.0.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed)) {
            // A worker ends after this value only, or with the process.
            Some(worker) => drop(worker.jobs.send((job, Open::new(&worker.open)))),
            None => spawn(own, job, None),
        }
    }
}

fn spawn(context: &Arc<Context>, job: Job, open: Option<Open>) {
    let work = job(context.clone());
    context.tasks.spawn_job("connection", async move {
        work.await;
        drop(open);
        Ok::<(), Infallible>(())
    });
}

async fn work(context: Arc<Context>, mut jobs: mpsc::UnboundedReceiver<(Job, Open)>) {
    let mut drain = context.tasks.drain();
    context.tasks.spawn("upstreams", context.upstreams.clone().sweep(context.tasks.drain()));
    while let Some((job, open)) = jobs.recv().await {
        spawn(&context, job, Some(open));
    }
    // Connections live on this thread: it ends after the last of them, or at the deadline.
    tokio::select! {
        () = context.view.last_served(context.tasks.drain()) => {}
        () = drain.forced() => {}
    }
}
