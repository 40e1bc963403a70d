//! Protobuf to the proxy's own types: phase two of decoding a resource.
//!
//! Input: the encoded message of one resource. Output: a validated type of `resource`, with the
//! list of what the message asks for and this proxy does not do, or [`Invalid`], which names
//! resource and field. What Envoy rejects is rejected; so is what decides where traffic goes or
//! whether it may pass and cannot be executed. Everything else that is not executed is listed
//! ([`Unsupported`]), never dropped in silence. Called by `xds::state` and `bootstrap`.

mod access_log;
mod address;
mod audit;
pub(crate) mod bootstrap;
mod cluster;
mod endpoint;
mod hcm;
mod header;
mod listener;
mod matcher;
mod metadata;
mod name_table;
mod route;
mod tcp_proxy;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use millrace_xds::WireResource;
use millrace_xds::proto;

use crate::dns::names::NameTable;
use crate::resource::{Cluster, Endpoints, Listener, RouteConfiguration};

/// Why a resource is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {}{reason}", Field(field))]
pub struct Invalid {
    /// Kind and name of the resource, for example `listener "default/0.0.0.0_9080"`.
    pub resource: String,
    /// Path of the field, in proto names; empty for the resource as a whole.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Something that a resource asks for and this proxy does not do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unsupported {
    /// Path of the field, in proto names, without indexes.
    pub field: String,
    /// What happens instead.
    pub effect: String,
    /// How often it occurs in the resource.
    pub count: usize,
}

/// A converted resource.
#[derive(Clone, Debug)]
pub struct Converted<T> {
    /// The resource.
    pub value: T,
    /// What it asks for in vain.
    pub unsupported: Vec<Unsupported>,
}

/// Converts a `listener.v3.Listener`.
///
/// # Errors
/// When the message is malformed or invalid.
pub fn listener(bytes: &[u8]) -> Result<Converted<Listener>, Invalid> {
    convert::<proto::Listener, _>("listener", bytes, |m| &m.name, listener::convert)
}

/// Converts a `route.v3.RouteConfiguration`.
///
/// # Errors
/// When the message is malformed or invalid.
pub fn route_configuration(bytes: &[u8]) -> Result<Converted<RouteConfiguration>, Invalid> {
    convert::<proto::RouteConfiguration, _>(
        "route configuration",
        bytes,
        |m| &m.name,
        route::convert,
    )
}

/// Converts a `cluster.v3.Cluster`; `added_via_api` says whether CDS gave it.
///
/// # Errors
/// When the message is malformed or invalid.
pub fn cluster(bytes: &[u8], added_via_api: bool) -> Result<Converted<Cluster>, Invalid> {
    convert::<proto::Cluster, _>(
        "cluster",
        bytes,
        |m| &m.name,
        |cx, m| cluster::convert(cx, m, added_via_api),
    )
}

/// Converts an `endpoint.v3.ClusterLoadAssignment`.
///
/// # Errors
/// When the message is malformed or invalid.
pub fn endpoints(bytes: &[u8]) -> Result<Converted<Endpoints>, Invalid> {
    convert::<proto::ClusterLoadAssignment, _>(
        "endpoints of cluster",
        bytes,
        |m| &m.cluster_name,
        endpoint::convert,
    )
}

/// Converts Istio's `NameTable`.
///
/// # Errors
/// When the message is malformed or holds a bad name or address.
pub fn name_table(bytes: &[u8]) -> Result<Converted<NameTable>, Invalid> {
    convert::<proto::NameTable, _>("name table", bytes, |_| "", name_table::convert)
}

