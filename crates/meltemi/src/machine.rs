// SPDX-License-Identifier: Apache-2.0
//! A complete mesh on this machine: where its data lives, its private network, and the supervisor of its processes.

pub mod children;
pub mod deploy;
pub mod id_block;
pub mod launch;
pub mod network;
pub mod paths;
pub mod report;
pub mod supervisor;
