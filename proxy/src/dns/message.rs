//! What a DNS message is answered with. Pure; any bytes may come in.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use millrace_runtime::handoff::CANARY_NAME;
use millrace_runtime::handoff::canary::{CANARY_V4, CANARY_V6};

use super::names::{Addresses, Found, NameTable, Scope};

/// Time to live of mesh answers, in seconds, as Istio's agent has it.
const TTL: u32 = 30;
/// Largest datagram that is sent; what fits every path without fragments.
const MAX_DATAGRAM: u16 = 1232;
/// Length of a message's header.
const HEADER: usize = 12;

/// Which length an answer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// What the question says (RFC 6891), else 512 bytes.
    Datagram,
    /// Any.
    Stream,
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it is no question.
    Drop,
    /// This refusal of a malformed question.
    Refuse(Vec<u8>),
    /// This answer.
    Answer(Vec<u8>),
    /// A resolver is to answer it.
    Forward,
}

/// Looks at a message from a client.
pub fn decide(bytes: &[u8], names: &NameTable, scope: Scope<'_>, limit: Limit) -> Decision {
    if bytes.len() < HEADER || is_response(bytes) {
        return Decision::Drop;
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return Decision::Refuse(refusal(bytes, ResponseCode::FormErr));
    };
    if message.metadata.op_code != OpCode::Query {
        return Decision::Refuse(refusal(bytes, ResponseCode::NotImp));
    }
    let [query] = message.queries.as_slice() else {
        return Decision::Refuse(refusal(bytes, ResponseCode::FormErr));
    };
    if query.query_class() != DNSClass::IN || !is_answered(query.query_type()) {
        return Decision::Forward;
    }
    let asked = text(query.name());
    let canary = canary_addresses();
    let canary = (asked == CANARY_NAME).then_some(Found {
        addresses: &canary,
        canonical: None,
    });
    match canary.or_else(|| names.find(&asked, scope)) {
        Some(found) => answer(&message, query, &found, limit)
            .map_or_else(|| Decision::Answer(failure(bytes)), Decision::Answer),
        None => Decision::Forward,
    }
}

/// Whether a question is the agent's, asked to see that it arrives here; it counts apart.
pub fn is_canary(query: &[u8]) -> bool {
    let labels = CANARY_NAME.split('.');
    let name = labels.fold(query.get(HEADER..), |rest, label| {
        let (length, rest) = rest?.split_first()?;
        let same = usize::from(*length) == label.len();
        rest.strip_prefix(label.as_bytes()).filter(|_| same)
    });
    name.is_some_and(|rest| rest.first() == Some(&0))
}

fn canary_addresses() -> Addresses {
    Addresses {
        v4: vec![CANARY_V4],
        v6: vec![CANARY_V6],
    }
}

/// Addresses are known here. That a mesh name has no service binding is known too, and a
/// resolver's NXDOMAIN for one would make clients give the name up.
fn is_answered(kind: RecordType) -> bool {
    matches!(
        kind,
        RecordType::A | RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB
    )
}

fn answer(request: &Message, query: &Query, found: &Found<'_>, limit: Limit) -> Option<Vec<u8>> {
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.authoritative = true;
    response.metadata.recursion_available = true;
    response.add_query(query.clone());
    let mut owner = query.name().clone();
    if let Some(canonical) = &found.canonical {
        let target = Name::from_ascii(format!("{canonical}.")).ok()?;
        let alias = RData::CNAME(CNAME(target.clone()));
        response.add_answer(Record::from_rdata(owner, TTL, alias));
        owner = target;
    }
    for data in records(found.addresses, query.query_type()) {
        response.add_answer(Record::from_rdata(owner.clone(), TTL, data));
    }
    if let Some(edns) = &request.edns {
        response.set_edns(own_edns(edns));
    }
    let encoded = response.to_vec().ok()?;
    let room = match limit {
        Limit::Datagram => usize::from(request.max_payload().min(MAX_DATAGRAM)),
        Limit::Stream => usize::from(u16::MAX),
    };
    if encoded.len() <= room {
        return Some(encoded);
    }
    response.truncate().to_vec().ok()
}

/// The addresses of the asked family, in an order of their own for each answer.
fn records(addresses: &Addresses, kind: RecordType) -> Vec<RData> {
    let mut records: Vec<_> = match kind {
        RecordType::A => addresses.v4.iter().map(|ip| RData::A(A(*ip))).collect(),
        RecordType::AAAA => addresses
            .v6
            .iter()
            .map(|ip| RData::AAAA(AAAA(*ip)))
            .collect(),
        _ => Vec::new(),
    };
    fastrand::shuffle(&mut records);
    records
}

fn own_edns(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_DATAGRAM);
    edns.set_version(0);
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    edns
}

/// SERVFAIL for a question that no resolver answered.
pub fn failure(query: &[u8]) -> Vec<u8> {
    let Ok(request) = Message::from_vec(query) else {
        return refusal(query, ResponseCode::ServFail);
    };
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.recursion_available = true;
    response.metadata.response_code = ResponseCode::ServFail;
    response.add_queries(request.queries);
    response
        .to_vec()
        .unwrap_or_else(|_| refusal(query, ResponseCode::ServFail))
}

/// A header alone: what can be said to a message that cannot be read. `query` has at least the
/// length of a header.
fn refusal(query: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    for (to, from) in header.iter_mut().zip(query).take(3) {
        *to = *from;
    }
    // QR is set; of the flags OPCODE and RD stay (RFC 1035 section 4.1.1).
    header[2] = 0x80 | (header[2] & 0x79);
    header[3] = 0x80 | code.low();
    header
}

/// Whether the QR bit is set.
fn is_response(bytes: &[u8]) -> bool {
    bytes.get(2).is_none_or(|flags| flags & 0x80 != 0)
}

/// The id of a message.
pub fn id(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]))
}

/// Gives a message another id.
pub fn set_id(bytes: &mut [u8], id: u16) {
    if let Some(field) = bytes.get_mut(..2) {
        field.copy_from_slice(&id.to_be_bytes());
    }
}

/// Whether `response` answers `query`: a response with the same id and question. What does not
/// may be forged.
pub fn answers(response: &[u8], query: &[u8]) -> bool {
    if response.len() < HEADER || !is_response(response) || id(response) != id(query) {
        return false;
    }
    let (Ok(response), Ok(query)) = (Message::from_vec(response), Message::from_vec(query)) else {
        return false;
    };
    // A refusal may leave the question out.
    let refused =
        response.queries.is_empty() && response.metadata.response_code != ResponseCode::NoError;
    response.metadata.message_type == MessageType::Response
        && (refused || response.queries == query.queries)
}

/// A name in lower case without its trailing dot.
fn text(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}
