// SPDX-License-Identifier: Apache-2.0
//! Pseudo-terminals, for interactive programs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A terminal: the program has `slave` as its descriptors 0, 1 and 2, this side reads and writes `master`.
#[derive(Debug)]
pub struct Pty {
    /// This side.
    pub master: OwnedFd,
    /// The program's side.
    pub slave: OwnedFd,
}

/// Opens a terminal.
///
/// # Errors
/// `/dev/ptmx` is not there, or no more terminals.
pub fn open() -> io::Result<Pty> {
    let pty = nix::pty::openpty(None, None)?;
    for fd in [&pty.master, &pty.slave] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    Ok(Pty { master: pty.master, slave: pty.slave })
}

/// Opens a terminal of another process's root, so that programs there find it under its name.
///
/// # Errors
/// No right to enter, or no terminals there.
pub fn open_in(process: BorrowedFd<'_>) -> io::Result<Pty> {
    crate::netns::on_thread(|| {
        // A thread shares its root with the others until it says otherwise.
        nix::sched::unshare(CloneFlags::CLONE_FS)?;
        nix::sched::setns(process, CloneFlags::CLONE_NEWNS)?;
        open()
    })
}

/// Tells a terminal its size in characters.
///
/// # Errors
/// Not a terminal.
pub fn resize(master: &impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads a winsize.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    crate::sys::check(result.into()).map(drop)
}

/// The master side for tokio.
#[derive(Debug)]
pub struct Master(AsyncFd<OwnedFd>);

impl Master {
    /// Takes the master side over.
    ///
    /// # Errors
    /// Not on a tokio runtime.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_RDWR;
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(flags))?;
        Ok(Self(crate::sys::watched(master, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// Reads what the program wrote; 0 when it has gone.
    ///
    /// # Errors
    /// The terminal failed.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |fd: &OwnedFd| Ok(nix::unistd::read(fd, buffer)?);
        match self.0.async_io(Interest::READABLE, read).await {
            // The kernel's way of saying that the last holder of the slave side has closed it.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    /// Types all of this.
    ///
    /// # Errors
    /// The terminal failed.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written =
                self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

impl AsFd for Master {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
