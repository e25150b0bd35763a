// SPDX-License-Identifier: Apache-2.0
//! The policies and routes that hostile requests meet. Services are numbered as the policies are.

use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::{Filter, NamedMatch, PathChange, PathMatch, RouteMatch, Target, ValueMatch};

use crate::world::{World, policy, service};

/// Without a policy.
pub(crate) const FREE: u8 = 0;
/// DENY paths `/admin`, `/admin/*`.
pub(crate) const NO_ADMIN: u8 = 1;
/// ALLOW GET of paths `/public/*`.
pub(crate) const PUBLIC: u8 = 2;
/// DENY header x-block = 1.
pub(crate) const NO_BLOCK: u8 = 3;
/// ALLOW header x-tenant = a.
pub(crate) const TENANT: u8 = 4;
/// DENY hosts secret.com.
pub(crate) const NO_SECRET: u8 = 5;
/// RequestAuthentication.
pub(crate) const TOKENS: u8 = 6;
/// DENY remoteIpBlocks 203.0.113.0/24.
pub(crate) const NO_REMOTE: u8 = 7;
/// ALLOW principals: the client.
pub(crate) const CLIENT: u8 = 8;
/// ALLOW principals: somebody else.
pub(crate) const OTHER: u8 = 9;
/// DENY methods DELETE.
pub(crate) const NO_DELETE: u8 = 10;
/// RequestAuthentication, and ALLOW requestPrincipals `*`.
pub(crate) const CLAIMS: u8 = 11;
/// ALLOW header x-envoy-internal = true: a header that only proxies set.
pub(crate) const INTERNAL: u8 = 12;
/// How many there are.
pub(crate) const SERVICES: u8 = 13;

type Fields<'a> = Vec<(Attribute, &'a [&'a str])>;

pub(crate) fn policies(world: &mut World) {
    use Action::{Allow, Deny};
    let header = |name: &str| Attribute::Header(name.into());
    let principal = |account: &str| format!("cluster.local/ns/default/sa/{account}");
    let (client, other) = (principal("client"), principal("other"));
    let (client, other) = ([&*client], [&*other]);
    let all: [(u8, &str, Action, Fields<'_>); 11] = [
        (NO_ADMIN, "no-admin", Deny, vec![(Attribute::Path, &["/admin", "/admin/*"])]),
        (PUBLIC, "public", Allow, vec![(Attribute::Method, &["GET"]), (Attribute::Path, &["/public/*"])]),
        (NO_BLOCK, "no-block", Deny, vec![(header("x-block"), &["1"])]),
        (TENANT, "tenant", Allow, vec![(header("x-tenant"), &["a"])]),
        (NO_SECRET, "no-secret", Deny, vec![(Attribute::Host, &["secret.com"])]),
        (NO_REMOTE, "no-remote", Deny, vec![(Attribute::RemoteIp, &["203.0.113.0/24"])]),
        (CLIENT, "client", Allow, vec![(Attribute::SourcePrincipal, &client)]),
        (OTHER, "other", Allow, vec![(Attribute::SourcePrincipal, &other)]),
        (NO_DELETE, "no-delete", Deny, vec![(Attribute::Method, &["DELETE"])]),
        (CLAIMS, "claims", Allow, vec![(Attribute::RequestPrincipal, &["*"])]),
        (INTERNAL, "internal", Allow, vec![(header("x-envoy-internal"), &["true"])]),
    ];
    for (number, name, action, fields) in all {
        world.policy(Target::Service(service(number)), policy(name, action, &fields));
    }
    world.jwt(TOKENS);
    world.jwt(CLAIMS);
    let gateway = Target::Gateway(crate::world::gateway_name());
    world.policy(gateway, policy("no-gate", Action::Deny, &[(Attribute::Path, &["/gate"])]));
}

pub(crate) fn routes(world: &mut World) {
    let path = |path| RouteMatch { path: Some(path), ..RouteMatch::default() };
    let prefix = |text: &str| PathMatch::Prefix(text.into());
    world.route("all", "open", RouteMatch::default(), Vec::new());
    world.route("inside", "inside", path(prefix("/inside")), Vec::new());
    let rewrite =
        Filter::Rewrite { host: Some("new.example".into()), path: Some(PathChange::Prefix("/admin".into())) };
    world.route("rewrite", "open", path(prefix("/old")), vec![rewrite]);
    let redirect =
        Filter::Redirect { scheme: Some("https".into()), host: None, port: None, path: None, code: 301 };
    world.route("redirect", "open", path(prefix("/moved")), vec![redirect]);
    let marked = Filter::RequestHeaders {
        changes: meltemi_model::l7::HeaderChanges {
            set: vec![("x-route".into(), "regex".into())],
            ..Default::default()
        },
    };
    let regex = RouteMatch {
        path: Some(PathMatch::Regex("/v[0-9]+/.*".parse().unwrap())),
        headers: vec![NamedMatch { name: "x-kind".into(), value: ValueMatch::Regex("a|b".parse().unwrap()) }],
        query: vec![NamedMatch { name: "q".into(), value: ValueMatch::Regex("[0-9]+".parse().unwrap()) }],
        method: None,
    };
    world.route("regex", "open", regex, vec![marked]);
}
