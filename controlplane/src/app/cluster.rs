//! What pilot does in its own cluster besides reading it: certificates, leader election, the admission webhook,
//! statuses.
//!
//! Input: flags and a client; output: running tasks and the webhook's address. Called by [`super::Pilot::start`] where
//! the registry is Kubernetes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::kube::lease::Candidate;
use crate::kube::secret::SecretStore;
use crate::kube::status::StatusWriter;
use crate::metrics::PilotMetrics;
use crate::registry::RegistryKind;
use crate::registry::kubernetes::{Access, connect};
use crate::serve::MeshSource;
use crate::tls::keep::Keeper;
use crate::tls::rotation::Lifetimes;
use crate::tls::serving::Serving;
use crate::webhook::registration::Registration;
use crate::webhook::server::{Reviewer, serve};

/// The service by which pilot is reached.
const SERVICE: &str = "millrace-pilot";

/// What the tasks work with.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) source: &'a Arc<MeshSource>,
    pub(super) metrics: &'a PilotMetrics,
    /// Ends those that write.
    pub(super) stop_inputs: &'a CancellationToken,
    /// Ends those that answer.
    pub(super) stop_servers: &'a CancellationToken,
}

impl Parts<'_> {
    /// Starts everything that the flags ask for, and says where the webhook is.
    pub(super) async fn start(
        &self,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Option<SocketAddr>> {
        let config = self.config;
        if !config.registries.includes(RegistryKind::Kubernetes) {
            let asked = config.webhook_addr.is_some();
            ensure!(
                !asked,
                "--webhook-addr needs a cluster: --registries kubernetes"
            );
            return Ok(None);
        }
        if config.webhook_addr.is_none() && !config.statuses {
            return Ok(None);
        }
        let access = Access {
            kubeconfig: config.kubeconfig.clone(),
            context: config.context.clone(),
        };
        let client = connect(&access).await.context("reaching the cluster")?;
        let leads = self.take_part(&client, tasks);
        if config.statuses {
            let source = Arc::clone(self.source);
            let metrics = self.metrics.clone();
            let writer = StatusWriter::new(
                client.clone(),
                source,
                &config.domain,
                metrics,
                leads.clone(),
            );
            tasks.spawn(writer.run(self.stop_inputs.clone()));
        }
        match config.webhook_addr {
            Some(address) => self.webhook(address, &client, leads, tasks).await.map(Some),
            None => Ok(None),
        }
    }

    /// Starts leader election.
    fn take_part(&self, client: &Client, tasks: &mut JoinSet<()>) -> watch::Receiver<bool> {
        let config = self.config;
        let identity = format!("{}_{:08x}", config.pod_name, fastrand::u32(..));
        let duration = config.lease_duration;
        let candidate = Candidate::new(client.clone(), &config.namespace, identity, duration);
        let leads = candidate.leads();
        tasks.spawn(candidate.run(self.stop_inputs.clone()));
        leads
    }

    async fn webhook(
        &self,
        address: SocketAddr,
        client: &Client,
        leads: watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<SocketAddr> {
        let config = self.config;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("binding the webhook to {address}"))?;
        let address = listener
            .local_addr()
            .context("reading the webhook's address")?;
        let serving = Serving::new();
        let lifetimes = Lifetimes {
            authority: config.ca_lifetime,
            serving: config.certificate_lifetime,
        };
        let store = SecretStore::new(client.clone(), &config.namespace);
        let keeper = Keeper::new(store, Arc::clone(&serving), names(config), lifetimes);
        tasks.spawn(keeper.run(self.stop_servers.clone()));
        let registration = Registration::new(
            client.clone(),
            &config.webhook_config,
            &config.namespace,
            serving.roots(),
            leads,
        );
        tasks.spawn(registration.run(self.stop_inputs.clone()));
        let reviewer = Reviewer {
            source: Arc::clone(self.source),
            domain: config.domain.clone(),
            metrics: self.metrics.clone(),
        };
        let tls = serving.config(&[b"http/1.1"])?;
        let stop = self.stop_servers.clone();
        tasks.spawn(serve(listener, tls, Arc::new(reviewer), stop));
        Ok(address)
    }
}

/// The names by which clients reach pilot's TLS ports.
pub(super) fn names(config: &Config) -> Vec<String> {
    let Config {
        namespace, domain, ..
    } = config;
    let service = format!("{SERVICE}.{namespace}");
    let own = [
        format!("{service}.svc"),
        format!("{service}.svc.{domain}"),
        service,
        SERVICE.to_owned(),
    ];
    own.into_iter()
        .chain(config.tls_names.iter().cloned())
        .collect()
}
