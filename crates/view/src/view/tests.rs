// SPDX-License-Identifier: Apache-2.0
//! What is refused is refused by its name, and lets nothing through in place of what it would have said.

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Policy, Scope};
use meltemi_model::l7::{JwtRule, PathNormalization, Target};
use prost::Message as _;

use super::*;

fn sink() -> Sink {
    let view = View::fixed(Mesh::default());
    Sink { view, mesh: Mesh::default(), ready: None }
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
    // Whether a request has to ask what is reported of it.
    let mut trial = policy("trial");
    trial.policy.dry_run = true;
    assert!(!sink.mesh.has_reports());
    sink.apply(types::HTTP_POLICY, vec![update("shop/trial", convert::encode_l7(&trial).unwrap())]);
    assert!(sink.mesh.has_reports());
    sink.apply(types::HTTP_POLICY, vec![good("trial")]);
    assert!(!sink.mesh.has_reports());
    let settings = Settings { path_normalization: PathNormalization::None, providers: Vec::new() };
    assert_eq!(sink.apply(types::SETTINGS, vec![update("mesh", with_field(&settings))])[0].name, "mesh");
    assert_eq!(sink.mesh.path_normalization(), PathNormalization::Base);
    sink.apply(types::SETTINGS, vec![update("mesh", convert::encode_l7(&settings).unwrap())]);
    assert_eq!(sink.mesh.path_normalization(), PathNormalization::None);
}

#[test]
fn a_layer_7_policy_that_the_engine_does_not_accept_is_rejected_where_it_arrives() {
    use meltemi_model::authz::{
        Attribute, Clause, ClauseOrigin, Match, Predicate, Rule, StringMatch, ValueMatch,
    };

    let gateway = NamespacedName::new("shop", "wp");
    let document = |suffix: &str| {
        let values = vec![ValueMatch::String(StringMatch::Suffix(suffix.into()))];
        let predicates = vec![Predicate { attribute: Attribute::Path, values, not_values: vec![] }];
        let clauses = vec![Clause { origin: ClauseOrigin::To, matches: vec![Match { predicates }] }];
        let policy = Policy {
            name: NamespacedName::new("shop", "p"),
            scope: Scope::WorkloadSelector,
            action: Action::Deny,
            dry_run: false,
            rules: vec![Rule { clauses }],
        };
        let document = HttpPolicy { policy, targets: vec![Target::Gateway(gateway.clone())] };
        update("shop/p", convert::encode_l7(&document).unwrap())
    };
    let enforced = |sink: &Sink| {
        let mesh = &sink.mesh;
        mesh.http_sets.of(&mesh.http_policies, None, &gateway).policies().len()
    };
    let mut sink = sink();
    assert_eq!(sink.apply(types::HTTP_POLICY, vec![document("/admin")]).len(), 0);
    assert_eq!(enforced(&sink), 1);
    let rejected = sink.apply(types::HTTP_POLICY, vec![document("")]);
    assert_eq!((rejected.len(), &*rejected[0].name), (1, "shop/p"));
    let reason = &rejected[0].reason;
    assert!(reason.starts_with("policy shop/p is not valid rule[0] clause[0]: paths"), "{reason}");
    assert_eq!((enforced(&sink), sink.mesh.refused.get("shop/p")), (0, Some(reason)));
}

#[tokio::test]
async fn nothing_is_judged_before_everything_has_been_heard() {
    let readiness = meltemi_runtime::Readiness::new();
    let mut sink = sink();
    sink.ready = Some(readiness.register("xds"));
    sink.mesh.unheard = [types::ADDRESS, types::AUTHORIZATION].map(str::to_owned).into();
    let uid = meltemi_model::WorkloadUid::pod("Kubernetes", "shop", "web");
    let address = Address::Workload(meltemi_model::Workload::empty(uid.clone(), "shop", "web"));
    sink.handle(types::ADDRESS, vec![update(&address.name(), address.encode())]).await;
    let at = "10.0.0.1:80".parse().unwrap();
    let request = crate::judge::L4Request { source: None, from: at, to: at, workload: uid };
    let judged = |sink: &Sink| request.judge(&sink.view.mesh()).map(drop);
    // Known, and no policy is: of one that denies a whole namespace it could not be told that it is missing.
    for complete in ["", types::ADDRESS] {
        sink.complete(complete);
        let denied = judged(&sink).unwrap_err();
        assert!(denied.is_transient() && denied.to_string().contains(types::AUTHORIZATION), "{denied}");
        assert_eq!(readiness.pending(), ["xds"]);
    }
    sink.complete(types::AUTHORIZATION);
    assert_eq!(judged(&sink), Ok(()));
    assert!(readiness.pending().is_empty());
}

