// SPDX-License-Identifier: Apache-2.0
//! Puts the node's network back when somebody has changed it from outside: links, routes, addresses, rules of Services.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use meltemi_linux::nft;

use crate::context::Context;
use crate::net::{self, Connected};

/// Interval between two looks: what is missing is back within this time.
const INTERVAL: Duration = Duration::from_secs(2);

/// Repairs until the drain.
pub(crate) async fn run(ctx: Arc<Context>) -> Result<(), Infallible> {
    let mut drain = ctx.tasks.drain();
    let mut warned = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = drain.started() => return Ok(()),
        }
        let result = restore(&ctx).await;
        if let Err(error) = &result
            && !warned
        {
            tracing::warn!(%error, "the node's network could not be put back");
        }
        warned = result.is_err();
    }
}

async fn restore(ctx: &Arc<Context>) -> std::io::Result<()> {
    let pods = connected(ctx);
    let held = [IpAddr::V4(ctx.config.dns_address)];
    let (node, range) = (ctx.config.address, ctx.config.pod_cidr);
    let restored = tokio::task::spawn_blocking(move || {
        let restored = net::restore(node, &held, range, &pods);
        (restored, nft::generation_here())
    });
    let (restored, generation) = restored.await.map_err(std::io::Error::other)?;
    let generation = generation?;
    // Whoever changed a rule of the namespace may have changed one of ours.
    if ctx.rules.generation().is_some_and(|applied| applied != generation) {
        tracing::info!(
            "rules of the node's network were changed from outside; those of Services are applied again"
        );
        ctx.rules.reapply();
    }
    restored
}

/// The Pods that have a network of their own. A Pod that ends meanwhile takes its link with it.
fn connected(ctx: &Context) -> Vec<Connected> {
    let entries: Vec<_> = ctx.pods().values().filter(|entry| !entry.host_network()).cloned().collect();
    let pod = |entry: &Arc<crate::context::PodEntry>| {
        let (sandbox, Some(IpAddr::V4(address))) = (entry.sandbox()?, entry.state().address) else {
            return None;
        };
        Some(Connected { netns: sandbox.netns().try_clone().ok()?, address })
    };
    entries.iter().filter_map(pod).collect()
}

/// The rules of Services as they were applied last, seen from outside of the task that applies them.
#[derive(Debug, Default)]
pub(crate) struct AppliedRules {
    generation: std::sync::Mutex<Option<u32>>,
    again: tokio::sync::Notify,
}

impl AppliedRules {
    /// The generation of the namespace's rules after the last application.
    fn generation(&self) -> Option<u32> {
        *crate::lock::lock(&self.generation)
    }

    /// Records an application.
    pub(crate) fn applied(&self, generation: Option<u32>) {
        *crate::lock::lock(&self.generation) = generation;
    }

    fn reapply(&self) {
        self.again.notify_one();
    }

    /// Resolves when the rules have to be applied again.
    pub(crate) async fn lost(&self) {
        self.again.notified().await;
    }
}
