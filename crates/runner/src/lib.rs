// SPDX-License-Identifier: Apache-2.0
//! The kubelet's part: Pods as sandboxed processes, probes, logs, exec, image table, Service addresses.
