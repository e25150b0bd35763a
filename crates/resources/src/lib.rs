// SPDX-License-Identifier: Apache-2.0
//! API types of the mesh (security, networking, telemetry), their CRDs and validation, from YAML to model; quantities as
//! Kubernetes writes them.

pub mod crds;
pub mod inert;
pub mod policies;
pub mod quantity;
