// SPDX-License-Identifier: Apache-2.0
//! Which of many text patterns match a text: exact ones by hash, prefixes and suffixes by a radix tree each, path
//! templates by a tree of segments. The time depends on the text, not on how many patterns there are.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;

use super::Post;
use super::key::{Nested, nest};
use super::sets::SetsBuilder;

/// Patterns of one field with what they stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    exact: HashTable<(Arc<[u8]>, Post)>,
    prefixes: Option<Radix>,
    suffixes: Option<Radix>,
    presence: Option<Post>,
    templates: Option<Templates>,
}

/// Patterns to be indexed.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    pub(super) exact: Vec<(Arc<[u8]>, Post)>,
    pub(super) prefixes: Vec<Nested>,
    /// With their texts backwards.
    pub(super) suffixes: Vec<Nested>,
    pub(super) presence: Option<Post>,
    pub(super) templates: Vec<(Arc<str>, Post)>,
}

impl Patterns {
    pub(super) fn is_empty(&self) -> bool {
        let Self { exact, prefixes, suffixes, presence, templates } = self;
        exact.is_empty()
            && prefixes.is_empty()
            && suffixes.is_empty()
            && presence.is_none()
            && templates.is_empty()
    }
}

impl Texts {
    pub(super) fn new(patterns: Patterns, sets: &mut SetsBuilder, hash: &DefaultHashBuilder) -> Self {
        let Patterns { exact, prefixes, suffixes, presence, templates } = patterns;
        let mut table = HashTable::with_capacity(exact.len());
        for (text, post) in exact {
            let at = hash.hash_one(&*text);
            table.insert_unique(at, (text, post), |(text, _)| hash.hash_one(&**text));
        }
        Self {
            exact: table,
            suffixes: Radix::new(suffixes, sets),
            prefixes: Radix::new(prefixes, sets),
            presence,
            templates: (!templates.is_empty()).then(|| Templates::new(&templates, hash)),
        }
    }

    /// Calls for every pattern that matches.
    #[inline]
    pub(super) fn visit(&self, hash: &DefaultHashBuilder, text: &[u8], mut with: impl FnMut(Post)) {
        if !self.exact.is_empty()
            && let Some((_, post)) = self.exact.find(hash.hash_one(text), |(known, _)| **known == *text)
        {
            with(*post);
        }
        if let Some(post) = self.presence
            && !text.is_empty()
        {
            with(post);
        }
        if let Some(prefixes) = &self.prefixes {
            prefixes.visit(text.iter().copied(), &mut with);
        }
        if let Some(suffixes) = &self.suffixes {
            suffixes.visit(text.iter().rev().copied(), &mut with);
        }
        if let Some(templates) = &self.templates
            && let Some((b'/', rest)) = text.split_first()
        {
            templates.visit(hash, 0, Some(rest), &mut with);
        }
    }

    pub(super) fn heap(&self) -> usize {
        self.exact.allocation_size()
            + self.prefixes.as_ref().map_or(0, Radix::heap)
            + self.suffixes.as_ref().map_or(0, Radix::heap)
            + self.templates.as_ref().map_or(0, Templates::heap)
    }
}

/// A compressed tree over bytes. The children of a node stand side by side, sorted by their first byte.
#[derive(Clone, Debug)]
struct Radix {
    nodes: Vec<RadixNode>,
    /// First byte of each node's label.
    firsts: Vec<u8>,
    labels: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct RadixNode {
    post: Option<Post>,
    /// The post stands for those above, too.
    whole: bool,
    label: u32,
    length: u32,
    children: u32,
    count: u32,
}

impl Radix {
    fn new(mut patterns: Vec<Nested>, sets: &mut SetsBuilder) -> Option<Self> {
        if patterns.is_empty() {
            return None;
        }
        nest(&mut patterns);
        let node =
            |label, length| RadixNode { post: None, whole: false, label, length, children: 0, count: 0 };
        let mut tree = Self { nodes: vec![node(0, 0)], firsts: vec![0], labels: Vec::new() };
        let mut open = VecDeque::from([(0, 0..patterns.len(), 0)]);
        while let Some((at, mut range, depth)) = open.pop_front() {
            if patterns[range.start].text.len() == depth {
                let ends = &mut patterns[range.start];
                let (plus, minus) = (std::mem::take(&mut ends.plus), std::mem::take(&mut ends.minus));
                tree.nodes[at].post = Some(Post { plus: sets.set(plus), minus: sets.set(minus) });
                tree.nodes[at].whole = ends.whole;
                range.start += 1;
            }
            tree.nodes[at].children = tree.nodes.len() as u32;
            while range.start < range.end {
                let first = &patterns[range.start].text;
                let byte = first[depth];
                let group = &patterns[range.clone()];
                let size = group.partition_point(|pattern| pattern.text[depth] <= byte);
                let last = &group[size - 1].text;
                let shared = first.iter().zip(last.iter()).take_while(|(a, b)| a == b).count();
                let child = node(tree.labels.len() as u32, (shared - depth) as u32);
                tree.labels.extend_from_slice(&first[depth..shared]);
                tree.firsts.push(byte);
                tree.nodes.push(child);
                tree.nodes[at].count += 1;
                open.push_back((tree.nodes.len() - 1, range.start..range.start + size, shared));
                range.start += size;
            }
        }
        tree.labels.shrink_to_fit();
        tree.nodes.shrink_to_fit();
        tree.firsts.shrink_to_fit();
        Some(tree)
    }

    #[inline]
    fn visit(&self, mut text: impl Iterator<Item = u8>, with: &mut impl FnMut(Post)) {
        let mut found: SmallVec<[Post; 16]> = SmallVec::new();
        self.walk(&mut text, &mut found);
        found.into_iter().for_each(with);
    }

