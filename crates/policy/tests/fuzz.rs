// SPDX-License-Identifier: Apache-2.0
//! Whatever comes in, reading it ends, and ends with an answer: parsers fed with random text.

use meltemi_model::SpiffeId;
use meltemi_policy::http::{Normalization, host_forms, normalize, readings, template_matches};
use proptest::prelude::*;

proptest! {
    #[test]
    fn fuzz_paths_are_normal_after_one_pass(path in "/[a-zA-Z0-9%./\\\\;#?{}*-]{0,40}") {
        if let Ok(once) = normalize(&path, Normalization::Base) {
            prop_assert!(once.starts_with('/'));
            prop_assert!(!once.contains("/../") && !once.ends_with("/.."), "{once}");
            prop_assert_eq!(&readings(&once)[0], &once);
        }
    }

    #[test]
    fn fuzz_anything_is_answered(text in "\\PC{0,80}", template in "\\PC{0,40}") {
        for mode in [Normalization::None, Normalization::Base, Normalization::MergeSlashes, Normalization::DecodeAndMergeSlashes] {
            let _ = normalize(&text, mode);
        }
        let _ = host_forms(&text);
        let _ = template_matches(&template, &text);
        let _ = SpiffeId::parse(&text);
    }
}
