// SPDX-License-Identifier: Apache-2.0
//! A SPDY connection as streams: one driver reads and writes, streams are bounded queues.
//!
//! Flow control: what is read is bounded by the queues (a full one stops the connection) and acknowledged as it is
//! taken. What is written obeys the peer's windows once the peer has shown that it keeps any: Kubernetes' own
//! clients never send WINDOW_UPDATE, and there TCP alone pushes back.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{Semaphore, mpsc};

use super::frame::{self, CHUNK, Decoder, Encoder, Frame, Headers, Reset};

const MAX_STREAMS: usize = 512;
/// Chunks of [`CHUNK`] bytes that a stream holds before its connection waits.
const QUEUE: usize = 8;
const INITIAL_WINDOW: u32 = 64 * 1024;
/// How long the peer may take to close after our GOAWAY.
const LINGER: Duration = Duration::from_secs(2);

enum Out {
    Reply(u32),
    Data { stream: u32, bytes: Bytes, fin: bool },
    Reset(u32, Reset),
    Ping(u32),
    WindowUpdate { stream: u32, delta: u32 },
    Close,
}

/// What may be written to a stream.
struct Window {
    kept: Arc<AtomicBool>,
    credit: Semaphore,
}

impl Window {
    /// Takes credit for up to `wanted` bytes, at least one.
    async fn take(&self, wanted: usize) -> io::Result<usize> {
        if !self.kept.load(Ordering::Relaxed) {
            return Ok(wanted);
        }
        self.credit.acquire().await.map_err(io::Error::other)?.forget();
        let more = self.credit.available_permits().min(wanted - 1);
        match self.credit.try_acquire_many(u32::try_from(more).unwrap_or(0)) {
            Ok(permit) => {
                permit.forget();
                Ok(1 + more)
            }
            Err(_) => Ok(1),
        }
    }
}

/// The streams that the peer opens.
pub(in crate::streaming) struct Session {
    incoming: mpsc::Receiver<Stream>,
    out: mpsc::Sender<Out>,
}

impl Session {
    /// The next stream; `None` when the peer has gone.
    pub(in crate::streaming) async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Ends the connection when everything before has been written.
    pub(in crate::streaming) async fn close(&self) {
        let _ = self.out.send(Out::Close).await;
    }
}

/// A stream; dropped before [`Writer::finish`], it is reset.
pub(in crate::streaming) struct Stream {
    headers: Headers,
    incoming: mpsc::Receiver<Bytes>,
    writer: Writer,
}

impl Stream {
    /// A header's value; names are in lower case.
    pub(in crate::streaming) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// What the peer sends; `None` at its end.
    pub(in crate::streaming) async fn read(&mut self) -> Option<Bytes> {
        self.incoming.recv().await
    }

    /// Sends.
    pub(in crate::streaming) async fn write(&self, bytes: Bytes) -> io::Result<()> {
        self.writer.write(bytes).await
    }

    /// Half-closes.
    pub(in crate::streaming) async fn finish(&self) -> io::Result<()> {
        self.writer.finish().await
    }

    /// A handle that only writes.
    pub(in crate::streaming) fn writer(&self) -> Writer {
        self.writer.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.writer.finished.load(Ordering::Relaxed) {
            let _ = self.writer.out.try_send(Out::Reset(self.writer.stream, Reset::Cancel));
        }
    }
}

/// The writing half of a stream.
#[derive(Clone)]
pub(in crate::streaming) struct Writer {
    stream: u32,
    out: mpsc::Sender<Out>,
    window: Arc<Window>,
    finished: Arc<AtomicBool>,
}

impl Writer {
    /// Sends.
    pub(in crate::streaming) async fn write(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let now = self.window.take(bytes.len().min(CHUNK)).await?;
            self.send(bytes.split_to(now), false).await?;
        }
        Ok(())
    }

    /// Half-closes.
    pub(in crate::streaming) async fn finish(&self) -> io::Result<()> {
        if self.finished.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.send(Bytes::new(), true).await
    }

    async fn send(&self, bytes: Bytes, fin: bool) -> io::Result<()> {
        let data = Out::Data { stream: self.stream, bytes, fin };
        self.out.send(data).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Streams over a connection, and the future that drives it; it ends when the peer closes or after
/// [`Session::close`].
pub(in crate::streaming) fn session<T>(io: T) -> (Session, impl Future<Output = io::Result<()>> + Send)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (incoming_tx, incoming) = mpsc::channel(16);
    let (out, out_rx) = mpsc::channel(16);
    let (reader, writer) = tokio::io::split(io);
    let mut reader = Reader {
        decoder: Decoder::new(BufReader::new(reader)),
        incoming: incoming_tx,
        out: out.clone(),
        kept: Arc::default(),
        initial_window: INITIAL_WINDOW,
        streams: HashMap::new(),
    };
    let driver = async move {
        let reading = reader.run();
        tokio::pin!(reading);
        tokio::select! {
            done = &mut reading => done,
            written = write_loop(writer, out_rx) => {
                written?;
                tokio::time::timeout(LINGER, reading).await.unwrap_or(Ok(()))
            }
        }
    };
    (Session { incoming, out }, driver)
}

