// SPDX-License-Identifier: Apache-2.0
//! Who calls: bound ServiceAccount tokens, checked by TokenReview.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

/// Audience of the tokens that proxies present.
pub const AUDIENCE: &str = "istio-ca";

/// How long a review is believed. Short: a Pod that is deleted takes its token with it.
const BELIEVED: Duration = Duration::from_secs(10);

/// Reviews at the same time: callers without a good token must not flood the API server through us.
const REVIEWS: usize = 64;
/// How long a caller waits for its turn.
const TURN: Duration = Duration::from_secs(5);
/// Longest token, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// Reviews that are remembered at most.
const REMEMBERED: usize = 4096;

/// A ServiceAccount, and the Pod that its token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the ServiceAccount (and of the Pod).
    pub namespace: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// The Pod that the token is bound to.
    pub pod: Option<BoundPod>,
}

/// What a token says of its Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its node, where the API server says it.
    pub node: Option<String>,
}

/// Why a caller is nobody.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// No `authorization: Bearer …`.
    #[error("no bearer token")]
    NoToken,
    /// The token is not good (for this audience).
    #[error("token is not valid: {0}")]
    Invalid(String),
    /// The token is good, but it is not that of a ServiceAccount.
    #[error("{0:?} is not a service account")]
    NotServiceAccount(String),
    /// Too many callers are being asked about.
    #[error("too many token reviews are under way")]
    Busy,
    /// The API server could not be asked.
    #[error("token review failed: {0}")]
    Review(#[from] kube::Error),
}

/// Asks the API server about tokens.
pub struct Authenticator {
    reviews: Api<TokenReview>,
    believed: Mutex<HashMap<String, (Instant, Caller)>>,
    turns: Semaphore,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

impl Authenticator {
    /// With a client that may create TokenReviews.
    pub fn new(client: Client) -> Self {
        Self { reviews: Api::all(client), believed: Mutex::default(), turns: Semaphore::new(REVIEWS) }
    }

    /// Who presents `authorization` (the value of the header).
    ///
    /// # Errors
    /// See [`Unauthenticated`].
    pub async fn authenticate(&self, authorization: Option<&str>) -> Result<Caller, Unauthenticated> {
        let token = authorization
            .and_then(|v| v.strip_prefix("Bearer ").or_else(|| v.strip_prefix("bearer ")))
            .map(str::trim)
            .filter(|t| !t.is_empty())
            .ok_or(Unauthenticated::NoToken)?;
        if token.len() > MAX_TOKEN {
            return Err(Unauthenticated::Invalid(format!("it is longer than {MAX_TOKEN} bytes")));
        }
        if let Some(caller) = self.remembered(token) {
            return Ok(caller);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) },
            ..TokenReview::default()
        };
        let turn = tokio::time::timeout(TURN, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| Unauthenticated::Busy)?;
        let answer = self.reviews.create(&PostParams::default(), &review).await?;
        let caller = read(&answer)?;
        self.remember(token, &caller);
        Ok(caller)
    }

    fn remembered(&self, token: &str) -> Option<Caller> {
        let believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        believed.get(token).filter(|(at, _)| at.elapsed() < BELIEVED).map(|(_, caller)| caller.clone())
    }

    fn remember(&self, token: &str, caller: &Caller) {
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        if believed.len() >= REMEMBERED {
            believed.retain(|_, (at, _)| at.elapsed() < BELIEVED);
        }
        if believed.len() < REMEMBERED {
            believed.insert(token.to_owned(), (Instant::now(), caller.clone()));
        }
    }
}

