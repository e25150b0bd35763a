// SPDX-License-Identifier: Apache-2.0
//! `containerLogs`: a container's log, from its end or followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;

use super::query::Query;
use super::{Body, Refusal};
use crate::container::log_folder;
use crate::context::{Context, PodEntry};
use crate::logs::{Reader, Wanted};
use crate::state::Phase;

const POLL: Duration = Duration::from_millis(100);

type Answer = Result<Response<Body>, Refusal>;

pub(super) fn read(ctx: &Arc<Context>, entry: &Arc<PodEntry>, container: &str, query: &Query) -> Answer {
    let mut state = entry.state();
    let Some(found) = state.container(container) else {
        let message = format!("container {container:?} in pod {:?} is not valid", entry.name);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, &message));
    };
    let mut instance = found.restarts;
    // While it waits to be started again, the last run is the one that has just ended.
    let folder = log_folder(ctx, entry, container);
    let current_exists = folder.join(format!("{instance}.log")).exists();
    if query.is("previous") {
        if current_exists {
            instance -= 1;
        }
        if instance < 0 || !folder.join(format!("{instance}.log")).exists() {
            let message =
                format!("previous terminated container {container:?} in pod {:?} not found", entry.name);
            return Err(Refusal::new(StatusCode::BAD_REQUEST, &message));
        }
    } else if !current_exists && instance > 0 {
        instance -= 1;
    } else if !current_exists && let Phase::Waiting { reason, .. } = &found.phase {
        let message =
            format!("container {container:?} in pod {:?} is waiting to start: {reason}", entry.name);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, &message));
    }
    let wanted = wanted(query).map_err(|m| Refusal::new(StatusCode::BAD_REQUEST, &m))?;
    let reader = Reader::new(&folder.join(format!("{instance}.log")), wanted);
    let follow = query.is("follow") && !query.is("previous");
    let source = Source {
        reader,
        entry: entry.clone(),
        container: container.to_owned(),
        instance,
        follow,
        begun: false,
        last: false,
    };
    let frames = stream::try_unfold(source, |mut source| async move {
        let bytes = source.next().await?;
        Ok::<_, std::io::Error>(bytes.map(|b| (Frame::data(Bytes::from(b)), source)))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(sync(frames))));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// A stream that only one task polls is as good as one that could be shared.
fn sync<S>(frames: S) -> SyncStream<S> {
    SyncStream(std::sync::Mutex::new(Box::pin(frames)))
}

struct SyncStream<S>(std::sync::Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let inner = self.get_mut().0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.as_mut().poll_next(cx)
    }
}

fn wanted(query: &Query) -> Result<Wanted, String> {
    let number = |name: &str| -> Result<Option<u64>, String> {
        let text = query.get(name).filter(|t| !t.is_empty());
        text.map(|t| t.parse().map_err(|_| format!("{name}: {t:?} is not a number"))).transpose()
    };
    let now = Timestamp::now();
    let seconds = number("sinceSeconds")?.and_then(|s| i64::try_from(s).ok());
    let since = match (query.get("sinceTime").filter(|t| !t.is_empty()), seconds) {
        (Some(text), _) => Some(text.parse().map_err(|_| format!("sinceTime: {text:?} is not a time"))?),
        (None, Some(seconds)) => Some(now - jiff::SignedDuration::from_secs(seconds)),
        (None, None) => None,
    };
    Ok(Wanted {
        tail: number("tailLines")?.and_then(|n| usize::try_from(n).ok()),
        since,
        timestamps: query.is("timestamps"),
        limit: number("limitBytes")?,
    })
}

struct Source {
    reader: Reader,
    entry: Arc<PodEntry>,
    container: String,
    instance: i32,
    follow: bool,
    begun: bool,
    last: bool,
}

impl Source {
    async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        if !self.begun {
            self.begun = true;
            let first = self.reader.first()?;
            if !first.is_empty() || !self.follow {
                return Ok(Some(first));
            }
        }
        loop {
            if !self.follow || self.last || self.reader.is_full() {
                return Ok(None);
            }
            // Looked at before reading: what the instance wrote last is still read.
            self.last = self.is_over();
            let more = self.reader.more()?;
            if !more.is_empty() {
                return Ok(Some(more));
            }
            if !self.last {
                tokio::time::sleep(POLL).await;
            }
        }
    }

    fn is_over(&self) -> bool {
        let mut state = self.entry.state();
        match state.container(&self.container) {
            Some(c) => c.restarts != self.instance || !matches!(c.phase, Phase::Running { .. }),
            None => true,
        }
    }
}
