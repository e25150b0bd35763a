// SPDX-License-Identifier: Apache-2.0
//! Checks of the house itself: the dependency table.

fn main() {}
