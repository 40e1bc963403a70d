//! Puts rule sets into the calling thread's network namespace and takes them out, by the host's
//! own `iptables-restore`.
//!
//! Idempotent in both directions: chains of ours are rewritten in one transaction per table,
//! jumps from built-in chains are added only where they are missing.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use millrace_runtime::handoff::Family;

use super::rules::{CHAINS, Ruleset, TABLES};
use super::{check, tables};

/// Why rules could not be written or removed.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// No usable tool.
    #[error("no working {command} was found (tried {tried})")]
    Missing {
        /// `iptables-restore` or `ip6tables-restore`.
        command: String,
        /// Each variant with the reason why it cannot be used.
        tried: String,
    },
    /// A tool could not be run.
    #[error("{tool} cannot be run")]
    Exec {
        /// The program.
        tool: String,
        /// Why.
        source: io::Error,
    },
    /// A tool refused.
    #[error("{tool} failed: {stderr}")]
    Refused {
        /// The program.
        tool: String,
        /// What it said.
        stderr: String,
    },
    /// The tool succeeded but the rules are not there.
    #[error("{tool} succeeded, but rules are missing: {missing}")]
    NotThere {
        /// The program.
        tool: String,
        /// The first of the missing rules.
        missing: String,
    },
}

/// What was done, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The restore programs used, IPv4 first.
    pub tools: Vec<String>,
}

/// Writes rule sets of one configuration, replacing an earlier one of ours.
///
/// # Errors
/// When no tool works or the kernel refuses a rule; chains that one table's transaction did not
/// reach stay as they were.
pub fn install(sets: &[Ruleset]) -> Result<Applied, IptablesError> {
    // Both families are looked up first: one without the other would leave a bypass.
    let tools: Vec<Tool> = sets
        .iter()
        .map(|set| Tool::find(set.family))
        .collect::<Result<_, _>>()?;
    for (set, tool) in sets.iter().zip(&tools) {
        let saved = tool.save()?;
        tool.restore(&set.script(|table, jump| check::has(&saved, table, jump)))?;
        let mut saved = tool.save()?;
        // Chains of another form are in nobody's way now, and no rule jumps to them any more.
        if tool.clear_except(&saved, set)? {
            saved = tool.save()?;
        }
        check::intact(set, &saved).map_err(|drift| IptablesError::NotThere {
            tool: tool.name(),
            missing: drift.missing.into_iter().next().unwrap_or_default(),
        })?;
    }
    Ok(Applied {
        tools: tools.iter().map(Tool::name).collect(),
    })
}

/// Whether the rules are in place, unaltered.
///
/// # Errors
/// When no tool works, or with the rules that are missing.
pub fn verify(sets: &[Ruleset]) -> Result<(), IptablesError> {
    for set in sets {
        let (tool, saved) = if tables::may_exist(set.family) {
            let tool = Tool::find(set.family)?;
            (tool.name(), tool.save()?)
        } else {
            (format!("{}-restore", prefix(set.family)), String::new())
        };
        check::intact(set, &saved).map_err(|drift| IptablesError::NotThere {
            tool,
            missing: drift.missing.join("; "),
        })?;
    }
    Ok(())
}

/// The tools that would be used in the calling thread's namespace, IPv4 first.
///
/// # Errors
/// When one of the families has none.
pub fn available() -> Result<Vec<String>, IptablesError> {
    [Family::V4, Family::V6]
        .into_iter()
        .map(|family| Tool::find(family).map(|tool| tool.name()))
        .collect()
}

/// Everything that one variant of the tool lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The variant, without `-save`.
    pub tool: String,
    /// What it printed.
    pub saved: String,
}

/// What each variant lists in the calling thread's namespace; those without tables are left out, and none is
/// made by looking.
pub fn listings() -> Vec<Listing> {
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        for variant in ["-nft", "-legacy"] {
            let tool = format!("{}{variant}", prefix(family));
            let Some(save) = in_path(&format!("{tool}-save")) else {
                continue;
            };
            let there = match variant {
                "-legacy" => tables::has_legacy(family),
                _ => tables::may_be_listed(family),
            };
            if !there {
                continue;
            }
            let output = Command::new(save).stdin(Stdio::null()).output();
            let Ok(output) = output.map(|output| output.stdout) else {
                continue;
            };
            let saved = String::from_utf8_lossy(&output).into_owned();
            if !saved.trim().is_empty() {
                found.push(Listing { tool, saved });
            }
        }
    }
    found
}