#[test]
fn a_layer_4_policy_that_is_refused_lets_nothing_through_in_its_place() {
    use meltemi_wire::proto::security::string_match::MatchType;
    use meltemi_wire::proto::security::{Action, Authorization, Group, Match, Rules, Scope, StringMatch};

    let message = |action: i32, matches: Vec<Match>| {
        let groups = vec![Group { rules: vec![Rules { matches }] }];
        let scope = Scope::Namespace.into();
        let one = Authorization {
            name: "p".into(),
            namespace: "shop".into(),
            scope,
            action,
            groups,
            ..Default::default()
        };
        update("shop/p", one.encode_to_vec())
    };
    let prefix = |text: &str| Match {
        principals: vec![StringMatch { match_type: Some(MatchType::Prefix(text.into())) }],
        ..Default::default()
    };
    let deny = i32::from(Action::Deny);
    let pod = |namespace: &str| {
        let uid = meltemi_model::WorkloadUid::pod("Kubernetes", namespace, "web");
        meltemi_model::Workload::empty(uid, namespace, "web")
    };
    let address = |namespace: &str| {
        let address = Address::Workload(pod(namespace));
        update(&address.name(), address.encode())
    };
    let judged = |sink: &Sink, namespace: &str| {
        let at = "10.0.0.1:80".parse().unwrap();
        let request =
            crate::judge::L4Request { source: None, from: at, to: at, workload: pod(namespace).uid };
        request.judge(&sink.mesh).map(drop).map_err(|denied| (denied.to_string(), denied.is_transient()))
    };
    let mut sink = sink();
    assert_eq!(sink.apply(types::ADDRESS, vec![address("shop"), address("else")]).len(), 0);

    // Read, but not valid: where it applies is known.
    let rejected = sink.apply(types::AUTHORIZATION, vec![message(deny, vec![prefix("")])]);
    assert_eq!(rejected[0].name, "shop/p");
    let reason = "policy shop/p is not valid rule[0] clause[0]: principals: \"*\" has no text beside its `*`";
    assert_eq!(rejected[0].reason, reason);
    let text = format!("policy shop/p was refused by this proxy and is not known: {reason}");
    assert_eq!(judged(&sink, "shop"), Err((text, false)));
    assert_eq!(judged(&sink, "else"), Ok(()));
    // Mended, and refused again: the last good one stays.
    assert_eq!(sink.apply(types::AUTHORIZATION, vec![message(deny, vec![prefix("td/ns/evil")])]).len(), 0);
    assert_eq!(judged(&sink, "shop"), Ok(()));
    assert_eq!(sink.apply(types::AUTHORIZATION, vec![message(deny, vec![prefix("")])]).len(), 1);
    assert_eq!(judged(&sink, "shop"), Ok(()));
    // Never read at all: it applies in its scope, and anywhere if that is not known either.
    let scopeless =
        Authorization { name: "p".into(), namespace: "shop".into(), scope: 9, ..Default::default() };
    for (bytes, field, elsewhere) in [
        (message(9, vec![]), "action", false),
        (update("shop/p", scopeless.encode_to_vec()), "scope", true),
        (update("shop/p", vec![0xff]), "authorization", true),
    ] {
        sink.apply(types::AUTHORIZATION, vec![Update { name: "shop/p".into(), resource: None }]);
        assert_eq!(sink.apply(types::AUTHORIZATION, vec![bytes])[0].name, "shop/p");
        let (text, missing) = judged(&sink, "shop").unwrap_err();
        assert!(text.contains("shop/p was refused") && text.contains(field) && !missing, "{text}");
        assert_eq!(judged(&sink, "else").is_err(), elsewhere, "{field}");
    }
    sink.apply(types::AUTHORIZATION, vec![Update { name: "shop/p".into(), resource: None }]);
    assert_eq!(judged(&sink, "else"), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_drain_leaves_the_view_alone_as_long_as_something_may_come() {
    let (trigger, watch) = meltemi_runtime::drain::channel();
    let view = View::fixed(Mesh::default());
    let listener = view.serving();
    let last = view.last_served(watch);
    tokio::pin!(last);
    let soon = DRAIN_POLL_INTERVAL * 10;
    assert!(tokio::time::timeout(soon, &mut last).await.is_err(), "before the drain");
    let draining = trigger.start(soon * 100);
    tokio::pin!(draining);
    let mut ended = async |what: &str, expected: bool| {
        let ended = tokio::select! {
            () = &mut last => true,
            () = &mut draining => unreachable!("the drain takes longer"),
            () = tokio::time::sleep(soon) => false,
        };
        assert_eq!(ended, expected, "{what}");
    };
    ended("a listener", false).await;
    let idle_connection = view.clone().serving();
    drop(listener);
    ended("a connection without a request", false).await;
    drop(idle_connection);
    ended("nothing", true).await;
}
