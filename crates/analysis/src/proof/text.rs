// SPDX-License-Identifier: Apache-2.0
//! Every way in which one text can match a set of patterns, each with a text that does.
//!
//! All patterns become one automaton without determinism (a trie with loops); its subsets, walked together with the
//! domain's automaton, end in every combination of matches that some text of the domain has. Walked breadth first, so the
//! text found for a combination is a shortest one.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::domain::{At, Domain};

/// What a free place takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Free {
    /// Every character.
    Any,
    /// Every character but `/`.
    NotSlash,
    /// Every character of a host's name that is no address: not `:`, `[` or `]`.
    Name,
}

impl Free {
    fn takes(self, c: char) -> bool {
        match self {
            Self::Any => true,
            Self::NotSlash => c != '/',
            Self::Name => !matches!(c, ':' | '[' | ']'),
        }
    }
}

/// A part of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// This text.
    Is(String),
    /// One free character.
    One(Free),
    /// Any number of free characters.
    Many(Free),
}

/// Pieces in a row.
pub(crate) type Pattern = Vec<Piece>;

/// Too many combinations to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

/// A combination of matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// A text that has it.
    pub(crate) text: String,
    /// Which atoms match, ascending.
    pub(crate) atoms: Vec<u32>,
}

#[derive(Debug, Default)]
struct Node {
    /// Takes these and stays.
    stays: Option<Free>,
    next: BTreeMap<char, u32>,
    one: Vec<(Free, u32)>,
    /// Loops that begin here.
    many: Vec<(Free, u32)>,
    /// Atoms that match when the text ends here.
    ends: Vec<u32>,
}

/// The patterns of all atoms.
#[derive(Debug)]
pub(crate) struct Automaton {
    domain: Domain,
    nodes: Vec<Node>,
}

type Set = Box<[u32]>;

impl Automaton {
    /// Of atoms, each with alternatives.
    pub(crate) fn new(domain: Domain, atoms: &[Vec<Pattern>]) -> Self {
        let mut all = Self { domain, nodes: vec![Node::default()] };
        for (atom, patterns) in (0..).zip(atoms) {
            for pattern in patterns {
                all.add(atom, pattern);
            }
        }
        all
    }

    fn add(&mut self, atom: u32, pattern: &Pattern) {
        let mut at = 0;
        for piece in pattern {
            match piece {
                Piece::Is(text) => {
                    for c in text.chars() {
                        at = match self.nodes[at as usize].next.get(&c) {
                            Some(next) => *next,
                            None => {
                                let made = self.node(None);
                                self.nodes[at as usize].next.insert(c, made);
                                made
                            }
                        };
                    }
                }
                Piece::One(free) => at = self.branch(at, *free, false),
                Piece::Many(free) => at = self.branch(at, *free, true),
            }
        }
        let ends = &mut self.nodes[at as usize].ends;
        if !ends.contains(&atom) {
            ends.push(atom);
        }
    }

    fn node(&mut self, stays: Option<Free>) -> u32 {
        self.nodes.push(Node { stays, ..Node::default() });
        u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
    }

    fn branch(&mut self, at: u32, free: Free, many: bool) -> u32 {
        let node = &self.nodes[at as usize];
        let list = if many { &node.many } else { &node.one };
        if let Some((_, next)) = list.iter().find(|(f, _)| *f == free) {
            return *next;
        }
        let made = self.node(many.then_some(free));
        let node = &mut self.nodes[at as usize];
        if many {
            node.many.push((free, made))
        } else {
            node.one.push((free, made))
        }
        made
    }

    fn closed(&self, mut set: Vec<u32>) -> Set {
        let mut at = 0;
        while at < set.len() {
            set.extend(self.nodes[set[at] as usize].many.iter().map(|(_, next)| *next));
            at += 1;
        }
        set.sort_unstable();
        set.dedup();
        set.into()
    }

    fn step(&self, set: &[u32], c: char) -> Set {
        let mut out = Vec::with_capacity(set.len());
        for index in set {
            let node = &self.nodes[*index as usize];
            if node.stays.is_some_and(|free| free.takes(c)) {
                out.push(*index);
            }
            out.extend(node.next.get(&c));
            out.extend(node.one.iter().filter(|(free, _)| free.takes(c)).map(|(_, next)| *next));
        }
        self.closed(out)
    }

