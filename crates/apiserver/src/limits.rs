// SPDX-License-Identifier: Apache-2.0
//! Requests in flight, counted for each user: one user does not take what the others need. Those who keep the cluster
//! running (administrators, nodes, the mesh's own parts) have a share that nobody else can fill.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};

use crate::auth::User;
use crate::status::Refusal;

/// Requests that read, of one user at once and of all.
pub const READS: (usize, usize) = (100, 400);
/// Requests that write, of one user at once and of all: each may hold a body and several copies of an object.
pub const WRITES: (usize, usize) = (16, 64);
/// Watches, logs and sessions, of one user at once and of all.
pub const STREAMS: (usize, usize) = (200, 1000);
/// Requests of any kind of one user with a share of its own: a node watches each ConfigMap and Secret of its Pods.
pub const PRIVILEGED: usize = 10_000;

/// What a request takes, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It reads, and is answered at once.
    Read,
    /// It writes, and is answered at once.
    Write,
    /// It stays open: a watch, logs, a session.
    Stream,
}

/// Requests in flight; clones share the count.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    by: HashMap<(Class, String), usize>,
    all: HashMap<Class, usize>,
}

/// What is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    Read,
    Write,
    Stream,
    Privileged,
}

impl Class {
    fn of(user: &User, kind: Kind) -> Self {
        match kind {
            _ if is_privileged(user) => Self::Privileged,
            Kind::Read => Self::Read,
            Kind::Write => Self::Write,
            Kind::Stream => Self::Stream,
        }
    }

    /// Most of one user, and of all.
    const fn bounds(self) -> (usize, usize) {
        match self {
            Self::Read => READS,
            Self::Write => WRITES,
            Self::Stream => STREAMS,
            Self::Privileged => (PRIVILEGED, usize::MAX),
        }
    }
}

/// Administrators, nodes and components; the mesh's own ServiceAccounts, which only an administrator can use.
fn is_privileged(user: &User) -> bool {
    const GROUPS: [&str; 4] = [
        "system:masters",
        "system:nodes",
        "system:serviceaccounts:kube-system",
        "system:serviceaccounts:istio-system",
    ];
    user.name.starts_with("system:kube-") || GROUPS.iter().any(|group| user.is_in(group))
}

/// A place of a request, given back when dropped.
#[derive(Debug)]
pub struct Slot {
    of: InFlight,
    key: (Class, String),
}

impl InFlight {
    /// A place for a request.
    ///
    /// # Errors
    /// 429 when the user, or all users together, have as many as they may.
    pub fn take(&self, user: &User, kind: Kind) -> Result<Slot, Refusal> {
        let class = Class::of(user, kind);
        let (each, all) = class.bounds();
        let key = (class, user.name.clone());
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by.get(&key).copied().unwrap_or_default();
        let others = taken.all.get(&class).copied().unwrap_or_default();
        if own >= each {
            return Err(Refusal::too_many_requests(format!("{} has {each} requests in flight", user.name)));
        }
        if others >= all {
            return Err(Refusal::too_many_requests(format!("there are {all} requests in flight")));
        }
        taken.by.insert(key.clone(), own + 1);
        taken.all.insert(class, others + 1);
        Ok(Slot { of: self.clone(), key })
    }
}

impl InFlight {
    /// How many requests of each class are in flight.
    pub fn counts(&self) -> [(&'static str, usize); 4] {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |class| taken.all.get(&class).copied().unwrap_or_default();
        [
            ("read", count(Class::Read)),
            ("write", count(Class::Write)),
            ("stream", count(Class::Stream)),
            ("privileged", count(Class::Privileged)),
        ]
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.all.get_mut(&self.key.0) {
            *count -= 1;
        }
        if let Some(count) = taken.by.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.by.remove(&self.key);
            }
        }
    }
}

/// A body that holds the place of its request until it is sent or given up.
struct Held {
    body: Body,
    _slot: Slot,
}

/// Keeps a place taken for as long as the body of the answer is not sent.
pub fn hold(response: Response<Body>, slot: Slot) -> Response<Body> {
    response.map(|body| Body::new(Held { body, _slot: slot }))
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, group: &str) -> User {
        User { name: name.into(), groups: vec![group.into()], ..User::default() }
    }

    #[test]
    fn a_user_fills_its_own_part_only_and_the_cluster_goes_on() {
        let in_flight = InFlight::default();
        let mut held = Vec::new();
        let mut fill = |user: &User, kind: Kind| {
            let before = held.len();
            while let Ok(slot) = in_flight.take(user, kind) {
                held.push(slot);
            }
            held.len() - before
        };
        let name = |n: usize| user(&format!("system:serviceaccount:a:{n}"), "system:authenticated");
        for (kind, (each, all)) in [(Kind::Read, READS), (Kind::Write, WRITES), (Kind::Stream, STREAMS)] {
            assert_eq!(fill(&name(0), kind), each, "{kind:?}");
            assert_eq!(fill(&name(1), kind), each, "{kind:?}: another user has its own part");
            let others: usize = (2..20).map(|n| fill(&name(n), kind)).sum();
            assert_eq!(others, all - 2 * each, "{kind:?}");
        }
        assert_eq!(in_flight.take(&name(99), Kind::Read).unwrap_err().code, 429);
        for (name, group) in [
            ("kubernetes-admin", "system:masters"),
            ("system:node:node-1", "system:nodes"),
            ("system:kube-controller-manager", "system:authenticated"),
            ("system:serviceaccount:istio-system:istiod", "system:serviceaccounts:istio-system"),
        ] {
            assert_eq!(fill(&user(name, group), Kind::Write), PRIVILEGED, "{name}");
        }
        held.clear();
        assert!(in_flight.take(&name(99), Kind::Read).is_ok(), "what is dropped is given back");
        assert!(in_flight.0.lock().unwrap().by.len() <= 1, "users without requests are not remembered");
    }

    #[tokio::test]
    async fn a_request_is_in_flight_until_its_answer_is_sent() {
        let in_flight = InFlight::default();
        let user = user("a", "b");
        let mut answers: Vec<_> = (0..READS.0)
            .map(|_| hold(Response::new(Body::from("x")), in_flight.take(&user, Kind::Read).unwrap()))
            .collect();
        assert!(in_flight.take(&user, Kind::Read).is_err());
        let body = answers.remove(0).into_body();
        assert_eq!(&axum::body::to_bytes(body, 10).await.unwrap()[..], b"x");
        assert!(in_flight.take(&user, Kind::Read).is_ok());
    }
}
