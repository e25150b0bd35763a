// SPDX-License-Identifier: Apache-2.0
//! API types of the mesh (security, networking, telemetry), their CRDs and validation, from YAML to model.

pub mod crds;
pub mod inert;
pub mod policies;
