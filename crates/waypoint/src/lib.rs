// SPDX-License-Identifier: Apache-2.0
//! The layer 7 proxy: waypoints and ingress gateways, the life of a request in named phases.
