// SPDX-License-Identifier: Apache-2.0
//! Words that istioctl knows and Meltemi does not have yet: a clear error with what serves instead, never a silent success.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

const DUMP: &str = "`meltemi proxy-config` has secret, route and policy; `kubectl port-forward` to port 15000 of the proxy and \
    GET /config_dump gives everything";
const SIDECARS: &str = "there are no sidecars: label the namespace istio.io/dataplane-mode=ambient";
const ONE_CLUSTER: &str = "a mesh has one cluster so far";

/// The word and what to do instead. A word of any depth: `proxy-config cluster` stands here as `cluster`.
const WORDS: &[(&str, &str)] = &[
    ("add-to-mesh", SIDECARS),
    ("admin", "ask the control plane: kubectl logs -n istio-system deploy/istiod"),
    ("bootstrap", DUMP),
    ("bug-report", "`meltemi status` and `meltemi doctor` say what runs and what is in the way"),
    ("check-inject", SIDECARS),
    ("cluster", DUMP),
    ("clusters", DUMP),
    ("create-remote-secret", ONE_CLUSTER),
    ("dashboard", "`kubectl port-forward` reaches every Pod, e.g. port 15000 of a ztunnel"),
    ("describe", "`meltemi authz who-can --to SVC` and `meltemi ztunnel-config workload`"),
    ("ecds", DUMP),
    ("endpoint", "`meltemi ztunnel-config service` counts the endpoints of Services"),
    ("endpoints", "`meltemi ztunnel-config service` counts the endpoints of Services"),
    ("experimental", "words that exist are found with and without it"),
    ("kube-inject", SIDECARS),
    ("listener", DUMP),
    ("listeners", DUMP),
    ("precheck", "`meltemi check --pre` asks a cluster, `meltemi doctor` this machine"),
    ("remote-clusters", ONE_CLUSTER),
    ("revision", "there is one revision"),
    ("tag", "there is one revision"),
    (
        "validate",
        "`kubectl apply --dry-run=server -f FILE` says what admission says, `meltemi analyze FILE` without a cluster",
    ),
    ("verify-install", "`meltemi check` says what an installation lacks"),
    ("wait", "`kubectl wait --for=condition=meltemi.dev/Enforced authorizationpolicy/NAME`"),
    ("x", "words that exist are found with and without it"),
];

/// The words without istioctl's `x` and `experimental` in front: what was an experiment there stands beside the others here.
pub fn without_experimental(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    let experiment = words.get(1).is_some_and(|word| word == "x" || word == "experimental");
    if experiment && words.len() > 2 {
        words.remove(1);
    }
    words
}

/// What to say of a word that is not there, if it is one of istioctl's.
pub fn explained(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let (_, instead) = WORDS.iter().find(|(known, _)| known == word)?;
    Some(format!("istioctl has `{word}`, Meltemi does not yet: nothing was done. Instead: {instead}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;

    fn words(text: &str) -> Vec<OsString> {
        without_experimental(text.split(' ').map(OsString::from))
    }

    #[test]
    fn a_word_that_is_missing_is_explained_and_one_that_exists_is_not_listed() {
        for (word, _) in WORDS {
            let error = Cli::read(words(&format!("meltemi {word}"))).err();
            assert!(error.is_some_and(|e| explained(&e).is_some()), "{word} exists: it must leave the list");
        }
        for (line, known) in [
            ("meltemi nonsense", false),
            ("meltemi proxy-config cluster deploy/a", true),
            ("meltemi x precheck", true),
        ] {
            let error = Cli::read(words(line)).err();
            assert!(error.is_some_and(|e| explained(&e).is_some() == known), "{line}");
        }
    }

    #[test]
    fn experiments_are_words_like_others() {
        for line in ["istioctl x waypoint list", "istioctl experimental ztunnel-config workload"] {
            assert!(Cli::read(words(line)).is_ok(), "{line}");
        }
    }
}
