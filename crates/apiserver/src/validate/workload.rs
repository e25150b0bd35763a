// SPDX-License-Identifier: Apache-2.0
//! What makes Pods, and what limits their disruption.

use serde_json::Value;

use super::{at_least_zero, one_of, template};
use crate::status::Cause;

/// Deployments, ReplicaSets, StatefulSets, DaemonSets and ReplicationControllers.
pub(super) fn controller(kind: &str, spec: &Value, faults: &mut Vec<Cause>) {
    at_least_zero(&spec["replicas"], "spec.replicas", faults);
    at_least_zero(&spec["minReadySeconds"], "spec.minReadySeconds", faults);
    let claims = spec["volumeClaimTemplates"].as_array().into_iter().flatten();
    // A claim is a volume of its name.
    let claims: Vec<Value> = claims.map(|claim| claim["metadata"].clone()).collect();
    template(&spec["template"], "spec.template", &["Always"], &claims, faults);
    let (field, types): (_, &[&str]) = match kind {
        "Deployment" => ("strategy", &["Recreate", "RollingUpdate"]),
        "DaemonSet" | "StatefulSet" => ("updateStrategy", &["OnDelete", "RollingUpdate"]),
        _ => return,
    };
    let strategy = &spec[field];
    one_of(&strategy["type"], &format!("spec.{field}.type"), types, faults);
    let rolling = &strategy["rollingUpdate"];
    let path = format!("spec.{field}.rollingUpdate");
    if rolling.is_object() && strategy["type"] != "RollingUpdate" {
        let message =
            format!("Forbidden: may not be specified when strategy `type` is '{}'", strategy["type"]);
        faults.push(Cause { field: path, reason: "FieldValueForbidden", message });
        return;
    }
    for bound in ["maxSurge", "maxUnavailable"] {
        share(&rolling[bound], &format!("{path}.{bound}"), faults);
    }
    let is_zero = |value: &Value| *value == 0 || value == "0%";
    if kind != "StatefulSet" && is_zero(&rolling["maxSurge"]) && is_zero(&rolling["maxUnavailable"]) {
        let why = "may not be 0 when `maxSurge` is 0";
        faults.push(Cause::invalid(format!("{path}.maxUnavailable"), &rolling["maxUnavailable"], why));
    }
}

/// A number of Pods or a percentage of them.
fn share(value: &Value, path: &str, faults: &mut Vec<Cause>) {
    at_least_zero(value, path, faults);
    let percent = |text: &str| text.strip_suffix('%').is_some_and(|number| number.parse::<u16>().is_ok());
    if value.as_str().is_some_and(|text| !percent(text)) {
        faults.push(Cause::invalid(path, value, "must be an integer or a percentage (e.g. '1', '5%')"));
    }
}

pub(super) fn job(spec: &Value, path: &str, faults: &mut Vec<Cause>) {
    for field in
        ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"]
    {
        at_least_zero(&spec[field], &format!("{path}.{field}"), faults);
    }
    one_of(&spec["completionMode"], &format!("{path}.completionMode"), &["Indexed", "NonIndexed"], faults);
    template(&spec["template"], &format!("{path}.template"), &["OnFailure", "Never"], &[], faults);
}

pub(super) fn cron_job(spec: &Value, faults: &mut Vec<Cause>) {
    let schedule = spec["schedule"].as_str().unwrap_or_default();
    if schedule.is_empty() {
        faults.push(Cause::required("spec.schedule"));
    } else if !is_schedule(schedule) {
        let why = "must be five fields (minute hour day month weekday), or one of @hourly, @daily, @weekly, @monthly, \
                   @yearly, @every DURATION";
        faults.push(Cause::invalid("spec.schedule", &spec["schedule"], why));
    }
    one_of(&spec["concurrencyPolicy"], "spec.concurrencyPolicy", &["Allow", "Forbid", "Replace"], faults);
    job(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", faults);
}

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

fn is_schedule(text: &str) -> bool {
    if let Some(name) = text.strip_prefix('@') {
        let names = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        return names.contains(&name)
            || name.strip_prefix("every ").is_some_and(|every| !every.trim().is_empty());
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    let bounds: [(u32, u32, &[&str]); 5] =
        [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, &MONTHS), (0, 6, &DAYS)];
    fields.len() == bounds.len()
        && fields.iter().zip(bounds).all(|(field, bound)| field.split(',').all(|part| is_range(part, bound)))
}

/// `*`, `?`, `5`, `1-5`, `*/10`, `1-30/5`, with names of months and days.
fn is_range(part: &str, (least, most, names): (u32, u32, &[&str])) -> bool {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|step| !step.parse::<u32>().is_ok_and(|step| step > 0)) {
        return false;
    }
    if range == "*" || range == "?" {
        return true;
    }
    let number = |text: &str| {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let named = named.and_then(|at| u32::try_from(at).ok()).map(|at| at + least);
        named.or_else(|| text.parse().ok()).filter(|number| (least..=most).contains(number))
    };
    match range.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        None => number(range).is_some(),
    }
}

pub(super) fn disruption_budget(spec: &Value, faults: &mut Vec<Cause>) {
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        faults.push(Cause::invalid("spec", &"".into(), why));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        share(&spec[field], &format!("spec.{field}"), faults);
    }
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    one_of(&spec["unhealthyPodEvictionPolicy"], "spec.unhealthyPodEvictionPolicy", &policies, faults);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for right in
            ["* * * * *", "*/5 0-6 1,15 JAN-MAR mon", "0 0 31 12 6", "@daily", "@every 1h", "1-30/5 * ? * *"]
        {
            assert!(is_schedule(right), "{right}");
        }
        for wrong in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "a * * * *",
            "@often",
            "5-1 * * * *",
        ] {
            assert!(!is_schedule(wrong), "{wrong}");
        }
    }
}
