// SPDX-License-Identifier: Apache-2.0
//! JSON in which no field stands twice: of two readings of a policy, neither must win silently.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::status::Refusal;

/// Reads a body.
pub(super) fn decode(bytes: &[u8]) -> Result<Value, Refusal> {
    let seen = Seen::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Element(&seen).deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v));
    match (seen.duplicate.into_inner(), value) {
        (Some(field), _) => {
            Err(Refusal::bad_request(format!("strict decoding error: duplicate field \"{field}\"")))
        }
        (None, Ok(value)) => Ok(value),
        (None, Err(error)) => Err(Refusal::bad_request(format!("error decoding JSON: {error}"))),
    }
}

/// Where the reader is, and the first field that came twice.
#[derive(Default)]
struct Seen {
    path: RefCell<Vec<String>>,
    duplicate: RefCell<Option<String>>,
}

#[derive(Clone, Copy)]
struct Element<'a>(&'a Seen);

impl Element<'_> {
    fn below<T>(self, step: String, read: impl FnOnce(Self) -> T) -> T {
        self.0.path.borrow_mut().push(step);
        let value = read(self);
        self.0.path.borrow_mut().pop();
        value
    }
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) =
            self.below(format!("[{}]", list.len()), |element| elements.next_element_seed(element))?
        {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let value = self.below(key.clone(), |element| fields.next_value_seed(element))?;
            if map.contains_key(&key) && self.0.duplicate.borrow().is_none() {
                let path = self
                    .0
                    .path
                    .borrow()
                    .iter()
                    .chain([&key])
                    .fold(String::new(), |path, step| joined(path, step));
                self.0.duplicate.replace(Some(path));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

fn joined(path: String, step: &str) -> String {
    if path.is_empty() || step.starts_with('[') { path + step } else { path + "." + step }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_is_read_and_nothing_twice() {
        let value = json!({"a": [1, -1, 1.5, "x", null, true, {"b": {}}], "c": {"a": 1}});
        assert_eq!(decode(value.to_string().as_bytes()).unwrap(), value);
        let cases = [
            (r#"{"a": 1, "a": 2}"#, "duplicate field \"a\""),
            (
                r#"{"spec": {"rules": [{}, {"from": [], "from": []}]}}"#,
                "duplicate field \"spec.rules[1].from\"",
            ),
            (r#"{"a": }"#, "error decoding JSON"),
            (r#"{} x"#, "error decoding JSON"),
        ];
        for (text, expected) in cases {
            let refusal = decode(text.as_bytes()).unwrap_err();
            assert!(refusal.message.contains(expected), "{text}: {}", refusal.message);
        }
        let deep = "[".repeat(10_000);
        assert!(decode(deep.as_bytes()).is_err());
    }
}
