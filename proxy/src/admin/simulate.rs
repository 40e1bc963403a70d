//! `/simulate`: what would become of a call.
//!
//! Who calls and what is called may be said as people know it: pods of this node by name or address, hosts by a name
//! that is looked up as the pod's own question to DNS would be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use millrace_runtime::admin::{Reply, Request, Response, Routes};
use serde_json::json;

use super::Context;
use crate::dns::names::Scope;
use crate::pods::{LocalPod, LocalPods};
use crate::route::match_vhost::strip_port;
use crate::simulate::{self, Call, Says, Side};
use crate::snapshot::Snapshot;

/// Stands for an address that only the client's resolver knows (RFC 5737).
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// The port of a host that is named without one.
const DEFAULT_PORT: u16 = 80;

pub(super) fn routes(table: Routes, context: &Arc<Context>) -> Routes {
    let context = context.clone();
    table.get(
        "/simulate",
        "what would become of a call: ?from=pod|ip &to=host:port|ip:port [&address=ip], \
         &protocol=http|http2|tls|tcp, &host= &path= &method= &header=name:value &sni=, &random=; \
         &namespace= (and &pod= for inbound), &direction=inbound or &listener= in place of pods",
        move |request| {
            let response = decide(&context, &request);
            async move { response }
        },
    )
}

fn decide(context: &Context, request: &Request) -> Response {
    let admin = &context.admin;
    let snapshot = admin.store.load();
    let asked = Asked {
        request,
        pods: &admin.pods,
        snapshot: &snapshot,
        domain: &admin.domain,
    };
    match asked.call() {
        Ok((call, told)) => {
            let decision = simulate::simulate(&snapshot, &admin.pods, &call);
            let mut answer = serde_json::to_value(decision).unwrap_or_default();
            answer["call"] = told;
            Reply::json(200, &answer)
        }
        Err(reason) => Reply::json(400, &json!({ "error": reason })),
    }
}

/// A question and what its names mean.
struct Asked<'a> {
    request: &'a Request,
    pods: &'a LocalPods,
    snapshot: &'a Snapshot,
    domain: &'a str,
}

/// Where a call goes.
struct Destination {
    address: SocketAddr,
    /// The name that stands for the address.
    name: Option<String>,
    /// How that was found out.
    by: &'static str,
}

