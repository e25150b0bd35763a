// SPDX-License-Identifier: Apache-2.0
//! One thread for each core, each with listeners of its own for every Pod.

use std::io;
use std::sync::Arc;

use meltemi_runtime::cores;
use tokio::sync::{mpsc, oneshot};

use crate::context::Context;
use crate::dns;
use crate::pod::{Pod, Served};
use crate::sockets::Sockets;

type Answer = oneshot::Sender<io::Result<()>>;
/// A Pod to serve, its sockets for one worker, and where to say that it listens.
type Order = (Arc<Pod>, Sockets, Answer);

/// The workers.
#[derive(Clone, Debug)]
pub(crate) struct Workers(Vec<mpsc::UnboundedSender<Order>>);

impl Workers {
    /// Starts `count` of them; they end with the tasks' drain.
    pub(crate) fn start(count: usize, context: &Arc<Context>) -> io::Result<Self> {
        let mut senders = Vec::new();
        for index in 0..count.max(1) {
            let (sender, pods) = mpsc::unbounded_channel();
            let pods = Arc::new(std::sync::Mutex::new(Some(pods)));
            let context = context.clone();
            let started = cores::spawn(&format!("worker-{index}"), 1, {
                let context = context.clone();
                move |_| {
                    let pods = pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                    work(index, context.clone(), pods)
                }
            })?;
            context.tasks.spawn("worker", async move {
                let joined =
                    tokio::task::spawn_blocking(|| started.into_iter().try_for_each(cores::Worker::join));
                joined.await.map_err(io::Error::other)?
            });
            senders.push(sender);
        }
        Ok(Self(senders))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Serves a Pod on every worker, each with its part of the sockets; resolves when all listen.
    pub(crate) async fn add(&self, pod: &Arc<Pod>, sockets: Vec<Sockets>) -> io::Result<()> {
        for (worker, sockets) in self.0.iter().zip(sockets) {
            let (answer, answered) = oneshot::channel();
            let ended = || io::Error::other("a worker has ended");
            worker.send((pod.clone(), sockets, answer)).map_err(|_| ended())?;
            answered.await.map_err(|_| ended())??;
        }
        Ok(())
    }
}

async fn work(index: usize, context: Arc<Context>, pods: Option<mpsc::UnboundedReceiver<Order>>) {
    let Some(mut pods) = pods else { return };
    let mut drain = context.tasks.drain();
    loop {
        let (pod, sockets, answer) = tokio::select! {
            next = pods.recv() => match next {
                Some(next) => next,
                // Whoever hands Pods over has ended, as it does when nothing further is accepted.
                None => break,
            },
            () = context.closing.cancelled() => break,
        };
        // Names are asked for rarely: one worker answers them.
        let started = sockets.dns.map_or(Ok(()), |dns| dns::start(&context, &pod, dns));
        let serve = |()| Served::start(context.clone(), pod, sockets.listeners);
        let started = started.and_then(serve).map(|served| {
            if index == 0 && !served.pod.legacy.is_empty() {
                context.tasks.spawn_job("legacy connections", served.legacy());
            }
        });
        let _ = answer.send(started);
    }
    // Connections go on until the last has ended, or the deadline.
    context.open.close();
    tokio::select! {
        () = context.open.wait() => {}
        () = drain.forced() => {}
    }
}
