// SPDX-License-Identifier: Apache-2.0
//! ZDS: the messages between the node agent and the node proxy, one per SEQPACKET datagram.

use prost::Message;

use crate::proto::workload::zds as proto;

/// Largest datagram.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// A message that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ZDS: {0}")]
pub struct Invalid(String);

/// From the agent to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A workload to serve; its network namespace travels with the message.
    Add(Workload),
    /// A workload that is known, without its namespace: kept if it is served already.
    Keep(String),
    /// A workload that is gone.
    Delete(String),
    /// The first snapshot is complete.
    SnapshotSent,
}

/// A workload of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Uid of the Pod.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// The proxy's first message.
pub fn hello() -> Vec<u8> {
    proto::ZdsHello { version: proto::Version::V1 as i32 }.encode_to_vec()
}

/// Reads the proxy's first message.
///
/// # Errors
/// Not a hello of version 1.
pub fn read_hello(bytes: &[u8]) -> Result<(), Invalid> {
    let hello = proto::ZdsHello::decode(bytes).map_err(|e| Invalid(e.to_string()))?;
    if hello.version == proto::Version::V1 as i32 {
        Ok(())
    } else {
        Err(Invalid(format!("version {} is not supported", hello.version)))
    }
}

impl Request {
    /// As a datagram.
    pub fn encode(&self) -> Vec<u8> {
        use proto::workload_request::Payload;
        let payload = match self {
            Self::Add(w) => Payload::Add(proto::AddWorkload {
                uid: w.uid.clone(),
                workload_info: Some(proto::WorkloadInfo {
                    name: w.name.clone(),
                    namespace: w.namespace.clone(),
                    service_account: w.service_account.clone(),
                }),
            }),
            Self::Keep(uid) => Payload::Keep(proto::KeepWorkload { uid: uid.clone() }),
            Self::Delete(uid) => Payload::Del(proto::DelWorkload { uid: uid.clone() }),
            Self::SnapshotSent => Payload::SnapshotSent(proto::SnapshotSent {}),
        };
        proto::WorkloadRequest { payload: Some(payload) }.encode_to_vec()
    }

    /// From a datagram.
    ///
    /// # Errors
    /// Not such a message, or one of a kind that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        use proto::workload_request::Payload;
        let message = proto::WorkloadRequest::decode(bytes).map_err(|e| Invalid(e.to_string()))?;
        match message.payload.ok_or_else(|| Invalid("payload is not set".into()))? {
            Payload::Add(proto::AddWorkload { uid, workload_info }) => {
                let info = workload_info.ok_or_else(|| Invalid("add.workload_info is not set".into()))?;
                let proto::WorkloadInfo { name, namespace, service_account } = info;
                Ok(Self::Add(Workload { uid, name, namespace, service_account }))
            }
            Payload::Keep(keep) => Ok(Self::Keep(keep.uid)),
            Payload::Del(del) => Ok(Self::Delete(del.uid)),
            Payload::SnapshotSent(proto::SnapshotSent {}) => Ok(Self::SnapshotSent),
        }
    }
}

/// The proxy's answer to a request; an empty error is success.
pub fn ack(error: Option<&str>) -> Vec<u8> {
    let ack = proto::Ack { error: error.unwrap_or_default().to_owned() };
    proto::WorkloadResponse { payload: Some(proto::workload_response::Payload::Ack(ack)) }.encode_to_vec()
}

/// Reads the proxy's answer: the error that it reports, if any.
///
/// # Errors
/// Not such a message.
pub fn read_ack(bytes: &[u8]) -> Result<Option<String>, Invalid> {
    let message = proto::WorkloadResponse::decode(bytes).map_err(|e| Invalid(e.to_string()))?;
    match message.payload {
        Some(proto::workload_response::Payload::Ack(ack)) => Ok((!ack.error.is_empty()).then_some(ack.error)),
        None => Err(Invalid("payload is not set".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip_and_have_istios_numbers() {
        let add = Request::Add(Workload {
            uid: "u".into(),
            name: "n".into(),
            namespace: "s".into(),
            service_account: "a".into(),
        });
        let all = [add, Request::Keep("u".into()), Request::Delete("u".into()), Request::SnapshotSent];
        for request in all {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
        // del = field 2 of the request, uid = field 2 of DelWorkload.
        assert_eq!(Request::Delete("u".into()).encode(), [0x12, 0x03, 0x12, 0x01, b'u']);
        assert_eq!(read_ack(&ack(Some("no"))).unwrap().as_deref(), Some("no"));
        assert_eq!(read_ack(&ack(None)).unwrap(), None);
        read_hello(&hello()).unwrap();
    }
}
