// SPDX-License-Identifier: Apache-2.0
//! Trust domain aliases: an identity of one of the mesh's trust domains is written once and meant in all of them.
//!
//! Both layers expand alike, because both are told the expanded policy.

use crate::mesh::MeshConfig;

/// The trust domain that policies write when they mean the mesh's own, whatever its name.
const LOCAL: &str = "cluster.local";

/// A principal in every trust domain that it is meant in. One that is not of the form
/// `<trust domain>/ns/<namespace>/sa/<service account>`, or of a foreign trust domain, stays as it is.
pub fn principals(written: &str, mesh: &MeshConfig) -> Vec<String> {
    let unchanged = || vec![written.to_owned()];
    let Some((domain, rest)) = written.split_once('/') else { return unchanged() };
    if domain == "*" || rest.split('/').count() != 4 {
        return unchanged();
    }
    if domain != LOCAL && !mesh.trust_domains().any(|known| matches(domain, known)) {
        return unchanged();
    }
    let mut out: Vec<String> = Vec::new();
    for known in mesh.trust_domains() {
        // `*td` already means every trust domain that ends so.
        let one = if matches(domain, known) { written.to_owned() } else { format!("{known}/{rest}") };
        if !out.contains(&one) {
            out.push(one);
        }
    }
    out
}

/// A trust domain with its aliases, when it is exactly one of the mesh's.
pub fn trust_domains(written: &str, mesh: &MeshConfig) -> Vec<String> {
    if mesh.trust_domains().any(|known| known == written) {
        mesh.trust_domains().map(str::to_owned).collect()
    } else {
        vec![written.to_owned()]
    }
}

fn matches(pattern: &str, domain: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => domain.ends_with(suffix),
        None => pattern == domain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_meant_in_every_alias() {
        let mesh = |own: &str, aliases: &[&str]| MeshConfig {
            trust_domain: own.parse().unwrap(),
            trust_domain_aliases: aliases.iter().map(|a| (*a).into()).collect(),
            ..MeshConfig::default()
        };
        let plain = mesh("cluster.local", &[]);
        let migrated = mesh("td2", &["td1", "old-td"]);
        let cases = [
            (&plain, "cluster.local/ns/a/sa/b", vec!["cluster.local/ns/a/sa/b"]),
            (&plain, "other/ns/a/sa/b", vec!["other/ns/a/sa/b"]),
            (&migrated, "td1/ns/a/sa/b", vec!["td2/ns/a/sa/b", "td1/ns/a/sa/b", "old-td/ns/a/sa/b"]),
            (&migrated, "td2/ns/a/sa/b", vec!["td2/ns/a/sa/b", "td1/ns/a/sa/b", "old-td/ns/a/sa/b"]),
            (
                &migrated,
                "cluster.local/ns/a/sa/b",
                vec!["td2/ns/a/sa/b", "td1/ns/a/sa/b", "old-td/ns/a/sa/b"],
            ),
            (&migrated, "*-td/ns/a/sa/b", vec!["td2/ns/a/sa/b", "td1/ns/a/sa/b", "*-td/ns/a/sa/b"]),
            (&migrated, "*/ns/a/sa/b", vec!["*/ns/a/sa/b"]),
            (&migrated, "foreign/ns/a/sa/b", vec!["foreign/ns/a/sa/b"]),
            (&migrated, "td1/*", vec!["td1/*"]),
            (&migrated, "*", vec!["*"]),
            (&migrated, "sa/b", vec!["sa/b"]),
        ];
        for (mesh, written, expected) in cases {
            assert_eq!(principals(written, mesh), expected, "{written} in {:?}", mesh.trust_domain);
        }
        assert_eq!(trust_domains("td1", &migrated), ["td2", "td1", "old-td"]);
        assert_eq!(trust_domains("td*", &migrated), ["td*"]);
    }
}
