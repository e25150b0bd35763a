// SPDX-License-Identifier: Apache-2.0
//! The certificates that listeners name (Gateway API `listeners[].tls.certificateRefs`).

use gateway_api::gateways::{GatewayListeners, GatewayListenersTlsMode};
use meltemi_model::NamespacedName;
use meltemi_model::l7::TlsSecret;

/// What is known of a Secret that a listener may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// A certificate with its key.
    Usable(TlsSecret),
    /// It has none, or one that no proxy can use: what is wrong.
    Unusable(String),
}

/// Where certificates are found.
pub trait Certificates {
    /// A Secret of type `kubernetes.io/tls`.
    fn certificate(&self, name: &NamespacedName) -> Option<&Certificate>;
    /// Whether a ReferenceGrant lets Gateways of a namespace name a Secret of another one.
    fn is_granted(&self, gateway_namespace: &str, secret: &NamespacedName) -> bool;
}

/// What the references of a listener lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Secrets that can be used, in the order in which they are named.
    pub secrets: Vec<NamespacedName>,
    /// The first reference that cannot: reason of the condition `ResolvedRefs`, and a sentence.
    pub unresolved: Option<(&'static str, String)>,
}

/// Whether TLS ends at a listener.
pub fn ends_tls(listener: &GatewayListeners) -> bool {
    match listener.protocol.as_str() {
        "HTTPS" => true,
        "TLS" => !is_passthrough(listener),
        _ => false,
    }
}

/// Whether TLS ends at the backends of a listener.
pub fn is_passthrough(listener: &GatewayListeners) -> bool {
    let mode = listener.tls.as_ref().and_then(|tls| tls.mode.as_ref());
    listener.protocol == "TLS" && mode == Some(&GatewayListenersTlsMode::Passthrough)
}

/// Finds the certificates of a listener that ends TLS; the others have none.
pub fn resolve(
    gateway: &NamespacedName,
    listener: &GatewayListeners,
    certificates: &dyn Certificates,
) -> Resolved {
    let mut resolved = Resolved::default();
    if !ends_tls(listener) {
        return resolved;
    }
    let references =
        listener.tls.as_ref().and_then(|tls| tls.certificate_refs.as_deref()).unwrap_or_default();
    if references.is_empty() {
        resolved.unresolved = Some(("InvalidCertificateRef", "the listener names no certificate".to_owned()));
    }
    for reference in references {
        let (group, kind) = (reference.group.as_deref().unwrap_or_default(), reference.kind.as_deref());
        let namespace = reference.namespace.as_deref().unwrap_or(&gateway.namespace);
        let name = NamespacedName::new(namespace, reference.name.as_str());
        match find(gateway, (group, kind.unwrap_or("Secret")), &name, certificates) {
            Ok(()) => resolved.secrets.push(name),
            Err(reason) => resolved.unresolved = resolved.unresolved.or(Some(reason)),
        }
    }
    resolved
}

fn find(
    gateway: &NamespacedName,
    (group, kind): (&str, &str),
    name: &NamespacedName,
    certificates: &dyn Certificates,
) -> Result<(), (&'static str, String)> {
    const INVALID: &str = "InvalidCertificateRef";
    if !matches!((group, kind), ("" | "core", "Secret")) {
        return Err((INVALID, format!("a certificate of kind {group}/{kind} is not supported")));
    }
    if name.namespace != gateway.namespace && !certificates.is_granted(&gateway.namespace, name) {
        let message = format!(
            "Secret {name} not accessible to a Gateway in namespace {:?} (missing a ReferenceGrant?)",
            gateway.namespace
        );
        return Err(("RefNotPermitted", message));
    }
    match certificates.certificate(name) {
        Some(Certificate::Usable(_)) => Ok(()),
        Some(Certificate::Unusable(why)) => Err((INVALID, format!("Secret {name}: {why}"))),
        None => Err((INVALID, format!("there is no Secret {name} of type kubernetes.io/tls"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known;

    impl Certificates for Known {
        fn certificate(&self, name: &NamespacedName) -> Option<&Certificate> {
            static BROKEN: std::sync::OnceLock<Certificate> = std::sync::OnceLock::new();
            static GOOD: std::sync::OnceLock<Certificate> = std::sync::OnceLock::new();
            match &*name.name {
                "good" => Some(GOOD.get_or_init(|| {
                    let text = String::new;
                    Certificate::Usable(TlsSecret { name: name.clone(), certificate: text(), key: text() })
                })),
                "broken" => Some(BROKEN.get_or_init(|| Certificate::Unusable("no key".to_owned()))),
                _ => None,
            }
        }

        fn is_granted(&self, gateway_namespace: &str, secret: &NamespacedName) -> bool {
            gateway_namespace == "a" && &*secret.namespace == "granted"
        }
    }

    #[test]
    fn each_reference_is_resolved_or_named() {
        for (references, secrets, reason) in [
            ("[{name: good}]", 1, None),
            ("[{name: good, kind: Secret, group: ''}]", 1, None),
            ("[{name: good, namespace: granted}]", 1, None),
            ("[{name: good}, {name: broken}]", 1, Some("InvalidCertificateRef")),
            ("[]", 0, Some("InvalidCertificateRef")),
            ("[{name: missing}]", 0, Some("InvalidCertificateRef")),
            ("[{name: good, kind: ConfigMap}]", 0, Some("InvalidCertificateRef")),
            ("[{name: good, group: other.example, kind: Secret}]", 0, Some("InvalidCertificateRef")),
            ("[{name: good, namespace: other}]", 0, Some("RefNotPermitted")),
            ("[{name: missing, namespace: other}]", 0, Some("RefNotPermitted")),
        ] {
            let yaml =
                format!("{{name: l, port: 443, protocol: HTTPS, tls: {{certificateRefs: {references}}}}}");
            let listener: GatewayListeners = serde_yaml_ng::from_str(&yaml).unwrap();
            let resolved = resolve(&NamespacedName::new("a", "g"), &listener, &Known);
            let seen = resolved.unresolved.as_ref().map(|(reason, _)| *reason);
            assert_eq!((resolved.secrets.len(), seen), (secrets, reason), "{references}");
        }
    }
}
