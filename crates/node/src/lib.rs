// SPDX-License-Identifier: Apache-2.0
//! The layer 4 node proxy: outbound, inbound, plaintext, ZDS client, admin.
