// SPDX-License-Identifier: Apache-2.0
//! Errors of questions: what cannot be asked, and what cannot be answered.

use meltemi_model::NamespacedName;
use meltemi_model::identity::InvalidIdentity;
use meltemi_policy::http::BadPath;

use crate::proof::TooComplex;
use crate::witness::Witness;

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A text that is not a client.
    #[error(
        "{0:?} is no client: expected NAMESPACE/SERVICEACCOUNT, e.g. default/curl, a principal, or `plaintext`"
    )]
    NoClient(String),
    /// A text that is not a Pod.
    #[error("{0:?} is no Pod: expected NAMESPACE/KEY=VALUE,KEY=VALUE, e.g. default/app=web")]
    NoPod(String),
    /// A text that is not a claim and its value.
    #[error("{0:?}: expected NAME=VALUE or [OUTER][INNER]=VALUE")]
    NoClaim(String),
    /// A text that is not the name of a claim.
    #[error("{0:?} is no claim: expected NAME, or [OUTER][INNER]")]
    NoClaimName(String),
    /// A claim that has one value was given several.
    #[error("claim {0} has one value")]
    SeveralValues(&'static str),
    /// A request principal that contradicts the claims of its token.
    #[error(
        "{0:?} is no request principal of this token: expected ISSUER/SUBJECT, as claims iss and sub say"
    )]
    NoRequestPrincipal(String),
    /// A row that reaches nothing, or several things.
    #[error("one of `to`, `toPod` and `toGateway` says what is reached")]
    NoDestination,
    /// The destination is not behind the enforcement point that was asked.
    #[error("{0} is not reached at that enforcement point")]
    NotReachedThere(String),
    /// A client without a valid identity.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    /// A path that proxies reject; the option that gives it.
    #[error("{option}: {error}")]
    PathOption {
        /// The option.
        option: &'static str,
        /// What is wrong with the path.
        error: BadPath,
    },
    /// A path that proxies reject.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// The objects are all there are, and the Service is not among them.
    #[error("Service {0} does not exist")]
    NoService(NamespacedName),
    /// The objects have other Services of the namespace.
    #[error("Service {0} is not among the objects, which have others of its namespace")]
    ServiceNotGiven(NamespacedName),
    /// The Service has other ports.
    #[error("Service {service} has no port {port}, it has {known}")]
    NoPort {
        /// The Service.
        service: NamespacedName,
        /// The port that was asked for.
        port: u16,
        /// Its ports.
        known: String,
    },
    /// The values of an attribute cannot be listed.
    #[error("the values of {0} combine in too many ways")]
    TooComplex(String),
    /// The search was ended at its bound.
    #[error("too many rules overlap for an answer")]
    GaveUp,
    /// The engine decides otherwise about what was found.
    #[error("the engine does not confirm what was found, for {0}")]
    NotConfirmed(Box<Witness>),
}

impl From<TooComplex> for QueryError {
    fn from(TooComplex(what): TooComplex) -> Self {
        Self::TooComplex(what)
    }
}

/// Why a recorded decision cannot be repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The question has no answer.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The record does not tell the client.
    #[error("the client's identity was not recorded")]
    NoClient,
    /// The record is of no form that this version reads.
    #[error("the record is of no form that is known")]
    UnknownForm,
    /// The objects have no such Pod.
    #[error("the labels of Pod {0} are not known")]
    NoPod(NamespacedName),
    /// The objects have no Service of that host.
    #[error("no Service is known as {0}")]
    NoService(String),
    /// No waypoint serves the Service.
    #[error("Service {0} has no waypoint")]
    NoWaypoint(NamespacedName),
    /// The policies depend on what the record does not tell.
    #[error("the policies look at what was not recorded: {0}")]
    NotRecorded(String),
    /// The verdict depends on the Pod, which the record does not tell.
    #[error("only some Pods of Service {service} are of Service {closed}")]
    SomePods {
        /// The Service that was addressed.
        service: NamespacedName,
        /// The closed Service that some of its Pods belong to.
        closed: NamespacedName,
    },
    /// A CUSTOM policy matches.
    #[error("{0} asks a provider")]
    AsksProvider(String),
    /// A policy that applies is not among the objects.
    #[error("a policy is missing")]
    PolicyMissing,
}
