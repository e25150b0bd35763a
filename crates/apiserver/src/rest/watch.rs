// SPDX-License-Identifier: Apache-2.0
//! Watches: what exists (when asked for), then every change, one JSON object a line, until the client goes, the time is
//! over or part of the history is forgotten.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::read::{Form, formed};
use crate::call::Call;
use crate::status::Refusal;
use crate::store::{Change, Event};

/// A watch without a time of its own ends after this long, as in Kubernetes.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// Longest time that a watch may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// Pause between bookmarks.
const BOOKMARK: Duration = Duration::from_secs(30);

struct Watch {
    call: Call,
    form: Form,
    /// Revision reached.
    revision: u64,
    /// Lines that wait to be sent.
    pending: VecDeque<Bytes>,
    changes: tokio::sync::watch::Receiver<u64>,
    end: Instant,
    bookmark: Instant,
    over: bool,
}

pub(super) fn watch(call: Call) -> Result<Response<Body>, Refusal> {
    let requested = match call.options.resource_version.as_deref() {
        None | Some("0") => None,
        Some(text) => Some(text.parse::<u64>().map_err(|_| {
            Refusal::bad_request(format!("resourceVersion: Invalid value: \"{text}\": must be a number"))
        })?),
    };
    let timeout = call.options.timeout_seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs).min(MAX_TIMEOUT);
    let now = Instant::now();
    let mut watch = Watch {
        form: Form::of(&call.headers),
        revision: requested.unwrap_or_default(),
        pending: VecDeque::new(),
        // Taken before anything is read, so that no change falls between.
        changes: call.api.store.changes(),
        end: now + timeout,
        bookmark: now + BOOKMARK,
        over: false,
        call,
    };
    // sendInitialEvents asks for what exists, whatever the revision; without a revision it always comes first.
    if requested.is_none() || watch.call.options.send_initial_events {
        watch.existing();
    } else {
        // A revision that the history does not cover is answered inside of the stream: clients list again for an
        // ERROR event of code 410 only, and repeat a request that fails with HTTP 410 for ever.
        watch.collect();
    }
    let stream = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(line), watch))
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

impl Watch {
    fn namespace(&self) -> Option<&str> {
        if self.call.info.namespaced { self.call.target.namespace.as_deref() } else { None }
    }

    /// Queues what exists, and the mark of its end when asked for.
    fn existing(&mut self) {
        let (stored, revision) = self.call.api.store.list(&self.call.info.key, self.namespace(), None);
        self.revision = revision;
        for item in stored {
            if self.matches(&item.value) {
                self.push("ADDED", &item.value);
            }
        }
        if self.call.options.send_initial_events && self.call.options.bookmarks {
            self.push_bookmark(true);
        }
    }

    fn matches(&self, object: &Value) -> bool {
        let named = self.call.target.name.as_deref().is_none_or(|name| object["metadata"]["name"] == name);
        let inside = self.namespace().is_none_or(|ns| object["metadata"]["namespace"] == ns);
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
        let mut line = value.to_string();
        line.push('\n');
        self.pending.push_back(line.into());
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

    /// Queues the changes since the revision reached.
    fn collect(&mut self) {
        match self.call.api.store.since(&self.call.info.key, self.revision) {
            Some((events, revision)) => {
                for event in events {
                    self.push_event(&event);
                }
                self.revision = revision;
            }
            None => {
                let age = if self.revision > self.call.api.store.revision() { "large" } else { "old" };
                let refusal = Refusal::expired(format!("too {age} resource version: {}", self.revision));
                self.line(&json!({"type": "ERROR", "object": refusal.to_value()}));
                self.over = true;
            }
        }
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

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            tokio::select! {
                changed = self.changes.changed() => {
                    changed.ok()?;
                    self.collect();
                }
                () = tokio::time::sleep_until(self.bookmark) => {
                    self.bookmark += BOOKMARK;
                    if self.call.options.bookmarks {
                        self.push_bookmark(false);
                    }
                }
                () = tokio::time::sleep_until(self.end) => return None,
            }
        }
    }
}
