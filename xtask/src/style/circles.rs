// SPDX-License-Identifier: Apache-2.0
//! Circles between the files of a crate: files that all use each other, a parent's use of its child included.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// Path of a module below the crate's root; the root itself is empty.
type ModulePath = Vec<String>;

/// Modules of the largest circle of a crate; one of them where there is none.
pub(crate) fn largest(source: &Path, files: &[(PathBuf, syn::File)]) -> Vec<String> {
    let modules: BTreeMap<ModulePath, &syn::File> =
        files.iter().filter_map(|(path, file)| Some((module_of(source, path)?, file))).collect();
    let uses: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> = modules
        .iter()
        .map(|(module, file)| {
            let mut reader = Uses { module, known: &modules, found: BTreeSet::new() };
            reader.visit_file(file);
            reader.found.remove(module);
            (module, reader.found)
        })
        .collect();
    let reach: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> =
        uses.keys().map(|module| (*module, reachable(module, &uses))).collect();
    let circle = |module: &ModulePath| {
        let others =
            reach[module].iter().filter(|other| **other != module && reach[**other].contains(module));
        others.copied().chain([module]).map(|path| path.join("::")).collect::<Vec<_>>()
    };
    modules.keys().map(circle).max_by_key(Vec::len).unwrap_or_default()
}

fn reachable<'a>(
    from: &'a ModulePath,
    uses: &BTreeMap<&'a ModulePath, BTreeSet<&'a ModulePath>>,
) -> BTreeSet<&'a ModulePath> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for next in uses.get(module).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(*next);
            }
        }
    }
    seen
}

/// `src/a/b.rs` is the module `a::b`; `lib.rs` and `main.rs` are the root.
fn module_of(source: &Path, path: &Path) -> Option<ModulePath> {
    let relative = path.strip_prefix(source).ok()?.with_extension("");
    let mut names: ModulePath =
        relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if names.len() == 1 && (names[0] == "lib" || names[0] == "main") {
        names.clear();
    }
    Some(names)
}

/// The modules that a file names by a path of its crate.
struct Uses<'a> {
    module: &'a ModulePath,
    known: &'a BTreeMap<ModulePath, &'a syn::File>,
    found: BTreeSet<&'a ModulePath>,
}

impl Uses<'_> {
    /// Adds the file that a path leads to: the longest part of it that is a file's module.
    fn add(&mut self, names: &[String]) {
        let Some(mut path) = self.resolve(names) else { return };
        loop {
            if let Some((module, _)) = self.known.get_key_value(&path) {
                self.found.insert(module);
                return;
            }
            if path.pop().is_none() {
                return;
            }
        }
    }

    fn resolve(&self, names: &[String]) -> Option<ModulePath> {
        let mut rest = names.iter();
        let mut base = match names.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().checked_sub(1)?].to_vec(),
            child => {
                // A path that begins with a child module; everything else is another crate or a local name.
                let mut path = self.module.clone();
                path.push(child.to_owned());
                self.known.contains_key(&path).then_some(())?;
                path
            }
        };
        rest.next();
        for name in rest {
            if name == "super" {
                base.pop()?;
            } else {
                base.push(name.clone());
            }
        }
        Some(base)
    }

    fn add_tree(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.add(&with(&name.ident)),
            syn::UseTree::Rename(name) => self.add(&with(&name.ident)),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_tree(tree, before));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        // Inline modules of a file are few, and all of them are tests.
        if module.content.is_none() {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if names.len() > 1 {
            self.add(&names);
        }
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::largest;

    fn circle(files: &[(&str, &str)]) -> Vec<String> {
        let parse = |(name, text): &(&str, &str)| {
            (PathBuf::from("src").join(name), syn::parse_file(text).expect("code"))
        };
        largest(Path::new("src"), &files.iter().map(parse).collect::<Vec<_>>())
    }

    #[test]
    fn circles_are_found_by_every_kind_of_path() {
        for (files, expected) in [
            (
                vec![
                    ("lib.rs", "mod a; mod b; pub use a::A;"),
                    ("a.rs", "use crate::b::B;"),
                    ("b.rs", "struct B;"),
                ],
                1,
            ),
            (
                vec![("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", "use super::a::A;")],
                2,
            ),
            (vec![("a.rs", "mod c; fn f() { c::g(); }"), ("a/c.rs", "use super::Parent;")], 2),
            (
                vec![
                    ("a.rs", "use crate::b;"),
                    ("b.rs", "fn f() { crate::c::d() }"),
                    ("c.rs", "use crate::{a::{A, X}};"),
                ],
                3,
            ),
            (vec![("a.rs", "use std::b::c; use serde::a;"), ("b.rs", "use crate::a;")], 1),
            (vec![("a.rs", "#[cfg(test)] mod tests { use crate::b::B; }"), ("b.rs", "use crate::a::A;")], 1),
        ] {
            assert_eq!(circle(&files).len(), expected, "{files:?}");
        }
    }
}
