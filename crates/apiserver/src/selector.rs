// SPDX-License-Identifier: Apache-2.0
//! Label and field selectors, as clients write them in a query.

use serde_json::Value;

use crate::status::Refusal;

/// ANDed requirements on labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    NotExists(String),
}

impl Labels {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// 400 with the part that cannot be read.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        split_outside_parentheses(text)
            .into_iter()
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                requirement(part)
                    .ok_or_else(|| Refusal::bad_request(format!("unable to parse requirement: {part:?}")))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// From a `metav1.LabelSelector` object; an empty one matches everything.
    pub fn from_object(selector: &Value) -> Self {
        let equal = selector["matchLabels"].as_object().into_iter().flatten();
        let mut all: Vec<Requirement> = equal
            .map(|(k, v)| Requirement::In(k.clone(), vec![v.as_str().unwrap_or_default().to_owned()]))
            .collect();
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            all.push(match expression["operator"].as_str() {
                Some("NotIn") => Requirement::NotIn(key, values),
                Some("Exists") => Requirement::Exists(key),
                Some("DoesNotExist") => Requirement::NotExists(key),
                _ => Requirement::In(key, values),
            });
        }
        Self(all)
    }

    /// Whether an object's labels match.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                labels[key].as_str().is_some_and(|v| values.iter().any(|w| w == v))
            }
            Requirement::NotIn(key, values) => {
                !labels[key].as_str().is_some_and(|v| values.iter().any(|w| w == v))
            }
            Requirement::Exists(key) => labels[key].is_string(),
            Requirement::NotExists(key) => !labels[key].is_string(),
        })
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn requirement(part: &str) -> Option<Requirement> {
    let word = |text: &str| {
        let text = text.trim();
        (!text.is_empty() && !text.contains(char::is_whitespace)).then(|| text.to_owned())
    };
    if let Some(key) = part.strip_prefix('!') {
        return word(key).map(Requirement::NotExists);
    }
    if let Some((head, list)) = part.split_once('(') {
        let values = list.strip_suffix(')')?.split(',').map(|v| v.trim().to_owned()).collect();
        let (key, operator) = head.trim().rsplit_once(char::is_whitespace)?;
        return match operator {
            "in" => Some(Requirement::In(word(key)?, values)),
            "notin" => Some(Requirement::NotIn(word(key)?, values)),
            _ => None,
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Some(Requirement::NotIn(word(key)?, vec![value.trim().to_owned()]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(Requirement::In(word(key)?, vec![value.trim().to_owned()]));
    }
    word(part).map(Requirement::Exists)
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// ANDed requirements on fields: `metadata.name=x,spec.nodeName!=y`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, bool, String)>);

impl Fields {
    /// Parses a field selector.
    ///
    /// # Errors
    /// 400 with the part that cannot be read.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        text.split(',')
            .filter(|part| !part.trim().is_empty())
            .map(|part| {
                let (path, equal, value) = if let Some((path, value)) = part.split_once("!=") {
                    (path, false, value)
                } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                    (path, true, value)
                } else {
                    return Err(Refusal::bad_request(format!("invalid field selector: {part:?}")));
                };
                Ok((path.trim().to_owned(), equal, value.trim().to_owned()))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether an object matches; a field that is missing equals the empty text.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, equal, wanted)| {
            let found = path.split('.').fold(object, |value, key| &value[key]);
            let text = match found {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            (text == *wanted) == *equal
        })
    }

    /// The name that is asked for, when the selector asks for one: kubectl watches a single object so.
    pub fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|(path, equal, _)| *equal && path == "metadata.name")
            .map(|(_, _, name)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors() {
        let object = json!({"metadata": {"labels": {"app": "a", "tier": "x"}}});
        let cases = [
            ("", true),
            ("app=a", true),
            ("app==a,tier!=y", true),
            ("app in (a, b),tier notin (y)", true),
            ("app,!gone", true),
            ("app=b", false),
            ("!app", false),
            ("app notin (a)", false),
            ("gone!=x", true),
        ];
        for (text, expected) in cases {
            assert_eq!(Labels::parse(text).unwrap().matches(&object), expected, "{text}");
        }
        assert!(Labels::parse("a b").is_err());
        assert!(Labels::parse("a in b").is_err());
    }

    #[test]
    fn field_selectors() {
        let object = json!({"metadata": {"name": "n"}, "spec": {"nodeName": "x"}, "unschedulable": true});
        let cases = [
            ("metadata.name=n", true),
            ("spec.nodeName!=x", false),
            ("status.phase=", true),
            ("unschedulable=true", true),
        ];
        for (text, expected) in cases {
            assert_eq!(Fields::parse(text).unwrap().matches(&object), expected, "{text}");
        }
    }
}
