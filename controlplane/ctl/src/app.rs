//! Runs a command: asks the parts of Millrace and makes text of their answers.

use crate::cli::{Cli, Command, ProxyConfig};
use crate::peer::Peers;
use crate::{
    analyze, bootstrap, explain, log, pods, precheck, proxy_config, proxy_status, version,
};

/// The exit code of a command that found something unhealthy.
const UNHEALTHY: u8 = 2;

/// What a command prints.
#[derive(Debug)]
pub(crate) struct Output {
    /// The text.
    pub(crate) text: String,
    /// The exit code: 0 where all is as it should be.
    pub(crate) code: u8,
}

impl Output {
    /// Good news, or just news.
    pub(crate) fn ok(text: String) -> Self {
        Self { text, code: 0 }
    }

    /// News about something that is as it should be, or not.
    pub(crate) fn of_health(text: String, healthy: bool) -> Self {
        let code = if healthy { 0 } else { UNHEALTHY };
        Self { text, code }
    }

    /// A JSON document.
    pub(crate) fn json(value: &serde_json::Value, healthy: bool) -> anyhow::Result<Self> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        Ok(Self::of_health(text, healthy))
    }
}

/// Runs one command.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<Output> {
    let peers = Peers::new(&cli.places);
    let format = cli.places.output;
    match cli.command {
        Command::Analyze(options) => analyze::run(&options, format).await,
        Command::Bootstrap(options) => bootstrap::run(options),
        Command::Precheck => precheck::run(&peers, format).await,
        Command::Status { pod } => pods::run(&peers, pod.as_deref(), format).await,
        Command::ProxyConfig(ProxyConfig::Log { level }) => {
            log::proxy(&peers, level.as_deref(), format).await
        }
        Command::ProxyConfig(what) => proxy_config::run(&peers, &what, format).await,
        Command::ProxyStatus { node } => proxy_status::run(&peers, node.as_deref(), format).await,
        Command::Explain(call) => explain::run(&peers, &call, format).await,
        Command::Log { part, level } => log::run(&peers, part, level.as_deref(), format).await,
        Command::Version => version::run(&peers, format).await,
    }
}
