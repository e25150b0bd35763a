// SPDX-License-Identifier: Apache-2.0
//! A plan into a network namespace, and out of it.

use std::io;

use meltemi_linux::netns::NetNs;
use meltemi_linux::nft::{self, Family};
use meltemi_linux::rtnl::{Route, Rtnl, write_sysctl};

use crate::plan::{Options, Plan, TABLES};

/// Why a plan could not be applied or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Pod's network namespace cannot be opened.
    #[error("the Pod's network namespace: {0}")]
    Namespace(#[source] io::Error),
    /// A routing rule or route.
    #[error("capture routes: {0}")]
    Routes(#[source] io::Error),
    /// The nf_tables transaction; nothing of it is in force.
    #[error("capture rules: {0}")]
    Rules(#[source] io::Error),
    /// A setting of connection tracking.
    #[error("capture settings: {0}")]
    Settings(#[source] io::Error),
}

/// Whether the kernel takes a packet in the middle of a connection that it does not know for the connection's first. It
/// must not: whoever can write packets would send one such to a Pod (that the Pod drops in silence), and the connection
/// that he then opens on the same ports would count as that one and pass by our rules, which match the first packet only.
/// Connections from before the enrolment do not need it: what is not tracked is not redirected.
const PICK_UP: &str = "netfilter/nf_conntrack_tcp_loose";

/// Puts the plan in force; what was there before of an earlier plan is replaced. Idempotent.
///
/// The routes come first (without marks they do nothing), then all rules in one transaction, then the setting without
/// which they could be passed by.
///
/// # Errors
/// No right over the namespace; the rules are then as they were. Or the setting cannot be written (`/proc/sys` is read-only).
pub fn apply(netns: &NetNs, plan: &Plan) -> Result<(), Error> {
    route(netns, |rtnl, lo| {
        for family in &plan.rules {
            rtnl.add_rule(*family)?;
        }
        plan.routes.iter().try_for_each(|r| rtnl.set_route(&Route { interface: Some(lo), ..r.clone() }))
    })?;
    let planned =
        |(family, name): &(Family, &str)| plan.tables.iter().any(|t| t.family == *family && t.name == *name);
    let gone: Vec<_> = TABLES.iter().copied().filter(|t| !planned(t)).collect();
    // Before the rules where the kernel has the setting already, so that there is no moment between; after them it has.
    let _ = pick_up(netns, false);
    nft::replace(netns, &plan.tables, &gone).map_err(Error::Rules)?;
    pick_up(netns, false)
}

fn pick_up(netns: &NetNs, may: bool) -> Result<(), Error> {
    netns.run(|| write_sysctl(PICK_UP, if may { "1" } else { "0" })).map_err(Error::Settings)
}

/// Takes everything away that any plan can have put there. Idempotent.
///
/// # Errors
/// No right over the namespace.
pub fn remove(netns: &NetNs) -> Result<(), Error> {
    nft::replace(netns, &[], &TABLES).map_err(Error::Rules)?;
    match pick_up(netns, true) {
        // No connection was ever tracked here.
        Err(Error::Settings(error)) if error.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    let all = Plan::for_pod(&Options::default());
    route(netns, |rtnl, lo| {
        for rule in &all.rules {
            rtnl.delete_rule(*rule)?;
        }
        all.routes.iter().try_for_each(|r| rtnl.delete_route(&Route { interface: Some(lo), ..r.clone() }))
    })
}

/// Whether a plan is in force in a namespace: all tables that every plan has are there.
///
/// # Errors
/// The namespace cannot be entered or asked.
pub fn is_applied(netns: &NetNs) -> Result<bool, Error> {
    for (family, name) in &TABLES[1..] {
        if !nft::table_exists(netns, *family, name).map_err(Error::Rules)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn route(netns: &NetNs, work: impl FnOnce(&mut Rtnl, u32) -> io::Result<()>) -> Result<(), Error> {
    let all = || {
        let mut rtnl = netns.rtnl()?;
        let lo = rtnl.link_index("lo")?;
        work(&mut rtnl, lo)
    };
    all().map_err(Error::Routes)
}
