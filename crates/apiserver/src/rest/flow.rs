// SPDX-License-Identifier: Apache-2.0
//! Bodies that are made while the client reads them: no more than two chunks wait, and a client that does not read for
//! [`READ_LIMIT`] is given up. What feeds the body is a job of its own, because nothing else runs while hyper waits for
//! room in the stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use meltemi_runtime::Tasks;
use tokio::sync::mpsc;

/// Largest chunk in bytes.
pub(super) const CHUNK: usize = 64 * 1024;
/// Longest time that a client may take to make room for the next chunk.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(30);

/// Largest body in bytes that hyper may hold as a whole until the client reads it.
const UNPACED: u64 = 4 * CHUNK as u64;

/// The client is gone, or has not read for [`READ_LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// The end of a body that is written to.
#[derive(Debug)]
pub(super) struct Writer {
    chunks: mpsc::Sender<Bytes>,
    complete: Arc<AtomicBool>,
}

/// The body ended before everything was written: the connection or stream must not end as if it were whole.
#[derive(Debug, thiserror::Error)]
#[error("the body was not completed")]
struct Incomplete;

impl Writer {
    /// Writes bytes, in chunks.
    ///
    /// # Errors
    /// Nobody reads them.
    pub(super) async fn write(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK));
            match tokio::time::timeout(READ_LIMIT, self.chunks.send(chunk)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// Resolves when nobody can read any more.
    pub(super) async fn closed(&self) {
        self.chunks.closed().await;
    }

    /// Ends the body properly. Without it the client sees an error.
    pub(super) fn complete(self) {
        self.complete.store(true, Ordering::Release);
    }
}

/// An answer of JSON whose body `produce` writes.
pub(super) fn respond<F>(tasks: &Tasks, name: &str, produce: impl FnOnce(Writer) -> F) -> Response<Body>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (tx, rx) = mpsc::channel(1);
    let complete = Arc::new(AtomicBool::new(false));
    let work = produce(Writer { chunks: tx, complete: complete.clone() });
    let mut drain = tasks.drain();
    tasks.spawn_job(name, async move {
        tokio::select! {
            () = work => {}
            () = drain.started() => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let stream = stream::unfold(Some(rx), move |rx| {
        let complete = complete.clone();
        async move {
            let mut rx = rx?;
            match rx.recv().await {
                Some(chunk) => Some((Ok(chunk), Some(rx))),
                None if complete.load(Ordering::Acquire) => None,
                None => Some((Err(Incomplete), None)),
            }
        }
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The same answer, whose body is given up if the client does not read it. Streams are left as they are.
pub(super) fn paced(tasks: &Tasks, response: Response<Body>) -> Response<Body> {
    let Some(length) = http_body::Body::size_hint(response.body()).exact().filter(|length| *length > UNPACED)
    else {
        return response;
    };
    let (mut parts, body) = response.into_parts();
    let flowing = respond(tasks, "answer", |writer| async move {
        // It is in memory as a whole: collecting it takes no time and no copy.
        let Ok(whole) = http_body_util::BodyExt::collect(body).await else { return };
        if writer.write(whole.to_bytes()).await.is_ok() {
            writer.complete();
        }
    });
    parts.headers.insert(header::CONTENT_LENGTH, length.into());
    Response::from_parts(parts, flowing.into_body())
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use meltemi_runtime::drain;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_is_made_as_it_is_read_and_its_writer_ends_when_it_is_not() {
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let (done, ended) = tokio::sync::oneshot::channel();
        let response = respond(&tasks, "test", |writer| async move {
            let mut written = 0;
            while writer.write(Bytes::from(vec![b'x'; 3 * CHUNK])).await.is_ok() {
                written += 1;
            }
            let _ = done.send(written);
        });
        let mut stream = response.into_body().into_data_stream();
        assert_eq!(stream.next().await.unwrap().unwrap().len(), CHUNK);
        // Nobody reads on: time passes by itself, and the writer gives up after the first piece.
        assert_eq!(ended.await.unwrap(), 0);
        let rest: Vec<_> = stream.collect().await;
        assert!(rest.len() <= 3 && rest.last().unwrap().is_err(), "the end is an error: {}", rest.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_is_whole_for_who_reads_and_given_up_for_who_does_not() {
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let text = vec![b'x'; 10 * CHUNK];
        let answer = || paced(&tasks, Response::new(Body::from(text.clone())));
        let response = answer();
        assert_eq!(response.headers()[header::CONTENT_LENGTH], text.len().to_string());
        assert_eq!(axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap(), text);
        let unread = answer().into_body();
        tokio::time::sleep(READ_LIMIT * 2).await;
        let chunks: Vec<_> = unread.into_data_stream().collect().await;
        assert!(chunks.len() <= 2 && chunks.last().unwrap().is_err());
    }

    #[tokio::test]
    async fn a_complete_body_ends_without_an_error() {
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let response = respond(&tasks, "test", |writer| async move {
            if writer.write(Bytes::from_static(b"{}")).await.is_ok() {
                writer.complete();
            }
        });
        let bytes = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
        assert_eq!(&bytes[..], b"{}");
    }
}
