// SPDX-License-Identifier: Apache-2.0
//! An attribute whose predicates are being collected, and its classes once they all are.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;
use meltemi_model::authz::{Attribute, ValueMatch};

use super::{Dim, Dimension, Hints, Made, TooComplex, Value};
use crate::proof::bits::Bits;
use crate::proof::domain::Domain;
use crate::proof::pattern::Manner;
use crate::proof::text::Automaton;
use crate::proof::{address, pattern};

/// States of one attribute's automaton that are looked at before giving up.
const STATES: usize = 600_000;
/// Classes times patterns of one attribute, before giving up.
const CELLS: usize = 800_000_000;

/// A value of a policy, and how it is compared.
pub(super) type Atom = (Attribute, ValueMatch, Manner);

/// A predicate as pairs of values and not-values: one pair has to hold.
pub(super) type Parts = Vec<(Vec<u32>, Vec<u32>)>;

type Atoms = BTreeMap<u32, Atom>;

/// The predicates of one attribute.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) key: Dimension,
    pub(super) ids: HashMap<Atom, u32>,
    pub(super) atoms: Atoms,
    pub(super) predicates: Vec<Parts>,
    pub(super) known: HashMap<Parts, u32>,
}

impl Draft {
    pub(super) fn register(
        &mut self,
        attribute: &Attribute,
        values: &[ValueMatch],
        not_values: &[ValueMatch],
        manners: &[(Manner, Manner)],
    ) -> u32 {
        let mut atoms = |list: &[ValueMatch], manner: Manner| {
            let mut all: Vec<u32> = list.iter().map(|v| self.atom(attribute, v, manner)).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let pairs = manners.iter().map(|(yes, no)| (atoms(values, *yes), atoms(not_values, *no)));
        let key: Parts = pairs.collect();
        let next = u32::try_from(self.predicates.len()).unwrap_or(u32::MAX);
        *self.known.entry(key.clone()).or_insert_with(|| {
            self.predicates.push(key);
            next
        })
    }

    fn atom(&mut self, attribute: &Attribute, value: &ValueMatch, manner: Manner) -> u32 {
        let key = (attribute.clone(), value.clone(), manner);
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
        self.atoms.insert(id, key.clone());
        self.ids.insert(key, id);
        id
    }

    pub(super) fn finish(self, hints: &Hints, first: u16) -> Result<(Vec<Dim>, Made), TooComplex> {
        let (mut values, mut matched) = self.classes(hints)?;
        if values.len().saturating_mul(self.atoms.len()) > CELLS {
            return Err(TooComplex(self.key.name()));
        }
        let apart = matches!(self.key, Dimension::Claim(_));
        // Plaintext is the last that comes to mind, a header that is not there the first.
        let may_lack = match &self.key {
            Dimension::Claim(_) => false,
            Dimension::Identity | Dimension::Label(_) => true,
            Dimension::Attribute(a) => {
                matches!(a, Attribute::Header(_) | Attribute::ConnectionSni | Attribute::RequestPrincipal)
            }
        };
        if may_lack {
            let place = if self.key == Dimension::Identity { values.len() } else { 0 };
            values.insert(place, Value::Absent);
            matched.insert(place, Vec::new());
        }
        let size = values.len();
        let mut atoms = vec![Bits::none(size); self.atoms.len()];
        for (class, inside) in matched.iter().enumerate() {
            inside.iter().for_each(|atom| atoms[*atom as usize].insert(class));
        }
        let dims = if apart {
            let two = |value| Dim::new(self.key.clone(), vec![Value::Absent, value]);
            values.into_iter().map(two).collect()
        } else {
            vec![Dim::new(self.key, values)]
        };
        Ok((dims, Made { ids: self.ids, predicates: self.predicates, atoms, first, apart }))
    }

    /// The classes of one value, best first.
    fn classes(&self, hints: &Hints) -> Result<(Vec<Value>, Vec<Vec<u32>>), TooComplex> {
        let domain = match &self.key {
            Dimension::Identity => Some(Domain::Identity),
            Dimension::Claim(path) => Some(pattern::claim(path)),
            Dimension::Label(_) => Some(Domain::Text),
            Dimension::Attribute(attribute) => pattern::domain(attribute),
        };
        if let Some(domain) = domain {
            return self.texts(domain, hints);
        }
        if self.key == Dimension::Attribute(Attribute::DestinationPort) {
            let port = |v: &ValueMatch| if let ValueMatch::Port(p) = v { Some(*p) } else { None };
            let named: Vec<(u32, u16)> =
                self.atoms.iter().filter_map(|(id, (_, v, _))| Some((*id, port(v)?))).collect();
            let ports: Vec<u16> = named.iter().map(|(_, p)| *p).collect();
            let all = address::ports(&ports, &hints.ports);
            let ids = |inside: Vec<u32>| inside.into_iter().map(|i| named[i as usize].0).collect();
            return Ok(all.into_iter().map(|(port, inside)| (Value::Port(port), ids(inside))).unzip());
        }
        let range = |v: &ValueMatch| if let ValueMatch::Cidr(r) = v { Some(*r) } else { None };
        let named: Vec<(u32, IpNet)> =
            self.atoms.iter().filter_map(|(id, (_, v, _))| Some((*id, range(v)?))).collect();
        let ranges: Vec<IpNet> = named.iter().map(|(_, r)| *r).collect();
        let ids = |inside: Vec<u32>| inside.into_iter().map(|i| named[i as usize].0).collect();
        let all = address::addresses(&ranges);
        Ok(all.into_iter().map(|(ip, inside)| (Value::Address(ip), ids(inside))).unzip())
    }

    fn texts(&self, domain: Domain, hints: &Hints) -> Result<(Vec<Value>, Vec<Vec<u32>>), TooComplex> {
        let patterns: Vec<_> = self.atoms.values().map(|(a, v, m)| pattern::patterns(a, v, *m)).collect();
        let automaton = Automaton::new(domain, &patterns);
        let classes = automaton.classes(STATES).map_err(|_| TooComplex(self.key.name()))?;
        let places: HashMap<&[u32], usize> =
            classes.iter().enumerate().map(|(index, class)| (&*class.atoms, index)).collect();
        let hinted = match domain {
            Domain::Identity => &*hints.identities,
            Domain::Host => &*hints.hosts,
            _ => &[],
        };
        let examples = self.atoms.values().flat_map(|(a, v, _)| pattern::examples(a, v));
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
}
