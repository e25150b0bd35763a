// SPDX-License-Identifier: Apache-2.0
//! The dimensions of a question, their classes, and what each predicate is among them.

mod draft;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_model::authz::{Attribute, Predicate, StringMatch, ValueMatch};

use self::draft::{Atom, Draft, Parts};
use super::bits::Bits;
use super::pattern::{Manner, is_host};

/// What varies between requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dimension {
    /// Who the peer has proven to be.
    Identity,
    /// A claim of the token: whether one of its texts is of a class. A claim is a set of texts, so each class is a
    /// question of its own.
    Claim(Arc<[Arc<str>]>),
    /// Another attribute.
    Attribute(Attribute),
    /// A label of the workload that is reached.
    Label(Arc<str>),
}

/// What a predicate is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    /// An attribute of the request.
    Attribute(&'a Attribute),
    /// A label of the workload.
    Label(&'a str),
}

/// A value of a dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// There is none.
    Absent,
    /// A text.
    Text(String),
    /// An address.
    Address(IpAddr),
    /// A port.
    Port(u16),
}

/// The patterns of an attribute have too many combinations to be listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the values of {0} combine in too many ways")]
pub(crate) struct TooComplex(pub(crate) String);

/// A predicate: dimension, and number within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PredicateId {
    pub(crate) dimension: u16,
    pub(crate) predicate: u32,
}

/// Values to show before others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints {
    /// Principals, e.g. of ServiceAccounts that exist.
    pub(crate) identities: Vec<String>,
    /// Ports of the target.
    pub(crate) ports: Vec<u16>,
    /// Hosts of the target.
    pub(crate) hosts: Vec<String>,
}

/// Collects predicates.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    drafts: Vec<Draft>,
    places: HashMap<Dimension, u16>,
}

fn dimension(subject: Subject<'_>) -> Dimension {
    let claim = |name: &str| Dimension::Claim([Arc::from(name)].into());
    match subject {
        Subject::Label(key) => Dimension::Label(key.into()),
        Subject::Attribute(attribute) => match attribute {
            Attribute::SourcePrincipal
            | Attribute::SourceNamespace
            | Attribute::SourceServiceAccount
            | Attribute::SourceTrustDomain => Dimension::Identity,
            Attribute::RequestAuthAudiences => claim("aud"),
            Attribute::RequestAuthPresenter => claim("azp"),
            Attribute::RequestAuthClaim(path) => Dimension::Claim(path.clone()),
            _ if is_host(attribute) => Dimension::Attribute(Attribute::Host),
            other => Dimension::Attribute(other.clone()),
        },
    }
}

impl Builder {
    /// Registers a predicate that is compared with the request as it is.
    pub(crate) fn predicate(
        &mut self,
        subject: Subject<'_>,
        values: &[ValueMatch],
        not_values: &[ValueMatch],
    ) -> PredicateId {
        self.register(subject, values, not_values, &[(Manner::Narrow, Manner::Narrow)])
    }

    /// Registers a predicate of a rule.
    pub(crate) fn predicate_of(&mut self, predicate: &Predicate, denies: bool) -> PredicateId {
        let manners = Manner::pairs(predicate, denies);
        let subject = Subject::Attribute(&predicate.attribute);
        self.register(subject, &predicate.values, &predicate.not_values, &manners)
    }

    fn register(
        &mut self,
        subject: Subject<'_>,
        values: &[ValueMatch],
        not_values: &[ValueMatch],
        manners: &[(Manner, Manner)],
    ) -> PredicateId {
        let key = dimension(subject);
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => {
                let place = u16::try_from(self.drafts.len()).unwrap_or(u16::MAX);
                self.places.insert(key.clone(), place);
                let (atoms, ids, known) = Default::default();
                self.drafts.push(Draft { key, ids, atoms, predicates: Vec::new(), known });
                place
            }
        };
        let draft = &mut self.drafts[usize::from(place)];
        let attribute = match subject {
            Subject::Attribute(attribute) => attribute.clone(),
            // Labels are plain texts.
            Subject::Label(_) => Attribute::RequestAuthPresenter,
        };
        PredicateId { dimension: place, predicate: draft.register(&attribute, values, not_values, manners) }
    }

    /// Finds the classes of every dimension.
    ///
    /// # Errors
    /// [`TooComplex`].
    pub(crate) fn finish(self, hints: &Hints) -> Result<Space, TooComplex> {
        let mut space = Space { dims: Vec::new(), drafts: Vec::new(), places: self.places, over: false };
        for draft in self.drafts {
            let first = u16::try_from(space.dims.len()).unwrap_or(u16::MAX);
            let (dims, made) = draft.finish(hints, first)?;
            space.dims.extend(dims);
            space.drafts.push(made);
        }
        if u16::try_from(space.dims.len()).is_err() {
            return Err(TooComplex("claims".to_owned()));
        }
        Ok(space)
    }
}

