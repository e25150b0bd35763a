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
    /// Another proxy has taken over. Sent only to a proxy that [keeps listeners](Hello::keeps_listeners).
    Successor,
}

/// What a proxy says of itself first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// It takes listening sockets over and hands its own to the agent, so that they outlive it. Istio's does not.
    pub keeps_listeners: bool,
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
    /// The agent keeps listening sockets: those that come along are to be served, new ones handed over with the
    /// acknowledgement. Istio's agent does not.
    pub keep_listeners: bool,
}

/// The proxy's first message.
pub fn hello() -> Vec<u8> {
    proto::ZdsHello { version: proto::Version::V1 as i32, keeps_listeners: true }.encode_to_vec()
}

/// Reads the proxy's first message.
///
/// # Errors
/// Not a hello of version 1.
pub fn read_hello(bytes: &[u8]) -> Result<Hello, Invalid> {
    let hello = proto::ZdsHello::decode(bytes).map_err(|e| Invalid(e.to_string()))?;
    if hello.version == proto::Version::V1 as i32 {
        Ok(Hello { keeps_listeners: hello.keeps_listeners })
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
                keep_listeners: w.keep_listeners,
            }),
            Self::Keep(uid) => Payload::Keep(proto::KeepWorkload { uid: uid.clone() }),
            Self::Delete(uid) => Payload::Del(proto::DelWorkload { uid: uid.clone() }),
            Self::SnapshotSent => Payload::SnapshotSent(proto::SnapshotSent {}),
            Self::Successor => Payload::Successor(proto::Successor {}),
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
            Payload::Add(proto::AddWorkload { uid, workload_info, keep_listeners }) => {
                let info = workload_info.ok_or_else(|| Invalid("add.workload_info is not set".into()))?;
                let proto::WorkloadInfo { name, namespace, service_account } = info;
                Ok(Self::Add(Workload { uid, name, namespace, service_account, keep_listeners }))
            }
            Payload::Keep(keep) => Ok(Self::Keep(keep.uid)),
            Payload::Del(del) => Ok(Self::Delete(del.uid)),
            Payload::SnapshotSent(proto::SnapshotSent {}) => Ok(Self::SnapshotSent),
            Payload::Successor(proto::Successor {}) => Ok(Self::Successor),
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
            keep_listeners: true,
        });
        let all = [
            add,
            Request::Keep("u".into()),
            Request::Delete("u".into()),
            Request::SnapshotSent,
            Request::Successor,
        ];
        for request in all {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
        // del = field 2 of the request, uid = field 2 of DelWorkload.
        assert_eq!(Request::Delete("u".into()).encode(), [0x12, 0x03, 0x12, 0x01, b'u']);
        assert_eq!(read_ack(&ack(Some("no"))).unwrap().as_deref(), Some("no"));
        assert_eq!(read_ack(&ack(None)).unwrap(), None);
        assert!(read_hello(&hello()).unwrap().keeps_listeners);
        // As Istio's proxy says it: version 1, and nothing else.
        assert!(!read_hello(&[0x08, 0x01]).unwrap().keeps_listeners);
    }
}
