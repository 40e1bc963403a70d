//! `/simulate`: what would become of a call.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use millrace_runtime::admin::{Reply, Request, Response, Routes};

use super::Context;
use crate::simulate::{self, Call, Side};

pub(super) fn routes(table: Routes, context: &Arc<Context>) -> Routes {
    let context = context.clone();
    table.get(
        "/simulate",
        "what would become of a call: ?to=ip:port, &namespace= (and &pod= for inbound) or &listener=, \
         &from=ip:port, &host= &path= &method= &header=name:value, &random=",
        move |request| {
            let response = decide(&context, &request);
            async move { response }
        },
    )
}

fn decide(context: &Context, request: &Request) -> Response {
    match call(request) {
        Ok(call) => Reply::json(200, &simulate::simulate(&context.admin.store.load(), &call)),
        Err(reason) => Reply::text(400, format!("{reason}\n")),
    }
}

fn call(request: &Request) -> Result<Call, String> {
    let destination = request.query("to").ok_or("give the destination as ?to=")?;
    let namespace = request.query("namespace").map(str::to_owned);
    let side = match (request.query("listener"), request.query("pod"), namespace) {
        (Some(listener), ..) => Side::Listener(listener.to_owned()),
        (None, Some(pod), Some(namespace)) => Side::Inbound {
            namespace,
            pod: pod.to_owned(),
        },
        (None, Some(_), None) => return Err("a pod needs its &namespace=".to_owned()),
        (None, None, namespace) => Side::Outbound(namespace),
    };
    let http = match request.query("host") {
        Some(host) => Some(self::request(request, host)?),
        None => None,
    };
    let random = request.query("random").map(str::parse).transpose();
    Ok(Call {
        side,
        destination: address(destination)?,
        source: address(request.query("from").unwrap_or("127.0.0.1:0"))?,
        request: http,
        random: random
            .map_err(|_| "random is not a number")?
            .unwrap_or_else(|| fastrand::u64(..)),
    })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address: Result<SocketAddr, _> = text.parse();
    address
        .map(crate::socket::canonical)
        .map_err(|_| format!("{text:?} is not an address with a port"))
}

fn request(request: &Request, host: &str) -> Result<simulate::Request, String> {
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
    Ok(simulate::Request {
        method: Method::from_bytes(method.as_bytes())
            .map_err(|_| format!("{method:?} is not a method"))?,
        authority: host.to_owned(),
        path: request.query("path").unwrap_or("/").to_owned(),
        headers,
    })
}
