// SPDX-License-Identifier: Apache-2.0
//! What the reference needs from the sources of the crates, without their tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use syn::visit::{self, Visit};

/// Names with these ends belong to labels, annotations and conditions.
const DOMAINS: [&str; 3] = ["istio.io", "meltemi.dev", "gateway.networking.k8s.io"];

/// Facts of all source files.
#[derive(Default)]
pub(crate) struct Source {
    /// Labels, annotations and condition types.
    pub(crate) names: BTreeSet<String>,
    /// Reasons by condition type, where the code gives both as literals.
    pub(crate) reasons: BTreeMap<String, BTreeSet<String>>,
    /// Texts that may be a reason of a condition.
    pub(crate) words: BTreeSet<String>,
    /// Findings of `analyze`: code, level, text.
    pub(crate) findings: BTreeSet<(String, String, String)>,
    /// Settings from the environment: name, default, text by the role that has them.
    pub(crate) environment: BTreeMap<(String, String), Setting>,
    /// Ports of the mesh: number to the text of its constant.
    pub(crate) ports: BTreeMap<u16, String>,
    /// Metrics: name to help text.
    pub(crate) metrics: BTreeMap<String, String>,
    /// Texts of all constants by `file::NAME`, as another file names them.
    constants: BTreeMap<String, String>,
}

/// A setting of a role.
pub(crate) struct Setting {
    pub(crate) default: Option<String>,
    pub(crate) text: String,
}

impl Source {
    /// Reads every source file below `crates`.
    pub(crate) fn read(crates: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for package in sorted(crates)? {
            if package.join("src").is_dir() {
                find_files(&package.join("src"), &mut files)?;
            }
        }
        let mut source = Self::default();
        for (path, file) in &files {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            for (name, text) in constants_of(file) {
                source.constants.insert(format!("{stem}::{name}"), text);
            }
        }
        files.iter().for_each(|(path, file)| source.read_file(path, file));
        Ok(source)
    }

    fn read_file(&mut self, path: &Path, file: &syn::File) {
        let role = path
            .ends_with(Path::new("src/serve").join(path.file_name().unwrap_or_default()))
            .then(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        let is_ports = path.ends_with("model/src/net.rs");
        Reader { source: self, role, is_ports, constants: BTreeMap::new(), prefix: None }.visit_file(file);
    }
}

/// Parses the source files below a folder, without files and folders of tests.
fn find_files(folder: &Path, files: &mut Vec<(PathBuf, syn::File)>) -> anyhow::Result<()> {
    for path in sorted(folder)? {
        let is_tests = path.file_stem().is_some_and(|stem| stem == "tests");
        if path.is_dir() && !is_tests {
            find_files(&path, files)?;
        } else if path.extension().is_some_and(|end| end == "rs") && !is_tests {
            let file = syn::parse_file(&std::fs::read_to_string(&path)?);
            files.push((path.clone(), file.with_context(|| path.display().to_string())?));
        }
    }
    Ok(())
}

/// Names and texts of a file's own constants.
fn constants_of(file: &syn::File) -> impl Iterator<Item = (String, String)> {
    file.items.iter().filter_map(|item| match item {
        syn::Item::Const(constant) => match &*constant.expr {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => {
                Some((constant.ident.to_string(), text.value()))
            }
            _ => None,
        },
        _ => None,
    })
}

fn sorted(folder: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut all = std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    all.sort();
    Ok(all)
}

struct Reader<'a> {
    source: &'a mut Source,
    role: Option<String>,
    is_ports: bool,
    /// Texts of this file's constants and local variables, by name: a reason or a help text is often one.
    constants: BTreeMap<String, String>,
    /// Prefix of the registry that metrics are registered with now.
    prefix: Option<String>,
}

