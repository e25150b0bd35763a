// SPDX-License-Identifier: Apache-2.0
//! Network namespaces as values: made, opened, compared, and entered by a thread of its own.
//!
//! A socket belongs for ever to the namespace of the thread that created it. So "a socket in that namespace" is
//! [`NetNs::run`] with a closure that creates it; the caller's own threads never move.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;

use crate::rtnl::Rtnl;

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

thread_local! {
    /// The namespace that this thread returns to.
    static HOME: std::cell::OnceCell<NetNs> = const { std::cell::OnceCell::new() };
}

/// Names a network namespace on this machine: equal for two descriptors of the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetNsId {
    device: u64,
    inode: u64,
}

impl NetNsId {
    /// The inode number, as `ls -l /proc/PID/ns/net` shows it.
    pub fn inode(self) -> u64 {
        self.inode
    }
}

impl NetNs {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::from_path(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// No such process, or no right to look at it.
    pub fn of_pid(pid: i32) -> io::Result<Self> {
        Self::from_path(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// A namespace by its path (`/proc/PID/ns/net`, `/run/netns/NAME`).
    ///
    /// # Errors
    /// The path cannot be opened.
    pub fn from_path(path: &Path) -> io::Result<Self> {
        Ok(Self(File::open(path)?.into()))
    }

    /// A namespace by a descriptor, such as one received from another process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// A new, empty namespace with its loopback interface up; nobody is in it.
    ///
    /// # Errors
    /// The caller may not make one (`CAP_SYS_ADMIN`).
    pub fn create() -> io::Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let mut rtnl = Rtnl::open()?;
            let lo = rtnl.link_index("lo")?;
            rtnl.set_up(lo)?;
            Self::current()
        })
    }

    /// Its name.
    ///
    /// # Errors
    /// The descriptor is not usable.
    pub fn id(&self) -> io::Result<NetNsId> {
        let stat = fstat(&self.0)?;
        Ok(NetNsId { device: stat.st_dev, inode: stat.st_ino })
    }

    /// A second descriptor of the same namespace.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The interfaces, addresses and routes of this namespace.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn rtnl(&self) -> io::Result<Rtnl> {
        self.run(Rtnl::open)
    }

    /// Runs a closure on a thread that is in this namespace, and waits for it.
    ///
    /// # Errors
    /// The namespace cannot be entered (`CAP_SYS_ADMIN` over it), the closure failed, or it panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// A listening TCP socket in this namespace; `prepare` sets options before the bind. Non-blocking.
    ///
    /// # Errors
    /// The namespace cannot be entered, an option is refused, or the address is taken.
    pub fn listen_tcp(
        &self,
        address: SocketAddr,
        prepare: impl FnOnce(&socket2::Socket) -> io::Result<()> + Send,
    ) -> io::Result<TcpListener> {
        self.run(|| {
            let socket = tcp_socket(address)?;
            socket.set_reuse_address(true)?;
            prepare(&socket)?;
            socket.bind(&address.into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        })
    }

    /// A TCP socket that is bound in this namespace and does not listen: it keeps the address from others, except from
    /// sockets of the same user if `prepare` and they set `SO_REUSEPORT`.
    ///
    /// # Errors
    /// As [`NetNs::listen_tcp`].
    pub fn bind_tcp(
        &self,
        address: SocketAddr,
        prepare: impl FnOnce(&socket2::Socket) -> io::Result<()> + Send,
    ) -> io::Result<OwnedFd> {
        self.run(|| {
            let socket = tcp_socket(address)?;
            prepare(&socket)?;
            socket.bind(&address.into())?;
            Ok(socket.into())
        })
    }

    /// A bound UDP socket in this namespace. Non-blocking.
    ///
    /// # Errors
    /// As [`NetNs::listen_tcp`].
    pub fn bind_udp(
        &self,
        address: SocketAddr,
        prepare: impl FnOnce(&socket2::Socket) -> io::Result<()> + Send,
    ) -> io::Result<UdpSocket> {
        self.run(|| {
            let domain = socket2::Domain::for_address(address);
            let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
            socket.set_nonblocking(true)?;
            prepare(&socket)?;
            socket.bind(&address.into())?;
            Ok(socket.into())
        })
    }

    /// Makes a socket on the calling thread: it enters this namespace for the call and returns to its own.
    ///
    /// For the path of every connection, where a thread for each is too dear. A thread that cannot return would open the
    /// next socket in the wrong namespace, so the process ends instead.
    ///
    /// # Errors
    /// The namespace cannot be entered, or no socket can be made.
    pub fn tcp_socket_here(&self, family_of: SocketAddr) -> io::Result<TcpStream> {
        HOME.with(|home| {
            let home = match home.get() {
                Some(home) => home,
                None => {
                    let current = Self::current()?;
                    home.get_or_init(|| current)
                }
            };
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            let socket = tcp_socket(family_of);
            if setns(&home.0, CloneFlags::CLONE_NEWNET).is_err() {
                std::process::abort();
            }
            Ok(socket?.into())
        })
    }

    /// An unconnected, non-blocking TCP socket of this namespace; connecting it needs no thread in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn tcp_socket(&self, family_of: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| Ok(tcp_socket(family_of)?.into()))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn tcp_socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Runs a closure on a thread of its own, whose namespaces may be changed: the thread ends with it.
pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("namespace".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}
