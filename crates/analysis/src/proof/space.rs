// SPDX-License-Identifier: Apache-2.0
//! The dimensions of a question, their classes, and what each predicate is among them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use meltemi_model::authz::{Attribute, ValueMatch};

use super::address;
use super::bits::Bits;
use super::domain::Domain;
use super::pattern;
use super::text::Automaton;

/// States of one attribute's automaton that are looked at before giving up.
const STATES: usize = 600_000;
/// Classes times patterns of one attribute, before giving up.
const CELLS: usize = 800_000_000;

/// What varies between requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dimension {
    /// Who the peer has proven to be.
    Identity,
    /// A claim of the token; a set of texts.
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
    /// Several texts (claims).
    Texts(Vec<String>),
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

type Atoms = BTreeMap<u32, (Attribute, ValueMatch)>;

#[derive(Debug)]
struct Draft {
    key: Dimension,
    ids: HashMap<(Attribute, ValueMatch), u32>,
    atoms: Atoms,
    predicates: Vec<(Vec<u32>, Vec<u32>)>,
    known: HashMap<(Vec<u32>, Vec<u32>), u32>,
    /// Most predicates of one rule (for claims: texts that a token may need).
    most: usize,
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
            other => Dimension::Attribute(other.clone()),
        },
    }
}

impl Builder {
    /// Registers a predicate.
    pub(crate) fn predicate(
        &mut self,
        subject: Subject<'_>,
        values: &[ValueMatch],
        not_values: &[ValueMatch],
    ) -> PredicateId {
        let key = dimension(subject);
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => {
                let place = u16::try_from(self.drafts.len()).unwrap_or(u16::MAX);
                self.places.insert(key.clone(), place);
                let (atoms, ids, known) = Default::default();
                self.drafts.push(Draft { key, ids, atoms, predicates: Vec::new(), known, most: 1 });
                place
            }
        };
        let draft = &mut self.drafts[usize::from(place)];
        let attribute = match subject {
            Subject::Attribute(attribute) => attribute.clone(),
            // Labels are plain texts.
            Subject::Label(_) => Attribute::RequestAuthPresenter,
        };
        if matches!(draft.key, Dimension::Claim(_)) {
            // A set of texts has no class for a value that is not asked for on its own.
            for value in values {
                draft.register(&attribute, std::slice::from_ref(value), not_values);
            }
        }
        PredicateId { dimension: place, predicate: draft.register(&attribute, values, not_values) }
    }

    /// One rule has this many predicates of a dimension.
    pub(crate) fn at_once(&mut self, dimension: u16, count: usize) {
        let draft = &mut self.drafts[usize::from(dimension)];
        draft.most = draft.most.max(count);
    }

    /// Finds the classes of every dimension.
    ///
    /// # Errors
    /// [`TooComplex`].
    pub(crate) fn finish(self, hints: &Hints) -> Result<Space, TooComplex> {
        let dims = self.drafts.into_iter().map(|d| d.finish(hints)).collect::<Result<Vec<_>, _>>()?;
        Ok(Space { dims, places: self.places })
    }
}

/// One dimension.
#[derive(Debug)]
pub(crate) struct Dim {
    pub(crate) key: Dimension,
    /// A value of each class, best first.
    pub(crate) values: Vec<Value>,
    pub(crate) all: Bits,
    ids: HashMap<(Attribute, ValueMatch), u32>,
    predicates: HashMap<(Vec<u32>, Vec<u32>), u32>,
    atoms: Vec<Bits>,
    /// Sets that forms refer to; the predicates first.
    sets: Vec<Bits>,
    known: HashMap<Bits, u32>,
}

/// All dimensions of a question.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) dims: Vec<Dim>,
    places: HashMap<Dimension, u16>,
}

