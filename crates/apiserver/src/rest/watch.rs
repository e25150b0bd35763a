// SPDX-License-Identifier: Apache-2.0
//! Watches: what exists (when asked for), then every change, one JSON object a line, until the client goes or does not
//! read, the time is over, or what comes next is forgotten. A watch holds what it writes next and nothing else.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::flow;
use super::read::{Form, formed};
use super::revision::{self, WatchStart};
use crate::call::Call;
use crate::status::Refusal;
use crate::store::{Change, Event, OutOfHistory};

/// A watch without a time of its own ends after this long, as in Kubernetes.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// Longest time that a watch may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// Pause between bookmarks.
const BOOKMARK: Duration = Duration::from_secs(30);

/// Memory in bytes of the objects or changes that a watch takes from the store at once.
const PIECE: usize = 256 * 1024;

struct Watch {
    call: Call,
    form: Form,
    /// Revision reached.
    revision: u64,
    /// Lines that wait to be written, less than [`flow::CHUNK`] and one line.
    lines: Vec<u8>,
    changes: tokio::sync::watch::Receiver<u64>,
    end: Instant,
    bookmark: Instant,
}

/// Why a watch ends before its time.
enum End {
    /// Nobody reads.
    Gone,
    /// With an event that says why.
    Refused(Refusal),
}

impl From<flow::Gone> for End {
    fn from(_: flow::Gone) -> Self {
        Self::Gone
    }
}

/// How long a watch lives that asks for so many seconds.
fn lifetime(asked: Option<u64>) -> Duration {
    asked.map_or(DEFAULT_TIMEOUT, Duration::from_secs).min(MAX_TIMEOUT)
}

pub(super) fn watch(call: Call) -> Result<Response<Body>, Refusal> {
    let start = revision::of_watch(&call)?;
    let timeout = lifetime(call.options.timeout_seconds);
    let now = Instant::now();
    let tasks = call.api.tasks.clone();
    let watch = Watch {
        form: Form::of(&call.headers),
        revision: 0,
        lines: Vec::new(),
        // Taken before anything is read, so that no change falls between.
        changes: call.api.store.changes(),
        end: now + timeout,
        bookmark: now + BOOKMARK,
        call,
    };
    let mut drain = tasks.drain();
    Ok(flow::respond(&tasks, "watch", |writer| async move {
        let ended = tokio::select! {
            () = drain.started() => true,
            ended = watch.run(start, &writer) => ended,
        };
        if ended {
            writer.complete();
        }
    }))
}

impl Watch {
    /// Serves the watch; whether it ends as it should.
    async fn run(mut self, start: WatchStart, writer: &flow::Writer) -> bool {
        let ended = match self.begin(start, writer).await {
            Ok(()) => self.follow(writer).await,
            Err(end) => Err(end),
        };
        match ended {
            Ok(()) => true,
            Err(End::Gone) => false,
            // Inside of the stream: clients list again for an ERROR event of code 410 only, and repeat a request that
            // fails with HTTP 410 for ever.
            Err(End::Refused(refusal)) => {
                self.line(&json!({"type": "ERROR", "object": refusal.to_value()}));
                self.flush(writer).await.is_ok()
            }
        }
    }

    async fn begin(&mut self, start: WatchStart, writer: &flow::Writer) -> Result<(), End> {
        match start {
            WatchStart::After(revision) => {
                self.revision = revision;
                Ok(())
            }
            WatchStart::Existing { at_least } => {
                revision::reached(&self.call, at_least).map_err(End::Refused)?;
                self.existing(writer).await
            }
        }
    }

    /// Writes what exists, and the mark of its end when asked for.
    async fn existing(&mut self, writer: &flow::Writer) -> Result<(), End> {
        let (mut revision, mut after) = (None, None);
        loop {
            let namespace = self.call.listed_namespace();
            let slice =
                self.call.api.store.slice(&self.call.info.key, namespace, revision, after.as_ref(), PIECE);
            let slice = slice.map_err(|why| self.expired(why))?;
            revision = Some(slice.revision);
            after = slice.items.last().map(|item| item.name.clone());
            for item in slice.items {
                if self.matches(&item.value) {
                    self.push("ADDED", &item.value);
                    self.flush_if_full(writer).await?;
                }
            }
            if !slice.more {
                self.revision = slice.revision;
                break;
            }
        }
        if self.call.options.send_initial_events && self.call.options.bookmarks {
            self.push_bookmark(true);
        }
        Ok(self.flush(writer).await?)
    }

