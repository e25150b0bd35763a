// SPDX-License-Identifier: Apache-2.0
//! Requests and answers as bytes.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::HostPort;

/// Largest answer over UDP for a client that does not say how much it takes (RFC 1035 §4.2.1).
const PLAIN_DATAGRAM: u16 = 512;
/// Largest answer over UDP for any client: what is larger may be lost in pieces.
const LARGEST_DATAGRAM: u16 = 1232;
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

    /// Whether ports of a service are asked for.
    pub(crate) fn wants_ports(&self) -> bool {
        self.kind == RecordType::SRV
    }

    /// Whether the name of an address is asked for.
    pub(crate) fn wants_name(&self) -> bool {
        self.kind == RecordType::PTR
    }

    /// How many bytes of an answer the client takes over UDP.
    pub(crate) fn datagram(&self) -> usize {
        let asked = self.request.edns.as_ref().map_or(PLAIN_DATAGRAM, |edns| edns.max_payload());
        asked.clamp(PLAIN_DATAGRAM, LARGEST_DATAGRAM).into()
    }

    /// An answer without records that says that they do not fit: the client asks again over TCP.
    pub(crate) fn too_large(&self) -> Option<Vec<u8>> {
        let mut answer = self.answer(ResponseCode::NoError);
        answer.metadata.truncation = true;
        answer.to_vec().ok()
    }

    /// An answer with ports, and the addresses of their hosts beside it.
    pub(crate) fn ports(&self, all: &[HostPort]) -> Option<Vec<u8>> {
        let mut answer = self.answer(ResponseCode::NoError);
        let weight = u16::try_from(100 / all.len().max(1)).unwrap_or(1).max(1);
        for HostPort { host, port, addresses } in all {
            let Ok(target) = Name::from_ascii(format!("{host}.")) else { continue };
            let data = RData::SRV(SRV::new(0, weight, *port, target.clone()));
            answer.answers.push(Record::from_rdata(self.name.clone(), TTL, data));
            let addresses = addresses.iter().map(|ip| match ip {
                IpAddr::V4(ip) => RData::A(A(*ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
            });
            answer.additionals.extend(addresses.map(|data| Record::from_rdata(target.clone(), TTL, data)));
        }
        answer.to_vec().ok()
    }

    /// An answer with the name of an address.
    pub(crate) fn pointer(&self, name: &str) -> Option<Vec<u8>> {
        let mut answer = self.answer(ResponseCode::NoError);
        let data = RData::PTR(PTR(Name::from_ascii(format!("{name}.")).ok()?));
        answer.answers.push(Record::from_rdata(self.name.clone(), TTL, data));
        answer.to_vec().ok()
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
