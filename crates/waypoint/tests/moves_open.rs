// SPDX-License-Identifier: Apache-2.0
//! Random moves of Services and changes of their policies while streams, WebSockets, kept connections, HTTP/2 and TCP are
//! open: what the policies that are bound to the Service allow goes on, everything else ends, and nothing is opened that
//! they deny. That a proxy holds the policies of what it serves, whatever moves, is tested with the control plane's engine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use fixtures::{FREE, NO_ADMIN, PUBLIC};
use meltemi_model::authz::{Action, Attribute, Policy};
use meltemi_model::l7::Target;
use meltemi_tunnel::TunnelIo;
use meltemi_waypoint::Limits;
use proptest::collection::vec;
use proptest::sample::select;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::{OWN_ADDRESS, PATIENCE, World, answer, policy, status, vip, write};

/// Services that move. What they have for a policy is the test's to say.
const SERVICES: [u8; 3] = [FREE, NO_ADMIN, PUBLIC];

/// Where a Service is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Here,
    Other,
    Unbound,
    Deleted,
}

/// What a Service has for a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Nothing,
    DenyStream,
    DenyWebSocket,
    /// An ALLOW for WebSockets.
    OnlyWebSocket,
    OnlyClient,
    OnlySomebodyElse,
    DenyClient,
}

/// What a client has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stream,
    WebSocket,
    Http2,
    Tcp,
    /// A connection between two requests, for the path of [`Kind::Stream`].
    Kept,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Goes(u8, Place),
    Gets(u8, Rule),
    Opens(u8, Kind),
}

impl Rule {
    fn policy(self, name: &str) -> Option<Policy> {
        use Action::{Allow, Deny};
        let path = |action, paths: &[&str]| policy(name, action, &[(Attribute::Path, paths)]);
        let from = |action, account: &str| {
            let principal = format!("cluster.local/ns/default/sa/{account}");
            policy(name, action, &[(Attribute::SourcePrincipal, &[&principal])])
        };
        Some(match self {
            Self::Nothing => return None,
            Self::DenyStream => path(Deny, &["/trickle", "/endless"]),
            Self::DenyWebSocket => path(Deny, &["/ws"]),
            Self::OnlyWebSocket => path(Allow, &["/ws"]),
            Self::OnlyClient => from(Allow, "client"),
            Self::OnlySomebodyElse => from(Allow, "other"),
            Self::DenyClient => from(Deny, "client"),
        })
    }

    fn allows(self, kind: Kind) -> bool {
        match self {
            Self::Nothing | Self::OnlyClient => true,
            // A connection without requests has no path: it cannot be shown not to be the one that is denied.
            Self::DenyStream => kind == Kind::WebSocket,
            Self::DenyWebSocket => !matches!(kind, Kind::WebSocket | Kind::Tcp),
            Self::OnlyWebSocket => kind == Kind::WebSocket,
            Self::OnlySomebodyElse | Self::DenyClient => false,
        }
    }
}

enum Io {
    Tunnel(TunnelIo),
    Http2(h2::RecvStream, h2::client::SendRequest<bytes::Bytes>),
}

/// Something open, at a Service.
struct Open {
    service: u8,
    kind: Kind,
    io: Io,
}

const GET: &str = "GET /trickle HTTP/1.1\r\nhost: a\r\n\r\n";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

