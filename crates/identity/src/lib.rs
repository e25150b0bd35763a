// SPDX-License-Identifier: Apache-2.0
//! SPIFFE certificates: keys and CSRs, the CA core, rotation by one owner, rustls configurations.
