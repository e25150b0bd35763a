// SPDX-License-Identifier: Apache-2.0
//! Questions about all requests, decided and not sampled.
//!
//! Every attribute that some policy looks at is a dimension. The values of a dimension fall into finitely many classes
//! that no predicate tells apart; a predicate is a set of classes, a rule a combination of sets, and a question ("is
//! there a request that this rule matches and those do not?") is answered by splitting sets until the answer is plain. A
//! class is kept with one of its values, so that every "yes" comes with a request.

mod address;
mod bits;
mod domain;
mod form;
mod host;
mod pattern;
mod search;
mod space;
mod text;

pub(crate) use form::{Form, Raw, none_of, rule};
pub use form::{Guard, Layer};
pub(crate) use pattern::unreadable;
pub(crate) use search::{Answer, Need, Question};
pub(crate) use space::{Builder, Cell, Dimension, Hints, PredicateId, Space, Subject, TooComplex, Value};
