// SPDX-License-Identifier: Apache-2.0
//! The policy engine: compiles validated policies into an index, decides and explains.
