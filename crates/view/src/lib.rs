// SPDX-License-Identifier: Apache-2.0
//! What every proxy has: xDS into snapshots, the registry of open connections, access log and metric labels.
