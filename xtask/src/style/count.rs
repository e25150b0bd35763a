// SPDX-License-Identifier: Apache-2.0
//! Counts over the sources of the crates, without their tests.

use std::path::{Path, PathBuf};

use anyhow::Context;
use syn::visit::{self, Visit};

use super::circles;

/// What was counted.
#[derive(Default)]
pub(crate) struct Counts {
    /// Lines that are neither empty nor a comment.
    pub(crate) lines: usize,
    /// Functions and methods, without those of traits, whose names their implementation cannot choose.
    pub(crate) functions: usize,
    pub(crate) one_word_functions: usize,
    pub(crate) docs: usize,
    pub(crate) short_docs: usize,
    pub(crate) closures: usize,
    pub(crate) tuples: usize,
    pub(crate) text_errors: usize,
    /// The largest set of modules that all use each other, after the folder of their crate.
    pub(crate) largest_circle: (PathBuf, Vec<String>),
}

impl Counts {
    /// Counts every crate below `crates`.
    pub(crate) fn of(crates: &Path) -> anyhow::Result<Self> {
        let mut counts = Self::default();
        for package in std::fs::read_dir(crates)? {
            let source = package?.path().join("src");
            if !source.is_dir() {
                continue;
            }
            let mut files = Vec::new();
            find(&source, &mut files)?;
            let mut parsed = Vec::new();
            for path in files {
                let text = std::fs::read_to_string(&path)?;
                let file = syn::parse_file(&text).with_context(|| path.display().to_string())?;
                counts.add(&text, &file);
                parsed.push((path, file));
            }
            let circle = circles::largest(&source, &parsed);
            if circle.len() > counts.largest_circle.1.len() {
                counts.largest_circle = (source, circle);
            }
        }
        Ok(counts)
    }

    fn add(&mut self, text: &str, file: &syn::File) {
        let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
        self.lines += text.lines().filter(is_code).count();
        Counter(self).visit_file(file);
    }

    fn add_function(&mut self, signature: &syn::Signature) {
        let name = signature.ident.to_string();
        if name == "main" {
            return;
        }
        self.functions += 1;
        self.one_word_functions += usize::from(!name.trim_start_matches('_').contains('_'));
    }
}

/// Source files below a folder, without files and folders of tests.
fn find(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_tests = path.file_stem().is_some_and(|stem| stem == "tests");
        if path.is_dir() && !is_tests {
            find(&path, files)?;
        } else if path.extension().is_some_and(|end| end == "rs") && !is_tests {
            files.push(path);
        }
    }
    Ok(())
}

struct Counter<'a>(&'a mut Counts);

impl<'ast> Visit<'ast> for Counter<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !module.attrs.iter().any(crate::reference::is_test) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        if !function.attrs.iter().any(crate::reference::is_test) {
            self.0.add_function(&function.sig);
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        if block.trait_.is_none() {
            for item in &block.items {
                if let syn::ImplItem::Fn(method) = item {
                    self.0.add_function(&method.sig);
                }
            }
        }
        visit::visit_item_impl(self, block);
    }

    fn visit_item(&mut self, item: &'ast syn::Item) {
        self.count_docs(item_attributes(item));
        visit::visit_item(self, item);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        self.count_docs(&field.attrs);
        visit::visit_field(self, field);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.count_docs(&variant.attrs);
        visit::visit_variant(self, variant);
    }

    fn visit_impl_item_fn(&mut self, method: &'ast syn::ImplItemFn) {
        self.count_docs(&method.attrs);
        visit::visit_impl_item_fn(self, method);
    }

    fn visit_trait_item_fn(&mut self, method: &'ast syn::TraitItemFn) {
        self.count_docs(&method.attrs);
        visit::visit_trait_item_fn(self, method);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        let is_closure = |init: &syn::LocalInit| matches!(&*init.expr, syn::Expr::Closure(_));
        self.0.closures += usize::from(local.init.as_ref().is_some_and(is_closure));
        visit::visit_local(self, local);
    }

    fn visit_type_tuple(&mut self, tuple: &'ast syn::TypeTuple) {
        self.0.tuples += usize::from(tuple.elems.len() >= 3);
        visit::visit_type_tuple(self, tuple);
    }

    fn visit_path_segment(&mut self, segment: &'ast syn::PathSegment) {
        if segment.ident == "Result"
            && let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments
            && let Some(syn::GenericArgument::Type(syn::Type::Path(error))) = arguments.args.iter().nth(1)
        {
            self.0.text_errors += usize::from(error.path.is_ident("String"));
        }
        visit::visit_path_segment(self, segment);
    }
}

impl Counter<'_> {
    fn count_docs(&mut self, attributes: &[syn::Attribute]) {
        if let Some(text) = crate::reference::documentation(attributes) {
            self.0.docs += 1;
            self.0.short_docs += usize::from(text.split_whitespace().count() <= 3);
        }
    }
}

fn item_attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn each_figure_counts_what_it_says_and_no_test() {
        let code = r"
            /// Two words.
            struct A { /// Counts the requests of one client.
                a: (u8, u8, u8), b: (u8, u8) }
            impl A { fn one(&self) {} fn two_words(&self) -> Result<(), String> { let f = |x: u8| x; let g = 1; Ok(()) } }
            impl Clone for A { fn clone(&self) -> Self { todo() } }
            fn three() -> Result<u8, Error> { Ok(1) }
            #[cfg(test)]
            mod tests { fn four() -> Result<(), String> { let f = || 1; Ok(()) } }
        ";
        let mut counts = Counts::default();
        counts.add(code, &syn::parse_file(code).expect("code"));
        assert_eq!((counts.functions, counts.one_word_functions), (3, 2));
        assert_eq!((counts.docs, counts.short_docs), (2, 1));
        assert_eq!((counts.closures, counts.tuples, counts.text_errors), (1, 1, 1));
    }
}
