// SPDX-License-Identifier: Apache-2.0
//! Protobuf's wire format: numbered payloads, one after another.

use super::ProtobufError;

/// What is left of a message.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

/// The value of a field, before its type is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Reader<'a> {
    /// The next field; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Payload<'a>)>, ProtobufError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Malformed)?;
        let payload = match tag & 7 {
            0 => Payload::Number(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| ProtobufError::Malformed)?;
                Payload::Number(u64::from_le_bytes(bytes))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Malformed)?;
                Payload::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?.try_into().map_err(|_| ProtobufError::Malformed)?;
                Payload::Number(u64::from(u32::from_le_bytes(bytes)))
            }
            _ => return Err(ProtobufError::Malformed),
        };
        Ok(Some((number, payload)))
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(ProtobufError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

impl<'a> Payload<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], ProtobufError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(ProtobufError::Malformed),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, ProtobufError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| ProtobufError::Text)
    }

    /// A number as it stands for signed integers and booleans; what is missing in an entry of a map is zero.
    pub(super) fn integer(self) -> Result<i64, ProtobufError> {
        match self {
            Self::Number(number) => Ok(number.cast_signed()),
            Self::Bytes([]) => Ok(0),
            Self::Bytes(_) => Err(ProtobufError::Malformed),
        }
    }

    pub(super) fn double(self) -> Result<f64, ProtobufError> {
        self.integer().map(|number| f64::from_bits(number.cast_unsigned()))
    }
}