/// Opens it; `None` when it is refused.
async fn open(world: &World, service: u8, kind: Kind) -> Option<Open> {
    let port = if kind == Kind::Tcp { 3306 } else { 80 };
    let mut io = world.tunnel(&vip(service, port).to_string()).await.ok()?;
    match kind {
        Kind::Stream | Kind::WebSocket => {
            write(&mut io, if kind == Kind::Stream { GET } else { UPGRADE }.as_bytes()).await;
            let mut head = [0; 12];
            tokio::time::timeout(PATIENCE, io.read_exact(&mut head)).await.unwrap().ok()?;
            if !matches!(&head, b"HTTP/1.1 200" | b"HTTP/1.1 101") {
                return None;
            }
        }
        Kind::Http2 => {
            let (mut sender, driver) = h2::client::handshake(io).await.ok()?;
            tokio::spawn(driver);
            let request = http::Request::get("http://a/endless").body(()).unwrap();
            let response = sender.send_request(request, true).ok()?.0;
            let response = tokio::time::timeout(PATIENCE, response).await.unwrap().ok()?;
            let is_ok = response.status() == 200;
            return is_ok.then(|| Open { service, kind, io: Io::Http2(response.into_body(), sender) });
        }
        Kind::Tcp => {
            write(&mut io, b"RAW").await;
            tokio::time::timeout(PATIENCE, io.read_exact(&mut [0; 3])).await.unwrap().ok()?;
        }
        Kind::Kept => {
            write(&mut io, b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
            // What the first request may does not matter: the connection is kept.
            answer(&mut io, &mut Vec::new()).await?;
        }
    }
    Some(Open { service, kind, io: Io::Tunnel(io) })
}

impl Open {
    /// It carries data both ways, or one way where there is one.
    async fn goes_on(&mut self, why: &str) {
        let data = async {
            match (&mut self.io, self.kind) {
                (Io::Http2(body, _), _) => {
                    let data = body.data().await?.ok()?;
                    body.flow_control().release_capacity(data.len()).ok()
                }
                (Io::Tunnel(io), Kind::Stream) => {
                    io.read(&mut [0; 512]).await.ok().filter(|n| *n > 0).map(drop)
                }
                (Io::Tunnel(_), Kind::Kept) => Some(()),
                (Io::Tunnel(io), Kind::WebSocket | Kind::Tcp | Kind::Http2) => {
                    io.write_all(b"RAW-beat").await.ok()?;
                    let mut got = Vec::new();
                    // A WebSocket's head may still be before it.
                    while !got.ends_with(b"RAW-beat") {
                        io.read_buf(&mut got).await.ok().filter(|n| *n > 0)?;
                    }
                    Some(())
                }
            }
        };
        let data =
            tokio::time::timeout(PATIENCE, data).await.unwrap_or_else(|_| panic!("{why}: it is stuck"));
        assert!(data.is_some(), "{why}: it has ended");
    }

    /// It ends; a kept connection may go on, but for the path that is denied.
    async fn ends(&mut self, why: &str) {
        let end = async {
            match &mut self.io {
                Io::Http2(body, _) => {
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                }
                Io::Tunnel(io) if self.kind == Kind::Kept => {
                    write(io, GET.as_bytes()).await;
                    let got = answer(io, &mut Vec::new()).await;
                    assert!(
                        got.is_none_or(|got| matches!(status(&got), 403 | 503)),
                        "{why}: it is answered on a kept connection"
                    );
                }
                Io::Tunnel(io) => while let Ok(1..) = io.read(&mut [0; 4096]).await {},
            }
        };
        tokio::time::timeout(PATIENCE, end).await.unwrap_or_else(|_| panic!("{why}: it goes on"));
    }
}

/// What the test knows of a Service.
#[derive(Clone, Copy)]
struct Known {
    place: Place,
    rule: Rule,
}

impl Known {
    fn allows(self, kind: Kind) -> bool {
        self.place == Place::Here && self.rule.allows(kind)
    }
}

async fn follow(steps: &[Step]) {
    let mut world = World::start(Limits::default()).await;
    for name in ["no-gate", "no-admin", "public"] {
        world.no_policy(name);
    }
    world.publish();
    let mut known = [Known { place: Place::Here, rule: Rule::Nothing }; SERVICES.len()];
    let mut opened: Vec<Open> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let why = |what: &str| format!("step {number} of {steps:?}: {what}");
        match *step {
            Step::Opens(service, kind) => {
                let new = open(&world, service, kind).await;
                // A connection that is kept is no request: its first one may be denied.
                let expected = known[usize::from(service)].allows(kind);
                if kind != Kind::Kept {
                    assert_eq!(new.is_some(), expected, "{}", why("opened"));
                }
                opened.extend(new.filter(|_| expected));
                continue;
            }
            Step::Goes(service, place) => {
                known[usize::from(service)].place = place;
                match place {
                    Place::Here => world.bind(service, Some(("default", OWN_ADDRESS))),
                    Place::Other => world.bind(service, Some(("default", "wp2.default.svc.cluster.local"))),
                    Place::Unbound => world.bind(service, None),
                    Place::Deleted => world.delete(service),
                }
            }
            Step::Gets(service, rule) => {
                known[usize::from(service)].rule = rule;
                let name = format!("of-{service}");
                match rule.policy(&name) {
                    Some(policy) => world.policy(Target::Service(world::service(service)), policy),
                    None => world.no_policy(&name),
                }
            }
        }
        world.publish();
        let mut left = Vec::new();
        for mut one in opened {
            let what = why(&format!("{:?} of service {}", one.kind, one.service));
            if known[usize::from(one.service)].allows(one.kind) {
                one.goes_on(&what).await;
                left.push(one);
            } else {
                one.ends(&what).await;
            }
        }
        opened = left;
    }
}

#[test]
fn whatever_moves_what_is_open_is_what_the_services_policies_allow() {
    use Kind::{Http2, Kept, Stream, Tcp, WebSocket};
    use Place::{Deleted, Here, Other, Unbound};
    use Rule::{DenyClient, DenyStream, DenyWebSocket, Nothing, OnlyClient, OnlySomebodyElse, OnlyWebSocket};
    let service = || select(&SERVICES[..]);
    let places = vec![Here, Here, Here, Other, Unbound, Deleted];
    let rules = vec![
        Nothing,
        Nothing,
        OnlyClient,
        OnlyClient,
        DenyStream,
        DenyWebSocket,
        OnlyWebSocket,
        OnlySomebodyElse,
        DenyClient,
    ];
    let steps = proptest::prop_oneof![
        1 => (service(), select(places)).prop_map(|(service, place)| Step::Goes(service, place)),
        2 => (service(), select(rules)).prop_map(|(service, rule)| Step::Gets(service, rule)),
        4 => (service(), select(&[Stream, WebSocket, Http2, Tcp, Kept][..]))
            .prop_map(|(service, kind)| Step::Opens(service, kind)),
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let cases = if config.cases == 256 { 24 } else { config.cases };
    let outcome = TestRunner::new(Config { cases, ..config }).run(&vec(steps, 1..40), |steps| {
        runtime.block_on(follow(&steps));
        Ok(())
    });
    outcome.unwrap();
}
