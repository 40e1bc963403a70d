//! The admission webhook, really called by the API server, and the replicas behind it.

use std::path::Path;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, DeleteParams};
use millrace_controlplane::app::Pilot;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use serde_json::{Value, json};

use crate::mesh::PATIENCE;
use crate::rights::{kubeconfig, start_with};

const MANIFEST: &str = include_str!("../../../deploy/kubernetes/pilot-webhook.yaml");
const NAMESPACE: &str = "millrace-system";
const NAME: &str = "millrace-validator";

/// Asks until the answer is there; errors on the way are not the end.
pub(crate) async fn until<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let mut last = None;
    let asking = async {
        loop {
            match ask().await {
                Ok(Some(answer)) => return answer,
                Ok(None) => last = None,
                Err(error) => last = Some(error),
            }
            tokio::task::yield_now().await;
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => Ok(answer),
        Err(_) => anyhow::bail!("{what}: not so within {PATIENCE:?}; last: {last:?}"),
    }
}

/// Pilot with a webhook that is reached by its address, as no test has a cluster's services.
pub(crate) async fn pilot(
    kubeconfig: &Path,
    address: &str,
    more: &[&str],
) -> anyhow::Result<Pilot> {
    let webhook = ["--webhook-addr", address, "--tls-name", "127.0.0.1"];
    start_with(kubeconfig, &[&webhook, more].concat()).await
}

pub(crate) async fn register(client: &Client, pilot: &Pilot) -> anyhow::Result<()> {
    let address = pilot.addresses().webhook.context("there is no webhook")?;
    let service = "service:\n      name: millrace-pilot\n      namespace: millrace-system\n      path: /validate";
    ensure!(MANIFEST.contains(service), "the manifest is another one");
    let manifest = MANIFEST.replace(service, &format!("url: https://{address}/validate"));
    apply(client, NAMESPACE, &manifest).await
}

/// The roots that the API server trusts, and what it does when nobody answers.
async fn registered(client: &Client) -> anyhow::Result<Option<(String, String)>> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let webhooks = api.get(NAME).await?.webhooks.unwrap_or_default();
    let webhook = webhooks.into_iter().next().context("no webhook")?;
    let roots = webhook.client_config.ca_bundle.map(|roots| roots.0);
    let roots = String::from_utf8(roots.unwrap_or_default())?;
    Ok(Some((roots, webhook.failure_policy.unwrap_or_default())))
}

pub(crate) async fn armed(client: &Client) -> anyhow::Result<String> {
    until("the webhook is armed", async || {
        let now = registered(client).await?;
        Ok(now
            .filter(|(_, policy)| policy == "Fail")
            .map(|(roots, _)| roots))
    })
    .await
}

/// What the API server says to a `VirtualService`, written as a dry run: status code, message, warnings.
async fn write(
    client: &Client,
    hosts: &str,
    destination: &str,
) -> anyhow::Result<(u16, String, Vec<String>)> {
    let object = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"generateName": "rule-"},
        "spec": {"hosts": [hosts], "http": [{"route": [{"destination": {"host": destination}}]}]},
    });
    let path = "/apis/networking.istio.io/v1/namespaces/default/virtualservices?dryRun=All";
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(kube::client::Body::from(object.to_string().into_bytes()))?;
    let response = client.send(request).await?;
    let warnings = response.headers().get_all("warning").into_iter();
    let warnings = warnings.map(|warning| warning.to_str().map(str::to_owned));
    let warnings = warnings.collect::<Result<Vec<_>, _>>()?;
    let code = response.status().as_u16();
    let body = response.into_body().collect_bytes().await?;
    let body: Value = serde_json::from_slice(&body)?;
    let message = body["message"].as_str().unwrap_or_default().to_owned();
    Ok((code, message, warnings))
}

