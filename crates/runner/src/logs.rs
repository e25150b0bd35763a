// SPDX-License-Identifier: Apache-2.0
//! Logs of containers: files in the form that container runtimes write, bounded by rotation, and their readers.
//!
//! A line is `TIME STREAM TAG TEXT`; TAG is `F` for a full line and `P` for a piece of a longer one. The current
//! file of an instance is `N.log`, its rotated part `N.log.1`; N counts the container's restarts.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

const MAX_FILE: u64 = 10 << 20;
const MAX_LINE: usize = 16 << 10;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Writes one instance's log; shared by its streams.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Inner { path: path.to_owned(), file, size }))))
    }

    fn line(&self, stream: Stream, full: bool, text: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.size > MAX_FILE {
            fs::rename(&inner.path, rotated(&inner.path))?;
            inner.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&inner.path)?;
            inner.size = 0;
        }
        let stream = if stream == Stream::Stdout { "stdout" } else { "stderr" };
        let mut line =
            format!("{:.9} {stream} {} ", Timestamp::now(), if full { 'F' } else { 'P' }).into_bytes();
        line.extend_from_slice(text);
        line.push(b'\n');
        inner.size += line.len() as u64;
        inner.file.write_all(&line)
    }

    /// What one stream writes goes through here.
    pub(crate) fn writer(self, stream: Stream) -> Writer {
        Writer { log: self, stream, splitter: Splitter::default() }
    }
}

/// One stream's way into a log.
#[derive(Debug)]
pub(crate) struct Writer {
    log: Log,
    stream: Stream,
    splitter: Splitter,
}

impl Writer {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (log, stream) = (&self.log, self.stream);
        self.splitter.push(bytes, |full, text| log.line(stream, full, text))
    }

    /// The stream has ended; what is left without a line's end is a line too.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        match self.splitter.rest() {
            Some(rest) => self.log.line(self.stream, true, &rest),
            None => Ok(()),
        }
    }
}

/// Cuts a stream of bytes into lines, and long lines into pieces.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    rest: Vec<u8>,
    /// The last piece was not the end of its line.
    open: bool,
}

impl Splitter {
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        mut line: impl FnMut(bool, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for byte in bytes {
            let full = *byte == b'\n';
            if !full {
                self.rest.push(*byte);
            }
            if full || self.rest.len() >= MAX_LINE {
                self.open = !full;
                line(full, &self.rest)?;
                self.rest.clear();
            }
        }
        Ok(())
    }

    fn rest(&mut self) -> Option<Vec<u8>> {
        (self.open || !self.rest.is_empty()).then(|| std::mem::take(&mut self.rest))
    }
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// What a reader wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit: Option<u64>,
}

/// Reads an instance's log, and what is added later.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    wanted: Wanted,
    file: Option<BufReader<File>>,
    inode: u64,
    partial: Vec<u8>,
    sent: u64,
}

impl Reader {
    pub(crate) fn new(path: &Path, wanted: Wanted) -> Self {
        Self { path: path.to_owned(), wanted, file: None, inode: 0, partial: Vec::new(), sent: 0 }
    }

    /// Whether the limit of bytes has been reached.
    pub(crate) fn is_full(&self) -> bool {
        self.wanted.limit.is_some_and(|l| self.sent >= l)
    }

