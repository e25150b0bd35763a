// SPDX-License-Identifier: Apache-2.0
//! Reads any serde format into JSON values, and notes the fields that stand twice: of two readings of a policy, neither
//! must win silently. Elements are counted while they are read.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use super::Duplicate;
use crate::bounds::{Elements, OverBound};

/// Most bytes of the texts that name fields which stand twice.
const MAX_NAMED: usize = 16 * 1024;
/// Longest key in such a text, in bytes.
const MAX_KEY: usize = 256;

/// Where the reader is, the fields that came twice, and the bound that was exceeded.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Keys have lines: the format is YAML. No other deserializer knows `Spanned`.
    has_lines: bool,
    path: RefCell<Vec<Step>>,
    elements: Cell<Elements>,
    duplicates: RefCell<Vec<Duplicate>>,
    named: Cell<usize>,
    over: Cell<Option<OverBound>>,
}

#[derive(Debug)]
enum Step {
    Field(String),
    Index(usize),
}

impl Reader {
    pub(super) fn json() -> Self {
        Self::default()
    }

    pub(super) fn yaml() -> Self {
        Self { has_lines: true, ..Self::default() }
    }

    /// The element that is read next.
    pub(super) fn element(&self) -> Element<'_> {
        Element(self)
    }

    /// The fields that came twice.
    pub(super) fn duplicates(self) -> Vec<Duplicate> {
        self.duplicates.into_inner()
    }

    fn note_duplicate(&self, key: &str, place: usize, line: Option<u64>) {
        let duplicate = Duplicate { path: self.path_of(key), key: shortened(key).to_owned(), place, line };
        let mut duplicates = self.duplicates.borrow_mut();
        let named = self.named.get() + duplicate.path.len() + duplicate.key.len();
        if duplicates.is_empty()
            || named <= MAX_NAMED
                && !duplicates.iter().any(|known| known.to_string() == duplicate.to_string())
        {
            self.named.set(named);
            duplicates.push(duplicate);
        }
    }

    /// The bound that ended the reading.
    pub(super) fn over(&self) -> Option<OverBound> {
        self.over.get()
    }

    fn count<E: Error>(&self) -> Result<(), E> {
        let mut elements = self.elements.get();
        let counted = elements.count(self.path.borrow().len());
        self.elements.set(elements);
        counted.map_err(|over| {
            self.over.set(Some(over));
            E::custom(over)
        })
    }

    fn next_key<'de, A: MapAccess<'de>>(
        &self,
        fields: &mut A,
    ) -> Result<Option<(String, Option<u64>)>, A::Error> {
        if self.has_lines {
            let key = fields.next_key::<Spanned<String>>()?;
            return Ok(key.map(|key| (key.value, Some(key.referenced.line()))));
        }
        Ok(fields.next_key()?.map(|key| (key, None)))
    }

    fn path_of(&self, key: &str) -> String {
        let mut text = String::new();
        for step in &*self.path.borrow() {
            match step {
                Step::Index(index) => text.push_str(&format!("[{index}]")),
                Step::Field(field) => push_field(&mut text, field),
            }
        }
        push_field(&mut text, key);
        text
    }
}

fn push_field(path: &mut String, field: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(shortened(field));
}

fn shortened(key: &str) -> &str {
    key.get(..key.floor_char_boundary(MAX_KEY)).unwrap_or_default()
}

/// One element of a document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a>(&'a Reader);

impl Element<'_> {
    fn below<T>(self, step: Step, read: impl FnOnce(Self) -> T) -> T {
        self.0.path.borrow_mut().push(step);
        let value = read(self);
        self.0.path.borrow_mut().pop();
        value
    }
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
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
            self.below(Step::Index(list.len()), |element| elements.next_element_seed(element))?
        {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, line)) = self.0.next_key(&mut fields)? {
            if map.contains_key(&key) {
                self.0.note_duplicate(&key, map.len(), line);
            }
            let value = self.below(Step::Field(key.clone()), |element| fields.next_value_seed(element))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
