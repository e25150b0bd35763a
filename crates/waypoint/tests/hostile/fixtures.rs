// SPDX-License-Identifier: Apache-2.0
//! The policies and routes that hostile requests meet. Services are numbered as the policies are.

use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::{Filter, NamedMatch, PathChange, PathMatch, RouteMatch, Target, ValueMatch};

use crate::world::{World, policy, policy_but, service};

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
/// DENY header host = secret.com.
pub(crate) const NO_HOST_HEADER: u8 = 13;
/// DENY hosts secret.com:8080.
pub(crate) const NO_HOST_PORT: u8 = 14;
/// ALLOW hosts ok.com, `*.example:39954`.
pub(crate) const HOSTS: u8 = 15;
/// DENY paths with characters that are read in several ways.
pub(crate) const LITERAL: u8 = 16;
/// ALLOW such paths.
pub(crate) const ONLY_LITERAL: u8 = 17;
/// DENY header x-debug = `*`.
pub(crate) const NO_DEBUG: u8 = 18;
/// ALLOW header x-role not evil.
pub(crate) const NO_ROLE: u8 = 19;
/// DENY header upgrade = websocket.
pub(crate) const NO_UPGRADE: u8 = 20;
/// DENY header transfer-encoding = chunked.
pub(crate) const NO_CHUNKS: u8 = 21;
/// DENY header baggage = `*`.
pub(crate) const NO_BAGGAGE: u8 = 22;
/// DENY header x-forwarded-for not `*`.
pub(crate) const FORWARDED_FOR: u8 = 23;
/// DENY header upgrade = `*`.
pub(crate) const ANY_UPGRADE: u8 = 24;
/// DENY header te = `*`.
pub(crate) const NO_TRAILERS: u8 = 25;
/// DENY header transfer-encoding not `*`.
pub(crate) const ONLY_CHUNKS: u8 = 26;
/// How many there are.
pub(crate) const SERVICES: u8 = 27;

type Fields<'a> = Vec<(Attribute, &'a [&'a str])>;

pub(crate) fn policies(world: &mut World) {
    use Action::{Allow, Deny};
    let header = |name: &str| Attribute::Header(name.into());
    let principal = |account: &str| format!("cluster.local/ns/default/sa/{account}");
    let (client, other) = (principal("client"), principal("other"));
    let (client, other) = ([&*client], [&*other]);
    let all: [(u8, &str, Action, Fields<'_>); 22] = [
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
        (NO_HOST_HEADER, "no-host-header", Deny, vec![(header("host"), &["secret.com"])]),
        (NO_HOST_PORT, "no-host-port", Deny, vec![(Attribute::Host, &["secret.com:8080"])]),
        (HOSTS, "hosts", Allow, vec![(Attribute::Host, &["ok.com", "*.example:39954"])]),
        (
            LITERAL,
            "literal",
            Deny,
            vec![(Attribute::Path, &["/v1/users:delete", "/caf%C3%A9", "/projects/acme%2Fsecret/*"])],
        ),
        (ONLY_LITERAL, "only-literal", Allow, vec![(Attribute::Path, &["/api;v=1/*", "/p/acme%2Fweb/*"])]),
        (NO_DEBUG, "no-debug", Deny, vec![(header("x-debug"), &["*"])]),
        (NO_UPGRADE, "no-upgrade", Deny, vec![(header("upgrade"), &["websocket"])]),
        (ANY_UPGRADE, "any-upgrade", Deny, vec![(header("upgrade"), &["*"])]),
        (NO_TRAILERS, "no-trailers", Deny, vec![(header("te"), &["*"])]),
        (NO_CHUNKS, "no-chunks", Deny, vec![(header("transfer-encoding"), &["chunked"])]),
        (NO_BAGGAGE, "no-baggage", Deny, vec![(header("baggage"), &["*"])]),
    ];
    for (number, name, action, fields) in all {
        world.policy(Target::Service(service(number)), policy(name, action, &fields));
    }
    for (number, name, action, attribute, value) in [
        (NO_ROLE, "no-role", Allow, header("x-role"), "evil"),
        (FORWARDED_FOR, "forwarded-for", Deny, header("x-forwarded-for"), "*"),
        (ONLY_CHUNKS, "only-chunks", Deny, header("transfer-encoding"), "*"),
    ] {
        world.policy(Target::Service(service(number)), policy_but(name, action, attribute, value));
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
