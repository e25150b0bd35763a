// SPDX-License-Identifier: Apache-2.0
//! The few raw system calls that no library wraps, and the conversion of their results.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `-1` into the calling thread's `errno`.
pub(crate) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes ownership of a descriptor that a system call has just returned.
pub(crate) fn owned(fd: libc::c_long) -> OwnedFd {
    let fd = i32::try_from(fd).expect("the kernel's descriptors fit in an int");
    // SAFETY: the caller passes the fresh result of a system call that gives a descriptor nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sets a plain socket option.
pub(crate) fn setsockopt<T: Copy>(fd: BorrowedFd<'_>, level: i32, name: i32, value: T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: `value` lives through the call and `length` is its size; the kernel copies it.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), length) };
    check(result.into()).map(drop)
}

/// Reads a plain socket option.
///
/// # Safety
/// Every bit pattern must be a valid `T`, and the option must be of `T`'s layout.
pub(crate) unsafe fn getsockopt<T: Copy>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: the kernel writes at most `length` bytes into `value`, which is zeroed before.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    check(result.into())?;
    // SAFETY: zeroed or written by the kernel, and any bit pattern is a `T` by this function's contract.
    Ok(unsafe { value.assume_init() })
}

/// A descriptor that tokio watches.
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open and the same for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