    #[inline]
    fn walk(&self, text: &mut impl Iterator<Item = u8>, posts: &mut SmallVec<[Post; 16]>) {
        let mut node = &self.nodes[0];
        loop {
            if let Some(post) = node.post {
                if node.whole {
                    posts.clear();
                }
                posts.push(post);
            }
            let children = node.children as usize..(node.children + node.count) as usize;
            if children.is_empty() {
                return;
            }
            let Some(byte) = text.next() else { return };
            let firsts = &self.firsts[children.clone()];
            let found = if firsts.len() <= 8 {
                firsts.iter().position(|first| *first == byte)
            } else {
                firsts.binary_search(&byte).ok()
            };
            let Some(found) = found else { return };
            node = &self.nodes[children.start + found];
            let label = &self.labels[node.label as usize..(node.label + node.length) as usize];
            for wanted in &label[1..] {
                if text.next() != Some(*wanted) {
                    return;
                }
            }
        }
    }

    fn heap(&self) -> usize {
        self.nodes.capacity() * size_of::<RadixNode>() + self.firsts.capacity() + self.labels.capacity()
    }
}

/// A tree over the segments of templates.
#[derive(Clone, Debug)]
struct Templates {
    nodes: Vec<TemplateNode>,
    /// Children by node and literal segment.
    literal: HashTable<(u32, Box<[u8]>, u32)>,
    /// What may follow a `{**}` of a node, from its `/` on.
    tails: HashTable<(u32, Box<[u8]>, Post)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct TemplateNode {
    /// The child for `{*}`.
    star: Option<u32>,
    /// A template ends here.
    end: Option<Post>,
    /// A template ends here with `{**}`.
    rest: Option<Post>,
    literal: bool,
    tails: bool,
}

impl Templates {
    fn new(templates: &[(Arc<str>, Post)], hash: &DefaultHashBuilder) -> Self {
        let root = vec![TemplateNode::default()];
        let mut tree = Self { nodes: root, literal: HashTable::new(), tails: HashTable::new() };
        for (text, post) in templates {
            tree.insert(text.strip_prefix('/').unwrap_or(text), *post, hash);
        }
        tree
    }

    fn insert(&mut self, text: &str, post: Post, hash: &DefaultHashBuilder) {
        let mut node = 0;
        let mut rest = Some(text);
        while let Some(text) = rest {
            if let Some(tail) = text.strip_prefix("{**}") {
                if tail.is_empty() {
                    self.nodes[node as usize].rest = Some(post);
                } else {
                    self.nodes[node as usize].tails = true;
                    let entry = (node, tail.as_bytes().into(), post);
                    self.tails.insert_unique(
                        hash.hash_one((node, tail.as_bytes())),
                        entry,
                        |(node, tail, _)| hash.hash_one((*node, &**tail)),
                    );
                }
                return;
            }
            let (segment, after) = text.split_once('/').map_or((text, None), |(s, a)| (s, Some(a)));
            node = self.child(node, segment, hash);
            rest = after;
        }
        self.nodes[node as usize].end = Some(post);
    }

    fn child(&mut self, node: u32, segment: &str, hash: &DefaultHashBuilder) -> u32 {
        let next = self.nodes.len() as u32;
        if segment == "{*}" {
            if let Some(known) = self.nodes[node as usize].star {
                return known;
            }
            self.nodes[node as usize].star = Some(next);
        } else {
            if let Some(known) = self.literal(hash, node, segment.as_bytes()) {
                return known;
            }
            self.nodes[node as usize].literal = true;
            let entry = (node, segment.as_bytes().into(), next);
            self.literal.insert_unique(
                hash.hash_one((node, segment.as_bytes())),
                entry,
                |(node, segment, _)| hash.hash_one((*node, &**segment)),
            );
        }
        self.nodes.push(TemplateNode::default());
        next
    }

    fn literal(&self, hash: &DefaultHashBuilder, node: u32, segment: &[u8]) -> Option<u32> {
        let at = hash.hash_one((node, segment));
        self.literal.find(at, |(n, s, _)| *n == node && **s == *segment).map(|(_, _, child)| *child)
    }

    /// `rest` begins with a segment; none when the path has ended. As deep as a template has segments.
    fn visit(&self, hash: &DefaultHashBuilder, at: u32, rest: Option<&[u8]>, with: &mut impl FnMut(Post)) {
        let node = &self.nodes[at as usize];
        let Some(rest) = rest else {
            if let Some(post) = node.end {
                with(post);
            }
            return;
        };
        if let Some(post) = node.rest {
            with(post);
        }
        if node.tails {
            for (slash, _) in rest.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                let tail = &rest[slash..];
                let found =
                    self.tails.find(hash.hash_one((at, tail)), |(n, known, _)| *n == at && **known == *tail);
                if let Some((_, _, post)) = found {
                    with(*post);
                }
            }
        }
        let end = rest.iter().position(|byte| *byte == b'/');
        let segment = &rest[..end.unwrap_or(rest.len())];
        let after = end.map(|end| &rest[end + 1..]);
        if node.literal
            && let Some(child) = self.literal(hash, at, segment)
        {
            self.visit(hash, child, after, with);
        }
        if let Some(child) = node.star
            && !segment.is_empty()
        {
            self.visit(hash, child, after, with);
        }
    }

    fn heap(&self) -> usize {
        let boxed = self.literal.iter().map(|(_, text, _)| text.len()).sum::<usize>()
            + self.tails.iter().map(|(_, text, _)| text.len()).sum::<usize>();
        self.nodes.capacity() * size_of::<TemplateNode>()
            + self.literal.allocation_size()
            + self.tails.allocation_size()
            + boxed
    }
}
