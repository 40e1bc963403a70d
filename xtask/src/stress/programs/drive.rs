//! One client of a program: how it is started, and how what it printed is judged.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::catalog::{AB, CLIENT_GO, Target, script};
use crate::setup::Programs;

/// What a client saw. The clients written for the stress print it as JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::stress) struct Tally {
    pub(super) requests: u64,
    pub(super) bytes: u64,
    /// Answers that were not what they should be.
    pub(super) mismatches: u64,
    pub(super) errors: u64,
    /// Calls without an answer within the client's limit.
    pub(super) stalls: u64,
    pub(super) notes: Vec<String>,
}

/// Notes that are kept.
const NOTES: usize = 10;

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.mismatches += other.mismatches;
        self.errors += other.errors;
        self.stalls += other.stalls;
        for note in &other.notes {
            self.note(note.clone());
        }
    }

    pub(super) fn note(&mut self, note: String) {
        if self.notes.len() < NOTES {
            self.notes.push(note);
        }
    }

    pub(super) fn ok(&self) -> bool {
        self.mismatches == 0 && self.errors == 0 && self.stalls == 0
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Drive {
    pub(super) name: &'static str,
    pub(super) command: Command,
    judge: fn(&str) -> anyhow::Result<Tally>,
}

impl Drive {
    /// What came of it.
    pub(super) fn judge(&self, output: &Output) -> anyhow::Result<Tally> {
        let text = String::from_utf8_lossy(&output.stdout);
        let told = || {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("{} ended with {}: {text}{errors}", self.name, output.status)
        };
        ensure!(output.status.success(), "{}", told());
        (self.judge)(&text).with_context(told)
    }

    /// This program's own client, which reads and writes in every way.
    pub(super) fn own(target: &Target<'_>) -> Self {
        let mut command = Command::new(target.this);
        command
            .args(["stress-peer", "ask", "--host", target.host])
            .args(["--to", &target.at.to_string(), "--threads", "4"])
            .args(["--seconds", &target.seconds.to_string()])
            .args(["--seed", &target.seed.to_string()])
            .args(["--run", &target.run.to_string()])
            .arg("--files")
            .arg(target.files);
        Self {
            name: "every way",
            command,
            judge: json,
        }
    }

    pub(super) fn go(target: &Target<'_>, http2: bool) -> anyhow::Result<Self> {
        let mut command = target.programs.go("go-client", CLIENT_GO)?;
        command
            .args(["-to", &url(target), "-workers", "6"])
            .args(["-seconds", &target.seconds.to_string()])
            .args(["-seed", &target.seed.cast_signed().to_string(), "-files"])
            .arg(target.files);
        if http2 {
            command.arg("-http2");
        }
        Ok(Self {
            name: "Go's net/http",
            command,
            judge: json,
        })
    }

    pub(super) fn node(target: &Target<'_>) -> anyhow::Result<Self> {
        let mut command = Programs::present("node")?;
        let source = include_str!("peers/client.mjs");
        command
            .arg(script(target.dir, "client.mjs", source)?)
            .arg(target.files)
            .args([&url(target), &target.seconds.to_string(), "6"]);
        Ok(Self {
            name: "Node's agent and fetch",
            command,
            judge: json,
        })
    }

    /// `requests` or `aiohttp`.
    pub(super) fn python(target: &Target<'_>, library: &'static str) -> anyhow::Result<Self> {
        let to = url(target);
        Self::by_python(target, library, &to)
    }

    fn by_python(target: &Target<'_>, library: &'static str, to: &str) -> anyhow::Result<Self> {
        let mut command = target.programs.python("python")?;
        let source = include_str!("peers/client.py");
        command
            .arg(script(target.dir, "client.py", source)?)
            .arg(library)
            .arg(target.files)
            .args([to, &target.seconds.to_string(), "4"]);
        Ok(Self {
            name: library,
            command,
            judge: json,
        })
    }

    pub(super) fn wrk(target: &Target<'_>) -> anyhow::Result<Self> {
        let mut command = target.programs.debian("wrk", &["wrk"])?;
        command
            .args(["-t2", "-c8", "--timeout", "30s"])
            .arg(format!("-d{}s", target.seconds))
            .arg("-s")
            .arg(script(
                target.dir,
                "wrk.lua",
                include_str!("peers/wrk.lua"),
            )?)
            .args([&url(target), "--"])
            .arg(target.files)
            .args(names(target.files)?);
        Ok(Self {
            name: "wrk",
            command,
            judge: json,
        })
    }

    pub(super) fn ab(target: &Target<'_>) -> anyhow::Result<Self> {
        let mut command = target.programs.debian("ab", &AB)?;
        let names = names(target.files)?;
        let one = usize::try_from(target.seed).unwrap_or_default() % names.len();
        command
            .args(["-q", "-k", "-c", "8", "-n", "1000000", "-s", "30"])
            .args(["-t", &target.seconds.to_string()])
            .arg(format!("{}/f/{}", url(target), names[one]));
        Ok(Self {
            name: "ab",
            command,
            judge: of_ab,
        })
    }

    pub(super) fn curl(target: &Target<'_>) -> anyhow::Result<Self> {
        Self::shell(target, "curl", include_str!("peers/curl.sh"), &url(target))
    }

    /// Its own load generator, and values that are compared.
    pub(super) fn redis(target: &Target<'_>, packages: &[&str]) -> anyhow::Result<Vec<Self>> {
        let at = target.at;
        let mut command = target.programs.debian("redis-benchmark", packages)?;
        command
            .args(["-h", &at.ip().to_string(), "-p", &at.port().to_string()])
            .args(["-n", &(target.seconds * 2000).to_string(), "-c", "8", "-q"])
            .args(["-t", "set,get,lpush,lrange_100", "-d", "600", "--csv"]);
        let benchmark = Self {
            name: "redis-benchmark",
            command,
            judge: |text| {
                // A heading, and a line for each test.
                let tests = text.lines().count().saturating_sub(1) as u64;
                ensure!(tests >= 4, "{tests} tests");
                Ok(Tally {
                    requests: tests,
                    ..Tally::default()
                })
            },
        };
        let values = Self::by_python(target, "redis", &at.to_string())?;
        Ok(vec![values, benchmark])
    }

    /// pgbench, whose sums must agree, and rows that are copied in and out.
    pub(super) fn postgres(target: &Target<'_>, bin: &Path) -> anyhow::Result<Vec<Self>> {
        let source = include_str!("peers/postgres.sh");
        let mut drive = Self::shell(target, "pgbench and psql", source, "")?;
        let at = target.at;
        drive.command.env("PGHOST", at.ip().to_string());
        drive.command.env("PGPORT", at.port().to_string());
        drive.command.env("PGUSER", "postgres").env("BIN", bin);
        Ok(vec![drive])
    }

    fn shell(
        target: &Target<'_>,
        name: &'static str,
        source: &str,
        url: &str,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new("/bin/sh");
        let file = format!("{}.sh", name.split(' ').next().unwrap_or(name));
        command
            .arg(script(target.dir, &file, source)?)
            .arg(target.files)
            .arg(target.dir)
            .args([&target.seconds.to_string(), url]);
        Ok(Self {
            name,
            command,
            judge: json,
        })
    }
}

fn url(target: &Target<'_>) -> String {
    format!("http://{}:{}", target.host, target.at.port())
}

fn names(files: &Path) -> anyhow::Result<Vec<String>> {
    let entries =
        std::fs::read_dir(files).with_context(|| format!("reading {}", files.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    ensure!(!names.is_empty(), "no files in {}", files.display());
    Ok(names)
}

/// What a client printed last.
fn json(text: &str) -> anyhow::Result<Tally> {
    let line = text.lines().last().context("it printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("reading {line}"))
}

fn of_ab(text: &str) -> anyhow::Result<Tally> {
    let number = |title: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(title));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|word| word.parse::<u64>().ok())
    };
    let requests = number("Complete requests:").context("no count of requests")?;
    let failed = number("Failed requests:").context("no count of failures")?;
    let other = number("Non-2xx responses:").unwrap_or_default();
    let mut tally = Tally {
        requests,
        bytes: number("HTML transferred:").unwrap_or_default(),
        errors: failed + other,
        ..Tally::default()
    };
    if !tally.ok() {
        tally.note(text.to_owned());
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ab_prints_is_read() {
        let text = "Complete requests:      120\nFailed requests:        2\n   (Connect: 0, Receive: 0, Length: 2, \
                    Exceptions: 0)\nNon-2xx responses:      1\nHTML transferred:       960 bytes\n";
        let tally = of_ab(text).unwrap();
        assert_eq!((tally.requests, tally.bytes, tally.errors), (120, 960, 3));
        assert!(!tally.ok());
        assert!(of_ab("ab: connection refused").is_err());
    }

    #[test]
    fn what_a_client_prints_is_read() {
        let line = r#"{"requests":3,"bytes":9,"mismatches":0,"errors":0,"stalls":0,"notes":[]}"#;
        assert!(json(&format!("noise\n{line}\n")).unwrap().ok());
        assert!(json("").is_err());
    }
}