    /// Writes every change until the time is over.
    async fn follow(&mut self, writer: &flow::Writer) -> Result<(), End> {
        loop {
            self.collect(writer).await?;
            tokio::select! {
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(self.bookmark) => {
                    self.bookmark += BOOKMARK;
                    if self.call.options.bookmarks {
                        self.push_bookmark(false);
                        self.flush(writer).await?;
                    }
                }
                () = tokio::time::sleep_until(self.end) => return Ok(()),
                () = writer.closed() => return Err(End::Gone),
            }
        }
    }

    /// Writes the changes since the revision reached, taking them from the store as the client reads.
    async fn collect(&mut self, writer: &flow::Writer) -> Result<(), End> {
        loop {
            let changes = self.call.api.store.since(&self.call.info.key, self.revision, PIECE);
            let changes = changes.map_err(|why| self.expired(why))?;
            let done = changes.events.is_empty();
            for event in changes.events {
                self.push_event(&event);
                self.flush_if_full(writer).await?;
            }
            self.revision = changes.reached;
            if done {
                return Ok(self.flush(writer).await?);
            }
        }
    }

    fn expired(&self, why: OutOfHistory) -> End {
        End::Refused(Refusal::expired(format!("{why}: {}", self.revision)))
    }

    fn matches(&self, object: &Value) -> bool {
        let named = self.call.target.name.as_deref().is_none_or(|name| object["metadata"]["name"] == name);
        let inside = self.call.listed_namespace().is_none_or(|ns| object["metadata"]["namespace"] == ns);
        named
            && inside
            && self.call.options.labels.matches(object)
            && self.call.options.fields.matches(object)
    }

    fn push(&mut self, kind: &str, object: &Arc<Value>) {
        let object = formed(&self.call, self.form, object);
        self.line(&json!({"type": kind, "object": object}));
    }

    fn line(&mut self, value: &Value) {
        self.lines.extend_from_slice(value.to_string().as_bytes());
        self.lines.push(b'\n');
    }

    async fn flush_if_full(&mut self, writer: &flow::Writer) -> Result<(), flow::Gone> {
        if self.lines.len() < flow::CHUNK { Ok(()) } else { self.flush(writer).await }
    }

    async fn flush(&mut self, writer: &flow::Writer) -> Result<(), flow::Gone> {
        writer.write(std::mem::take(&mut self.lines).into()).await
    }

    fn push_bookmark(&mut self, initial_end: bool) {
        let mut object = json!({
            "kind": self.call.info.kind, "apiVersion": self.call.info.api_version(),
            "metadata": {"resourceVersion": self.revision.to_string(), "creationTimestamp": null},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.form == Form::Table {
            object = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
                            "columnDefinitions": [], "rows": [{"cells": [], "object": super::read::metadata(&object)}]});
        }
        self.line(&json!({"type": "BOOKMARK", "object": object}));
    }

    /// A change as a selector sees it: what comes into its view is added, what leaves it is deleted.
    fn push_event(&mut self, event: &Event) {
        let now = event.change != Change::Deleted && self.matches(&event.object);
        let before = event.previous.as_ref().is_some_and(|object| self.matches(object));
        match (before, now) {
            (false, true) => self.push("ADDED", &event.object),
            (true, true) => self.push("MODIFIED", &event.object),
            (true, false) => self.push("DELETED", &event.object),
            (false, false) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_lives_as_long_as_it_asks_for_and_not_for_ever() {
        for (asked, hours) in [(None, 0.75), (Some(3600), 1.0), (Some(u64::MAX), 24.0), (Some(0), 0.0)] {
            assert_eq!(lifetime(asked).as_secs_f64(), hours * 3600.0, "{asked:?}");
        }
    }
}
