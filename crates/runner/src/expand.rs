// SPDX-License-Identifier: Apache-2.0
//! `$(VAR)` in commands, arguments and values of variables.

use std::collections::BTreeMap;

/// Replaces `$(NAME)` by the variable's value; an unknown name stays as written, and `$$` is a dollar sign.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        match rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            Some((name, after)) => {
                match variables.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_replaced_and_nothing_else() {
        let variables =
            BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$(NO)", "$(NO)"),
            ("$$(A)", "$(A)"),
            ("$A", "$A"),
            ("$(B)", "$(A)"),
            ("$(A", "$(A"),
            ("50$", "50$"),
        ] {
            assert_eq!(expand(text, &variables), expected);
        }
    }
}