fn convert<M, T>(
    kind: &'static str,
    bytes: &[u8],
    name: impl FnOnce(&M) -> &str,
    with: impl FnOnce(&mut Cx, &M) -> Result<T, Invalid>,
) -> Result<Converted<T>, Invalid>
where
    M: WireResource,
{
    let message = M::decode(bytes).map_err(|error| Invalid {
        resource: kind.to_owned(),
        field: String::new(),
        reason: format!("malformed message: {error}"),
    })?;
    let mut cx = Cx::new(kind, name(&message));
    let value = with(&mut cx, &message)?;
    audit::unread_fields(&mut cx, M::TYPE_URL.as_str(), bytes);

    Ok(Converted {
        value,
        unsupported: cx.into_unsupported(),
    })
}

/// Where conversion stands, and what it noted on the way.
struct Cx {
    kind: &'static str,
    name: String,
    path: Vec<Segment>,
    unsupported: BTreeMap<String, (String, usize)>,
}

#[derive(Clone)]
enum Segment {
    Field(String),
    Index(usize),
    Key(String),
}

impl Cx {
    fn new(kind: &'static str, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            path: Vec::new(),
            unsupported: BTreeMap::new(),
        }
    }

    /// Runs `f` inside a field.
    fn at<T>(&mut self, field: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Field(field.to_owned()), f)
    }

    /// Runs `f` inside a value of a map.
    fn key<T>(&mut self, key: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Key(key.to_owned()), f)
    }

    /// Runs `f` for each element of a repeated field and collects what it makes.
    fn each<M, T>(
        &mut self,
        field: &str,
        items: &[M],
        mut f: impl FnMut(&mut Self, &M) -> Result<T, Invalid>,
    ) -> Result<Vec<T>, Invalid> {
        self.at(field, |cx| {
            items
                .iter()
                .enumerate()
                .map(|(i, item)| cx.within(Segment::Index(i), |cx| f(cx, item)))
                .collect()
        })
    }

    fn within<T>(&mut self, segment: Segment, f: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(segment);
        let result = f(self);
        self.path.pop();
        result
    }

    /// The message at hand is invalid.
    fn invalid(&self, reason: impl fmt::Display) -> Invalid {
        Invalid {
            resource: self.resource(),
            field: self.exact_path(),
            reason: reason.to_string(),
        }
    }

    /// A field of the message at hand is invalid.
    fn bad(&mut self, field: &str, reason: impl fmt::Display) -> Invalid {
        self.at(field, |cx| cx.invalid(reason))
    }

    /// What unpacking an `Any` gave.
    fn unpacked<M>(&self, result: Result<M, proto::UnpackError>) -> Result<M, Invalid> {
        result.map_err(|error| self.invalid(error))
    }

    /// Notes that a field of the message at hand is not executed.
    fn note(&mut self, field: &str, effect: &str) {
        let path = self.at(field, |cx| cx.general_path());
        let entry = self
            .unsupported
            .entry(path)
            .or_insert_with(|| (effect.to_owned(), 0));
        entry.1 += 1;
    }

    fn resource(&self) -> String {
        if self.name.is_empty() {
            return self.kind.to_owned();
        }
        format!("{} {:?}", self.kind, self.name)
    }

    fn exact_path(&self) -> String {
        self.render(true)
    }

    fn general_path(&self) -> String {
        self.render(false)
    }

    fn render(&self, indexes: bool) -> String {
        let mut path = String::new();
        for segment in &self.path {
            match segment {
                Segment::Field(name) => {
                    if !path.is_empty() && !name.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
                Segment::Index(i) if indexes => segment_text(&mut path, format_args!("[{i}]")),
                Segment::Index(_) => path += "[]",
                Segment::Key(key) => segment_text(&mut path, format_args!("[{key:?}]")),
            }
        }
        path
    }

    fn into_unsupported(self) -> Vec<Unsupported> {
        self.unsupported
            .into_iter()
            .map(|(field, (effect, count))| Unsupported {
                field,
                effect,
                count,
            })
            .collect()
    }
}

fn segment_text(path: &mut String, text: fmt::Arguments<'_>) {
    path.push_str(&text.to_string());
}

/// `field: ` or nothing.
struct Field<'a>(&'a str);

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "{}: ", self.0)
    }
}
