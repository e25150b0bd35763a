// SPDX-License-Identifier: Apache-2.0
//! Which revision a request is to be answered from: `resourceVersion`, `resourceVersionMatch`, `continue` and
//! `sendInitialEvents`, as Kubernetes defines them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::call::Call;
use crate::status::{Cause, Refusal};
use crate::store::{ObjectName, OutOfHistory};

/// Where a list begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListStart {
    /// The revision of the whole list; `None` for the current one.
    pub(super) revision: Option<u64>,
    /// The last object of the page before.
    pub(super) after: Option<ObjectName>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchStart {
    /// With what exists, at this revision or later.
    Existing {
        /// 0 for any.
        at_least: u64,
    },
    /// With the changes after a revision.
    After(u64),
}

/// `resourceVersionMatch`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Exact,
    NotOlderThan,
}

fn raw<'a>(call: &'a Call, key: &str) -> Option<&'a str> {
    let pairs = call.options.raw.iter().rev();
    pairs.filter(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str()).next()
}

fn invalid(causes: &[Cause]) -> Refusal {
    Refusal::invalid("ListOptions", "meta.k8s.io", "", causes)
}

fn number(text: &str) -> Result<u64, Refusal> {
    text.parse().map_err(|_| {
        Refusal::bad_request(format!("resourceVersion: Invalid value: \"{text}\": must be a number"))
    })
}

/// The revision that a request names; `None` if it names none.
fn requested(call: &Call) -> Result<Option<u64>, Refusal> {
    call.options.resource_version.as_deref().map(number).transpose()
}

fn matching(call: &Call) -> Result<Option<Match>, Refusal> {
    let field = "resourceVersionMatch";
    let Some(text) = raw(call, field) else { return Ok(None) };
    if call.options.resource_version.is_none() {
        let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
        return Err(invalid(&[Cause::forbidden(field, why)]));
    }
    match text {
        "Exact" => Ok(Some(Match::Exact)),
        "NotOlderThan" => Ok(Some(Match::NotOlderThan)),
        other => {
            let allowed = ["Exact", "NotOlderThan"].map(str::to_owned);
            Err(invalid(&[Cause::unsupported(field, &json!(other), &allowed)]))
        }
    }
}

/// Fails if the server has not reached a revision. It never will in time: every revision comes from this server.
pub(super) fn reached(call: &Call, wanted: u64) -> Result<(), Refusal> {
    let current = call.api.store.revision();
    if wanted > current { Err(Refusal::too_large_revision(wanted, current)) } else { Ok(()) }
}

/// Checks the revision that a GET names.
pub(super) fn check_get(call: &Call) -> Result<(), Refusal> {
    reached(call, requested(call)?.unwrap_or_default())
}

/// Where a list begins.
///
/// # Errors
/// 400 or 422 for options that make no sense, 504 for a revision of the future.
pub(super) fn of_list(call: &Call) -> Result<ListStart, Refusal> {
    if raw(call, "sendInitialEvents").is_some() {
        let why = "sendInitialEvents is forbidden for list";
        return Err(invalid(&[Cause::forbidden("sendInitialEvents", why)]));
    }
    let revision = requested(call)?;
    let wanted = matching(call)?;
    if let Some(token) = &call.options.continue_token {
        if wanted.is_some() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            return Err(invalid(&[Cause::forbidden("resourceVersionMatch", why)]));
        }
        if revision.is_some_and(|revision| revision != 0) {
            return Err(Refusal::bad_request("resourceVersion must not be set together with continue"));
        }
        return parse_token(token);
    }
    let Some(revision) = revision else { return Ok(ListStart::default()) };
    if wanted == Some(Match::Exact) && revision == 0 {
        let why = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
        return Err(invalid(&[Cause::forbidden("resourceVersionMatch", why)]));
    }
    reached(call, revision)?;
    // Without a match, a revision together with a limit means exactly that revision.
    let exact = wanted == Some(Match::Exact) || (wanted.is_none() && call.options.limit > 0 && revision > 0);
    Ok(ListStart { revision: exact.then_some(revision), after: None })
}

/// Where a watch begins.
///
/// # Errors
/// 400 or 422 for options that make no sense.
pub(super) fn of_watch(call: &Call) -> Result<WatchStart, Refusal> {
    let revision = requested(call)?;
    if call.options.send_initial_events {
        return Ok(WatchStart::Existing { at_least: revision.unwrap_or_default() });
    }
    Ok(match revision {
        None | Some(0) => WatchStart::Existing { at_least: 0 },
        Some(revision) => WatchStart::After(revision),
    })
}

/// A token for the list of a revision (`None`: whatever is current then), after an object.
pub(super) fn token(revision: Option<u64>, after: &ObjectName) -> String {
    let value = json!({"v": 2, "revision": revision, "namespace": after.0, "name": after.1});
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn parse_token(token: &str) -> Result<ListStart, Refusal> {
    let wrong = || Refusal::bad_request("continue key is not valid");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
    let text = |key: &str| value[key].as_str().map(str::to_owned).ok_or_else(wrong);
    let revision = match &value["revision"] {
        Value::Null => None,
        number => Some(number.as_u64().ok_or_else(wrong)?),
    };
    Ok(ListStart { revision, after: Some((text("namespace")?, text("name")?)) })
}

/// The refusal of a list whose revision is out of the history. A page gets a token with which the rest can be listed
/// at the current revision.
pub(super) fn out_of_history(call: &Call, start: &ListStart, why: OutOfHistory) -> Refusal {
    let wanted = start.revision.unwrap_or_default();
    let Some(after) = &start.after else {
        return match why {
            OutOfHistory::Forgotten => Refusal::expired(format!("{why}: {wanted}")),
            OutOfHistory::NotReached => Refusal::too_large_revision(wanted, call.api.store.revision()),
        };
    };
    let message = "the revision of this list is no longer in the history: begin a new list, or take the token of this \
                   answer for the rest, in which objects may be missing that were changed meanwhile";
    Refusal::expired_page(message, &token(None, after))
}