    /// What is there at first, at most the wanted tail.
    pub(crate) fn first(&mut self) -> io::Result<Vec<u8>> {
        let mut lines: VecDeque<Vec<u8>> = VecDeque::new();
        let tail = self.wanted.tail.unwrap_or(usize::MAX);
        if let Ok(old) = File::open(rotated(&self.path)) {
            let mut old = BufReader::new(old);
            while let Some(text) = self.next_line(&mut old)? {
                keep(&mut lines, text, tail);
            }
        }
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(self.cut(lines)),
            Err(e) => return Err(e),
        };
        self.inode = file.metadata()?.ino();
        let mut file = BufReader::new(file);
        while let Some(text) = self.next_line(&mut file)? {
            keep(&mut lines, text, tail);
        }
        self.file = Some(file);
        Ok(self.cut(lines))
    }

    /// What has been added since.
    pub(crate) fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut lines = VecDeque::new();
        if let Some(mut file) = self.file.take() {
            while let Some(text) = self.next_line(&mut file)? {
                lines.push_back(text);
            }
            self.file = Some(file);
        }
        let inode = fs::metadata(&self.path).map_or(self.inode, |m| m.ino());
        if (self.file.is_none() || inode != self.inode)
            && let Ok(file) = File::open(&self.path)
        {
            self.inode = inode;
            let mut file = BufReader::new(file);
            while let Some(text) = self.next_line(&mut file)? {
                lines.push_back(text);
            }
            self.file = Some(file);
        }
        Ok(self.cut(lines))
    }

    /// The next whole line that is wanted, as it is shown.
    fn next_line(&mut self, file: &mut BufReader<File>) -> io::Result<Option<Vec<u8>>> {
        loop {
            file.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() != Some(&b'\n') {
                return Ok(None);
            }
            let line = std::mem::take(&mut self.partial);
            if let Some(shown) = show(&line, &self.wanted) {
                return Ok(Some(shown));
            }
        }
    }

    fn cut(&mut self, lines: VecDeque<Vec<u8>>) -> Vec<u8> {
        let mut bytes: Vec<u8> = lines.into_iter().flatten().collect();
        if let Some(limit) = self.wanted.limit {
            let left = usize::try_from(limit.saturating_sub(self.sent)).unwrap_or(usize::MAX);
            bytes.truncate(left);
        }
        self.sent += bytes.len() as u64;
        bytes
    }
}

fn keep(lines: &mut VecDeque<Vec<u8>>, text: Vec<u8>, tail: usize) {
    lines.push_back(text);
    if lines.len() > tail {
        lines.pop_front();
    }
}

/// A stored line as a reader sees it; `None` if it is too old.
fn show(line: &[u8], wanted: &Wanted) -> Option<Vec<u8>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, _, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if let Some(since) = wanted.since {
        let time: Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
        if time < since {
            return None;
        }
    }
    let mut shown = Vec::with_capacity(line.len() + 1);
    if wanted.timestamps {
        shown.extend_from_slice(time);
        shown.push(b' ');
    }
    shown.extend_from_slice(text);
    if tag == b"F" {
        shown.push(b'\n');
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(log: &Log, stream: Stream, bytes: &[u8]) {
        let mut writer = log.clone().writer(stream);
        writer.write(bytes).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn lines_go_in_and_come_out_with_tail_and_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c/0.log");
        let log = Log::create(&path).unwrap();
        write(&log, Stream::Stdout, b"one\ntwo\nthr");
        let read = |wanted| String::from_utf8(Reader::new(&path, wanted).first().unwrap()).unwrap();
        assert_eq!(read(Wanted::default()), "one\ntwo\nthr\n");
        assert_eq!(read(Wanted { tail: Some(2), ..Wanted::default() }), "two\nthr\n");
        assert_eq!(read(Wanted { limit: Some(5), ..Wanted::default() }), "one\nt");
        let later = Timestamp::now() + jiff::SignedDuration::from_secs(9);
        assert_eq!(read(Wanted { since: Some(later), ..Wanted::default() }), "");
        let stamped = read(Wanted { timestamps: true, tail: Some(1), ..Wanted::default() });
        assert!(stamped.ends_with("Z thr\n"), "{stamped}");
        let mut follower = Reader::new(&path, Wanted { tail: Some(0), ..Wanted::default() });
        assert!(follower.first().unwrap().is_empty());
        write(&log, Stream::Stderr, b"four\n");
        assert_eq!(follower.more().unwrap(), b"four\n");
        assert!(follower.more().unwrap().is_empty());
    }

    #[test]
    fn a_long_line_is_stored_in_pieces_and_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let long = vec![b'x'; 3 * MAX_LINE + 7];
        write(&Log::create(&path).unwrap(), Stream::Stdout, &long);
        let shown = Reader::new(&path, Wanted::default()).first().unwrap();
        assert_eq!(shown.len(), long.len() + 1);
    }
}