impl Draft {
    fn register(&mut self, attribute: &Attribute, values: &[ValueMatch], not_values: &[ValueMatch]) -> u32 {
        let mut atoms = |list: &[ValueMatch]| {
            let mut all: Vec<u32> = list.iter().map(|v| self.atom(attribute, v)).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let key = (atoms(values), atoms(not_values));
        let next = u32::try_from(self.predicates.len()).unwrap_or(u32::MAX);
        *self.known.entry(key.clone()).or_insert_with(|| {
            self.predicates.push(key);
            next
        })
    }

    fn atom(&mut self, attribute: &Attribute, value: &ValueMatch) -> u32 {
        let key = (attribute.clone(), value.clone());
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
        self.atoms.insert(id, key.clone());
        self.ids.insert(key, id);
        id
    }

    fn finish(self, hints: &Hints) -> Result<Dim, TooComplex> {
        let (mut values, mut matched) = self.classes(hints)?;
        if values.len().saturating_mul(self.atoms.len()) > CELLS {
            return Err(TooComplex(self.key.name()));
        }
        if let Dimension::Claim(_) = self.key {
            (values, matched) = self.unions(values, matched)?;
        }
        // Plaintext is the last that comes to mind, a header that is not there the first.
        let may_lack = match &self.key {
            Dimension::Identity | Dimension::Claim(_) | Dimension::Label(_) => true,
            Dimension::Attribute(a) => {
                matches!(a, Attribute::Header(_) | Attribute::ConnectionSni | Attribute::RequestPrincipal)
            }
        };
        let absent = may_lack.then(|| if self.key == Dimension::Identity { values.len() } else { 0 });
        if let Some(place) = absent {
            values.insert(place, Value::Absent);
            matched.insert(place, Vec::new());
        }
        let size = values.len();
        let sets_of_texts = matches!(self.key, Dimension::Claim(_));
        let mut members = vec![Bits::none(size); if sets_of_texts { self.predicates.len() } else { self.atoms.len() }];
        for (class, inside) in matched.iter().enumerate() {
            inside.iter().for_each(|index| members[*index as usize].insert(class));
        }
        let mut dim = Dim {
            key: self.key,
            values,
            all: Bits::all(size),
            ids: self.ids,
            predicates: self.known,
            atoms: Vec::new(),
            sets: Vec::new(),
            known: HashMap::new(),
        };
        if sets_of_texts {
            // A token that lacks the claim fulfils what asks for no value.
            for (bits, (yes, _)) in members.iter_mut().zip(&self.predicates) {
                if let (true, Some(place)) = (yes.is_empty(), absent) {
                    bits.insert(place);
                }
            }
            dim.sets = members;
        } else {
            dim.atoms = members;
            dim.sets = self.predicates.iter().map(|(yes, no)| dim.predicate(yes, no)).collect();
        }
        for (bits, id) in dim.sets.iter().zip(0..) {
            dim.known.entry(bits.clone()).or_insert(id);
        }
        Ok(dim)
    }

    /// The classes of one value, best first.
    fn classes(&self, hints: &Hints) -> Result<(Vec<Value>, Vec<Vec<u32>>), TooComplex> {
        let domain = match &self.key {
            Dimension::Identity => Some(Domain::Identity),
            Dimension::Claim(_) | Dimension::Label(_) => Some(Domain::Text),
            Dimension::Attribute(attribute) => pattern::domain(attribute),
        };
        if let Some(domain) = domain {
            return self.texts(domain, hints);
        }
        if self.key == Dimension::Attribute(Attribute::DestinationPort) {
            let port = |v: &ValueMatch| if let ValueMatch::Port(p) = v { Some(*p) } else { None };
            let named: Vec<(u32, u16)> =
                self.atoms.iter().filter_map(|(id, (_, v))| Some((*id, port(v)?))).collect();
            let ports: Vec<u16> = named.iter().map(|(_, p)| *p).collect();
            let all = address::ports(&ports, &hints.ports);
            let ids = |inside: Vec<u32>| inside.into_iter().map(|i| named[i as usize].0).collect();
            return Ok(all.into_iter().map(|(port, inside)| (Value::Port(port), ids(inside))).unzip());
        }
        let range = |v: &ValueMatch| if let ValueMatch::Cidr(r) = v { Some(*r) } else { None };
        let named: Vec<(u32, IpNet)> =
            self.atoms.iter().filter_map(|(id, (_, v))| Some((*id, range(v)?))).collect();
        let ranges: Vec<IpNet> = named.iter().map(|(_, r)| *r).collect();
        let ids = |inside: Vec<u32>| inside.into_iter().map(|i| named[i as usize].0).collect();
        let all = address::addresses(&ranges);
        Ok(all.into_iter().map(|(ip, inside)| (Value::Address(ip), ids(inside))).unzip())
    }

    fn texts(&self, domain: Domain, hints: &Hints) -> Result<(Vec<Value>, Vec<Vec<u32>>), TooComplex> {
        let patterns: Vec<_> = self.atoms.values().map(|(a, v)| pattern::patterns(a, v)).collect();
        let automaton = Automaton::new(domain, &patterns);
        let classes = automaton.classes(STATES).map_err(|_| TooComplex(self.key.name()))?;
        let places: HashMap<&[u32], usize> =
            classes.iter().enumerate().map(|(index, class)| (&*class.atoms, index)).collect();
        let hinted = match domain {
            Domain::Identity => &*hints.identities,
            Domain::Host => &*hints.hosts,
            _ => &[],
        };
        let examples = self.atoms.values().flat_map(|(a, v)| pattern::examples(a, v));
        let usual = pattern::usual(domain).iter().map(ToString::to_string);
        // What exists, then what is usual, then what at least can be read.
        let mut best: BTreeMap<usize, (usize, String)> = BTreeMap::new();
        for (rank, text) in hinted.iter().cloned().chain(usual).chain(examples).enumerate() {
            let class = automaton.matched(&text).and_then(|atoms| places.get(&*atoms).copied());
            if let Some(class) = class {
                best.entry(class).or_insert((rank, text));
            }
        }
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.sort_by_key(|class| best.get(class).map_or(usize::MAX, |(rank, _)| *rank));
        let text = |class: usize| best.get(&class).map_or(&classes[class].text, |(_, text)| text).clone();
        Ok(order.into_iter().map(|c| (Value::Text(text(c)), classes[c].atoms.clone())).unzip())
    }

    /// The sets of texts that a token can carry, told apart by the predicates that some text of them fulfils.
    fn unions(&self, texts: Vec<Value>, matched: Vec<Vec<u32>>) -> Result<(Vec<Value>, Vec<Vec<u32>>), TooComplex> {
        let holds = |inside: &[u32]| -> Vec<u32> {
            let of = |(index, (yes, no)): (usize, &(Vec<u32>, Vec<u32>))| {
                let positive = yes.is_empty() || yes.iter().any(|a| inside.contains(a));
                (positive && !no.iter().any(|a| inside.contains(a))).then_some(index as u32)
            };
            self.predicates.iter().enumerate().filter_map(of).collect()
        };
        let single: Vec<(String, Vec<u32>)> = texts
            .into_iter()
            .zip(&matched)
            .filter_map(|(value, inside)| if let Value::Text(t) = value { Some((t, holds(inside))) } else { None })
            .collect();
        let mut out: Vec<(Vec<String>, Vec<u32>)> = Vec::new();
        let mut known: HashMap<Vec<u32>, ()> = HashMap::new();
        for (text, predicates) in &single {
            if known.insert(predicates.clone(), ()).is_none() {
                out.push((vec![text.clone()], predicates.clone()));
            }
        }
        // Three rules at most have to hold together in one question.
        let mut from = 0;
        for _ in 1..self.most * 3 {
            let level = out.len();
            for index in from..level {
                for (text, predicates) in &single {
                    let mut both = [&*out[index].1, predicates].concat();
                    both.sort_unstable();
                    both.dedup();
                    if known.insert(both.clone(), ()).is_none() {
                        let mut texts = out[index].0.clone();
                        texts.push(text.clone());
                        out.push((texts, both));
                    }
                }
                if out.len() > STATES / 16 {
                    return Err(TooComplex(self.key.name()));
                }
            }
            from = level;
        }
        Ok(out.into_iter().map(|(texts, predicates)| (Value::Texts(texts), predicates)).unzip())
    }
}

impl Dim {
    fn predicate(&self, yes: &[u32], no: &[u32]) -> Bits {
        let union = |atoms: &[u32]| {
            let mut bits = Bits::none(self.values.len());
            atoms.iter().for_each(|a| bits.add(&self.atoms[*a as usize]));
            bits
        };
        let mut bits = if yes.is_empty() { self.all.clone() } else { union(yes) };
        bits.remove(&union(no));
        // What is absent has no text that could be excluded; a positive condition fails with it.
        bits
    }
}

impl Dim {
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

impl Space {
    /// The set of a predicate of values that were all registered; none when one was not.
    pub(crate) fn set_of(
        &mut self,
        subject: Subject<'_>,
        values: &[ValueMatch],
        not_values: &[ValueMatch],
    ) -> Option<(u16, u32)> {
        let place = *self.places.get(&dimension(subject))?;
        let dim = &mut self.dims[usize::from(place)];
        let Subject::Attribute(attribute) = subject else { return None };
        let atoms = |list: &[ValueMatch]| -> Option<Vec<u32>> {
            let ids = list.iter().map(|v| dim.ids.get(&(attribute.clone(), v.clone())).copied());
            let mut all = ids.collect::<Option<Vec<u32>>>()?;
            all.sort_unstable();
            all.dedup();
            Some(all)
        };
        let key = (atoms(values)?, atoms(not_values)?);
        match dim.predicates.get(&key) {
            Some(id) => Some((place, *id)),
            None if matches!(dim.key, Dimension::Claim(_)) => None,
            None => {
                let bits = dim.predicate(&key.0, &key.1);
                Some((place, dim.intern(bits)))
            }
        }
    }

    /// The set that holds only the absence of an attribute, where something asks for it.
    pub(crate) fn absent(&mut self, subject: Subject<'_>) -> Option<(u16, u32)> {
        let place = *self.places.get(&dimension(subject))?;
        self.absent_at(usize::from(place))
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
