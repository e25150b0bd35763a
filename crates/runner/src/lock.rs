// SPDX-License-Identifier: Apache-2.0
//! Where the runner's parts take [`lock`] from.

pub(crate) use meltemi_runtime::lock::lock;