async fn is_refused(client: &Client) -> anyhow::Result<()> {
    until("the webhook refuses", async || {
        let (_, message, _) = write(client, "*", "kubernetes").await?;
        let refused = message.contains("denied the request: VirtualService default/rule-")
            && message.contains(": spec.hosts: the host \"*\" needs a gateway");
        ensure!(refused, "{message}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_asks_pilot_before_it_writes() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let kubeconfig = kubeconfig(&server, &client).await?;
    let first = pilot(&kubeconfig, "127.0.0.1:0", &[]).await?;
    register(&client, &first).await?;
    let roots = armed(&client).await?;

    is_refused(&client).await?;
    let (code, _, warnings) = until("the mesh is known", async || {
        let said = write(&client, "a", "nobody").await?;
        Ok((!said.2.is_empty()).then_some(said))
    })
    .await?;
    let warned = "no service nobody.default.svc.cluster.local is known";
    ensure!(
        code == 201 && warnings[0].contains(warned),
        "{code} {warnings:?}"
    );
    let (code, message, warnings) = write(&client, "a", "kubernetes").await?;
    ensure!(
        code == 201 && warnings.is_empty(),
        "{code} {message} {warnings:?}"
    );

    // Nobody there: nothing is written that nobody has judged.
    let address = first.addresses().webhook.context("no webhook")?.to_string();
    first.stop().await;
    let (code, message, _) = write(&client, "a", "kubernetes").await?;
    ensure!(
        code == 500 && message.contains("failed calling webhook"),
        "{code} {message}"
    );

    // The next one has the same authority, so that the API server need not learn anything.
    let second = pilot(&kubeconfig, &address, &[]).await?;
    is_refused(&client).await?;
    assert_eq!(
        registered(&client).await?,
        Some((roots.clone(), "Fail".to_owned()))
    );

    // Whoever takes the authority away gets another, everywhere.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    secrets
        .delete("millrace-ca", &DeleteParams::default())
        .await?;
    until("the API server trusts the new authority", async || {
        let now = registered(&client).await?;
        Ok(now.filter(|(now, policy)| *now != roots && policy == "Fail"))
    })
    .await?;
    is_refused(&client).await?;
    second.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_run_out_are_replaced_everywhere() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let kubeconfig = kubeconfig(&server, &client).await?;
    let short = ["--ca-lifetime", "6s", "--certificate-lifetime", "3s"];
    let pilot = pilot(&kubeconfig, "127.0.0.1:0", &short).await?;
    register(&client, &pilot).await?;
    let first = until("there is an authority", async || {
        let now = registered(&client).await?;
        Ok(now
            .map(|(roots, _)| roots)
            .filter(|roots| !roots.is_empty()))
    })
    .await?;
    until("the first authority is forgotten", async || {
        let now = registered(&client).await?;
        let rest = now.filter(|(roots, _)| !roots.is_empty() && !roots.contains(&first));
        Ok(rest)
    })
    .await?;
    is_refused(&client).await?;
    pilot.stop().await;
    Ok(())
}

async fn holder(client: &Client) -> anyhow::Result<Option<String>> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let lease = leases.get_opt("millrace-leader").await?;
    let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
    Ok(spec.holder_identity.filter(|holder| !holder.is_empty()))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_pilots_one_writes_and_another_takes_over() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let kubeconfig = kubeconfig(&server, &client).await?;
    let named = async |name: &str| {
        let flags = ["--pod-name", name, "--lease-duration", "3s"];
        pilot(&kubeconfig, "127.0.0.1:0", &flags).await
    };
    let led_by = async |name: &str| {
        until(&format!("{name} leads"), async || {
            Ok(holder(&client)
                .await?
                .filter(|holder| holder.starts_with(name)))
        })
        .await
    };
    let first = named("first").await?;
    led_by("first_").await?;
    let second = named("second").await?;
    register(&client, &second).await?;
    // The webhook is the second's, and the first one registers it: all replicas have one authority.
    armed(&client).await?;
    is_refused(&client).await?;
    led_by("first_").await?;

    // A replica that is gone without a word is waited for.
    drop(first);
    led_by("second_").await?;
    let third = named("third").await?;
    // One that stops lets go.
    second.stop().await;
    led_by("third_").await?;
    third.stop().await;
    assert_eq!(holder(&client).await?, None);
    Ok(())
}
