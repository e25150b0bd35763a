// SPDX-License-Identifier: Apache-2.0
//! The access log: one line for each closed connection on standard output, never waited for.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use meltemi_model::SpiffeId;
use meltemi_runtime::telemetry::Format;

/// Lines that may wait to be written; more are dropped and counted.
const QUEUE: usize = 16_384;

/// How long the writer gathers lines when they come at more than [`FEW`] in [`WINDOW`]: meanwhile a line wakes nobody. Lines
/// that come one by one are written at once.
const GATHER: Duration = Duration::from_millis(2);
const FEW: usize = 10;
const WINDOW: Duration = Duration::from_millis(10);

/// Where lines go.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
    format: Format,
}

impl AccessLog {
    /// Starts the writer to standard output.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(format: Format) -> std::io::Result<Self> {
        Self::to(std::io::stdout(), format)
    }

    /// Starts a writer to somewhere else.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn to(out: impl std::io::Write + Send + 'static, format: Format) -> std::io::Result<Self> {
        let mut out = std::io::BufWriter::new(out);
        let (sender, lines) = sync_channel::<String>(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let (mut since, mut written) = (Instant::now(), 0);
            while let Ok(first) = lines.recv() {
                if since.elapsed() > WINDOW {
                    (since, written) = (Instant::now(), 0);
                }
                if written > FEW {
                    std::thread::sleep(GATHER);
                }
                // Whatever waits goes out with one flush.
                for line in std::iter::once(first).chain(lines.try_iter().take(1000)) {
                    let _ = writeln!(out, "{line}");
                    written += 1;
                }
                let _ = out.flush();
            }
        })?;
        Ok(Self { lines: sender, dropped: Arc::default(), format })
    }

    /// The form that its lines are to have.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Writes a line, or drops it when the reader cannot follow.
    pub fn line(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            // Told at 1, 2, 4, 8, …: who floods one log must not flood the other.
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "access log: lines were dropped");
            }
        }
    }
}

/// One side of a connection.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// Address.
    pub addr: Option<SocketAddr>,
    /// Workload.
    pub workload: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Proven identity.
    pub identity: Option<SpiffeId>,
    /// Service, as `<host>`.
    pub service: Arc<str>,
    /// Address of the tunnel.
    pub hbone_addr: Option<SocketAddr>,
}

/// Which end of a connection reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The proxy of the destination.
    Inbound,
    /// The proxy of the source.
    Outbound,
}

