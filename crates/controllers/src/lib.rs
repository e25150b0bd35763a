// SPDX-License-Identifier: Apache-2.0
//! What kube-controller-manager and the scheduler do, for the one-machine cluster.
