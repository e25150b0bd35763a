// SPDX-License-Identifier: Apache-2.0
//! A seccomp filter: makes system calls that a sandboxed program must not use fail with EPERM.

use std::io;

const BPF_LD_W_ABS: u16 = 0x20;
const BPF_JEQ: u16 = 0x15;
const BPF_JGE: u16 = 0x35;
const BPF_JSET: u16 = 0x45;
const BPF_RET: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARG0: u32 = 16;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Namespace flags of `clone` and `unshare`: user, mount, pid, net, ipc, uts, cgroup, time.
const NAMESPACES: u32 =
    0x1000_0000 | 0x0002_0000 | 0x2000_0000 | 0x4000_0000 | 0x0800_0000 | 0x0400_0000 | 0x0200_0000;

/// `open_tree_attr`, the same number on every architecture.
const OPEN_TREE_ATTR: libc::c_long = 467;

/// Sockets to the hypervisor.
const AF_VSOCK: u32 = 40;

/// System calls that are refused whatever their arguments.
const REFUSED: [libc::c_long; 25] = [
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    OPEN_TREE_ATTR,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at,
    libc::SYS_reboot,
];

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

const LENGTH: usize = REFUSED.len() * 2 + 19;

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "system-call numbers are small and positive"
)]
const fn number(nr: libc::c_long) -> u32 {
    nr as u32
}

#[expect(clippy::cast_sign_loss, reason = "errno values are positive")]
const fn refuse(errno: i32) -> libc::sock_filter {
    op(BPF_RET, 0, 0, ERRNO | errno as u32)
}

/// The program, laid out at compile time because nothing may allocate where it is installed.
const PROGRAM: [libc::sock_filter; LENGTH] = {
    let mut p = [op(BPF_RET, 0, 0, ALLOW); LENGTH];
    // Another architecture's call numbers would slip through: refuse them all.
    p[0] = op(BPF_LD_W_ABS, 0, 0, OFFSET_ARCH);
    p[1] = op(BPF_JEQ, 1, 0, ARCH);
    p[2] = refuse(libc::EPERM);
    p[3] = op(BPF_LD_W_ABS, 0, 0, OFFSET_NR);
    // Nor may the x32 numbers of the same architecture.
    p[4] = op(BPF_JGE, 0, 1, 0x4000_0000);
    p[5] = refuse(libc::EPERM);
    let mut i = 0;
    while i < REFUSED.len() {
        p[6 + 2 * i] = op(BPF_JEQ, 0, 1, number(REFUSED[i]));
        p[7 + 2 * i] = refuse(libc::EPERM);
        i += 1;
    }
    let n = 6 + 2 * REFUSED.len();
    // clone3 hides its flags behind a pointer: "not there" makes the C library use clone.
    p[n] = op(BPF_JEQ, 0, 1, number(libc::SYS_clone3));
    p[n + 1] = refuse(libc::ENOSYS);
    p[n + 2] = op(BPF_JEQ, 0, 3, number(libc::SYS_socket));
    p[n + 3] = op(BPF_LD_W_ABS, 0, 0, OFFSET_ARG0);
    p[n + 4] = op(BPF_JEQ, 0, 7, AF_VSOCK);
    p[n + 5] = refuse(libc::EPERM);
    p[n + 6] = op(BPF_JEQ, 2, 0, number(libc::SYS_clone));
    p[n + 7] = op(BPF_JEQ, 1, 0, number(libc::SYS_unshare));
    p[n + 8] = op(BPF_RET, 0, 0, ALLOW);
    p[n + 9] = op(BPF_LD_W_ABS, 0, 0, OFFSET_ARG0);
    p[n + 10] = op(BPF_JSET, 0, 1, NAMESPACES);
    p[n + 11] = refuse(libc::EPERM);
    p[n + 12] = op(BPF_RET, 0, 0, ALLOW);
    p
};

/// Installs the filter on the calling thread; needs `no_new_privs`.
pub(super) fn install() -> Result<(), i32> {
    let program = libc::sock_fprog {
        len: u16::try_from(LENGTH).unwrap_or(u16::MAX),
        filter: PROGRAM.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_MODE_FILTER as libc::c_ulong;
    // SAFETY: the kernel copies the program; it does not write to it.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0) } < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM));
    }
    Ok(())
}
