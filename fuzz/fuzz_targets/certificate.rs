// SPDX-License-Identifier: Apache-2.0
//! See `meltemi_fuzz::certificate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meltemi_fuzz::certificate(data));
