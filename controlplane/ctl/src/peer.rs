//! The processes that millctl talks to, and what it says when one does not answer.

use std::io;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{Method, StatusCode};
use millrace_runtime::admin::client::{Answer, CallError, Target, call};
use serde_json::Value;

use crate::cli::Places;

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// One process.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// What it is called.
    pub(crate) name: &'static str,
    target: Target,
    /// What an operator can do when it does not answer.
    hint: &'static str,
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    /// The node's agent.
    pub(crate) agent: Peer,
    /// The node's proxy.
    pub(crate) proxy: Peer,
    /// The control plane.
    pub(crate) pilot: Peer,
}

impl Peers {
    /// Where the options say that they are.
    pub(crate) fn new(places: &Places) -> Self {
        let proxy = match places.proxy_admin {
            Some(address) => Target::Tcp(address),
            None => Target::Unix(places.run_dir.join("proxy-admin.sock")),
        };
        Self {
            agent: Peer {
                name: "agent",
                target: Target::Unix(places.run_dir.join("agent.sock")),
                hint: "is `millrace-agent` running on this node? --run-dir says where its sockets are",
            },
            proxy: Peer {
                name: "proxy",
                target: proxy,
                hint: "is `millrace-proxy` running on this node? --run-dir or --proxy-admin says \
                       where it is",
            },
            pilot: Peer {
                name: "pilot",
                target: Target::Tcp(places.pilot),
                hint: "is `millrace-pilot` running? --pilot says where",
            },
        }
    }
}

impl Peer {
    /// An answer, whatever its status.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        match call(&self.target, method, path, body, LIMIT).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// The body of a good answer.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.call(Method::GET, path, Bytes::new()).await?;
        self.good(path, &answer)?;
        Ok(answer.text())
    }

    /// The document of a good answer.
    pub(crate) async fn json(&self, path: &str) -> anyhow::Result<Value> {
        let text = self.get(path).await?;
        serde_json::from_str(&text).with_context(|| {
            format!(
                "{} answered {path} with something else than JSON",
                self.name
            )
        })
    }

    /// Fails unless the answer is a good one.
    pub(crate) fn good(&self, path: &str, answer: &Answer) -> anyhow::Result<()> {
        if answer.status.is_success() {
            return Ok(());
        }
        let text = answer.text();
        let reason = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|v| v["error"].as_str().map(str::to_owned));
        if answer.status == StatusCode::NOT_FOUND && reason.is_none() {
            bail!(
                "{} does not know {path}; is it of another version?",
                self.name
            );
        }
        let reason = reason.unwrap_or_else(|| text.trim().to_owned());
        Err(anyhow!("{} refused {path}: {reason}", self.name))
    }

    fn explain(&self, error: CallError) -> anyhow::Error {
        let kind = match &error {
            CallError::Connect { source, .. } => Some(source.kind()),
            _ => None,
        };
        let advice = match kind {
            Some(io::ErrorKind::PermissionDenied) => "millctl must run as root to use its socket",
            Some(_) => self.hint,
            None => "it is there but does not answer",
        };
        anyhow::Error::new(error).context(format!("{} cannot be asked ({advice})", self.name))
    }
}
