// SPDX-License-Identifier: Apache-2.0
//! Warnings that a request collects on its way, and the `Warning` headers that carry them to the client.

use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderValue};

/// Total length of the texts in one response, in bytes, as in Kubernetes.
const MAX_TOTAL: usize = 4096;
/// Length to which each text is cut once all of them together exceed [`MAX_TOTAL`], in bytes.
const MAX_CUT: usize = 256;

/// Warnings of one request; clones share them. They reach the client whether the request succeeds or not.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Adds a warning unless the same text was added before.
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains(&text) {
            all.push(text);
        }
    }

    /// Adds several warnings.
    pub fn extend(&self, texts: impl IntoIterator<Item = String>) {
        texts.into_iter().for_each(|text| self.add(text));
    }

    /// Writes one `Warning: 299 - "..."` for each text; what does not fit into `MAX_TOTAL` is left out.
    pub fn write(&self, headers: &mut HeaderMap) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut texts: Vec<String> = all.iter().map(|text| printable(text)).collect();
        if texts.iter().map(String::len).sum::<usize>() > MAX_TOTAL {
            texts.iter_mut().for_each(|text| text.truncate(MAX_CUT));
        }
        let mut total = 0;
        for text in texts {
            total += text.len();
            if total > MAX_TOTAL {
                break;
            }
            let quoted = serde_json::Value::String(text).to_string();
            if let Ok(value) = HeaderValue::from_str(&format!("299 - {quoted}")) {
                headers.append("Warning", value);
            }
        }
    }
}

/// A text as a header can hold it: ASCII without control characters, line breaks as spaces.
fn printable(text: &str) -> String {
    let spaced = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    spaced.filter(|c| c.is_ascii() && !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(texts: &[String]) -> Vec<String> {
        let warnings = Warnings::default();
        warnings.extend(texts.iter().cloned());
        let mut headers = HeaderMap::new();
        warnings.write(&mut headers);
        headers.get_all("Warning").iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn texts_are_quoted_bounded_and_said_once() {
        let one = |text: &str| vec![text.to_owned()];
        let cases = [
            (vec![], vec![]),
            (one("a \"b\" \\ c"), one("299 - \"a \\\"b\\\" \\\\ c\"")),
            (one("a\r\nWarning: b\u{7f}\u{e9}"), one("299 - \"a  Warning: b\"")),
            (
                vec!["a".to_owned(), "b".to_owned(), "a".to_owned()],
                vec!["299 - \"a\"".to_owned(), "299 - \"b\"".to_owned()],
            ),
        ];
        for (texts, expected) in cases {
            assert_eq!(written(&texts), expected, "{texts:?}");
        }
        let long: Vec<String> = (0..40).map(|n| format!("{n:02}").repeat(500)).collect();
        let all = written(&long);
        assert_eq!(all.len(), MAX_TOTAL / MAX_CUT);
        assert!(all.iter().all(|text| text.len() == MAX_CUT + "299 - \"\"".len()), "{all:?}");
    }
}
