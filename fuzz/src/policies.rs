// SPDX-License-Identifier: Apache-2.0
//! Objects of `security.istio.io` and the mesh's settings, as YAML.

use std::net::IpAddr;
use std::sync::Arc;

use meltemi_model::authz::{Action, Policy};
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::{Decision, Facts, PolicySet, ValidPolicy, decide};
use meltemi_resources::policies::validate;
use meltemi_translate::MeshConfig;
use meltemi_translate::facts::Labels;
use meltemi_translate::security::peer::{Peer, Peers};
use meltemi_translate::security::{authorization, layer4, request, stand_in};
use meltemi_wire::convert;
use serde_json::{Value, json};

/// A spec, after a byte that says of which kind it is.
pub fn policy(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(spec) = serde_yaml_ng::from_str::<Value>(text) else { return };
    let kind = ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"][usize::from(*kind % 3)];
    let metadata = json!({"name": "p", "namespace": "a"});
    let object =
        json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec});
    let admitted = validate::object(&object).expect("a kind that is checked").result();
    let name = NamespacedName::new("a", "p");
    match kind {
        "AuthorizationPolicy" => authorizes(&name, &object, admitted.is_ok()),
        "PeerAuthentication" => peers(&name, &object, admitted.is_ok()),
        _ => {
            let read = validate::spec(&object).and_then(|spec| request::read(&name, &spec));
            assert_eq!(read.is_ok(), admitted.is_ok(), "admission and reading agree");
            let _ = request::stand_in(&name, &object["spec"]);
        }
    }
}

fn authorizes(name: &NamespacedName, object: &Value, admitted: bool) {
    let mesh = MeshConfig::default().configured("trustDomainAliases: [old]").expect("settings");
    let read =
        validate::spec(object).and_then(|spec| authorization::read(name, &spec, &Labels::new(), &mesh));
    let authorization = match read {
        Ok(read) => {
            assert!(admitted, "what is read was admitted");
            read
        }
        Err(fault) => stand_in::read(name, &object["spec"], &Labels::new(), &mesh, fault),
    };
    ValidPolicy::new(authorization.policy.clone())
        .expect("the engine takes what was read, and what stands in");
    let Some(projected) = layer4::project(&authorization).policy else { return };
    let bytes = convert::authorization(&projected).expect("what is projected can be sent");
    let received = convert::policy(&bytes).expect("what is sent can be read");
    let sources = [None, SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").ok()];
    for source in &sources {
        let (sent, got) = (judge(&projected, source.as_ref()), judge(&received, source.as_ref()));
        assert_eq!(sent, got, "the receiver decides as the sender");
        let nothing = matches!(projected.action, Action::Allow) && projected.rules.is_empty();
        assert!(!(nothing && sent.is_allow()), "an ALLOW without rules allows nothing");
    }
}

fn judge(policy: &Policy, source: Option<&SpiffeId>) -> Decision {
    let set = PolicySet::compile([Arc::new(policy.clone())]).expect("valid");
    let ip = IpAddr::from([10, 0, 0, 1]);
    decide(
        &set,
        &Facts { source, source_ip: ip, destination_ip: ip, destination_port: 80, sni: None, http: None },
    )
}

fn peers(name: &NamespacedName, object: &Value, admitted: bool) {
    let Ok(spec) = validate::spec(object) else { return };
    assert_eq!(validate::peer_authentication(&spec).is_ok(), admitted, "admission and reading agree");
    if !admitted {
        return;
    }
    let mesh = MeshConfig::default();
    let peers = Peers::new(vec![Peer { name: name.clone(), created: String::new(), spec }]);
    let policies = peers.policies(&mesh);
    let labels = peers.selector_of(name).cloned().unwrap_or_default();
    if let Some(named) = peers.name_for("a", &labels, &mesh) {
        let policy = policies.get(&named).expect("what is named is sent");
        convert::authorization(policy).expect("what is made can be sent");
    }
}

/// The mesh's ConfigMap.
pub fn mesh_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(mesh) = MeshConfig::default().configured(text) {
        assert_eq!(mesh.trust_domains().filter(|d| *d == mesh.trust_domain.as_str()).count(), 1);
        assert_eq!(mesh.configured(text), Ok(mesh), "twice is once");
    }
}
