// SPDX-License-Identifier: Apache-2.0
//! Words that istioctl knows and Meltemi does not have yet: a clear error with what serves instead, never a silent success.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The word and what to do instead.
const WORDS: &[(&str, &str)] = &[
    ("admin", "ask the control plane: kubectl logs -n istio-system deploy/istiod"),
    ("bug-report", "`meltemi status` and `meltemi doctor` say what runs and what is in the way"),
    ("create-remote-secret", "a mesh has one cluster so far"),
    ("dashboard", "`kubectl port-forward` reaches every Pod, e.g. port 15000 of a ztunnel"),
    ("experimental", "words that exist are found without it"),
    ("install", "on this machine `meltemi up` starts a mesh; deploy/README.md says what it applies"),
    ("kube-inject", "there are no sidecars: label the namespace istio.io/dataplane-mode=ambient"),
    ("manifest", "the manifests that `meltemi up` applies are in deploy/"),
    ("remote-clusters", "a mesh has one cluster so far"),
    ("tag", "there is one revision"),
    ("uninstall", "on this machine `meltemi down --purge` removes a mesh"),
    ("upgrade", "stop the mesh with `meltemi down` and start it with the new binary: its data is kept"),
    ("validate", "`kubectl apply --dry-run=server -f FILE` says what admission says"),
    ("verify-install", "`meltemi status` says what runs"),
    ("x", "words that exist are found without it"),
];

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
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_word_that_is_missing_is_explained_and_one_that_exists_is_not_listed() {
        for (word, _) in WORDS {
            let error = Cli::try_parse_from(["meltemi", word, "--set", "profile=ambient"]).err();
            assert!(error.is_some_and(|e| explained(&e).is_some()), "{word} exists: it must leave the list");
        }
        let error = Cli::try_parse_from(["meltemi", "nonsense"]).err();
        assert!(error.is_some_and(|e| explained(&e).is_none()));
        Cli::command().debug_assert();
    }
}