    fn atoms(&self, set: &[u32]) -> Vec<u32> {
        let mut all: Vec<u32> =
            set.iter().flat_map(|i| self.nodes[*i as usize].ends.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The atoms that a text matches; none when the text is not of the domain.
    pub(crate) fn matched(&self, text: &str) -> Option<Vec<u32>> {
        if !self.domain.has(text) {
            return None;
        }
        let end = text.chars().fold(self.closed(vec![0]), |set, c| self.step(&set, c));
        Some(self.atoms(&end))
    }

    /// What is worth trying after a state: every character that a pattern names there, and one of each group.
    fn tries(&self, at: At, set: &[u32], into: &mut Vec<char>) {
        into.clear();
        into.extend(set.iter().flat_map(|i| self.nodes[*i as usize].next.keys()));
        into.sort_unstable();
        into.dedup();
        let named = into.len();
        for group in self.domain.groups(at) {
            let other = group.chars().find(|c| into[..named].binary_search(c).is_err());
            into.extend(other);
        }
    }

    /// Every combination that a text of the domain has.
    ///
    /// # Errors
    /// More than `limit` states would be looked at.
    pub(crate) fn classes(&self, limit: usize) -> Result<Vec<Class>, TooMany> {
        let mut seen: HashMap<(At, Set), u32> = HashMap::new();
        let mut from: Vec<(u32, char)> = vec![(0, '\0')];
        let mut found: HashMap<Vec<u32>, ()> = HashMap::new();
        let mut out = Vec::new();
        let first = (Domain::START, self.closed(vec![0]));
        let mut queue = VecDeque::from([(0u32, first.clone())]);
        seen.insert(first, 0);
        let mut tries = Vec::new();
        while let Some((id, (at, set))) = queue.pop_front() {
            if self.domain.ends(at) {
                let atoms = self.atoms(&set);
                if found.insert(atoms.clone(), ()).is_none() {
                    out.push(Class { text: spell(&from, id), atoms });
                }
            }
            self.tries(at, &set, &mut tries);
            for c in tries.iter().copied() {
                let Some(next) = self.domain.step(at, c) else { continue };
                let key = (next, self.step(&set, c));
                if seen.contains_key(&key) {
                    continue;
                }
                if from.len() >= limit {
                    return Err(TooMany);
                }
                let made = u32::try_from(from.len()).map_err(|_| TooMany)?;
                from.push((id, c));
                seen.insert(key.clone(), made);
                queue.push_back((made, key));
            }
        }
        Ok(out)
    }
}

fn spell(from: &[(u32, char)], mut at: u32) -> String {
    let mut text = Vec::new();
    while at != 0 {
        let (before, c) = from[at as usize];
        text.push(c);
        at = before;
    }
    text.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(text: &str) -> Piece {
        Piece::Is(text.into())
    }

    #[test]
    fn every_combination_is_found_and_each_text_has_its_own() {
        let atoms = vec![
            vec![vec![is("/a")]],
            vec![vec![is("/a"), Piece::Many(Free::Any)]],
            vec![vec![is("/ab"), Piece::Many(Free::Any)]],
            vec![vec![Piece::Many(Free::Any), is("b")]],
            vec![vec![is("/"), Piece::One(Free::NotSlash), Piece::Many(Free::NotSlash), is("/c")]],
        ];
        let automaton = Automaton::new(Domain::Path, &atoms);
        let classes = automaton.classes(10_000).unwrap();
        for class in &classes {
            assert_eq!(automaton.matched(&class.text).as_ref(), Some(&class.atoms), "{class:?}");
        }
        let mut all: Vec<Vec<u32>> = classes.into_iter().map(|c| c.atoms).collect();
        all.sort();
        let expected: Vec<Vec<u32>> = vec![
            vec![],
            vec![0, 1],
            vec![1],
            vec![1, 2],
            vec![1, 2, 3],
            vec![1, 2, 4],
            vec![1, 3],
            vec![1, 4],
            vec![3],
            vec![4],
        ];
        assert_eq!(all, expected);
        assert_eq!(automaton.classes(3), Err(TooMany));
    }
}
