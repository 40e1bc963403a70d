//! `proxy-status`: how far every client of pilot is with what it was sent.

use serde_json::Value;

use crate::app::Output;
use crate::cli::Format;
use crate::peer::Peers;
use crate::table::Table;

/// The columns of the overview, in push order.
const TYPES: [&str; 5] = ["CDS", "EDS", "LDS", "RDS", "NDS"];

/// All clients, or everything of those in whose node id `node` occurs. Unhealthy where one has rejected
/// what it was sent.
pub(crate) async fn run(
    peers: &Peers,
    node: Option<&str>,
    format: Format,
) -> anyhow::Result<Output> {
    let document = peers.pilot.json("/debug/syncz").await?;
    let clients: Vec<&Value> = document
        .as_array()
        .into_iter()
        .flatten()
        .filter(|client| node.is_none_or(|part| text(client, "node_id").contains(part)))
        .collect();
    anyhow::ensure!(
        node.is_none() || !clients.is_empty(),
        "no client of pilot is called {}",
        node.unwrap_or_default()
    );
    let healthy = !clients
        .iter()
        .flat_map(|client| types(client))
        .any(|kind| kind["state"] == "ERROR");
    if format == Format::Json {
        return Output::json(&clients.into_iter().cloned().collect(), healthy);
    }
    let text = match node {
        None => overview(&clients),
        Some(_) => clients.iter().map(|client| detail(client)).collect(),
    };
    Ok(Output::of_health(text, healthy))
}

fn overview(clients: &[&Value]) -> String {
    let header = [&["NODE"], &TYPES[..], &["CLIENT", "VARIANT"]].concat();
    let mut table = Table::new(&header);
    for client in clients {
        let states = TYPES.map(|name| {
            let found = types(client).find(|kind| kind["short_name"] == name);
            found.map_or_else(|| "-".to_owned(), state)
        });
        let known = [text(client, "user_agent"), text(client, "variant")];
        let row = std::iter::once(text(client, "node_id")).chain(states);
        table.row(row.chain(known));
    }
    table.render("no client is connected to pilot")
}

fn detail(client: &Value) -> String {
    let mut table = Table::new(&[
        "TYPE",
        "STATE",
        "SUBSCRIBED",
        "HAS",
        "SENT",
        "ACKED",
        "REJECTED",
        "VERSION",
    ]);
    for kind in types(client) {
        let subscribed = if kind["wildcard"] == true {
            "all".to_owned()
        } else {
            kind["subscribed"].to_string()
        };
        let counts = &kind["counts"];
        table.row([
            text(kind, "short_name"),
            state(kind),
            subscribed,
            kind["resources"].to_string(),
            counts["sent"].to_string(),
            counts["acked"].to_string(),
            counts["nacked"].to_string(),
            text(&kind["acked"], "version"),
        ]);
    }
    let errors: Vec<String> = types(client)
        .filter_map(|kind| {
            let error = kind["last_error"].as_str()?;
            Some(format!("{}: {error}\n", text(kind, "short_name")))
        })
        .collect();
    let from = client["peer"].as_str().unwrap_or("a Unix socket");
    format!(
        "{} from {from}\n{}{}",
        text(client, "node_id"),
        table.render("nothing is subscribed to"),
        errors.concat()
    )
}

/// As people say it, with how long an answer is due.
fn state(kind: &Value) -> String {
    let state = text(kind, "state").replace('_', " ");
    match kind["unanswered_ms"].as_u64() {
        Some(waited) => format!("{state} ({waited} ms)"),
        None => state,
    }
}

fn types(client: &Value) -> impl Iterator<Item = &Value> {
    client["types"].as_array().into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}