/// Takes the jumps to our chains out, and leaves the chains: no new connection is redirected, and those that
/// were go on.
///
/// The kernel follows connections in a namespace only while some rule there needs it (`nf_ct_netns_put` when
/// the last `REDIRECT` or `DNAT` is destroyed). Without it nothing is translated any more, so that the
/// answers of redirected connections would leave from the wrong port and be reset by their clients.
///
/// # Errors
/// When a tool that lists jumps of ours fails to remove them.
pub fn disarm() -> Result<(), IptablesError> {
    let families = [Family::V4, Family::V6];
    for family in families.into_iter().filter(|it| tables::may_exist(*it)) {
        for tool in Tool::working(family).0 {
            let saved = tool.save()?;
            tool.disarm(&saved)?;
        }
    }
    Ok(())
}

/// Removes every rule and chain of ours; nothing there is fine, and so is no tool at all, since
/// then nothing can have been written.
///
/// # Errors
/// When a tool that lists rules of ours fails to remove them.
pub fn remove() -> Result<(), IptablesError> {
    let families = [Family::V4, Family::V6];
    for family in families.into_iter().filter(|it| tables::may_exist(*it)) {
        for tool in Tool::working(family).0 {
            let saved = tool.save()?;
            tool.clear(&saved)?;
        }
    }
    Ok(())
}

/// One variant of the tool for one family.
#[derive(Clone, Debug)]
struct Tool {
    save: PathBuf,
    restore: PathBuf,
}

impl Tool {
    /// The variant to use: the one that has rules of ours already, else the first that works.
    fn find(family: Family) -> Result<Self, IptablesError> {
        let (working, tried) = Self::working(family);
        let ours = working
            .iter()
            .filter(|_| working.len() > 1)
            .find(|tool| tool.save().is_ok_and(|saved| mentions_ours(&saved)));
        ours.or(working.first())
            .cloned()
            .ok_or_else(|| IptablesError::Missing {
                command: format!("{}-restore", prefix(family)),
                tried: tried.join("; "),
            })
    }

    /// Variants that can list the nat table here, and why the others cannot.
    fn working(family: Family) -> (Vec<Self>, Vec<String>) {
        let mut working: Vec<Self> = Vec::new();
        let mut tried = Vec::new();
        for variant in ["-nft", "-legacy", ""] {
            let name = format!("{}{variant}", prefix(family));
            let (Some(save), Some(restore)) = (
                in_path(&format!("{name}-save")),
                in_path(&format!("{name}-restore")),
            ) else {
                tried.push(format!("{name}: not installed"));
                continue;
            };
            // The bare name is one of the two variants under another name. The legacy tool makes
            // its tables merely by listing them, so it is asked only where nft cannot do the work
            // or legacy tables exist already.
            let superfluous = match variant {
                "" => !working.is_empty(),
                "-legacy" => !working.is_empty() && !tables::has_legacy(family),
                _ => false,
            };
            if superfluous {
                continue;
            }
            let tool = Self { save, restore };
            match tool.list("nat") {
                Ok(_) => working.push(tool),
                Err(error) => tried.push(format!("{name}: {error}")),
            }
        }
        (working, tried)
    }

