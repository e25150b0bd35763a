// SPDX-License-Identifier: Apache-2.0
//! A Kubernetes-compatible API over an embedded store.