impl Asked<'_> {
    /// The call, and what was made of the question.
    fn call(&self) -> Result<(Call, serde_json::Value), String> {
        let to = self
            .request
            .query("to")
            .ok_or("give the destination as ?to=")?;
        let from = self.request.query("from").unwrap_or_default();
        let caller = self.pod(from)?;
        let destination = self.destination(to, caller.as_deref())?;
        let side = self.side(caller.as_deref(), &destination)?;
        let source = source(from, caller.as_deref(), destination.address);
        let random = self.request.query("random").map(str::parse).transpose();
        let call = Call {
            destination: destination.address,
            source,
            says: self.says(to)?,
            random: random.map_err(|_| "random is not a number")?,
            side,
        };
        let told = json!({
            "direction": match &call.side {
                Side::Outbound(_) => "outbound",
                Side::Inbound(_) => "inbound",
                Side::Listener(_) => "listener",
            },
            "from": {
                "pod": caller.as_ref().map(|pod| pod.spec.qualified_name()),
                "captured": caller.as_ref().map(|pod| pod.capture.to_string()),
                "address": source.ip().to_string(),
            },
            "to": {
                "asked": to,
                "name": destination.name,
                "address": destination.address.to_string(),
                "by": destination.by,
                "pod": self.pods.by_ip(destination.address.ip()).map(|pod| pod.spec.qualified_name()),
            },
        });
        Ok((call, told))
    }

    /// The pod of this node that a name or an address means; none where it is an address of another.
    fn pod(&self, text: &str) -> Result<Option<Arc<LocalPod>>, String> {
        let address = text.parse::<IpAddr>().ok();
        let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
        if let Some(ip) = address {
            return Ok(self.pods.by_ip(ip.to_canonical()));
        }
        let all = self.pods.all();
        if text.is_empty() || all.is_empty() {
            return Ok(None);
        }
        let names = |pod: &LocalPod| [pod.spec.qualified_name(), pod.spec.name.clone()];
        let exact = |pod: &&Arc<LocalPod>| names(pod).iter().any(|name| name == text);
        let begins = |pod: &&Arc<LocalPod>| {
            let start = format!("{text}-");
            names(pod).iter().any(|name| name.starts_with(&start))
        };
        let mut found: Vec<_> = all.iter().filter(exact).collect();
        if found.is_empty() {
            found = all.iter().filter(begins).collect();
        }
        let list = |pods: &[&Arc<LocalPod>]| {
            let names: Vec<_> = pods.iter().map(|pod| pod.spec.qualified_name()).collect();
            names.join(", ")
        };
        match found.as_slice() {
            [one] => Ok(Some(Arc::clone(one))),
            [] => {
                let known = list(&all.iter().collect::<Vec<_>>());
                Err(format!(
                    "no pod of this node is called {text}; there are {known}"
                ))
            }
            several => Err(format!("{text} may be {}", list(several))),
        }
    }

    fn destination(&self, to: &str, caller: Option<&LocalPod>) -> Result<Destination, String> {
        if let Ok(address) = to.parse::<SocketAddr>() {
            return Ok(Destination {
                address: crate::socket::canonical(address),
                name: None,
                by: "address",
            });
        }
        let host = strip_port(to);
        let port = match to[host.len()..].strip_prefix(':') {
            Some(port) => port
                .parse()
                .map_err(|_| format!("{to:?} has no valid port"))?,
            None => DEFAULT_PORT,
        };
        if host.contains(':') && !host.starts_with('[') {
            return Err(format!(
                "{to:?} has no valid port; an IPv6 address goes into [ ]"
            ));
        }
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return Ok(Destination {
                address: SocketAddr::new(ip.to_canonical(), port),
                name: None,
                by: "address",
            });
        }
        let given = self
            .request
            .query("address")
            .map(str::parse::<IpAddr>)
            .transpose();
        if let Some(ip) = given.map_err(|_| "address is not an IP address")? {
            return Ok(Destination {
                address: SocketAddr::new(ip.to_canonical(), port),
                name: Some(host.to_owned()),
                by: "given",
            });
        }
        Ok(self.named(host, port, caller))
    }

    /// What DNS would tell a pod.
    fn named(&self, host: &str, port: u16, caller: Option<&LocalPod>) -> Destination {
        let own = caller.map(|pod| pod.spec.namespace.as_str());
        let scope = Scope {
            namespace: own.or_else(|| self.request.query("namespace")),
            domain: self.domain,
        };
        let query = host.trim_end_matches('.').to_ascii_lowercase();
        let found = self.snapshot.names().find(&query, scope);
        let Some(found) = found else {
            return Destination {
                address: SocketAddr::new(SOMEWHERE, port),
                name: Some(host.to_owned()),
                by: "assumed",
            };
        };
        let v4 = found.addresses.v4.first().copied().map(IpAddr::from);
        let v6 = found.addresses.v6.first().copied().map(IpAddr::from);
        let first = v4.or(v6);
        Destination {
            address: SocketAddr::new(first.unwrap_or(SOMEWHERE), port),
            name: Some(found.canonical.unwrap_or(query)),
            by: if first.is_some() {
                "mesh DNS"
            } else {
                "assumed"
            },
        }
    }

    fn side(&self, caller: Option<&LocalPod>, to: &Destination) -> Result<Side, String> {
        let query = |name| self.request.query(name);
        let namespace = query("namespace").map(str::to_owned);
        let inbound = query("direction") == Some("inbound");
        if let Some(listener) = query("listener") {
            return Ok(Side::Listener(listener.to_owned()));
        }
        if let Some(pod) = query("pod") {
            let namespace = namespace.ok_or("a pod needs its &namespace=")?;
            return Ok(Side::Inbound(Some((namespace, pod.to_owned()))));
        }
        if let Some(namespace) = namespace {
            return Ok(Side::Outbound(Some(namespace)));
        }
        if let Some(caller) = caller.filter(|_| !inbound) {
            return Ok(Side::Outbound(Some(caller.spec.namespace.clone())));
        }
        if let Some(pod) = self.pods.by_ip(to.address.ip()) {
            let name = (pod.spec.namespace.clone(), pod.spec.name.clone());
            return Ok(Side::Inbound(Some(name)));
        }
        // Without pods it is a proxy of one workload, or from a file.
        if self.pods.all().is_empty() {
            return Ok(if inbound {
                Side::Inbound(None)
            } else {
                Side::Outbound(None)
            });
        }
        let names = self.pods.all();
        let names: Vec<_> = names.iter().map(|pod| pod.spec.qualified_name()).collect();
        Err(format!(
            "neither the caller nor {} is a pod of this node, which are {}",
            to.address,
            names.join(", ")
        ))
    }

    fn says(&self, to: &str) -> Result<Says, String> {
        let query = |name| self.request.query(name);
        match query("protocol").unwrap_or("http") {
            "http" => Ok(Says::Http(self.http(to, false)?)),
            "http2" => Ok(Says::Http(self.http(to, true)?)),
            "tls" => {
                let host = strip_port(to);
                let name =
                    query("sni").or(Some(host).filter(|host| host.parse::<IpAddr>().is_err()));
                Ok(Says::Tls(name.map(str::to_owned)))
            }
            "tcp" => Ok(Says::Bytes),
            other => Err(format!("{other:?} is not http, http2, tls or tcp")),
        }
    }

    fn http(&self, to: &str, http2: bool) -> Result<simulate::Request, String> {
        let request = self.request;
        let method = request.query("method").unwrap_or("GET");
        let mut headers = HeaderMap::new();
        for (_, header) in request.query.iter().filter(|(key, _)| key == "header") {
            let parsed = header.split_once(':').and_then(|(name, value)| {
                let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
                Some((name, HeaderValue::from_str(value.trim()).ok()?))
            });
            let (name, value) = parsed.ok_or_else(|| format!("{header:?} is not name:value"))?;
            headers.append(name, value);
        }
        let host = request.query("host").unwrap_or(to);
        let path = request.query("path").unwrap_or("/");
        Ok(simulate::Request {
            method: Method::from_bytes(method.as_bytes())
                .map_err(|_| format!("{method:?} is not a method"))?,
            authority: HeaderValue::from_str(host).map_err(|_| format!("{host:?} is no host"))?,
            path: PathAndQuery::try_from(path).map_err(|_| format!("{path:?} is no path"))?,
            headers,
            http2,
        })
    }
}

/// The address that a call comes from, of the family of where it goes.
fn source(from: &str, caller: Option<&LocalPod>, destination: SocketAddr) -> SocketAddr {
    if let Some(ip) = caller.and_then(|pod| pod.address_like(destination.ip())) {
        return SocketAddr::new(ip, 0);
    }
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let address = match (from.parse::<SocketAddr>(), from.parse::<IpAddr>()) {
        (Ok(address), _) => address,
        (_, Ok(ip)) => SocketAddr::new(ip, 0),
        _ => loopback,
    };
    crate::socket::canonical(address)
}
