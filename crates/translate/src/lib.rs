// SPDX-License-Identifier: Apache-2.0
//! API objects to mesh snapshot and policies: attachment, waypoint binding, workloads, status notes; pure.
