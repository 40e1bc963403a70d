//! `version`: of every part that answers, and of millctl itself.

use millrace_runtime::build_info::BuildInfo;
use serde_json::{Value, json};

use crate::app::Output;
use crate::cli::Format;
use crate::peer::Peers;
use crate::table::Table;

/// Runs the command. A part that does not answer is no failure: it may not be here.
pub(crate) async fn run(peers: &Peers, format: Format) -> anyhow::Result<Output> {
    let own = serde_json::to_value(BuildInfo::of("millctl"))?;
    let mut builds = vec![("millctl", Ok(own))];
    for peer in [&peers.proxy, &peers.agent, &peers.pilot] {
        let build = peer.json("/version").await;
        builds.push((peer.name, build.map_err(|e| format!("{e:#}"))));
    }
    if format == Format::Json {
        let builds = builds.into_iter().map(|(part, build)| {
            let value = build.unwrap_or_else(|error| json!({ "error": error }));
            (part.to_owned(), value)
        });
        return Output::json(&Value::Object(builds.collect()), true);
    }
    let mut table = Table::new(&["PART", "VERSION", "COMMIT", "BUILD", "PROTOCOL"]);
    let mut absent = Vec::new();
    for (part, build) in &builds {
        match build {
            Ok(build) => table.row([
                (*part).to_owned(),
                text(&build["version"]),
                text(&build["commit"]),
                text(&build["profile"]),
                text(&build["handoff_protocol"]),
            ]),
            Err(error) => {
                table.row([*part, "-"]);
                absent.push(format!("{part}: {error}\n"));
            }
        }
    }
    Ok(Output::ok(table.render("") + &absent.concat()))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
