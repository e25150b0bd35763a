// SPDX-License-Identifier: Apache-2.0
//! The control plane: watches objects, translates them, publishes xDS, signs certificates, keeps status, runs gateways.
