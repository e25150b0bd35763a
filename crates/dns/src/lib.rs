// SPDX-License-Identifier: Apache-2.0
//! A DNS server over a Names trait, used by the node proxy and the runner.
