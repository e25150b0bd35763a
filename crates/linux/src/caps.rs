// SPDX-License-Identifier: Apache-2.0
//! Taking rights away for good: capability sets, `no_new_privs`, and a system-call filter.

use std::io;

mod filter;

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

/// Names without `CAP_`, by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Capabilities {
    /// No capability.
    pub const NONE: Self = Self(0);
    /// What Kubernetes' container runtimes give a container that asks for nothing.
    pub const CONTAINER: Self = Self(
        1 << 0
            | 1 << 1
            | 1 << 3
            | 1 << 4
            | 1 << 5
            | 1 << 6
            | 1 << 7
            | 1 << 8
            | 1 << 10
            | 1 << 13
            | 1 << 18
            | 1 << 27
            | 1 << 29
            | 1 << 31,
    );

    /// One capability by its name, with or without `CAP_`; `ALL` means all of them.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name == "ALL" {
            return Some(Self((1 << NAMES.len()) - 1));
        }
        NAMES.iter().position(|n| *n == name).map(|number| Self(1 << number))
    }

    /// Those of either.
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Those of this set that are not in the other.
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Those of both.
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// The set as the kernel counts it: bit n is capability n.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A set from [`Self::bits`].
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// What a process must not be able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restrict {
    /// Keeps all rights.
    #[default]
    Nothing,
    /// No capability in any set, never a new one, and no system call that makes or enters namespaces, mounts,
    /// loads code into the kernel or traces others.
    Everything,
    /// Has these capabilities and can never have others; as little of the kernel as [`Restrict::Everything`]. A program
    /// that another user than 0 executes has none of them.
    Container {
        /// Those it has now.
        held: Capabilities,
        /// Those it may have after executing.
        bounding: Capabilities,
    },
    /// Keeps only `CAP_NET_ADMIN`, `CAP_NET_RAW`, `CAP_NET_BIND_SERVICE` and `CAP_SYS_ADMIN`, and gains no others.
    NetworkAdmin,
}

const NETWORK_ADMIN: Capabilities = Capabilities(1 << 10 | 1 << 12 | 1 << 13 | 1 << 21);

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
    let (held, bounding) = match restrict {
        Restrict::Nothing => return Ok(()),
        Restrict::Everything => (Capabilities::NONE, Capabilities::NONE),
        Restrict::Container { held, bounding } => (held, bounding),
        Restrict::NetworkAdmin => (NETWORK_ADMIN, NETWORK_ADMIN),
    };
    for cap in 0..64u32 {
        // The last capability is the kernel's secret; EINVAL says that it has been passed.
        if bounding.0 & (1 << cap) == 0 && prctl(libc::PR_CAPBSET_DROP, cap.into(), 0) == Err(libc::EINVAL) {
            break;
        }
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)?;
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    let (low, high) = (half(held.0), half(held.0 >> 32));
    let data = [
        Data { effective: low, permitted: low, inheritable: 0 },
        Data { effective: high, permitted: high, inheritable: 0 },
    ];
    let header = Header { version: 0x2008_0522, pid: 0 };
    // SAFETY: version 3 of the call takes two Data.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM));
    }
    if restrict != Restrict::NetworkAdmin {
        // A root user without capabilities would get them back by executing; these bits say that it does not.
        // Locking needs CAP_SETPCAP, which may be gone by now; no_new_privs and the bounding set hold without.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        let names = [
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SYS_CHROOT",
            "MKNOD",
            "AUDIT_WRITE",
            "SETFCAP",
        ];
        let all =
            names.iter().fold(Capabilities::NONE, |set, name| set.with(Capabilities::named(name).unwrap()));
        assert_eq!(all, Capabilities::CONTAINER);
        assert_eq!(Capabilities::named("cap_sys_admin").unwrap().bits(), 1 << 21);
        assert_eq!(Capabilities::named("NO_SUCH"), None);
        assert_eq!(all.without(Capabilities::named("ALL").unwrap()), Capabilities::NONE);
    }
}
