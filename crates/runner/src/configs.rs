// SPDX-License-Identifier: Apache-2.0
//! Config maps and secrets that Pods of this node refer to: each watched by its name from its first use until a
//! while after its last, so that a change arrives at once and nothing is asked for again and again.

pub(crate) mod watched;

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub(crate) use self::watched::{Data, Kind};
use self::watched::{Key, Known, UNUSED};
use crate::content::ContentError;
use crate::context::Context;
use crate::lock::lock;

/// How long the first answer may take.
const FIRST: Duration = Duration::from_secs(5);
/// An object's data; `None` when there is no such object.
///
/// # Errors
/// The API does not answer in time.
pub(crate) async fn get(
    ctx: &Arc<Context>,
    kind: Kind,
    ns: &str,
    name: &str,
) -> Result<Option<Arc<Data>>, ContentError> {
    let key = (kind, ns.to_owned(), name.to_owned());
    let mut known = {
        let mut watched = lock(&ctx.configs.watched);
        let now = tokio::time::Instant::now();
        let (known, used) = watched.entry(key.clone()).or_insert_with(|| (start(ctx, key), now));
        *used = now;
        known.clone()
    };
    let first = known.wait_for(Option::is_some);
    match tokio::time::timeout(FIRST, first).await {
        Ok(Ok(found)) => Ok(found.clone().flatten()),
        _ => Err(ContentError::NoAnswer { kind, name: name.to_owned() }),
    }
}

fn start(ctx: &Arc<Context>, key: Key) -> watch::Receiver<Known> {
    let (tx, rx) = watch::channel(None);
    let ctx2 = ctx.clone();
    ctx.job("watch config", async move {
        match key.0 {
            Kind::ConfigMap => follow(&ctx2, &key, tx, of_config_map).await,
            Kind::Secret => follow(&ctx2, &key, tx, of_secret).await,
        }
        Ok::<(), Infallible>(())
    });
    rx
}

async fn follow<K>(ctx: &Arc<Context>, key: &Key, tx: watch::Sender<Known>, data: fn(K) -> Data)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = Api::namespaced(ctx.client.clone(), &key.1);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.2));
    let name = format!("{} {}/{}", K::plural(&()), key.1, key.2);
    let mut stream = ctx.watches.follow(&name, api, config).boxed();
    let set = |found: Option<Data>| {
        let next = Some(found.map(Arc::new));
        let changed = tx.send_if_modified(|known| {
            let changed = *known != next;
            *known = next;
            changed
        });
        if changed {
            ctx.configs.changes.send_modify(|n| *n += 1);
        }
    };
    let mut listed = None;
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            () = tokio::time::sleep(UNUSED) => {
                if ctx.configs.is_unused(key) {
                    ctx.watches.forget(&name);
                    return;
                }
                continue;
            }
        };
        match event {
            Some(Ok(Event::Init)) => listed = None,
            Some(Ok(Event::InitApply(object))) => listed = Some(data(object)),
            Some(Ok(Event::InitDone)) => set(listed.take()),
            Some(Ok(Event::Apply(object))) => set(Some(data(object))),
            Some(Ok(Event::Delete(_))) => set(None),
            Some(Err(error)) => tracing::debug!(%error, name = key.2, "watch of a {}", key.0),
            None => return,
        }
    }
}

fn of_config_map(map: ConfigMap) -> Data {
    let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
    text.chain(map.binary_data.unwrap_or_default().into_iter().map(|(k, ByteString(v))| (k, v))).collect()
}

fn of_secret(secret: Secret) -> Data {
    secret.data.unwrap_or_default().into_iter().map(|(k, ByteString(v))| (k, v)).collect()
}
