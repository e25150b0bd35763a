// SPDX-License-Identifier: Apache-2.0
//! Taking rights away for good: capability sets, `no_new_privs`, and a system-call filter.

use std::io;

mod filter;

/// What a process must not be able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restrict {
    /// Keeps all rights.
    #[default]
    Nothing,
    /// No capability in any set, never a new one, and no system call that makes or enters namespaces, mounts,
    /// loads code into the kernel or traces others.
    Everything,
    /// Keeps only `CAP_NET_ADMIN`, `CAP_NET_RAW`, `CAP_NET_BIND_SERVICE` and `CAP_SYS_ADMIN`, and gains no others.
    NetworkAdmin,
}

const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Restricts the calling thread, and what it executes, from now on.
///
/// # Errors
/// The kernel refused; nothing can be said about which rights are left.
pub fn restrict(restrict: Restrict) -> io::Result<()> {
    apply(restrict).map_err(io::Error::from_raw_os_error)
}

/// As [`restrict`], with only system calls: for use between fork and exec.
pub(crate) fn apply(restrict: Restrict) -> Result<(), i32> {
    let keep: u64 = match restrict {
        Restrict::Nothing => return Ok(()),
        Restrict::Everything => 0,
        Restrict::NetworkAdmin => {
            1 << CAP_NET_BIND_SERVICE | 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW | 1 << CAP_SYS_ADMIN
        }
    };
    for cap in 0..64u32 {
        // The last capability is the kernel's secret; EINVAL says that it has been passed.
        if keep & (1 << cap) == 0 && prctl(libc::PR_CAPBSET_DROP, cap.into(), 0) == Err(libc::EINVAL) {
            break;
        }
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)?;
    let low = u32::try_from(keep & u64::from(u32::MAX)).unwrap_or(0);
    let data = [
        Data { effective: low, permitted: low, inheritable: low },
        Data { effective: 0, permitted: 0, inheritable: 0 },
    ];
    let header = Header { version: 0x2008_0522, pid: 0 };
    // SAFETY: version 3 of the call takes two Data.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM));
    }
    if keep == 0 {
        // A root user without capabilities would get them back by executing; these bits say that it does not.
        // Locking needs CAP_SETPCAP, gone by now; no_new_privs and the empty bounding set hold without.
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)?;
        filter::install()?;
    }
    Ok(())
}

fn prctl(what: i32, a: libc::c_ulong, b: libc::c_ulong) -> Result<(), i32> {
    // SAFETY: these prctl calls take plain integers.
    if unsafe { libc::prctl(what, a, b, 0, 0) } < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM));
    }
    Ok(())
}
