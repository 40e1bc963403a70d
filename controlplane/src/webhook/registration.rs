//! Keeps the API server told which roots to trust when it asks the webhook, and what to do when nobody answers.
//!
//! Input: the roots of pilot's certificates, and whether this replica leads; output: `caBundle` and `failurePolicy` of
//! the `ValidatingWebhookConfiguration` that the manifest made. As Istio's, it starts with `Ignore`, and only when the
//! API server has refused, through the webhook, what must be refused, it becomes `Fail`: a webhook that nobody can reach
//! stops no one. A write carries the version that was read; nothing is written where nothing differs.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration as Configuration;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Error as WatchError, watch_object};
use kube::{Client, Error};
use millrace_runtime::backoff::Backoff;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::tls::authority::Root;

const IGNORE: &str = "Ignore";
const FAIL: &str = "Fail";
/// The first wait after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The name of the object that must be refused.
const PROBE: &str = "millrace-validation-probe";
/// What the refusal of it says.
const REFUSAL: &str = "needs a gateway";

type Changes = Pin<Box<dyn Stream<Item = Result<Option<Configuration>, WatchError>> + Send>>;

/// The configuration's keeper.
pub struct Registration {
    api: Api<Configuration>,
    probes: Api<DynamicObject>,
    name: String,
    roots: watch::Receiver<Option<Arc<str>>>,
    leads: watch::Receiver<bool>,
    changes: Changes,
}

/// What comes of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// All is as it should be, or nothing can be done until something changes.
    Settled,
    /// There is more to do.
    Again,
}

impl Registration {
    /// For the configuration of this name. Probes are written, as dry runs, into pilot's namespace.
    pub fn new(
        client: Client,
        name: &str,
        namespace: &str,
        roots: watch::Receiver<Option<Arc<str>>>,
        leads: watch::Receiver<bool>,
    ) -> Self {
        let api = Api::<Configuration>::all(client.clone());
        let kind = GroupVersionKind::gvk("networking.istio.io", "v1", "VirtualService");
        let resource = ApiResource::from_gvk_with_plural(&kind, "virtualservices");
        Self {
            changes: watch_object(api.clone(), name).default_backoff().boxed(),
            api,
            probes: Api::namespaced_with(client, namespace, &resource),
            name: name.to_owned(),
            roots,
            leads,
        }
    }

    /// Works until stopped, while this replica leads.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1).with_jitter();
        loop {
            let leads = *self.leads.borrow_and_update();
            let wait = match self.step(leads).await {
                Ok(Step::Settled) => {
                    backoff.reset();
                    None
                }
                Ok(Step::Again) => backoff.next_delay(),
                Err(error) => {
                    tracing::warn!(name = self.name, %error, "the webhook's registration");
                    backoff.next_delay()
                }
            };
            let pause = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            // biased: a stop before work.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = pause => {}
                changed = self.roots.changed() => if changed.is_err() { return },
                changed = self.leads.changed() => if changed.is_err() { return },
                () = changed(&mut self.changes) => {}
            }
        }
    }

    async fn step(&mut self, leads: bool) -> Result<Step, Error> {
        let Some(roots) = self.roots.borrow_and_update().clone().filter(|_| leads) else {
            return Ok(Step::Settled);
        };
        let Some(mut configuration) = self.api.get_opt(&self.name).await? else {
            tracing::debug!(name = self.name, "there is no such webhook configuration");
            return Ok(Step::Settled);
        };
        let trusted = ByteString(roots.as_bytes().to_vec());
        let webhooks = configuration.webhooks.get_or_insert_default();
        let stale = webhooks
            .iter()
            .any(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&trusted));
        if stale {
            for webhook in webhooks {
                let before = webhook.client_config.ca_bundle.replace(trusted.clone());
                if !before.is_some_and(|before| shares_root(&before, &roots)) {
                    // Whoever set it to Fail knew nothing of these roots.
                    webhook.failure_policy = Some(IGNORE.to_owned());
                }
            }
            return self.write(configuration).await;
        }
        let open = |policy: &Option<String>| policy.as_deref() == Some(IGNORE);
        if !webhooks.iter().any(|webhook| open(&webhook.failure_policy)) {
            return Ok(Step::Settled);
        }
        if !self.answers().await? {
            return Ok(Step::Again);
        }
        for webhook in webhooks {
            webhook.failure_policy = Some(FAIL.to_owned());
        }
        self.write(configuration).await
    }

    async fn write(&mut self, configuration: Configuration) -> Result<Step, Error> {
        let params = PostParams::default();
        match self.api.replace(&self.name, &params, &configuration).await {
            Ok(_) => {
                let webhooks = configuration.webhooks.iter().flatten();
                let policy = webhooks.flat_map(|webhook| &webhook.failure_policy).next();
                tracing::info!(name = self.name, ?policy, "webhook registered");
                Ok(Step::Again)
            }
            Err(Error::Api(status)) if [404, 409].contains(&status.code) => Ok(Step::Again),
            Err(error) => Err(error),
        }
    }

    /// Whether the API server, asked to write what must be refused, refuses it by the webhook's word.
    async fn answers(&mut self) -> Result<bool, Error> {
        let probe: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": PROBE},
            "spec": {"hosts": ["*"], "http": [{"directResponse": {"status": 503}}]},
        }))
        .map_err(Error::SerdeError)?;
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match self.probes.create(&params, &probe).await {
            Ok(_) => Ok(false),
            Err(Error::Api(status)) if status.message.contains(REFUSAL) => Ok(true),
            // There is no such kind in the cluster yet.
            Err(Error::Api(status)) if status.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether one of these roots was trusted before: then one authority only follows another.
fn shares_root(before: &ByteString, roots: &str) -> bool {
    let before = str::from_utf8(&before.0).unwrap_or_default();
    let all = Root::read_all(before).unwrap_or_default();
    all.iter().any(|root| roots.contains(root.pem()))
}

/// Returns when the configuration may have changed.
async fn changed(changes: &mut Changes) {
    loop {
        match changes.next().await {
            Some(Ok(_)) => return,
            Some(Err(error)) => {
                tracing::debug!(%error, "the webhook configuration's watch is broken");
            }
            None => std::future::pending().await,
        }
    }
}