/// Reads the answer of a TokenReview.
fn read(review: &TokenReview) -> Result<Caller, Unauthenticated> {
    let status = review.status.as_ref().ok_or_else(|| Unauthenticated::Invalid("no answer".to_owned()))?;
    if !status.authenticated.unwrap_or(false) {
        let reason = status.error.clone().unwrap_or_else(|| "not authenticated".to_owned());
        return Err(Unauthenticated::Invalid(reason));
    }
    // A server that does not know audiences says none: such a token proves nothing about its purpose.
    if !status.audiences.iter().flatten().any(|a| a == AUDIENCE) {
        return Err(Unauthenticated::Invalid(format!("it is not meant for {AUDIENCE}")));
    }
    let user = status.user.as_ref();
    let username = user.and_then(|u| u.username.as_deref()).unwrap_or_default();
    let parts: Vec<&str> = username.split(':').collect();
    let ["system", "serviceaccount", namespace, service_account] = parts.as_slice() else {
        return Err(Unauthenticated::NotServiceAccount(username.to_owned()));
    };
    let extra = |key: &str| {
        let values = user.and_then(|u| u.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}")));
        values.and_then(|v| v.first().cloned())
    };
    let pod = match (extra("pod-name"), extra("pod-uid")) {
        (Some(name), Some(uid)) => Some(BoundPod { name, uid, node: extra("node-name") }),
        _ => None,
    };
    Ok(Caller { namespace: (*namespace).to_owned(), service_account: (*service_account).to_owned(), pod })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::watch;

    use super::*;

    /// An API server that reviews tokens of a ServiceAccount and a Pod (`<namespace>/<account>/<pod>`), as long as it
    /// answers at all.
    pub(crate) struct Reviews {
        pub(crate) authenticator: Authenticator,
        asked: Arc<AtomicUsize>,
        answers: watch::Sender<bool>,
    }

    pub(crate) fn reviews(answers: bool) -> Reviews {
        let (answers, answering) = watch::channel(answers);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| {
            let mut answering = answering.clone();
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                let body = request.into_body().collect_bytes().await?;
                let _ = answering.wait_for(|answers| *answers).await;
                let mut review: serde_json::Value = serde_json::from_slice(&body)?;
                let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
                let parts: Vec<&str> = token.split('/').collect();
                if let [namespace, account, pod] = parts.as_slice() {
                    review["status"] = serde_json::json!({
                        "authenticated": true,
                        "audiences": [AUDIENCE],
                        "user": {
                            "username": format!("system:serviceaccount:{namespace}:{account}"),
                            "extra": {
                                "authentication.kubernetes.io/pod-name": [pod],
                                "authentication.kubernetes.io/pod-uid": [format!("uid-{pod}")],
                            },
                        },
                    });
                }
                let answer =
                    axum::http::Response::new(kube::client::Body::from(review.to_string().into_bytes()));
                Ok::<_, tower::BoxError>(answer)
            }
        });
        let authenticator = Authenticator::new(Client::new(service, "default"));
        Reviews { authenticator, asked, answers }
    }

    #[tokio::test(start_paused = true)]
    async fn reviews_at_once_are_bounded_and_go_on_when_the_api_server_answers() {
        let Reviews { authenticator, asked, answers } = reviews(false);
        let authenticator = Arc::new(authenticator);
        let ask = async |token: String| authenticator.authenticate(Some(&format!("Bearer {token}"))).await;
        #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
        let waiting: Vec<_> = (0..REVIEWS)
            .map(|n| {
                let authenticator = authenticator.clone();
                tokio::spawn(
                    async move { authenticator.authenticate(Some(&format!("Bearer a/b/{n}"))).await },
                )
            })
            .collect();
        while asked.load(Ordering::SeqCst) < REVIEWS {
            tokio::task::yield_now().await;
        }
        let begun = tokio::time::Instant::now();
        let over = ask("a/b/over".to_owned()).await;
        assert!(matches!(over, Err(Unauthenticated::Busy)), "{over:?}");
        assert_eq!((begun.elapsed().as_secs(), asked.load(Ordering::SeqCst)), (TURN.as_secs(), REVIEWS));
        answers.send_replace(true);
        for review in waiting {
            assert!(review.await.unwrap().is_ok());
        }
        assert!(ask("a/b/over".to_owned()).await.is_ok(), "there is room again");
        let long = ask("x".repeat(MAX_TOKEN + 1)).await;
        assert!(matches!(long, Err(Unauthenticated::Invalid(_))), "{long:?}");
        assert_eq!(
            asked.load(Ordering::SeqCst),
            REVIEWS + 1,
            "nobody is asked about a token that is too long"
        );
        assert!(ask("x".repeat(MAX_TOKEN)).await.is_err());
        assert_eq!(asked.load(Ordering::SeqCst), REVIEWS + 2, "a token at the bound is asked about");
    }

    fn review(status: &serde_json::Value) -> TokenReview {
        serde_json::from_value(serde_json::json!({ "spec": { "token": "" }, "status": status })).unwrap()
    }

    #[test]
    fn only_a_service_account_with_our_audience_is_somebody() {
        let good = serde_json::json!({
            "authenticated": true,
            "audiences": ["istio-ca"],
            "user": {
                "username": "system:serviceaccount:istio-system:ztunnel",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["ztunnel-x"],
                    "authentication.kubernetes.io/pod-uid": ["u1"],
                    "authentication.kubernetes.io/node-name": ["node-1"],
                },
            },
        });
        let caller = read(&review(&good)).unwrap();
        assert_eq!((caller.namespace.as_str(), caller.service_account.as_str()), ("istio-system", "ztunnel"));
        assert_eq!(caller.pod.unwrap().node.as_deref(), Some("node-1"));

        type Edit = fn(&mut serde_json::Value);
        let bad: [(&str, Edit); 4] = [
            ("not authenticated", |v| v["authenticated"] = false.into()),
            ("other audience", |v| v["audiences"] = serde_json::json!(["vault"])),
            ("no audience", |v| v["audiences"] = serde_json::Value::Null),
            ("a person", |v| v["user"]["username"] = "kubernetes-admin".into()),
        ];
        for (what, edit) in bad {
            let mut status = good.clone();
            edit(&mut status);
            assert!(read(&review(&status)).is_err(), "{what}");
        }
    }
}
