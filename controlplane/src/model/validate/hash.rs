//! `consistentHash` of a `DestinationRule`.

use super::fields::Judge;
use crate::kube::crd;
use crate::model::policy::{ConsistentHash, HashKey, HashTable, MINIMUM_RING_SIZE};
use crate::model::problem::Finding;

/// Envoy's limits.
const MAX_RING_SIZE: u64 = 8 * 1024 * 1024;
const MAX_TABLE_SIZE: u64 = 5_000_011;

/// Judges a consistent hash; none where it has no key.
pub(super) fn consistent_hash(
    judge: &mut Judge<'_>,
    hash: &crd::ConsistentHash,
    field: &str,
) -> Option<ConsistentHash> {
    let result = ConsistentHash {
        key: key(judge, hash, field)?,
        table: table(judge, hash, field),
    };
    judge.findings.push(Finding::not_executed(
        field,
        who_executes(&result.key, result.table),
    ));
    Some(result)
}

/// Millrace's proxy has no hashes, and gRPC not all of Envoy's.
fn who_executes(key: &HashKey, table: HashTable) -> String {
    let grpc = match (key, table) {
        (HashKey::Header(_), HashTable::Ring(_)) => "gRPC's own clients too",
        (HashKey::Header(_), HashTable::Maglev(_)) => "gRPC's own clients use a ring instead",
        (HashKey::SourceIp, _) => {
            "gRPC's own clients, which are the source themselves, keep each channel at one endpoint"
        }
        (HashKey::Cookie { .. } | HashKey::QueryParameter(_), _) => {
            "gRPC's own clients, which know nothing like it, take endpoints in turn"
        }
    };
    format!("stock Envoys execute it, {grpc}, Millrace's proxy does not")
}

fn key(judge: &mut Judge<'_>, hash: &crd::ConsistentHash, field: &str) -> Option<HashKey> {
    let cookie = hash.http_cookie.as_ref();
    let keys = [
        hash.http_header_name.clone().map(HashKey::Header),
        cookie.map(|cookie| self::cookie(judge, cookie, &format!("{field}.httpCookie"))),
        hash.use_source_ip
            .filter(|used| *used)
            .map(|_| HashKey::SourceIp),
        hash.http_query_parameter_name
            .clone()
            .map(HashKey::QueryParameter),
    ];
    let mut keys = keys.into_iter().flatten();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        let message = "exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is needed";
        judge.error(field, message);
        return None;
    };
    match &key {
        HashKey::Header(name) => judge.header_name(name, &format!("{field}.httpHeaderName")),
        HashKey::QueryParameter(name) if name.is_empty() => {
            judge.error(
                format!("{field}.httpQueryParameterName"),
                "a name is needed",
            );
        }
        _ => {}
    }
    Some(key)
}

fn cookie(judge: &mut Judge<'_>, cookie: &crd::HttpCookie, field: &str) -> HashKey {
    judge.header_name(&cookie.name, &format!("{field}.name"));
    judge.not_executed(cookie.attributes.as_ref(), format!("{field}.attributes"));
    HashKey::Cookie {
        name: cookie.name.clone(),
        path: cookie.path.clone().unwrap_or_default(),
        ttl: judge.duration(cookie.ttl.as_deref(), &format!("{field}.ttl")),
    }
}

fn table(judge: &mut Judge<'_>, hash: &crd::ConsistentHash, field: &str) -> HashTable {
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        judge.error(field, "only one of ringHash and maglev may be set");
    }
    if let Some(maglev) = &hash.maglev {
        let field = format!("{field}.maglev.tableSize");
        let size = size(judge, maglev.table_size, MAX_TABLE_SIZE, &field);
        if size.is_some_and(|size| !is_prime(size)) {
            judge.error(field, "the size of a Maglev table is a prime number");
        }
        return HashTable::Maglev(size);
    }
    let (wanted, field) = match &hash.ring_hash {
        Some(ring) => (
            ring.minimum_ring_size,
            format!("{field}.ringHash.minimumRingSize"),
        ),
        None => (hash.minimum_ring_size, format!("{field}.minimumRingSize")),
    };
    HashTable::Ring(size(judge, wanted, MAX_RING_SIZE, &field).unwrap_or(MINIMUM_RING_SIZE))
}

/// A size, where 0 means unset as in Istio.
fn size(judge: &mut Judge<'_>, value: Option<i64>, limit: u64, field: &str) -> Option<u64> {
    let value = value.filter(|value| *value != 0)?;
    let size = u64::try_from(value).ok().filter(|size| *size <= limit);
    if size.is_none() {
        judge.error(field, format!("{value} is not between 1 and {limit}"));
    }
    size
}

fn is_prime(number: u64) -> bool {
    let mut candidates = (2..).take_while(|candidate| candidate * candidate <= number);
    number > 1 && candidates.all(|candidate| !number.is_multiple_of(candidate))
}
