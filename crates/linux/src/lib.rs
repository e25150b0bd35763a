// SPDX-License-Identifier: Apache-2.0
//! What the kernel offers: namespaces, mounts, sockets, file descriptors and nf_tables by netlink; the only unsafe code.
//!
//! Nothing here knows what a mesh is. Every function wraps one thing the kernel does, takes borrowed file
//! descriptors and gives owned ones, and reports the kernel's own error.

pub mod beneath;
pub mod caps;
pub mod diag;
pub mod mount;
mod netlink;
pub mod netns;
pub mod nft;
pub mod process;
pub mod pty;
pub mod rtnl;
pub mod seqpacket;
pub mod sockopt;
pub mod supervise;
pub mod users;

mod sys;
