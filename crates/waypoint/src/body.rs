// SPDX-License-Identifier: Apache-2.0
//! Body: what a client sends, as long as it keeps sending; what a backend answers, as long as it is permitted.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use meltemi_policy::Permit;
use meltemi_view::registry::Guard;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::expect::{EndOnDrop, Wait};
use crate::headers;
use crate::pool::Lease;
use crate::pulse::{Handed, Pulse};

/// Why a body ended before its end.
pub(crate) type Broken = Box<dyn std::error::Error + Send + Sync>;
/// A body of either direction.
pub(crate) type Body = UnsyncBoxBody<Bytes, Broken>;

/// A body that is there.
pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Another frame with the same content.
pub(crate) fn copy_frame(frame: &Frame<Bytes>) -> Frame<Bytes> {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Frame::data(data.clone()),
        (None, trailers) => Frame::trailers(trailers.cloned().unwrap_or_default()),
    }
}

/// Bytes that a frame takes while it is held: its content and itself. A client may send its body a byte at a time.
pub(crate) fn held_size(frame: &Frame<Bytes>) -> usize {
    let trailers = |all: &HeaderMap| all.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let content = frame.data_ref().map_or_else(|| frame.trailers_ref().map_or(0, trailers), Bytes::len);
    size_of::<Frame<Bytes>>() + content
}

const FINE: u8 = 0;
const BROKEN: u8 = 1;
const SLOW: u8 = 2;
const ANSWERED: u8 = 3;

/// What became of the client's side of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upload {
    state: Arc<AtomicU8>,
    ended: Arc<AtomicBool>,
}

impl Upload {
    /// The backend has begun to answer: from now on the client may be silent.
    pub(crate) fn answered(&self) {
        let _ = self.state.compare_exchange(FINE, ANSWERED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether the body was passed on to its end: only then may the connection carry another request.
    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// What to tell a client whose body was the reason that the backend was not reached.
    pub(crate) fn fault(&self) -> Option<(StatusCode, &'static str)> {
        match self.state.load(Ordering::Relaxed) {
            BROKEN => Some((StatusCode::BAD_REQUEST, "malformed body")),
            SLOW => Some((StatusCode::REQUEST_TIMEOUT, "body is too slow")),
            _ => None,
        }
    }
}

/// The beginning of a body that was read before the rest is forwarded. Its parts are joined: each of them would cost more
/// than the byte that it may hold.
#[derive(Default)]
pub(crate) struct Prefix {
    pub(crate) data: BytesMut,
    pub(crate) trailers: Option<HeaderMap>,
    /// It is all of the body.
    pub(crate) ended: bool,
    /// Its part of the memory for open requests.
    room: Option<OwnedSemaphorePermit>,
}

impl Prefix {
    /// Takes a part that was read.
    pub(crate) fn push(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => self.data.extend_from_slice(&data),
            Err(frame) => {
                self.trailers = frame.into_trailers().ok().map(|mut trailers| {
                    headers::strip(&mut trailers);
                    trailers
                });
                self.ended = true;
            }
        }
    }

    /// Takes as much of the memory for open requests as has been read. Returns whether there was so much.
    pub(crate) fn hold_room(&mut self, heads: &Arc<Semaphore>) -> bool {
        let held = self.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = (self.data.len() / 1024 + 1).saturating_sub(held);
        let Ok(missing) = u32::try_from(missing) else { return false };
        let Ok(more) = heads.clone().try_acquire_many_owned(missing) else { return false };
        match &mut self.room {
            Some(room) => room.merge(more),
            None => self.room = Some(more),
        }
        true
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        if !self.data.is_empty() {
            return Some(Frame::data(self.data.split().freeze()));
        }
        self.room = None;
        self.trailers.take().map(Frame::trailers)
    }

    fn is_empty(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }
}

/// The client's body.
pub(crate) struct Received {
    /// What was read of it before.
    prefix: Prefix,
    inner: Incoming,
    upload: Upload,
    limit: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
    /// The backend has to ask for it first.
    wait: Option<Wait>,
}

impl Received {
    /// `limit`: longest time between two parts; `None` disables the check. `wait`: until then nothing is read.
    pub(crate) fn new(inner: Incoming, upload: Upload, limit: Option<Duration>, wait: Option<Wait>) -> Self {
        upload.ended.store(inner.is_end_stream(), Ordering::Relaxed);
        Self { prefix: Prefix::default(), inner, upload, limit, sleep: None, armed: false, wait }
    }

