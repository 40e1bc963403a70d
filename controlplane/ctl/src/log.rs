//! `log`: what each part logs, and changing it while it runs.

use anyhow::bail;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::app::Output;
use crate::cli::{Format, Part};
use crate::peer::{Peer, Peers};
use crate::table::Table;

/// Shows or sets the level of one part, or shows those of all.
pub(crate) async fn run(
    peers: &Peers,
    part: Option<Part>,
    level: Option<&str>,
    format: Format,
) -> anyhow::Result<Output> {
    let Some(part) = part else {
        return all(peers, format).await;
    };
    let now = match level {
        Some(level) => set(peers, part, level).await?,
        None => get(peers, part).await?,
    };
    show(&[(name(part), Ok(now))], format)
}

/// The same for the proxy alone.
pub(crate) async fn proxy(
    peers: &Peers,
    level: Option<&str>,
    format: Format,
) -> anyhow::Result<Output> {
    run(peers, Some(Part::Proxy), level, format).await
}

async fn all(peers: &Peers, format: Format) -> anyhow::Result<Output> {
    let mut rows = Vec::new();
    for part in [Part::Proxy, Part::Agent, Part::Kernel, Part::Pilot] {
        let level = get(peers, part).await.map_err(|e| format!("{e:#}"));
        rows.push((name(part), level));
    }
    show(&rows, format)
}

async fn get(peers: &Peers, part: Part) -> anyhow::Result<String> {
    match part {
        Part::Proxy => field(&peers.proxy.json("/logging").await?, "level"),
        Part::Agent => field(&peers.agent.json("/log").await?, "level"),
        Part::Kernel => field(&peers.agent.json("/log").await?, "bpf"),
        Part::Pilot => {
            // Without a level the switch changes nothing and says what is set.
            let answer = post(&peers.pilot, "/logging").await?;
            Ok(answer.trim().to_owned())
        }
    }
}

async fn set(peers: &Peers, part: Part, level: &str) -> anyhow::Result<String> {
    let query = format!("/logging?level={}", encoded(level));
    match part {
        Part::Proxy => field(
            &serde_json::from_str(&post(&peers.proxy, &query).await?)?,
            "level",
        ),
        Part::Pilot => Ok(post(&peers.pilot, &query).await?.trim().to_owned()),
        Part::Agent => put(&peers.agent, &json!({"level": level}), "level").await,
        Part::Kernel => put(&peers.agent, &json!({"bpf": level}), "bpf").await,
    }
}

async fn post(peer: &Peer, path: &str) -> anyhow::Result<String> {
    let answer = peer.call(Method::POST, path, Bytes::new()).await?;
    peer.good(path, &answer)?;
    Ok(answer.text())
}

async fn put(agent: &Peer, body: &Value, key: &str) -> anyhow::Result<String> {
    let body = Bytes::from(body.to_string());
    let answer = agent.call(Method::PUT, "/log", body).await?;
    agent.good("/log", &answer)?;
    field(&serde_json::from_slice(&answer.body)?, key)
}

fn field(document: &Value, key: &str) -> anyhow::Result<String> {
    match document[key].as_str() {
        Some(level) => Ok(level.to_owned()),
        None => match document[format!("{key}_unavailable")].as_str() {
            Some(reason) => bail!("{reason}"),
            None => bail!("the answer says no {key}"),
        },
    }
}

fn show(rows: &[(&str, Result<String, String>)], format: Format) -> anyhow::Result<Output> {
    if format == Format::Json {
        let rows = rows.iter().map(|(part, level)| {
            let value = match level {
                Ok(level) => json!({ "level": level }),
                Err(error) => json!({ "error": error }),
            };
            ((*part).to_owned(), value)
        });
        return Output::json(&Value::Object(rows.collect()), true);
    }
    let mut table = Table::new(&["PART", "LEVEL"]);
    for (part, level) in rows {
        table.row([*part, level.as_deref().unwrap_or("-")]);
    }
    let absent = rows.iter().filter_map(|(part, level)| {
        let error = level.as_ref().err()?;
        Some(format!("{part}: {error}\n"))
    });
    let absent = absent.collect::<Vec<_>>().concat();
    Ok(Output::ok(table.render("") + &absent))
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Proxy => "proxy",
        Part::Agent => "agent",
        Part::Pilot => "pilot",
        Part::Kernel => "kernel",
    }
}

/// Percent-encodes what a query value may not hold.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b',' | b':' | b'=' => {
                out.push(char::from(byte));
            }
            other => {
                out.push('%');
                for digit in [other >> 4, other & 15] {
                    out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_survive_the_query() {
        let filter = "info,millrace_proxy::http=trace";
        assert_eq!(encoded(filter), filter);
        assert_eq!(encoded("a b&c"), "a%20b%26c");
    }

    #[test]
    fn what_is_not_available_says_why() {
        let document = json!({"bpf": null, "bpf_unavailable": "no programs are loaded"});
        let error = field(&document, "bpf").unwrap_err().to_string();
        assert_eq!(error, "no programs are loaded");
    }
}