impl Direction {
    /// Its name in a line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// A layer 4 connection that has ended.
#[derive(Clone, Debug)]
pub struct L4Record {
    /// Client.
    pub source: Side,
    /// Server.
    pub destination: Side,
    /// As seen from the Pod whose proxy reports it.
    pub direction: Direction,
    /// From client to server, in bytes.
    pub bytes_sent: u64,
    /// From server to client, in bytes.
    pub bytes_recv: u64,
    /// How long it lasted.
    pub duration: Duration,
    /// What AUDIT policies and policies on trial say of it.
    pub reports: Option<String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// A value in a line.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    /// In quotes.
    Text(&'a str),
    Address(SocketAddr),
    Number(u64),
}

impl L4Record {
    /// The line, at a time given as RFC 3339.
    pub fn line(&self, time: &str, format: Format) -> String {
        let level = if self.error.is_some() { "error" } else { "info" };
        match format {
            Format::Text => {
                let mut line = format!("{time}\t{level}\taccess\tconnection complete\t");
                self.each(|name, value| {
                    let _ = match value {
                        Value::Text(text) => write!(line, "{name}={text:?} "),
                        Value::Address(address) => write!(line, "{name}={address} "),
                        Value::Number(number) => write!(line, "{name}={number} "),
                    };
                });
                line.truncate(line.trim_end().len());
                line
            }
            Format::Json => {
                let mut line = format!(
                    r#"{{"level":"{level}","time":"{time}","scope":"access","message":"connection complete""#
                );
                self.each(|name, value| {
                    let _ = match value {
                        Value::Text(text) => write!(line, r#","{name}":{}"#, json_text(text)),
                        Value::Address(address) => write!(line, r#","{name}":"{address}""#),
                        Value::Number(number) => write!(line, r#","{name}":{number}"#),
                    };
                });
                line.push('}');
                line
            }
        }
    }

    /// Every field that says something, in the order of the line.
    fn each(&self, mut with: impl FnMut(&str, Value<'_>)) {
        fn text(text: &str) -> Option<Value<'_>> {
            (!text.is_empty()).then_some(Value::Text(text))
        }
        let (source, destination) = (&self.source, &self.destination);
        let duration = format!("{}ms", self.duration.as_millis());
        let fields = [
            ("src.addr", source.addr.map(Value::Address)),
            ("src.workload", text(&source.workload)),
            ("src.namespace", text(&source.namespace)),
            ("src.identity", source.identity.as_ref().and_then(|id| text(id.as_str()))),
            ("dst.addr", destination.addr.map(Value::Address)),
            ("dst.hbone_addr", destination.hbone_addr.map(Value::Address)),
            ("dst.service", text(&destination.service)),
            ("dst.workload", text(&destination.workload)),
            ("dst.namespace", text(&destination.namespace)),
            ("dst.identity", destination.identity.as_ref().and_then(|id| text(id.as_str()))),
            ("direction", text(self.direction.as_str())),
            ("bytes_sent", Some(Value::Number(self.bytes_sent))),
            ("bytes_recv", Some(Value::Number(self.bytes_recv))),
            ("duration", text(&duration)),
            ("reports", text(self.reports.as_deref().unwrap_or_default())),
            ("error", text(self.error.as_deref().unwrap_or_default())),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                with(name, value);
            }
        }
    }
}

/// A string of JSON in ASCII: what a client sends is no command to the terminal of whoever reads the log.
pub fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    for c in serde_json::Value::from(text).to_string().chars() {
        if matches!(c, ' '..='~') {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_as_istios_tools_read_it() {
        let source = Side {
            addr: "10.0.0.1:4".parse().ok(),
            workload: "curl-1".into(),
            namespace: "default".into(),
            identity: SpiffeId::parse("spiffe://cluster.local/ns/default/sa/curl").ok(),
            ..Side::default()
        };
        let record = L4Record {
            source,
            destination: Side { addr: "10.0.0.2:9080".parse().ok(), ..Side::default() },
            direction: Direction::Inbound,
            bytes_sent: 0,
            bytes_recv: 0,
            duration: Duration::from_millis(12),
            reports: Some("audit policy=a/b rule=0".into()),
            error: Some("denied \"x\"\nforged".into()),
        };
        assert_eq!(
            record.line("T", Format::Text),
            "T\terror\taccess\tconnection complete\tsrc.addr=10.0.0.1:4 src.workload=\"curl-1\" src.namespace=\"default\" \
             src.identity=\"spiffe://cluster.local/ns/default/sa/curl\" dst.addr=10.0.0.2:9080 direction=\"inbound\" \
             bytes_sent=0 bytes_recv=0 duration=\"12ms\" reports=\"audit policy=a/b rule=0\" error=\"denied \\\"x\\\"\\nforged\""
        );
        let json = record.line("T", Format::Json);
        assert!(json.starts_with(
            r#"{"level":"error","time":"T","scope":"access","message":"connection complete","src.addr":"#
        ));
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["src.identity"], "spiffe://cluster.local/ns/default/sa/curl");
        assert_eq!((&read["bytes_sent"], &read["error"]), (&0.into(), &"denied \"x\"\nforged".into()));
        assert!(read.get("dst.identity").is_none() && json.lines().count() == 1, "{json}");
    }

    /// Counts flushes; keeps what was written.
    #[derive(Clone, Default)]
    struct Sink(Arc<std::sync::Mutex<(Vec<u8>, usize)>>);

    impl std::io::Write for Sink {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().0.extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            self.0.lock().unwrap().1 += 1;
            Ok(())
        }
    }

    #[test]
    fn a_flood_of_lines_is_gathered_and_complete_and_a_single_line_does_not_wait() {
        let sink = Sink::default();
        let log = AccessLog::to(sink.clone(), Format::Text).unwrap();
        let text = |sink: &Sink| String::from_utf8(sink.0.lock().unwrap().0.clone()).unwrap();
        let until = |lines: usize| {
            let begun = Instant::now();
            while text(&sink).lines().count() < lines {
                assert!(begun.elapsed() < Duration::from_secs(20), "{} lines", text(&sink).lines().count());
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        log.line("first".into());
        until(1);
        const FLOOD: usize = 2000;
        for n in 0..FLOOD {
            log.line(n.to_string());
            // Slowly enough that a writer which does not wait would find each line alone.
            let sent = Instant::now();
            while sent.elapsed() < Duration::from_micros(50) {
                std::hint::spin_loop();
            }
        }
        until(1 + FLOOD);
        let expected: Vec<String> = (0..FLOOD).map(|n| n.to_string()).collect();
        assert_eq!(text(&sink).lines().skip(1).collect::<Vec<_>>(), expected);
        let flushes = sink.0.lock().unwrap().1;
        assert!(flushes < FLOOD / 2, "{flushes} flushes");
    }

    #[test]
    fn json_is_ascii_and_means_what_was_sent() {
        let hostile = "\u{1b}[2J\"\\\r\n\u{7f}\u{9b}\u{202e}é\u{1f600}";
        let text = json_text(hostile);
        assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), hostile);
    }
}