impl Reader<'_> {
    fn text(&self, expression: &syn::Expr) -> Option<String> {
        match expression {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            syn::Expr::Path(path) => {
                let names: Vec<String> = path.path.segments.iter().map(|s| s.ident.to_string()).collect();
                match names.as_slice() {
                    [.., file, name] => self.source.constants.get(&format!("{file}::{name}")).cloned(),
                    [name] => self.constants.get(name).cloned(),
                    [] => None,
                }
            }
            _ => None,
        }
    }

    fn read_condition(&mut self, call: &syn::ExprCall) {
        let syn::Expr::Path(path) = &*call.func else { return };
        let names: Vec<String> = path.path.segments.iter().map(|s| s.ident.to_string()).collect();
        let [.., owner, constructor] = names.as_slice() else { return };
        if owner != "Condition" || !matches!(constructor.as_str(), "yes" | "no") {
            return;
        }
        let mut arguments = call.args.iter().map(|argument| self.text(argument));
        if let (Some(Some(kind)), Some(Some(reason))) = (arguments.next(), arguments.next()) {
            self.source.reasons.entry(kind).or_default().insert(reason);
        }
    }

    fn read_finding(&mut self, call: &syn::ExprCall) {
        let syn::Expr::Path(path) = &*call.func else { return };
        if !path.path.is_ident("code") {
            return;
        }
        let arguments: Vec<&syn::Expr> = call.args.iter().collect();
        if let [code, syn::Expr::Path(level), text] = arguments.as_slice()
            && let (Some(code), Some(text)) = (self.text(code), self.text(text))
            && let Some(level) = level.path.segments.last()
        {
            self.source.findings.insert((code, level.ident.to_string(), text));
        }
    }

    fn read_metric(&mut self, call: &syn::ExprMethodCall) {
        let arguments: Vec<Option<String>> = call.args.iter().map(|a| self.text(a)).collect();
        if call.method == "register"
            && let [Some(name), Some(help), _] = arguments.as_slice()
        {
            let name = self.prefix.as_ref().map_or_else(|| name.clone(), |p| format!("{p}_{name}"));
            self.source.metrics.insert(name, help.clone());
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_file(&mut self, file: &'ast syn::File) {
        self.constants.extend(constants_of(file));
        visit::visit_file(self, file);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !module.attrs.iter().any(is_test) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        if !function.attrs.iter().any(is_test) {
            self.prefix = None;
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_item_const(&mut self, constant: &'ast syn::ItemConst) {
        if self.is_ports
            && let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Int(number), .. }) = &*constant.expr
            && let (Ok(port), Some(text)) = (number.base10_parse(), documentation(&constant.attrs))
            && matches!(&*constant.ty, syn::Type::Path(path) if path.path.is_ident("u16"))
        {
            self.source.ports.insert(port, text);
        }
        visit::visit_item_const(self, constant);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if let (syn::Pat::Ident(name), Some(init)) = (&local.pat, &local.init) {
            if let Some(text) = self.text(&init.expr) {
                self.constants.insert(name.ident.to_string(), text);
            }
            if let syn::Expr::MethodCall(call) = &*init.expr
                && call.method == "sub_registry_with_prefix"
            {
                self.prefix = call.args.first().and_then(|prefix| self.text(prefix));
            }
        }
        visit::visit_local(self, local);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if let Some(role) = self.role.clone() {
            for attribute in field.attrs.iter().filter(|a| a.path().is_ident("arg")) {
                let (mut name, mut default) = (None, None);
                // An attribute that clap reads and this does not (`value_parser = …`) is passed over.
                let _ = attribute.parse_nested_meta(|meta| {
                    let value = meta.value().and_then(|value| value.parse::<syn::Expr>()).ok();
                    let value = value.and_then(|value| self.text(&value));
                    if meta.path.is_ident("env") {
                        name = value;
                    } else if meta.path.is_ident("default_value") {
                        default = value;
                    }
                    Ok(())
                });
                if let Some(name) = name {
                    let text = documentation(&field.attrs).unwrap_or_default();
                    self.source.environment.insert((role.clone(), name), Setting { default, text });
                }
            }
        }
        visit::visit_field(self, field);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        self.read_condition(call);
        self.read_finding(call);
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.read_metric(call);
        visit::visit_expr_method_call(self, call);
    }

    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        let text = text.value();
        if is_name(&text) {
            self.source.names.insert(text);
        } else if text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.chars().all(|c| c.is_ascii_alphanumeric())
        {
            self.source.words.insert(text);
        }
    }
}

/// A label, an annotation or a type of condition; no API version, no resource, no file.
fn is_name(text: &str) -> bool {
    let Some((domain, name)) = text.split_once('/') else { return false };
    let ours = DOMAINS
        .iter()
        .any(|end| domain == *end || domain.strip_suffix(end).is_some_and(|rest| rest.ends_with('.')));
    let version = name.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    ours && !version && !name.is_empty() && name.chars().all(plain) && domain.chars().all(plain)
}

/// Whether an item is part of the tests.
pub(crate) fn is_test(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("test")
        || attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
}

/// The doc comment of an item, as one line.
pub(crate) fn documentation(attributes: &[syn::Attribute]) -> Option<String> {
    let lines: Vec<String> = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
        .filter_map(|attribute| match &attribute.meta.require_name_value().ok()?.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => {
                Some(text.value().trim().to_owned())
            }
            _ => None,
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join(" "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Source, is_name};

    #[test]
    fn names_are_told_from_versions_and_resources() {
        for (text, expected) in [
            ("istio.io/use-waypoint", true),
            ("ambient.istio.io/redirection", true),
            ("meltemi.dev/Enforced", true),
            ("gateway.networking.k8s.io/gateway-name", true),
            ("security.istio.io/v1", false),
            ("networking.istio.io/v1alpha3", false),
            ("apps.k8s.io/name", false),
            ("noistio.io/name", false),
            ("istio.io/", false),
            ("istio.io/{name}", false),
        ] {
            assert_eq!(is_name(text), expected, "{text}");
        }
    }

    #[test]
    fn facts_are_read_from_code_and_not_from_its_tests() {
        let code = r#"
            const REASON: &str = "Gone";
            const NEVER: Code = code("MLT0001", Level::Error, "a text");
            /// The node's port.
            pub const NODE: u16 = 15000;
            struct Args {
                /// Name of
                /// the node
                #[arg(long, env = "NODE_NAME", default_value = "here", value_parser = parse)]
                node: String,
            }
            fn f(registry: &mut R) {
                let help = "How many";
                registry.register("total", help, x);
                let registry = registry.sub_registry_with_prefix("mesh");
                registry.register("inner", "Inside", x);
                Condition::no("Ready", REASON, message);
            }
            #[cfg(test)]
            mod tests { fn t() { let x = "istio.io/only-in-tests"; } }
        "#;
        let file = syn::parse_file(code).expect("code");
        let mut source = Source::default();
        source.read_file(Path::new("crates/meltemi/src/serve/node.rs"), &file);
        source.read_file(Path::new("crates/model/src/net.rs"), &file);
        assert!(source.names.is_empty(), "{:?}", source.names);
        assert_eq!(source.metrics["total"], "How many");
        assert_eq!(source.metrics["mesh_inner"], "Inside");
        assert!(source.reasons["Ready"].contains("Gone"));
        assert_eq!(source.ports[&15000], "The node's port.");
        assert_eq!(source.findings.len(), 1);
        let setting = &source.environment[&("node".to_owned(), "NODE_NAME".to_owned())];
        assert_eq!((setting.default.as_deref(), setting.text.as_str()), (Some("here"), "Name of the node"));
    }
}