/// One dimension.
#[derive(Debug)]
pub(crate) struct Dim {
    pub(crate) key: Dimension,
    /// A value of each class, best first.
    pub(crate) values: Vec<Value>,
    pub(crate) all: Bits,
    /// Sets that forms refer to.
    sets: Vec<Bits>,
    known: HashMap<Bits, u32>,
}

/// What became of the predicates of an attribute.
#[derive(Debug)]
struct Made {
    ids: HashMap<Atom, u32>,
    predicates: Vec<Parts>,
    /// Classes of each value.
    atoms: Vec<Bits>,
    /// The first of its dimensions.
    first: u16,
    /// Every class is a dimension of its own.
    apart: bool,
}

/// All dimensions of a question.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) dims: Vec<Dim>,
    drafts: Vec<Made>,
    places: HashMap<Dimension, u16>,
    /// A rule had more alternatives than are kept: forms made since are not whole.
    pub(crate) over: bool,
}

/// ANDed sets of several dimensions, ascending, at most one of each.
pub(crate) type Cell = Vec<(u16, u32)>;

impl Dim {
    fn new(key: Dimension, values: Vec<Value>) -> Self {
        let all = Bits::all(values.len());
        Self { key, values, all, sets: Vec::new(), known: HashMap::new() }
    }

    /// A set by its number.
    pub(crate) fn set(&self, id: u32) -> &Bits {
        &self.sets[id as usize]
    }

    /// The number of a set.
    pub(crate) fn intern(&mut self, bits: Bits) -> u32 {
        let next = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        *self.known.entry(bits).or_insert_with_key(|bits| {
            self.sets.push(bits.clone());
            next
        })
    }
}

impl Made {
    fn union(&self, atoms: &[u32], size: usize) -> Bits {
        let mut bits = Bits::none(size);
        atoms.iter().for_each(|a| bits.add(&self.atoms[*a as usize]));
        bits
    }
}

impl Space {
    /// A predicate as alternatives.
    pub(crate) fn predicate(&mut self, id: PredicateId) -> Vec<Cell> {
        let made = &self.drafts[usize::from(id.dimension)];
        let parts = made.predicates[id.predicate as usize].clone();
        self.alternatives(id.dimension, &parts)
    }

    fn alternatives(&mut self, draft: u16, parts: &Parts) -> Vec<Cell> {
        let made = &self.drafts[usize::from(draft)];
        let first = usize::from(made.first);
        if !made.apart {
            let dim = &mut self.dims[first];
            let size = dim.values.len();
            let mut all = Bits::none(size);
            for (yes, no) in parts {
                // What is absent has no text that could be excluded; a positive condition fails with it.
                let mut bits = if yes.is_empty() { dim.all.clone() } else { made.union(yes, size) };
                bits.remove(&made.union(no, size));
                all.add(&bits);
            }
            return vec![vec![(made.first, dim.intern(all))]];
        }
        // Claims have one reading.
        parts.iter().flat_map(|(yes, no)| self.claims(draft, yes, no)).collect()
    }

    /// A predicate of a claim: each of its classes is a dimension.
    fn claims(&mut self, draft: u16, yes: &[u32], no: &[u32]) -> Vec<Cell> {
        let made = &self.drafts[usize::from(draft)];
        let first = usize::from(made.first);
        let size = made.atoms.first().map_or(0, |_| self.dims.len() - first);
        let size =
            self.drafts.get(usize::from(draft) + 1).map_or(size, |next| usize::from(next.first) - first);
        let no = made.union(no, size);
        let yes = (!yes.is_empty()).then(|| made.union(yes, size));
        let excluded: Cell = no.members().map(|class| self.only(first + class, 0)).collect();
        let Some(mut yes) = yes else { return vec![excluded] };
        yes.remove(&no);
        let with = |class: usize| {
            let mut cell = excluded.clone();
            cell.push(self.only(first + class, 1));
            cell.sort_unstable();
            cell
        };
        yes.members().map(with).collect()
    }

