// SPDX-License-Identifier: Apache-2.0
//! `metav1.DeleteOptions`, from the body and the query. A value that they do not have is refused: a misspelt `Orphan`
//! would delete what is to stay.

use serde_json::Value;

use crate::options::{Options, Propagation};
use crate::schema;
use crate::status::{Cause, Refusal};

/// How an object is deleted.
#[derive(Clone, Debug, Default)]
pub(in crate::rest) struct DeleteOptions {
    /// Seconds until a Pod is killed.
    pub(super) grace: Option<i64>,
    pub(super) propagation: Option<Propagation>,
    /// Precondition: the object's uid.
    pub(super) uid: Option<String>,
    /// Precondition: the object's revision.
    pub(super) resource_version: Option<String>,
    pub(in crate::rest) dry_run: bool,
}

impl DeleteOptions {
    /// Query and body are one; they may say the same, but not different things.
    ///
    /// # Errors
    /// 400 when the body is not `DeleteOptions` or differs from the query, 422 for values that there are not.
    pub(in crate::rest) fn new(query: &Options, body: Option<Value>) -> Result<Self, Refusal> {
        let body = body.filter(|body| !body.is_null()).map(schema::delete_options).transpose()?;
        let body = body.unwrap_or_default();
        let propagation = one(
            "propagationPolicy",
            propagation(query.propagation, query.orphan)?,
            propagation(policy(&body)?, body["orphanDependents"].as_bool())?,
        )?;
        let text = |key: &str| body["preconditions"][key].as_str().map(str::to_owned);
        Ok(Self {
            grace: one("gracePeriodSeconds", query.grace_period, body["gracePeriodSeconds"].as_i64())?,
            propagation,
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            dry_run: query.dry_run | dry_run(&body)?,
        })
    }
}

/// The one that is given; both only if they are equal.
fn one<T: PartialEq>(name: &str, query: Option<T>, body: Option<T>) -> Result<Option<T>, Refusal> {
    match (query, body) {
        (Some(query), Some(body)) if query != body => {
            Err(Refusal::bad_request(format!("{name}: the query and the body of the request differ")))
        }
        (query, body) => Ok(body.or(query)),
    }
}

fn invalid(cause: Cause) -> Refusal {
    Refusal::invalid("DeleteOptions", "meta.k8s.io", "", &[cause])
}

fn policy(body: &Value) -> Result<Option<Propagation>, Refusal> {
    let given = &body["propagationPolicy"];
    let Some(name) = given.as_str().filter(|name| !name.is_empty()) else { return Ok(None) };
    let found = Propagation::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, policy)| Some(*policy)).ok_or_else(|| {
        let allowed = Propagation::ALL.map(|(name, _)| name.to_owned());
        invalid(Cause::unsupported("propagationPolicy", given, &allowed))
    })
}

fn propagation(policy: Option<Propagation>, orphan: Option<bool>) -> Result<Option<Propagation>, Refusal> {
    if policy.is_some() && orphan.is_some() {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        return Err(invalid(Cause::invalid("propagationPolicy", &Value::Null, why)));
    }
    let of_orphan = |orphan| if orphan { Propagation::Orphan } else { Propagation::Background };
    Ok(policy.or(orphan.map(of_orphan)))
}

fn dry_run(body: &Value) -> Result<bool, Refusal> {
    let values = body["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
    match values.iter().find(|value| **value != "All") {
        Some(other) => Err(invalid(Cause::unsupported("dryRun", other, &["All".to_owned()]))),
        None => Ok(!values.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn query_and_body_are_one_and_every_value_is_known() {
        let cases = [
            ("", json!({"propagationPolicy": "Orphan"}), Ok((Some(Propagation::Orphan), false))),
            ("", json!({"propagationPolicy": "orphan"}), Err(422)),
            ("", json!({"orphanDependents": true}), Ok((Some(Propagation::Orphan), false))),
            ("", json!({"orphanDependents": true, "propagationPolicy": "Orphan"}), Err(422)),
            ("propagationPolicy=Orphan", json!({}), Ok((Some(Propagation::Orphan), false))),
            (
                "propagationPolicy=Orphan",
                json!({"propagationPolicy": "Orphan"}),
                Ok((Some(Propagation::Orphan), false)),
            ),
            ("propagationPolicy=Orphan", json!({"propagationPolicy": "Background"}), Err(400)),
            ("gracePeriodSeconds=1", json!({"gracePeriodSeconds": 2}), Err(400)),
            ("", json!({"gracePeriodSeconds": "2"}), Err(400)),
            ("dryRun=All", json!({}), Ok((None, true))),
            ("", json!({"dryRun": ["All"]}), Ok((None, true))),
            ("", json!({"dryRun": ["all"]}), Err(422)),
            ("", json!({"dryRun": "All"}), Err(400)),
            ("", json!({"dryrun": ["All"]}), Err(400)),
            ("", json!({"preconditions": {"uuid": "x"}}), Err(400)),
            ("", json!({"kind": "Pod"}), Err(400)),
            ("", json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": null}), Ok((None, false))),
            ("", json!([]), Err(400)),
        ];
        for (query, body, expected) in cases {
            let options = DeleteOptions::new(&Options::parse(query).unwrap(), Some(body.clone()));
            let got = options.map(|o| (o.propagation, o.dry_run)).map_err(|refusal| refusal.code);
            assert_eq!(got, expected, "{query} {body}");
        }
    }
}
