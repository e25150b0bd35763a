// SPDX-License-Identifier: Apache-2.0
//! What is the same for the whole mesh.

mod providers;

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_model::l7::PathNormalization;
use meltemi_model::{NamespacedHostname, TrustDomain};
use serde::Deserialize;

pub use self::providers::{InvalidProvider, Usable};

/// Name and key of the ConfigMap that configures the mesh, in its root namespace.
pub const CONFIG_MAP: &str = "istio";
/// See [`CONFIG_MAP`].
pub const CONFIG_KEY: &str = "mesh";

/// Settings that translation needs; the defaults are those of a mesh that was not configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// DNS suffix of Services, e.g. `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Name of this cluster, e.g. `Kubernetes`.
    pub cluster_id: Arc<str>,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: Arc<str>,
    /// Name of the network of all workloads, often empty.
    pub network: Arc<str>,
    /// Further trust domains that policies may mean when they name the mesh's own.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// How layer 7 proxies normalise paths.
    pub path_normalization: PathNormalization,
    /// Extension providers by name, as CUSTOM policies may name them; those that no policy can use, with the reason.
    pub extension_providers: BTreeMap<Arc<str>, Usable>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            cluster_domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
            root_namespace: "istio-system".into(),
            network: "".into(),
            trust_domain_aliases: Vec::new(),
            path_normalization: PathNormalization::default(),
            extension_providers: BTreeMap::new(),
        }
    }
}

/// Istio's mesh configuration as far as it means something here; other keys are for other programs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    trust_domain: Option<String>,
    trust_domain_aliases: Vec<String>,
    root_namespace: Option<String>,
    path_normalization: Option<Normalization>,
    extension_providers: Vec<serde_yaml_ng::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Normalization {
    normalization: Option<Mode>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Mode {
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

impl MeshConfig {
    /// Why no request can be asked about at this provider; `None` when it can.
    pub fn unusable_provider(&self, name: &str) -> Option<String> {
        match self.extension_providers.get(name) {
            Some(Ok(_)) => None,
            Some(Err(reason)) => {
                Some(format!("extensionProviders of the mesh's configuration: {name}: {reason}"))
            }
            None => Some(format!("extensionProviders of the mesh's configuration have no {name}")),
        }
    }

    /// These settings with what the key `mesh` of the ConfigMap `istio` says.
    ///
    /// # Errors
    /// The text is not YAML, or a value that is looked at is not understood: nothing of it is taken.
    pub fn configured(&self, yaml: &str) -> Result<Self, String> {
        let document: Option<Document> = serde_yaml_ng::from_str(yaml).map_err(|e| e.to_string())?;
        let Document {
            trust_domain,
            trust_domain_aliases,
            root_namespace,
            path_normalization,
            extension_providers,
        } = document.unwrap_or_default();
        let trust_domain = match trust_domain.filter(|d| !d.is_empty()) {
            Some(name) => name.parse().map_err(|e| format!("trustDomain: {e}"))?,
            None => self.trust_domain.clone(),
        };
        let mut aliases: Vec<Arc<str>> = Vec::new();
        for alias in trust_domain_aliases {
            let known: TrustDomain = alias.parse().map_err(|e| format!("trustDomainAliases: {e}"))?;
            if known != trust_domain && !aliases.iter().any(|a| **a == *known.as_str()) {
                aliases.push(known.as_str().into());
            }
        }
        let mode = match path_normalization.and_then(|p| p.normalization).unwrap_or(Mode::Default) {
            Mode::Default | Mode::Base => PathNormalization::Base,
            Mode::None => PathNormalization::None,
            Mode::MergeSlashes => PathNormalization::MergeSlashes,
            Mode::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
        };
        Ok(Self {
            trust_domain,
            trust_domain_aliases: aliases,
            root_namespace: root_namespace
                .filter(|n| !n.is_empty())
                .map_or_else(|| self.root_namespace.clone(), Into::into),
            path_normalization: mode,
            extension_providers: providers::read_providers(&extension_providers, &self.cluster_domain)
                .map_err(|e| format!("extensionProviders: {e}"))?,
            ..self.clone()
        })
    }

    /// Settings of the key `mesh` that would change what policies decide and that nothing here honours, with the reason.
    pub fn ignored(yaml: &str) -> Vec<String> {
        let document: serde_yaml_ng::Value = serde_yaml_ng::from_str(yaml).unwrap_or_default();
        let trusted = &document["defaultConfig"]["gatewayTopology"]["numTrustedProxies"];
        let set = trusted.as_u64().is_none_or(|number| number > 0) && !trusted.is_null();
        let text = "defaultConfig.gatewayTopology.numTrustedProxies is not honoured: remoteIpBlocks and remote.ip see the \
                    address of the direct peer";
        set.then(|| text.to_owned()).into_iter().collect()
    }

    /// The trust domain and its aliases.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.trust_domain.as_str()).chain(self.trust_domain_aliases.iter().map(|a| &**a))
    }

    /// Host name of a Service: `<name>.<namespace>.svc.<domain>`.
    pub fn hostname(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.cluster_domain)
    }

    /// The key of a Service on the wire.
    pub fn service_key(&self, namespace: &str, name: &str) -> NamespacedHostname {
        NamespacedHostname::new(namespace, self.hostname(namespace, name))
    }
}

