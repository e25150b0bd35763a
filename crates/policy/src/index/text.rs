// SPDX-License-Identifier: Apache-2.0
//! Which of many text patterns match a text: exact ones by hash, prefixes and suffixes by a search over their lengths, path
//! templates by a tree of segments. The time depends on the text, not on how many patterns there are.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::Post;
use super::ends::Ends;
use super::key::Nested;
use super::sets::SetsBuilder;

/// Patterns of one field with what they stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    exact: HashTable<(Arc<[u8]>, Post)>,
    prefixes: Option<Ends>,
    suffixes: Option<Ends>,
    presence: Option<Post>,
    /// Presence matches an empty text as well.
    presence_of_empty: bool,
    templates: Option<Templates>,
}

/// Patterns to be indexed.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    pub(super) exact: Vec<(Arc<[u8]>, Post)>,
    pub(super) prefixes: Vec<Nested>,
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
    pub(super) fn new(
        patterns: Patterns,
        presence_of_empty: bool,
        sets: &mut SetsBuilder,
        hash: &DefaultHashBuilder,
    ) -> Self {
        let Patterns { exact, prefixes, suffixes, presence, templates } = patterns;
        let mut table = HashTable::with_capacity(exact.len());
        for (text, post) in exact {
            let at = hash.hash_one(&*text);
            table.insert_unique(at, (text, post), |(text, _)| hash.hash_one(&**text));
        }
        Self {
            exact: table,
            suffixes: Ends::new(suffixes, false, sets, hash),
            prefixes: Ends::new(prefixes, true, sets, hash),
            presence,
            presence_of_empty,
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
            && (self.presence_of_empty || !text.is_empty())
        {
            with(post);
        }
        if let Some(prefixes) = &self.prefixes {
            prefixes.visit(hash, text, &mut with);
        }
        if let Some(suffixes) = &self.suffixes {
            suffixes.visit(hash, text, &mut with);
        }
        if let Some(templates) = &self.templates
            && let Some((b'/', rest)) = text.split_first()
        {
            templates.visit(hash, 0, Some(rest), &mut with);
        }
    }

    pub(super) fn heap(&self) -> usize {
        self.exact.allocation_size()
            + self.prefixes.as_ref().map_or(0, Ends::heap)
            + self.suffixes.as_ref().map_or(0, Ends::heap)
            + self.templates.as_ref().map_or(0, Templates::heap)
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
