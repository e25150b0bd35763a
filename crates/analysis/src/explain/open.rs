// SPDX-License-Identifier: Apache-2.0
//! Attributes that the question leaves open: the verdict is UNKNOWN and names them, unless it is the same for all their values.

use std::net::IpAddr;

use meltemi_model::authz::Attribute;

use super::{Answer, NOWHERE, Request, Verdict};
use crate::ask::{Extra, Judge, given};
use crate::error::QueryError;
use crate::proof::{Answer as Found, Hints, Layer};
use crate::side::Attached;
use crate::witness::Witness;

/// What is known of a request, and who judges it.
pub(crate) struct Told<'a> {
    pub(crate) policies: &'a [Attached],
    pub(crate) layer: Layer,
    pub(crate) known: &'a Witness,
}

impl Told<'_> {
    fn judge(&self, open: &[Attribute], extras: &[Extra]) -> Result<Judge<'_>, QueryError> {
        // What is not known and not open is as it was judged.
        let mut known = self.known.clone();
        for ip in [&mut known.source_ip, &mut known.destination_ip, &mut known.remote_ip] {
            ip.get_or_insert(NOWHERE);
        }
        let given = given(&known, self.layer, open);
        let mut judge = Judge::new(self.policies, self.layer, &given, &Hints::default())?;
        judge.without_extras(extras);
        Ok(judge)
    }
}

/// What was not told and a waypoint sees.
pub(super) fn not_told(request: &Request, to_ip: Option<IpAddr>, port: bool, stream: bool) -> Vec<Attribute> {
    let all = [
        (Attribute::Method, !stream && request.method.is_none()),
        (Attribute::Path, !stream && request.path.is_none()),
        (Attribute::Host, !stream && request.host.is_none()),
        (Attribute::SourceIp, request.from_ip.is_none()),
        (Attribute::RemoteIp, !stream && request.remote_ip.or(request.from_ip).is_none()),
        (Attribute::DestinationIp, to_ip.is_none()),
        (Attribute::DestinationPort, port),
    ];
    all.into_iter().filter(|(_, open)| *open).map(|(attribute, _)| attribute).collect()
}

/// What was told and the proxy does not see: what is assumed, and warnings. `looks`: whether a RequestAuthentication applies
/// there.
pub(super) fn unseen(request: &Request, looks: bool) -> (Vec<String>, Vec<String>) {
    let (mut assumed, mut warnings) = (Vec::new(), Vec::new());
    if request.token.is_some() {
        assumed.push("the token is verified".to_owned());
        if !looks {
            let text = "no RequestAuthentication applies there: the proxy verifies no token, and its claims are not seen";
            warnings.push(text.to_owned());
        }
    }
    if request.sni.is_some() {
        let text = "waypoints of this version read no server name of TLS: a condition on it sees none";
        warnings.push(text.to_owned());
    }
    if request.remote_ip.is_some() && request.remote_ip != request.from_ip {
        let text =
            "waypoints of this version trust no proxy before them: the remote address is the client's own";
        warnings.push(text.to_owned());
    }
    (assumed, warnings)
}

/// Whether some request is decided otherwise. What could not be found out might be.
fn differs(judge: &Judge<'_>, verdict: Verdict) -> bool {
    let other = if verdict == Verdict::Allow { judge.denied() } else { judge.allowed(&[]) };
    other != Found::No
}

/// What is open must not matter: when another value of it is decided otherwise, nobody knows.
pub(super) fn depends(answer: &mut Answer, told: &Told<'_>, open: &[Attribute]) {
    if answer.verdict == Verdict::Unknown || open.is_empty() {
        return;
    }
    let asked = |open: &[Attribute]| told.judge(open, &[]).map(|judge| differs(&judge, answer.verdict));
    let unknown = match asked(open) {
        Ok(false) => return,
        Err(why) => format!("something was not told, and whether it matters cannot be said: {why}"),
        Ok(true) => {
            let alone = open.iter().filter(|a| asked(std::slice::from_ref(a)) != Ok(false));
            let mut names: Vec<&str> = alone.map(option).collect();
            if names.is_empty() {
                names = open.iter().map(option).collect();
            }
            names.dedup();
            format!("the policies look at what was not told: say {}", names.join(" and "))
        }
    };
    answer.verdict = Verdict::Unknown;
    answer.reason = unknown;
}

/// Headers and the like that a request may as well have, and that would change the answer.
pub(super) fn absent(answer: &Answer, told: &Told<'_>, token: bool) -> Vec<String> {
    if answer.verdict == Verdict::Unknown {
        return Vec::new();
    }
    let Ok(all) = told.judge(&[], &[]) else { return Vec::new() };
    let matters = |extra: &Extra| {
        let judge = told.judge(&[], std::slice::from_ref(extra));
        judge.is_ok_and(|judge| differs(&judge, answer.verdict))
    };
    let extras = all.extras().into_iter().filter(matters);
    let text = |extra| match extra {
        Extra::Header(name) => format!("the request has no header {name} (--header {name}=VALUE)"),
        Extra::Token if token => "the token has no other claims than those that are told".to_owned(),
        Extra::Token => "the request has no token (--request-principal, --claim)".to_owned(),
        Extra::ServerName => "the connection has no server name of TLS (--sni)".to_owned(),
    };
    extras.map(text).collect()
}

/// What was not recorded of a request and would change the verdict; none when nothing does.
pub(crate) fn unrecorded(told: &Told<'_>, verdict: Verdict) -> Option<String> {
    let known = told.known;
    let open = [
        (Attribute::SourceIp, known.source_ip.is_none()),
        (Attribute::RemoteIp, known.remote_ip.is_none() && told.layer == Layer::Request),
        (Attribute::DestinationIp, known.destination_ip.is_none()),
    ];
    let open: Vec<Attribute> = open.into_iter().filter(|(_, open)| *open).map(|(a, _)| a).collect();
    let extras = match told.judge(&[], &[]) {
        Ok(judge) => judge.extras(),
        Err(why) => return Some(why.to_string()),
    };
    let asked = |open: &[Attribute], extras: &[Extra]| {
        told.judge(open, extras).map_or(true, |judge| differs(&judge, verdict))
    };
    if (open.is_empty() && extras.is_empty()) || !asked(&open, &extras) {
        return None;
    }
    let attributes = open.iter().filter(|a| asked(std::slice::from_ref(a), &[])).map(|a| match a {
        Attribute::DestinationIp => "the address that was addressed".to_owned(),
        _ => "the client's address".to_owned(),
    });
    let extras = extras.iter().filter(|e| asked(&[], std::slice::from_ref(e))).map(|e| match e {
        Extra::Header(name) => format!("header {name}"),
        Extra::Token => "the token".to_owned(),
        Extra::ServerName => "the server name of TLS".to_owned(),
    });
    let mut names: Vec<String> = attributes.chain(extras).collect();
    names.dedup();
    Some(if names.is_empty() { "several things at once".to_owned() } else { names.join(", ") })
}

/// The option that tells an attribute.
fn option(attribute: &Attribute) -> &'static str {
    match attribute {
        Attribute::Method => "--method",
        Attribute::Path => "--path",
        Attribute::Host => "--host",
        Attribute::SourceIp => "--from-ip",
        Attribute::RemoteIp => "--remote-ip",
        Attribute::DestinationIp => "--to-ip",
        _ => "--port",
    }
}