/// Keys that a mesh configuration may have and that mean something here.
const READ: &[&str] =
    &["trustDomain", "trustDomainAliases", "rootNamespace", "pathNormalization", "extensionProviders"];

/// Keys of a mesh configuration that have no effect, sorted; those of `defaultConfig` by their path. Empty when the text
/// is not a YAML mapping.
pub fn unread_keys(yaml: &str) -> Vec<String> {
    let Ok(serde_yaml_ng::Value::Mapping(document)) = serde_yaml_ng::from_str(yaml) else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for (key, value) in &document {
        let Some(key) = key.as_str().filter(|key| !READ.contains(key)) else { continue };
        match value.as_mapping().filter(|inner| key == "defaultConfig" && !inner.is_empty()) {
            Some(inner) => {
                out.extend(inner.keys().filter_map(|k| k.as_str()).map(|inner| format!("{key}.{inner}")));
            }
            None => out.push(key.to_owned()),
        }
    }
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_honoured_are_named() {
        let topology = |value: &str| {
            MeshConfig::ignored(&format!(
                "defaultConfig: {{gatewayTopology: {{numTrustedProxies: {value}}}}}"
            ))
            .len()
        };
        assert_eq!([topology("1"), topology("'1'"), topology("0"), topology("null")], [1, 1, 0, 0]);
        assert!(MeshConfig::ignored("trustDomain: td").is_empty() && MeshConfig::ignored("").is_empty());
        assert!(MeshConfig::ignored("[not: {a map").is_empty());
    }

    #[test]
    fn keys_without_effect_are_listed() {
        let istio = "
accessLogFile: /dev/stdout
defaultConfig: {gatewayTopology: {numTrustedProxies: 1}, discoveryAddress: a}
trustDomain: td
";
        let keys = ["accessLogFile", "defaultConfig.discoveryAddress", "defaultConfig.gatewayTopology"];
        assert_eq!(unread_keys(istio), keys);
        for yaml in ["", "[]", "trustDomain: td", ": :"] {
            assert_eq!(unread_keys(yaml), Vec::<String>::new(), "{yaml}");
        }
    }

    #[test]
    fn what_the_config_map_says_is_taken_whole_or_not_at_all() {
        let plain = MeshConfig::default();
        let istio = "
accessLogFile: /dev/stdout
defaultConfig: {discoveryAddress: 'istiod.istio-system.svc:15012'}
enablePrometheusMerge: true
extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: a.b.svc, port: 9191}}]
pathNormalization: {normalization: MERGE_SLASHES}
rootNamespace: istio-system
trustDomain: td2
trustDomainAliases: [td1, td2, td1]
";
        let read = plain.configured(istio).unwrap();
        assert_eq!(read.trust_domains().collect::<Vec<_>>(), ["td2", "td1"]);
        assert_eq!(read.path_normalization, PathNormalization::MergeSlashes);
        assert!(read.extension_providers["opa"].is_ok());
        for yaml in ["", "{}", "pathNormalization: {normalization: DEFAULT}", "pathNormalization: {}"] {
            assert_eq!(plain.configured(yaml), Ok(plain.clone()), "{yaml}");
        }
        for yaml in [
            "[]",
            "pathNormalization: {normalization: SOME}",
            "trustDomain: 'A B'",
            "trustDomainAliases: ['']",
            "extensionProviders: [{}]",
        ] {
            assert!(plain.configured(yaml).is_err(), "{yaml}");
        }
    }
}
