// SPDX-License-Identifier: Apache-2.0
//! What is refused is refused by its name, and lets nothing through in place of what it would have said.

use std::collections::BTreeSet;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Policy, Scope};
use meltemi_model::l7::{JwtRule, Target};
use prost::Message as _;

use super::*;

fn sink() -> Sink {
    let view = View::fixed(Mesh::default());
    Sink { view, mesh: Mesh::default(), first: BTreeSet::new(), ready: None }
}

fn update(name: &str, bytes: Vec<u8>) -> Update {
    Update { name: name.into(), resource: Some(bytes.into()) }
}

/// The message with one more field in its JSON, at the place of `{"`.
fn with_field<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let json = serde_json::to_string(value).unwrap().replacen('{', "{\"exceptions\":[],", 1);
    meltemi_wire::proto::meltemi::Document { schema: 1, json }.encode_to_vec()
}

#[test]
fn a_field_that_is_not_known_is_refused_by_name() {
    let name = |name: &str| NamespacedName::new("shop", name);
    let target = Target::Gateway(name("wp"));
    let policy = |of: &str| HttpPolicy {
        policy: Policy {
            name: name(of),
            scope: Scope::WorkloadSelector,
            action: Action::Allow,
            dry_run: false,
            rules: Vec::new(),
        },
        targets: vec![target.clone()],
    };
    let jwt = Jwt { name: name("jwt"), targets: vec![target.clone()], rules: vec![JwtRule::default()] };
    let good = |of: &str| update(&format!("shop/{of}"), convert::encode_l7(&policy(of)).unwrap());
    let mut sink = sink();
    assert_eq!(sink.apply(types::HTTP_POLICY, vec![good("a"), good("b")]).len(), 0);
    let rejected =
        sink.apply(types::HTTP_POLICY, vec![update("shop/a", with_field(&policy("a"))), good("c")]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].name, "shop/a");
    assert!(rejected[0].reason.contains("unknown field `exceptions`"), "{}", rejected[0].reason);
    // The good ones are in use; the refused one is neither what it was nor nothing.
    assert_eq!(sink.mesh.http_policies.keys().collect::<Vec<_>>(), ["shop/b", "shop/c"]);
    assert!(sink.mesh.refused.contains_key("shop/a"));
    let rejected = sink.apply(types::JWT, vec![update("shop/jwt", with_field(&jwt))]);
    assert_eq!(rejected[0].name, "shop/jwt");
    assert!(sink.mesh.refused.contains_key("RequestAuthentication shop/jwt"));
    // Mended.
    sink.apply(types::HTTP_POLICY, vec![good("a")]);
    sink.apply(types::JWT, vec![update("shop/jwt", convert::encode_l7(&jwt).unwrap())]);
    assert_eq!((sink.mesh.refused.len(), sink.mesh.jwts.len()), (0, 1));
    let settings = Settings { path_normalization: PathNormalization::None };
    assert_eq!(sink.apply(types::SETTINGS, vec![update("mesh", with_field(&settings))])[0].name, "mesh");
    assert_eq!(sink.mesh.path_normalization(), PathNormalization::Base);
    sink.apply(types::SETTINGS, vec![update("mesh", convert::encode_l7(&settings).unwrap())]);
    assert_eq!(sink.mesh.path_normalization(), PathNormalization::None);
}
