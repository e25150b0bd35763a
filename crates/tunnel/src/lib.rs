// SPDX-License-Identifier: Apache-2.0
//! HBONE: accept and dial over mutual TLS, HTTP/2 CONNECT, pool, byte copy, PROXY protocol.
