// SPDX-License-Identifier: Apache-2.0
//! Jobs: Pods that run to their end, as often as asked for, tried again within bounds.

mod plan;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use meltemi_runtime::Tasks;
use serde_json::{Value, json};

use self::plan::{Plan, plan};
use crate::cache::{Key, controllers_of};
use crate::cluster::Cluster;
use crate::pods;
use crate::queue::{Outcome, Queue};

const NAME: &str = "job-controller";

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.jobs.subscribe(move |change| {
        if let Some(job) = change.new {
            add.add(Key::of(&**job));
        }
    });
    let add = queue.clone();
    cluster.pods.subscribe(move |change| {
        for key in controllers_of(change, "Job") {
            add.add(key);
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.pods.synced(), c.jobs.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, NAME, 4, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(job) = cluster.jobs.get(key) else { return Ok(None) };
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let owned = cluster.pods.controlled_by(&key.namespace, uid);
    let plan = plan(&job, &owned, Timestamp::now());
    if plan.remove {
        cluster.delete(&*job).await?;
        return Ok(None);
    }
    make(cluster, &job, key, plan.create).await?;
    for pod in owned.iter().filter(|p| p.metadata.name.as_ref().is_some_and(|n| plan.delete.contains(n))) {
        cluster.delete(&**pod).await?;
        let message = format!("Deleted pod: {}", pod.metadata.name.as_deref().unwrap_or_default());
        cluster.events.normal(NAME, &*job, "SuccessfulDelete", message);
    }
    write_status(cluster, &job, key, &plan).await?;
    Ok(plan.again)
}

async fn make(cluster: &Cluster, job: &Job, key: &Key, count: usize) -> Result<(), kube::Error> {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    for _ in 0..count {
        let pod = pods::from_template(job, &template, pods::generated(&key.name), &[]);
        match cluster.create(&cluster.pods, &pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.metadata.name.unwrap_or_default());
                cluster.events.normal(NAME, job, "SuccessfulCreate", message);
            }
            Err(error) => {
                cluster.events.warning(NAME, job, "FailedCreate", format!("Error creating: {error}"));
                return Err(error);
            }
        }
    }
    Ok(())
}

async fn write_status(cluster: &Cluster, job: &Job, key: &Key, plan: &Plan) -> Result<(), kube::Error> {
    let old = job.status.clone().unwrap_or_default();
    if old == plan.status {
        return Ok(());
    }
    for condition in plan.status.conditions.iter().flatten() {
        let known = old
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == condition.type_ && c.status == condition.status);
        if known || condition.status != "True" {
            continue;
        }
        let message = condition.message.clone().unwrap_or_default();
        match condition.type_.as_str() {
            "Complete" => cluster.events.normal(NAME, job, "Completed", message),
            "Failed" => {
                let reason = condition.reason.clone().unwrap_or_default();
                cluster.events.warning(NAME, job, &reason, message);
            }
            _ => {}
        }
    }
    let mut status = json!(plan.status);
    // A field that is gone must be said to be so in a merge.
    for field in ["active", "succeeded", "failed", "ready", "terminating", "startTime", "completionTime"] {
        if status.get(field).is_none() {
            status[field] = Value::Null;
        }
    }
    cluster.merge_status(&cluster.jobs, key, status).await
}
