//! `explain`: what would become of a call, as the proxy's own matchers decide it, and which object of the
//! configuration decided each step.
//!
//! The proxy says what happens and which objects its resources were made from; pilot says where those stand. Where
//! pilot does not answer, the objects are named without file and line.

mod places;
mod text;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::app::Output;
use crate::cli::{Explain, Format};
use crate::peer::Peers;
use places::Places;

/// Ends of a call that gets through.
const GOOD: [&str; 4] = ["forwarded", "passthrough", "answered", "redirected"];

/// Explains one call. Unhealthy where some of such calls would not get through.
pub(crate) async fn run(peers: &Peers, call: &Explain, format: Format) -> anyhow::Result<Output> {
    let mut decision = decide(peers, call).await?;
    let wanted = places::of(&decision);
    let (places, failure) = match ask(peers, &wanted).await {
        Ok(places) => (places, None),
        Err(error) => (Places::default(), Some(format!("{error:#}"))),
    };
    let healthy = gets_through(&decision);
    if format == Format::Json {
        decision["places"] = places.json();
        if let Some(failure) = failure {
            decision["places_error"] = json!(failure);
        }
        return Output::json(&decision, healthy);
    }
    let mut text = text::render(&decision, &places);
    if let Some(failure) = failure {
        text.extend(["\nno files and lines: ", &failure, "\n"]);
    }
    Ok(Output::of_health(text, healthy))
}

async fn decide(peers: &Peers, call: &Explain) -> anyhow::Result<Value> {
    let path = format!("/simulate?{}", query(call)?);
    let answer = peers.proxy.call(Method::GET, &path, Bytes::new()).await?;
    let document: Value = serde_json::from_str(&answer.text()).unwrap_or_default();
    if let Some(reason) = document["error"].as_str() {
        bail!("{reason}");
    }
    peers.proxy.good("/simulate", &answer)?;
    anyhow::ensure!(
        document.is_object(),
        "proxy answered with something else than JSON"
    );
    Ok(document)
}

async fn ask(peers: &Peers, wanted: &[String]) -> anyhow::Result<Places> {
    if wanted.is_empty() {
        return Ok(Places::default());
    }
    let wanted: Vec<_> = wanted
        .iter()
        .map(|of| format!("of={}", encode(of)))
        .collect();
    let path = format!("/debug/places?{}", wanted.join("&"));
    Ok(Places::new(&peers.pilot.json(&path).await?))
}

fn query(call: &Explain) -> anyhow::Result<String> {
    let mut pairs = vec![("from", call.from.clone()), ("to", call.to.clone())];
    let optional = [
        ("host", call.host.clone()),
        ("sni", call.sni.clone()),
        ("address", call.address.map(|ip| ip.to_string())),
        ("random", call.random.map(|number| number.to_string())),
        ("direction", call.inbound.then(|| "inbound".to_owned())),
    ];
    for (name, value) in optional {
        pairs.extend(value.map(|value| (name, value)));
    }
    pairs.push(("method", call.method.clone()));
    pairs.push(("path", call.path.clone()));
    pairs.push(("protocol", call.protocol.as_str().to_owned()));
    for header in &call.header {
        let (name, value) = header
            .split_once([':', '='])
            .with_context(|| format!("--header {header:?} is not name=value"))?;
        pairs.push(("header", format!("{}:{}", name.trim(), value.trim())));
    }
    let pairs = pairs.iter();
    let pairs: Vec<_> = pairs
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    Ok(pairs.join("&"))
}

/// Percent-encodes all but unreserved characters (RFC 3986 section 2.3).
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 0xf] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    out
}

fn gets_through(decision: &Value) -> bool {
    let good = |answer: &Value| {
        answer["outcome"]
            .as_str()
            .is_some_and(|end| GOOD.contains(&end))
    };
    let clusters = decision["clusters"].as_array();
    let mut ends = clusters
        .into_iter()
        .flatten()
        .map(|cluster| &cluster["answer"]);
    good(&decision["answer"]) && ends.all(good)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn every_option_is_asked_for() {
        let line = "millctl explain default/a reviews:9080 --method POST --path /x?y=1 --header end-user=jason \
                    --header cookie:a=b --host other --protocol http2 --random 7 --address fd00::1 --inbound";
        let Command::Explain(call) = Cli::parse_from(line.split_whitespace()).command else {
            panic!("another command");
        };
        let expected = "from=default/a&to=reviews%3A9080&host=other&address=fd00%3A%3A1&random=7&direction=inbound\
                        &method=POST&path=/x%3Fy%3D1&protocol=http2&header=end-user%3Ajason&header=cookie%3Aa%3Db";
        assert_eq!(query(&call).unwrap(), expected);
    }

    #[test]
    fn a_call_gets_through_where_every_cluster_lets_it() {
        let end = |outcome: &str| json!({ "outcome": outcome });
        let with = |one: &str| {
            let clusters = json!([{ "answer": end("forwarded") }, { "answer": end(one) }]);
            json!({ "answer": end("forwarded"), "clusters": clusters })
        };
        assert!(gets_through(&with("passthrough")));
        assert!(!gets_through(&with("no_endpoint")));
        assert!(!gets_through(&json!({ "answer": end("no_route") })));
    }
}
