// SPDX-License-Identifier: Apache-2.0
//! Policy lints for the `meltemi.dev/Suspicious` condition, computed in the background after a change.
//!
//! The reviewer is handed in by the binary, for what policies mean over all requests is not for a control plane to know.
//! It works on a thread of its own, never in the way of a change, and rests longer than it works.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meltemi_model::NamespacedName;
use meltemi_runtime::Tasks;
use meltemi_translate::MeshConfig;
use meltemi_translate::condition::Condition;
use meltemi_translate::facts::Labels;
use meltemi_translate::security::Authorization;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::leader::Leadership;

/// Type of the condition.
pub const SUSPICIOUS: &str = "meltemi.dev/Suspicious";
/// Bytes of a condition's text, beside the note that there is more.
const MAX_TEXT: usize = 4096;
/// How long changes are gathered before a review.
const GATHER: Duration = Duration::from_millis(200);
/// How long a review may go on before it leaves the rest unsaid.
const WORK: Duration = Duration::from_secs(2);
/// The rest after a review, in multiples of its own time: at most a tenth of one core is spent.
const REST: u32 = 9;

/// A Service, as far as a review looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetedService {
    /// Its labels.
    pub labels: Labels,
    /// Its ports and those of its Pods; none for a port of the Pods that has a name.
    pub ports: Vec<(u16, Option<u16>)>,
    /// Ports that are declared to be TCP or TLS.
    pub streams: BTreeSet<u16>,
}

/// A Pod, as far as a review looks at it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SelectedPod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Ports that its containers declare, or that Services reach it at.
    pub ports: BTreeSet<u16>,
}

/// All policies, and what of the mesh says where they apply; cheap to make.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Settings of the mesh.
    pub mesh: MeshConfig,
    /// The policies that are in force.
    pub policies: BTreeMap<NamespacedName, Arc<Authorization>>,
    /// The Services that they target.
    pub services: BTreeMap<NamespacedName, TargetedService>,
    /// Pods of policies that name ports and have no target; those that are alike once.
    pub pods: BTreeSet<SelectedPod>,
    /// Labels of those Services' Namespaces.
    pub namespaces: BTreeMap<Arc<str>, Labels>,
    /// Ingress gateways, with the labels of their Pods.
    pub ingress: BTreeMap<NamespacedName, Vec<Labels>>,
}

/// One thing that a policy probably does not mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// What kind it is, in one word of CamelCase.
    pub reason: &'static str,
    /// What it is, why, and what to do, as sentences.
    pub text: String,
}

/// What is to be said of each policy; nothing of those that are not named.
pub type Remarks = BTreeMap<NamespacedName, Vec<Remark>>;

/// Looks at policies as a whole. It is asked to leave the rest unsaid when the function that it is given says no.
pub type Reviewer = Arc<dyn Fn(&Subject, &dyn Fn() -> bool) -> Remarks + Send + Sync>;

/// What the review asks of the engine.
#[derive(Debug)]
pub enum Message {
    /// The policies as they are now.
    Ask(oneshot::Sender<Subject>),
    /// What was found, and in which policies.
    Found(Box<Subject>, Remarks),
}

/// The review's ends: what the engine is handed.
#[derive(Debug)]
pub struct Inbox {
    /// To be rung when something has changed that a review would see.
    pub due: Arc<Notify>,
    /// What is asked.
    pub messages: mpsc::Receiver<Message>,
}

/// Starts the review; without a reviewer nothing is ever asked.
pub fn start(tasks: &Tasks, reviewer: Option<Reviewer>, leader: Leadership) -> Inbox {
    let (to, messages) = mpsc::channel(1);
    let due = Arc::new(Notify::new());
    if let Some(reviewer) = reviewer {
        let (mut drain, rung) = (tasks.drain(), due.clone());
        tasks.spawn("policy review", async move {
            tokio::select! {
                () = drain.started() => {}
                () = review_forever(&reviewer, &rung, &to, leader, WORK) => {}
            }
            Ok::<(), Infallible>(())
        });
    }
    Inbox { due, messages }
}

async fn review_forever(
    reviewer: &Reviewer,
    due: &Notify,
    engine: &mpsc::Sender<Message>,
    mut leader: Leadership,
    limit: Duration,
) {
    loop {
        due.notified().await;
        leader.acquired().await;
        tokio::time::sleep(GATHER).await;
        let (answer, subject) = oneshot::channel();
        let asked = engine.send(Message::Ask(answer)).await;
        let (Ok(()), Ok(subject)) = (asked, subject.await) else {
            // The engine has ended, and with it the process.
            return std::future::pending().await;
        };
        let (reviewer, began) = (reviewer.clone(), Instant::now());
        let work = move || {
            let remarks = reviewer(&subject, &|| began.elapsed() < limit);
            (Box::new(subject), remarks)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok((subject, remarks)) => drop(engine.send(Message::Found(subject, remarks)).await),
            Err(error) => tracing::error!(%error, "the policies were not reviewed"),
        }
        tokio::time::sleep(began.elapsed() * REST).await;
    }
}

/// The remarks on a policy as a condition; none without remarks.
pub fn condition(remarks: &[Remark]) -> Option<Condition> {
    let first = remarks.first()?;
    let reason = if remarks.iter().all(|r| r.reason == first.reason) { first.reason } else { "Several" };
    let texts: Vec<&str> = remarks.iter().map(|r| r.text.as_str()).collect();
    let mut text = texts.join(" ");
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push_str("… (`meltemi analyze` says all)");
    }
    Some(Condition::yes(SUSPICIOUS, reason, text))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_review_works_for_a_tenth_of_the_time_however_much_there_is_to_do() {
        let limit = Duration::from_millis(100);
        let spans: Arc<Mutex<Vec<(Instant, Instant)>>> = Arc::default();
        let (noted, begun) = (spans.clone(), Instant::now());
        // It would never end by itself.
        let reviewer: Reviewer = Arc::new(move |_, may_go_on| {
            let began = Instant::now();
            while may_go_on() {
                std::thread::sleep(Duration::from_millis(1));
            }
            noted.lock().unwrap().push((began, Instant::now()));
            Remarks::new()
        });
        let (engine, mut messages) = mpsc::channel(1);
        let due = Notify::new();
        let answering = async {
            let mut found = 0;
            while found < 3 {
                // There is always something new.
                due.notify_one();
                match messages.recv().await.unwrap() {
                    Message::Ask(answer) => answer.send(Subject::default()).unwrap(),
                    Message::Found(..) => found += 1,
                }
            }
        };
        tokio::select! {
            () = review_forever(&reviewer, &due, &engine, Leadership::always(), limit) => {}
            () = answering => {}
        }
        let spans = spans.lock().unwrap();
        for (one, next) in spans.iter().zip(spans.iter().skip(1)) {
            let (worked, rested) = (one.1 - one.0, next.0 - one.1);
            assert!(rested >= worked * REST, "{worked:?}, then {rested:?}");
        }
        assert!(begun.elapsed() >= 2 * (REST + 1) * limit);
    }

    #[test]
    fn a_condition_is_short_whatever_there_is_to_say() {
        let remark = || Remark { reason: "RuleNeverMatches", text: "é".repeat(1000) };
        let long: Vec<Remark> = std::iter::repeat_with(remark).take(100).collect();
        let said = condition(&long).unwrap();
        assert!(
            said.message.len() < MAX_TEXT + 100 && said.message.ends_with("says all)"),
            "{}",
            said.message.len()
        );
        assert_eq!(condition(&long[..1]).unwrap().message, long[0].text);
    }
}
