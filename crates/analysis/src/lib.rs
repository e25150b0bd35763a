// SPDX-License-Identifier: Apache-2.0
//! What policies mean over all requests: equivalence, newly allowed or denied with a witness, who can, traps.