struct Entry {
    /// `None` when the peer has finished or nobody reads any more.
    queue: Option<mpsc::Sender<Bytes>>,
    window: Arc<Window>,
    unacknowledged: u32,
}

struct Reader<R> {
    decoder: Decoder<R>,
    incoming: mpsc::Sender<Stream>,
    out: mpsc::Sender<Out>,
    kept: Arc<AtomicBool>,
    initial_window: u32,
    streams: HashMap<u32, Entry>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(&mut self) -> io::Result<()> {
        while let Some(frame) = self.decoder.next().await? {
            match frame {
                Frame::SynStream { stream, fin, headers } => self.open(stream, fin, headers).await?,
                Frame::Data { stream, fin, bytes } => self.data(stream, fin, bytes).await,
                Frame::SynReply { stream, fin } | Frame::Headers { stream, fin } => {
                    if fin && let Some(entry) = self.streams.get_mut(&stream) {
                        entry.queue = None;
                    }
                }
                Frame::Reset { stream } => {
                    if let Some(entry) = self.streams.remove(&stream) {
                        entry.window.credit.close();
                    }
                }
                Frame::Settings(window) => self.settings(window),
                // Odd ids are the client's: they want an echo. We send none ourselves.
                Frame::Ping(id) => self.send(Out::Ping(id)).await?,
                Frame::GoAway | Frame::Unknown(_) => {}
                Frame::WindowUpdate { stream, delta } => {
                    self.kept.store(true, Ordering::Relaxed);
                    if let Some(entry) = self.streams.get(&stream) {
                        entry.window.credit.add_permits(delta as usize);
                    }
                }
            }
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> io::Result<()> {
        // Streams that both sides have left: the peer has finished and our halves are dropped.
        self.streams.retain(|_, e| e.queue.is_some() || Arc::strong_count(&e.window) > 1);
        if self.streams.len() >= MAX_STREAMS || self.streams.contains_key(&stream) {
            return self.send(Out::Reset(stream, Reset::Refused)).await;
        }
        let (queue, incoming) = mpsc::channel(QUEUE);
        let credit = Semaphore::new(self.initial_window as usize);
        let window = Arc::new(Window { kept: self.kept.clone(), credit });
        let entry = Entry { queue: (!fin).then_some(queue), window: window.clone(), unacknowledged: 0 };
        self.streams.insert(stream, entry);
        self.send(Out::Reply(stream)).await?;
        let writer = Writer { stream, out: self.out.clone(), window, finished: Arc::default() };
        let opened = Stream { headers, incoming, writer };
        self.incoming.send(opened).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: Bytes) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if let Some(queue) = &entry.queue
            && !bytes.is_empty()
        {
            entry.unacknowledged += u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            if queue.send(bytes).await.is_err() {
                entry.queue = None;
            }
            let update = Out::WindowUpdate { stream, delta: entry.unacknowledged };
            // A full queue to the writer means the update goes with a later one; waiting could stall both ways.
            if entry.unacknowledged >= INITIAL_WINDOW / 2 && !fin && self.out.try_send(update).is_ok() {
                entry.unacknowledged = 0;
            }
        }
        if fin {
            entry.queue = None;
        }
    }

    fn settings(&mut self, window: Option<u32>) {
        let Some(window) = window else { return };
        self.kept.store(true, Ordering::Relaxed);
        for entry in self.streams.values() {
            let credit = &entry.window.credit;
            if window >= self.initial_window {
                credit.add_permits((window - self.initial_window) as usize);
            } else {
                credit.forget_permits((self.initial_window - window) as usize);
            }
        }
        self.initial_window = window;
    }

    // `&mut`, for the decoder's connection is not `Sync`.
    async fn send(&mut self, out: Out) -> io::Result<()> {
        self.out.send(out).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

async fn write_loop<W: AsyncWrite + Unpin>(mut writer: W, mut out: mpsc::Receiver<Out>) -> io::Result<()> {
    let mut encoder = Encoder::new()?;
    let mut buffer = BytesMut::new();
    while let Some(first) = out.recv().await {
        let mut next = Some(first);
        let mut close = false;
        while let Some(item) = next.take() {
            close = encode(&mut encoder, &mut buffer, item)?;
            if !close && buffer.len() < 4 * CHUNK {
                next = out.try_recv().ok();
            }
        }
        writer.write_all(&buffer).await?;
        writer.flush().await?;
        buffer.clear();
        if close {
            return writer.shutdown().await;
        }
    }
    writer.shutdown().await
}

/// Appends a frame; true when it is the last one.
fn encode(encoder: &mut Encoder, buffer: &mut BytesMut, item: Out) -> io::Result<bool> {
    match item {
        Out::Reply(stream) => encoder.syn_reply(buffer, stream, &Headers::new())?,
        Out::Data { stream, bytes, fin } => {
            frame::data_head(buffer, stream, fin, bytes.len());
            buffer.extend_from_slice(&bytes);
        }
        Out::Reset(stream, why) => frame::reset(buffer, stream, why),
        Out::Ping(id) => frame::ping(buffer, id),
        Out::WindowUpdate { stream, delta } => frame::window_update(buffer, stream, delta),
        Out::Close => {
            frame::go_away(buffer, 0);
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
