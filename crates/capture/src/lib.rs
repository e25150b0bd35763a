// SPDX-License-Identifier: Apache-2.0
//! Traffic capture as a pure plan and its application to a network namespace.
