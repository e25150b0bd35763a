// SPDX-License-Identifier: Apache-2.0
//! What tests share: fake CA, scripted xDS, namespace harness. Used from `tests/` folders only.