    fn name(&self) -> String {
        self.restore
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// The tables that we use, as the tool prints them.
    fn save(&self) -> Result<String, IptablesError> {
        let mut saved = self.list("nat")?;
        // A kernel without the raw table is an error only where the table is needed.
        saved.push_str(&self.list("raw").unwrap_or_default());
        Ok(saved)
    }

    fn list(&self, table: &str) -> Result<String, IptablesError> {
        let tool = self.save.display().to_string();
        let output = Command::new(&self.save)
            .args(["-t", table])
            .stdin(Stdio::null())
            .output()
            .map_err(|source| IptablesError::Exec {
                tool: tool.clone(),
                source,
            })?;
        succeeded(tool, &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn restore(&self, script: &str) -> Result<(), IptablesError> {
        let tool = self.name();
        let failed = |source| IptablesError::Exec {
            tool: tool.clone(),
            source,
        };
        let mut child = Command::new(&self.restore)
            .args(["--noflush", "-w", "10"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(script.as_bytes()).map_err(failed)?;
        }
        let output = child.wait_with_output().map_err(failed)?;
        succeeded(tool.clone(), &output)
    }

    /// Removes jumps and chains of ours that `set` does not have, so that a change of form leaves
    /// nothing behind; what both have is left to the restore, which replaces it without a gap. True when
    /// there was anything.
    fn clear_except(&self, saved: &str, set: &Ruleset) -> Result<bool, IptablesError> {
        let keeps = |table: &str, chain: &str| {
            set.tables
                .iter()
                .any(|t| t.name == table && t.chains.contains(&chain))
        };
        self.clear_where(saved, |table, chain| !keeps(table, chain))
    }

    fn clear(&self, saved: &str) -> Result<(), IptablesError> {
        self.clear_where(saved, |_, _| true).map(drop)
    }

    fn disarm(&self, saved: &str) -> Result<(), IptablesError> {
        let mut script = String::new();
        for table in TABLES {
            let jumps = jumps_to(saved, table, &CHAINS);
            if !jumps.is_empty() {
                script = format!("{script}*{table}\n{}\nCOMMIT\n", jumps.join("\n"));
            }
        }
        if script.is_empty() {
            return Ok(());
        }
        self.restore(&script)
    }

    fn clear_where(
        &self,
        saved: &str,
        unwanted: impl Fn(&str, &str) -> bool,
    ) -> Result<bool, IptablesError> {
        let mut script = String::new();
        for table in TABLES {
            let chains: Vec<&str> = CHAINS
                .into_iter()
                .filter(|chain| has_chain(saved, table, chain) && unwanted(table, chain))
                .collect();
            if chains.is_empty() {
                continue;
            }
            let mut lines = vec![format!("*{table}")];
            lines.extend(jumps_to(saved, table, &chains));
            lines.extend(chains.iter().map(|chain| format!("-F {chain}")));
            lines.extend(chains.iter().map(|chain| format!("-X {chain}")));
            lines.push("COMMIT\n".to_owned());
            script.push_str(&lines.join("\n"));
        }
        if script.is_empty() {
            return Ok(false);
        }
        self.restore(&script).map(|()| true)
    }
}

/// The removals of a table's jumps from built-in chains to these.
fn jumps_to(saved: &str, table: &str, chains: &[&str]) -> Vec<String> {
    let ours = |rule: &&str| {
        let built_in = rule.starts_with("-A PREROUTING ") || rule.starts_with("-A OUTPUT ");
        let target = rule.rsplit("-j ").next().unwrap_or_default().trim();
        built_in && chains.contains(&target)
    };
    check::rules_of(saved, table)
        .filter(ours)
        .map(|rule| rule.replacen("-A ", "-D ", 1))
        .collect()
}

fn succeeded(tool: String, output: &Output) -> Result<(), IptablesError> {
    if output.status.success() {
        return Ok(());
    }
    Err(IptablesError::Refused {
        tool,
        stderr: String::from_utf8_lossy(&output.stderr)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
    })
}

fn prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn mentions_ours(saved: &str) -> bool {
    CHAINS
        .iter()
        .any(|chain| saved.contains(&format!(":{chain} ")))
}

fn has_chain(saved: &str, table: &str, chain: &str) -> bool {
    let header = format!("*{table}");
    let wanted = format!(":{chain} ");
    saved
        .lines()
        .skip_while(|line| *line != header)
        .skip(1)
        .take_while(|line| !line.starts_with('*'))
        .any(|line| line.starts_with(&wanted))
}

/// Finds a program by name in `PATH` and where distributions put administrators' tools.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
