// SPDX-License-Identifier: Apache-2.0
//! Moves: Services and Pods that leave this waypoint while connections to them are open. One task looks at every change of the
//! mesh, by what is addressed and not by connection: ten thousand idle connections to one Service cost a change nothing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use meltemi_model::{NamespacedHostname, NamespacedName, WorkloadUid};
use meltemi_runtime::DrainWatch;
use meltemi_view::{Mesh, View};
use tokio_util::sync::CancellationToken;

use crate::context::{serves, serves_workload};
use crate::served::Served;

/// What connections are addressed to at a waypoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Addressed {
    Service(NamespacedHostname),
    Workload(WorkloadUid),
}

impl Addressed {
    /// `None` at a gateway.
    fn of(served: &Served) -> Option<Self> {
        let service = served.service.clone().map(Self::Service);
        service.or_else(|| served.workload.clone().map(Self::Workload))
    }

    fn is_served(&self, mesh: &Mesh, gateway: &NamespacedName) -> bool {
        match self {
            Self::Service(key) => mesh.snapshot.service(key).is_some_and(|s| serves(gateway, s)),
            Self::Workload(uid) => mesh.snapshot.workload(uid).is_some_and(|w| serves_workload(gateway, w)),
        }
    }
}

/// Held by the connections to one Service or Pod; cancelled when it moves.
type Token = Arc<CancellationToken>;

/// What open connections are addressed to; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moves(Arc<Mutex<HashMap<Addressed, Weak<CancellationToken>>>>);

impl Moves {
    fn lock(&self) -> MutexGuard<'_, HashMap<Addressed, Weak<CancellationToken>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token(&self, addressed: &Addressed) -> Token {
        let mut open = self.lock();
        let known = open.get(addressed).and_then(Weak::upgrade).filter(|token| !token.is_cancelled());
        known.unwrap_or_else(|| {
            let token = Token::default();
            open.insert(addressed.clone(), Arc::downgrade(&token));
            token
        })
    }

    /// Resolves when the Gateway's proxies are no longer the waypoint of what a connection is addressed to; never at a gateway.
    pub(crate) async fn left(&self, served: &Served, view: &View, gateway: &NamespacedName) {
        let Some(addressed) = Addressed::of(served) else { return std::future::pending().await };
        // Registered before the state is read: a change in between cancels the token.
        let token = self.token(&addressed);
        if addressed.is_served(&view.mesh(), gateway) {
            token.cancelled().await;
        }
    }

    /// Looks at every change, until a drain has left nothing that may be open.
    pub(crate) async fn watch(
        self,
        view: View,
        gateway: NamespacedName,
        drain: DrainWatch,
    ) -> Result<(), Infallible> {
        let mut changes = view.changes();
        let last = view.last_served(drain);
        tokio::pin!(last);
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                () = &mut last => return Ok(()),
            }
            self.look(&view.mesh(), &gateway);
        }
    }

    fn look(&self, mesh: &Mesh, gateway: &NamespacedName) {
        self.lock().retain(|addressed, token| {
            let Some(token) = token.upgrade() else { return false };
            let is_served = addressed.is_served(mesh, gateway);
            if !is_served {
                token.cancel();
            }
            is_served
        });
    }
}
