// SPDX-License-Identifier: Apache-2.0
//! Requests and answers as bytes.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Seconds an answer may be kept.
const TTL: u32 = 30;

/// The question of a request.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    request: Message,
    name: Name,
    kind: RecordType,
}

impl Question {
    /// Reads a request; none for what is not a query with exactly one question.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let request = Message::from_vec(bytes).ok()?;
        if request.metadata.message_type != MessageType::Query || request.metadata.op_code != OpCode::Query {
            return None;
        }
        let [query] = request.queries.as_slice() else { return None };
        let (name, kind) = (query.name().clone(), query.query_type());
        Some(Self { request, name, kind })
    }

    /// The name in lower case, without its final dot.
    pub(crate) fn name(&self) -> String {
        self.name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
    }

    /// Whether addresses are asked for.
    pub(crate) fn wants_addresses(&self) -> bool {
        matches!(self.kind, RecordType::A | RecordType::AAAA)
    }

    /// An answer with those addresses that are of the family asked for.
    pub(crate) fn addresses(&self, all: &[IpAddr]) -> Option<Vec<u8>> {
        let records = all.iter().filter_map(|ip| match (self.kind, ip) {
            (RecordType::A, IpAddr::V4(ip)) => Some(RData::A(A(*ip))),
            (RecordType::AAAA, IpAddr::V6(ip)) => Some(RData::AAAA(AAAA(*ip))),
            _ => None,
        });
        let mut answer = self.answer(ResponseCode::NoError);
        answer.answers = records.map(|data| Record::from_rdata(self.name.clone(), TTL, data)).collect();
        answer.to_vec().ok()
    }

    /// An answer without records.
    pub(crate) fn code(&self, code: ResponseCode) -> Option<Vec<u8>> {
        self.answer(code).to_vec().ok()
    }

    fn answer(&self, code: ResponseCode) -> Message {
        let mut metadata = Metadata::new(self.request.metadata.id, MessageType::Response, OpCode::Query);
        metadata.recursion_desired = self.request.metadata.recursion_desired;
        metadata.recursion_available = true;
        metadata.authoritative = true;
        metadata.response_code = code;
        let mut answer = Message::new(metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata = metadata;
        answer.queries.clone_from(&self.request.queries);
        answer
    }
}
