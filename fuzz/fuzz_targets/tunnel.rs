// SPDX-License-Identifier: Apache-2.0
//! See `meltemi_fuzz::tunnel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meltemi_fuzz::tunnel(data));
