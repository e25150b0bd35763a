// SPDX-License-Identifier: Apache-2.0
//! Fields that are not known. Protobuf skips them in silence; where a field narrows what is let through, skipping it
//! lets more through than was meant.

use bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::Invalid;

/// A message: number and name of its fields, and the message that a field holds.
#[derive(Debug)]
pub(super) struct Message(pub &'static [(u32, &'static str, Option<&'static Self>)]);

/// Looks for fields that a message, or one in it, does not have.
///
/// # Errors
/// The field's number and place; or what cannot be read.
pub(super) fn only(message: &Message, bytes: &[u8]) -> Result<(), Invalid> {
    look(message, bytes, "")
}

fn look(message: &Message, mut rest: &[u8], at: &str) -> Result<(), Invalid> {
    let place = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    let mut seen = vec![0_usize; message.0.len()];
    while rest.has_remaining() {
        let (number, kind) = decode_key(&mut rest).map_err(|e| Invalid::new(place("?"), e))?;
        let Some(index) = message.0.iter().position(|(n, ..)| *n == number) else {
            return Err(Invalid::new(place(&format!("field {number}")), "is not known"));
        };
        let (_, name, inner) = message.0[index];
        match inner {
            Some(inner) if kind == WireType::LengthDelimited => {
                let length = decode_varint(&mut rest).map_err(|e| Invalid::new(place(name), e))?;
                let length = usize::try_from(length).ok().filter(|l| *l <= rest.len());
                let Some(length) = length else { return Err(Invalid::new(place(name), "is cut short")) };
                let (value, after) = rest.split_at(length);
                rest = after;
                look(inner, value, &format!("{}[{}]", place(name), seen[index]))?;
                seen[index] += 1;
            }
            _ => skip_field(kind, number, &mut rest, DecodeContext::default())
                .map_err(|e| Invalid::new(place(name), e))?,
        }
    }
    Ok(())
}
