//! The guard of a pod that fails closed: inside its namespace, packets that are subject to
//! capture and carry no mark of the proxy are refused.
//!
//! It lives in nftables, so it outlives pins and processes: with every process of Millrace gone,
//! a connection of the pod is reset instead of leaving un-proxied. Only what opens a connection
//! is looked at; answers of the pod's servers pass.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use millrace_runtime::handoff::IptablesConfig;

/// The guard's table.
pub const TABLE: &str = "millrace_guard";

/// Why the guard could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// There is no `nft`.
    #[error(
        "no guard for a pod that fails closed: nft is not installed (package nftables); \
         or set millrace.io/on-capture-loss: open"
    )]
    NotInstalled,
    /// `nft` could not be run.
    #[error("nft cannot be run")]
    Exec(#[source] io::Error),
    /// `nft` refused.
    #[error("nft failed: {0}")]
    Refused(String),
}

/// Puts the guard into the calling thread's namespace, replacing an earlier one.
///
/// # Errors
/// [`GuardError::NotInstalled`] where there is no `nft`: the pod is captured, but nothing holds
/// what capture misses; else when `nft` refuses the rules.
pub fn install(config: &IptablesConfig) -> Result<(), GuardError> {
    match nft(&script(config)) {
        Err(GuardError::Exec(error)) if error.kind() == io::ErrorKind::NotFound => {
            Err(GuardError::NotInstalled)
        }
        result => result,
    }
}

/// Removes the guard from the calling thread's namespace; none there is fine.
///
/// # Errors
/// When `nft` refuses.
pub fn remove() -> Result<(), GuardError> {
    match nft(&format!("table inet {TABLE}\ndelete table inet {TABLE}\n")) {
        Err(GuardError::Exec(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The guard's rules as an `nft` script: one transaction that replaces the table.
pub fn script(config: &IptablesConfig) -> String {
    let mut rules = vec![
        format!("meta mark & 0xffff == {:#x} accept", config.proxy_mark),
        "fib daddr type local accept".to_owned(),
    ];
    for uid in &config.proxy_uids {
        rules.push(format!("meta skuid {uid} accept"));
    }
    for gid in &config.proxy_gids {
        rules.push(format!("meta skgid {gid} accept"));
    }
    let opens = "tcp flags & (fin | syn | rst | ack) == syn";
    for port in &config.outbound_ports_exclude {
        rules.push(format!("tcp dport {port} accept"));
    }
    if config.redirect_dns {
        let servers: Vec<String> = config.dns_servers.iter().map(destination).collect();
        if servers.is_empty() {
            rules.push("udp dport 53 reject".to_owned());
        }
        for server in servers {
            rules.push(format!("{server} udp dport 53 reject"));
        }
    }
    for cidr in &config.outbound_cidrs_exclude {
        rules.push(format!("{} accept", network(cidr)));
    }
    for port in &config.outbound_ports_include {
        rules.push(format!("{opens} tcp dport {port} reject with tcp reset"));
    }
    match &config.outbound_cidrs_include {
        None => rules.push(format!("{opens} reject with tcp reset")),
        Some(cidrs) => {
            for cidr in cidrs {
                let to = network(cidr);
                rules.push(format!("{to} {opens} reject with tcp reset"));
            }
        }
    }
    let mut script = format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n\
         chain output {{\ntype filter hook output priority 10; policy accept;\n"
    );
    for rule in rules {
        if writeln!(script, "{rule}").is_err() {
            // fmt::Write for String never fails.
            break;
        }
    }
    script.push_str("}\n}\n");
    script
}

fn destination(address: &std::net::IpAddr) -> String {
    network(&IpNet::from(*address))
}

fn network(cidr: &IpNet) -> String {
    match cidr {
        IpNet::V4(_) => format!("ip daddr {}", cidr.trunc()),
        IpNet::V6(_) => format!("ip6 daddr {}", cidr.trunc()),
    }
}

fn nft(script: &str) -> Result<(), GuardError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(GuardError::Exec)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(script.as_bytes())
            .map_err(GuardError::Exec)?;
    }
    let output = child.wait_with_output().map_err(GuardError::Exec)?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(GuardError::Refused(
        stderr.split_whitespace().collect::<Vec<_>>().join(" "),
    ))
}