    /// A predicate of a rule whose values were all registered, as alternatives; none when one was not.
    pub(crate) fn alternatives_of(&mut self, predicate: &Predicate, denies: bool) -> Option<Vec<Cell>> {
        let attribute = &predicate.attribute;
        let draft = *self.places.get(&dimension(Subject::Attribute(attribute)))?;
        let ids = &self.drafts[usize::from(draft)].ids;
        let atoms = |list: &[ValueMatch], manner: Manner| {
            let key = |v: &ValueMatch| (attribute.clone(), v.clone(), manner);
            list.iter().map(|v| ids.get(&key(v)).copied()).collect::<Option<Vec<u32>>>()
        };
        let pairs = Manner::pairs(predicate, denies);
        let pair = |(yes, no): &(Manner, Manner)| {
            Some((atoms(&predicate.values, *yes)?, atoms(&predicate.not_values, *no)?))
        };
        let parts = pairs.iter().map(pair).collect::<Option<Parts>>()?;
        Some(self.alternatives(draft, &parts))
    }

    /// The set that holds only the absence of an attribute, where something asks for it.
    pub(crate) fn absent(&mut self, subject: Subject<'_>) -> Option<(u16, u32)> {
        let draft = *self.places.get(&dimension(subject))?;
        self.absent_at(usize::from(self.drafts[usize::from(draft)].first))
    }

    /// The set that holds only the absence of a dimension's value.
    pub(crate) fn absent_at(&mut self, place: usize) -> Option<(u16, u32)> {
        let class = self.dims[place].values.iter().position(|v| *v == Value::Absent)?;
        Some(self.only(place, class))
    }

    /// The set of one class.
    pub(crate) fn only(&mut self, place: usize, class: usize) -> (u16, u32) {
        let dim = &mut self.dims[place];
        let mut bits = Bits::none(dim.values.len());
        bits.insert(class);
        (u16::try_from(place).unwrap_or(u16::MAX), dim.intern(bits))
    }

    /// All principals but one, and who has none; none when the one was not registered.
    pub(crate) fn without(&mut self, principal: &ValueMatch) -> Option<(u16, u32)> {
        let all_but = Predicate {
            attribute: Attribute::SourcePrincipal,
            values: Vec::new(),
            not_values: vec![principal.clone()],
        };
        let cells = self.alternatives_of(&all_but, false)?;
        cells.into_iter().flatten().next()
    }

    /// The values of policies that a class matches, but for `*`.
    pub(crate) fn atoms(&self, place: usize, class: usize) -> Vec<(Attribute, ValueMatch)> {
        let made = self.drafts.iter().find(|d| usize::from(d.first) == place);
        let all = made
            .into_iter()
            .flat_map(|made| made.ids.iter().map(|(key, id)| (key, &made.atoms[*id as usize])));
        let presence = ValueMatch::String(StringMatch::Presence);
        let inside = all.filter(|((_, value, _), bits)| bits.has(class) && *value != presence);
        let pair = |(attribute, value, _): &Atom| (attribute.clone(), value.clone());
        let mut out: Vec<(Attribute, ValueMatch)> = inside.map(|(key, _)| pair(key)).collect();
        out.sort_by_key(|(attribute, value)| format!("{attribute:?} {value:?}"));
        out.dedup();
        out
    }

    /// Where the identity is, when something asks for it.
    pub(crate) fn identity(&self) -> Option<usize> {
        self.dims.iter().position(|d| d.key == Dimension::Identity)
    }
}

impl Dimension {
    /// Its name, as a person would say it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Identity => "source identities".to_owned(),
            Self::Claim(path) => format!("claim {}", path.join(".")),
            Self::Attribute(attribute) => crate::words::field(attribute),
            Self::Label(key) => format!("label {key}"),
        }
    }
}
