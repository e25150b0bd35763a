// SPDX-License-Identifier: Apache-2.0
//! The immutable mesh snapshot: delta apply, resolution of destinations, load balancing.