    /// The same body after what was read of it before.
    pub(crate) fn after(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self.upload.ended.store(self.is_end_stream(), Ordering::Relaxed);
        self
    }

    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(limit) = self.limit.filter(|_| self.upload.state.load(Ordering::Relaxed) == FINE) else {
            return false;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !std::mem::replace(&mut self.armed, true) {
            sleep.as_mut().reset(Instant::now() + limit);
        }
        // The answer may begin while this waits.
        sleep.as_mut().poll(cx).is_ready() && self.upload.state.load(Ordering::Relaxed) == FINE
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if let Some(wait) = &mut this.wait {
            if !ready!(wait.poll_wanted(cx)) {
                return Poll::Ready(Some(Err("the backend has answered without the request's body".into())));
            }
            this.wait = None;
        }
        if let Some(frame) = this.prefix.pop() {
            this.upload.ended.store(this.is_end_stream(), Ordering::Relaxed);
            return Poll::Ready(Some(Ok(frame)));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            if this.is_late(cx) {
                this.upload.state.store(SLOW, Ordering::Relaxed);
                return Poll::Ready(Some(Err("the request's body is too slow".into())));
            }
            return Poll::Pending;
        };
        this.armed = false;
        Poll::Ready(match frame {
            Some(Ok(mut frame)) => {
                let last = frame.is_trailers() || this.inner.is_end_stream();
                this.upload.ended.store(last, Ordering::Relaxed);
                if let Some(trailers) = frame.trailers_mut() {
                    headers::strip(trailers);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                this.upload.state.store(BROKEN, Ordering::Relaxed);
                Some(Err(error.into()))
            }
            None => {
                this.upload.ended.store(true, Ordering::Relaxed);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.prefix.is_empty() && (self.prefix.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, read) = (self.inner.size_hint(), self.prefix.data.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}

/// When an answer has to be over, and what is done when it is not.
pub(crate) struct Deadline {
    pub(crate) sleep: Pin<Box<Sleep>>,
    pub(crate) log: Option<Box<dyn FnOnce() + Send>>,
}

/// The backend's body; it breaks off when the permit is taken back, or at the deadline of its rule.
pub(crate) struct Answer {
    inner: Incoming,
    revoked: Pin<Box<dyn Future<Output = Arc<str>> + Send>>,
    deadline: Option<Deadline>,
    pulse: Arc<Pulse>,
    handed: Arc<Handed>,
    _expectation: Option<EndOnDrop>,
    /// The connection that the body comes from, and the request's body on it.
    connection: Option<(Lease, Upload)>,
    ended: bool,
}

/// What an answer is bound to.
pub(crate) struct Bounds {
    pub(crate) permit: Permit,
    pub(crate) guard: Guard,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) expectation: Option<EndOnDrop>,
    /// The connection to the backend, and the request's body on it.
    pub(crate) connection: (Lease, Upload),
}

impl Answer {
    /// Holds the request's entry in the registry until its end. A body that was read to its end leaves its connection to
    /// the next request.
    pub(crate) fn new(inner: Incoming, bounds: Bounds, pulse: Arc<Pulse>) -> Self {
        let Bounds { permit, guard, deadline, expectation, connection } = bounds;
        let handed = pulse.answer(permit.revocation());
        let revoked = Box::pin(async move {
            let _guard = guard;
            permit.revoked().await
        });
        Self {
            inner,
            revoked,
            deadline,
            pulse,
            handed,
            _expectation: expectation,
            connection: Some(connection),
            ended: false,
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        this.pulse.hand(&this.handed, false);
        if let Poll::Ready(reason) = this.revoked.as_mut().poll(cx) {
            return Poll::Ready(Some(Err(reason.to_string().into())));
        }
        if let Some(deadline) = &mut this.deadline
            && deadline.sleep.as_mut().poll(cx).is_ready()
        {
            if let Some(log) = deadline.log.take() {
                log();
            }
            return Poll::Ready(Some(Err("the time that the route gives a request is over".into())));
        }
        let mut frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame {
            this.pulse.hand(&this.handed, true);
            if let Some(trailers) = frame.trailers_mut() {
                headers::strip(trailers);
            }
        }
        this.ended = frame.as_ref().is_none_or(|f| f.as_ref().is_ok_and(Frame::is_trailers));
        Poll::Ready(frame.map(|f| f.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let ended = self.ended || self.inner.is_end_stream();
        if let Some((lease, _)) = self.connection.take().filter(|(_, upload)| ended && upload.is_ended()) {
            lease.keep();
        }
    }
}
