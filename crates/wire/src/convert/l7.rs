// SPDX-License-Identifier: Apache-2.0
//! `meltemi.v1`: the model's layer 7 values, whole, with the version of their schema.

use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Invalid;
use crate::proto::meltemi::Document;

/// Version of the schema of `meltemi_model::l7`.
const SCHEMA: u32 = 1;

/// The message of a value of `meltemi_model::l7`.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn encode_l7<T: Serialize>(value: &T) -> Result<Vec<u8>, Invalid> {
    let json = serde_json::to_string(value).map_err(|e| Invalid::new("json", e))?;
    Ok(Document { schema: SCHEMA, json }.encode_to_vec())
}

/// The value of a message.
///
/// # Errors
/// Another schema, or a field that is missing or not known.
pub fn decode_l7<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Invalid> {
    let Document { schema, json } = Document::decode(bytes).map_err(|e| Invalid::new("document", e))?;
    if schema != SCHEMA {
        return Err(Invalid::new("schema", format!("version {schema} is not known")));
    }
    serde_json::from_str(&json).map_err(|e| Invalid::new("json", e))
}

#[cfg(test)]
mod tests {
    use meltemi_model::NamespacedName;
    use meltemi_model::l7::{Listener, Protocol};

    use super::*;

    #[test]
    fn an_unknown_field_or_schema_is_refused() {
        let listener = Listener {
            gateway: NamespacedName::new("a", "b"),
            name: "http".into(),
            port: 80,
            protocol: Protocol::Http,
            hostname: None,
            secrets: Vec::new(),
        };
        let bytes = encode_l7(&listener).unwrap();
        assert_eq!(decode_l7::<Listener>(&bytes).unwrap(), listener);
        let mut document = Document::decode(bytes.as_slice()).unwrap();
        document.json.insert_str(1, "\"weaker\":true,");
        assert!(decode_l7::<Listener>(&document.encode_to_vec()).unwrap_err().reason.contains("weaker"));
        document.schema = 2;
        assert_eq!(decode_l7::<Listener>(&document.encode_to_vec()).unwrap_err().field, "schema");
    }
}
