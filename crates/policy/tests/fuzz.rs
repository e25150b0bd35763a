// SPDX-License-Identifier: Apache-2.0
//! Whatever comes in, reading it ends, and ends with an answer: parsers fed with random text.

use meltemi_model::SpiffeId;
use meltemi_policy::http::{
    Normalization, canonical_escapes, canonical_host, has_overlong, host_forms, normalize, readings,
    template_matches,
};
use proptest::prelude::*;

proptest! {
    #[test]
    fn fuzz_paths_are_normal_after_one_pass(path in "/[a-zA-Z0-9%./\\\\;#?{}*-]{0,40}") {
        if let Ok(once) = normalize(&path, Normalization::Base) {
            prop_assert!(once.starts_with('/'));
            prop_assert!(!once.contains("/../") && !once.ends_with("/.."), "{once}");
            let forwarded = canonical_escapes(&once);
            prop_assert_eq!(&readings(&once)[0], &forwarded);
            prop_assert_eq!(canonical_escapes(&forwarded), &*forwarded);
            prop_assert!(readings(&once).contains(&once));
        }
    }

    /// A path with one reading reads the same in every mode, and what the most thorough mode makes of a path is judged.
    #[test]
    fn fuzz_readings_hold_what_every_mode_makes(path in "/[ab%2fF5cC./\\\\;]{0,16}") {
        if let Ok(normal) = normalize(&path, Normalization::Base) {
            let all = readings(&normal);
            prop_assert!(all.iter().all(|reading| reading.starts_with('/')));
            if all.len() == 1 {
                for mode in [Normalization::Base, Normalization::MergeSlashes, Normalization::DecodeAndMergeSlashes] {
                    prop_assert_eq!(&normalize(&normal, mode).unwrap(), &normal);
                }
            }
            let merged = normalize(&normal, Normalization::DecodeAndMergeSlashes).unwrap();
            prop_assert!(all.iter().any(|one| *one == canonical_escapes(&merged)), "{merged} {all:?}");
        }
    }

    #[test]
    fn fuzz_anything_is_answered(text in "\\PC{0,80}", template in "\\PC{0,40}") {
        for mode in [Normalization::None, Normalization::Base, Normalization::MergeSlashes, Normalization::DecodeAndMergeSlashes] {
            let _ = normalize(&text, mode);
        }
        let _ = (host_forms(&text), has_overlong(&text), readings(&text));
        let host = canonical_host(&text);
        prop_assert!(text.contains("..") || canonical_host(&host) == host);
        let _ = template_matches(&template, &text);
        let _ = SpiffeId::parse(&text);
    }
}
