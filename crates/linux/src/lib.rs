// SPDX-License-Identifier: Apache-2.0
//! What the kernel offers: namespaces, mounts, sockets, file descriptors and nf_tables by netlink; the only unsafe code.
