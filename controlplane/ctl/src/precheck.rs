//! `precheck`: what this kernel and host can do. Asks the agent, or where none runs, has the
//! agent's program look.

use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::app::Output;
use crate::cli::Format;
use crate::peer::Peers;
use crate::table::Table;

/// Runs the command; not healthy where nothing can be captured.
pub(crate) async fn run(peers: &Peers, format: Format) -> anyhow::Result<Output> {
    let (found, source) = match peers.agent.json("/probe").await {
        Ok(found) => (found, "the running agent"),
        Err(unreachable) => {
            let found = by_program().with_context(|| format!("{unreachable:#}"))?;
            (found, "`millrace-agent probe`, as no agent runs here")
        }
    };
    let able = |way: &str| found[way]["available"] == true;
    let healthy = able("ebpf") || able("iptables");
    match format {
        Format::Json => Output::json(&found, healthy),
        Format::Table => Ok(Output::of_health(report(&found, source), healthy)),
    }
}

/// The agent's program beside this one, or in the path.
fn by_program() -> anyhow::Result<Value> {
    let beside = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name("millrace-agent"))
        .filter(|path| path.exists());
    let program = beside.unwrap_or_else(|| "millrace-agent".into());
    let output = Command::new(&program)
        .arg("probe")
        .output()
        .with_context(|| format!("running {} probe", program.display()))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("{} probe failed: {}", program.display(), reason.trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "{} probe printed something else than JSON",
            program.display()
        )
    })
}

fn report(found: &Value, source: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kernel = &found["kernel"];
    let mut table = Table::new(&["CHECK", "VERDICT", "DETAIL"]);
    for way in ["ebpf", "iptables", "acceleration"] {
        let state = &found[way];
        let verdict = if state["available"] == true {
            "available"
        } else {
            "missing"
        };
        table.row([way, verdict, &text(&state["reason"])]);
    }
    let features = ["features", "acceleration"].map(|key| kernel[key].as_array());
    for feature in features.into_iter().flatten().flatten() {
        let verdict = text(&feature["verdict"]);
        let detail = match feature["reason"].as_str() {
            Some(reason) => reason.to_owned(),
            None => text(&feature["purpose"]),
        };
        table.row([format!("  {}", text(&feature["name"])), verdict, detail]);
    }
    let foreign = found["foreign"].as_array().into_iter().flatten();
    let foreign: Vec<_> = foreign
        .map(|program| format!("foreign: {}\n", text(&program["text"])))
        .collect();
    let mount = |key: &str| kernel[key].as_str().unwrap_or("not mounted").to_owned();
    format!(
        "{}\nkernel {}, cgroup2 {}, bpffs {} (asked {source})\n\n{}{}",
        text(&found["summary"]),
        text(&kernel["kernel"]),
        mount("cgroup2"),
        mount("bpffs"),
        table.render("nothing was checked"),
        foreign.concat(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_feature_is_a_line_with_its_reason() {
        let found = json!({
            "summary": "pods are captured by iptables, as there is no eBPF: no BTF",
            "ebpf": {"available": false, "reason": "no BTF"},
            "iptables": {"available": true, "reason": null},
            "acceleration": {"available": false, "reason": "too old"},
            "foreign": [{"text": "connect4 program cil_sock4 (7) at /c runs after Millrace's"}],
            "kernel": {
                "kernel": "6.18.0",
                "cgroup2": "/sys/fs/cgroup",
                "bpffs": null,
                "features": [
                    {"name": "btf", "purpose": "types", "verdict": "missing", "reason": "no file"},
                    {"name": "sockops", "purpose": "telemetry", "verdict": "available"},
                ],
                "acceleration": [
                    {"name": "offsets", "purpose": "x", "verdict": "missing", "reason": "too old"},
                ],
            },
        });
        let text = report(&found, "x");
        for line in [
            "kernel 6.18.0, cgroup2 /sys/fs/cgroup, bpffs not mounted (asked x)",
            "ebpf           missing     no BTF",
            "iptables       available",
            "acceleration   missing     too old",
            "  btf          missing     no file",
            "  sockops      available   telemetry",
            "  offsets      missing     too old",
            "foreign: connect4 program cil_sock4 (7) at /c runs after Millrace's",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line:?} is not in\n{text}"
            );
        }
    }
}
