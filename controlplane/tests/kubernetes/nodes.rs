//! xDS over TLS: who shows which token is let in as which node.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, PostParams};
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use millrace_xds::TypeUrl;
use millrace_xds::client::{self, ClientConfig, ConnectionState, Event};
use millrace_xds::node::Node;
use serde_json::json;

use crate::mesh::PATIENCE;

const CLUSTER: &str = "outbound|80||reviews.default.svc.cluster.local";
const MESH: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n  clusterIP: 10.96.0.1\n  \
                    ports: [{name: http, port: 80}]\n";

/// A pilot with a door, and what is needed to knock.
struct Door {
    /// It ends with the last who holds it.
    _server: Arc<ApiServer>,
    client: Client,
    namespace: String,
    pilot: Pilot,
    directory: tempfile::TempDir,
}

impl Door {
    async fn open() -> anyhow::Result<Self> {
        let server = ApiServer::shared()?;
        let client = server.client().await?;
        let namespace = server.namespace(&client).await?;
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("config");
        fs::create_dir(&config)?;
        fs::write(config.join("mesh.yaml"), MESH)?;
        apply(&client, &namespace, &objects(&namespace)).await?;
        let account = format!("{namespace}/node");
        let flags = [
            ["--xds-addr", "127.0.0.1:0"],
            ["--http-addr", "127.0.0.1:0"],
            ["--tls-xds-addr", "127.0.0.1:0"],
            ["--tls-name", "127.0.0.1"],
            ["--namespace", &namespace],
            ["--node-account", &account],
        ];
        let paths = [
            ("--config-dir", config),
            ("--kubeconfig", server.kubeconfig()),
        ];
        let flags = flags.into_iter().flatten().map(Into::into);
        let paths = paths
            .into_iter()
            .flat_map(|(flag, path)| [flag.into(), path.into_os_string()]);
        let all = std::iter::once("pilot".into()).chain(flags).chain(paths);
        let pilot = Pilot::start(Config::try_parse_from(all)?, None).await?;
        let serving = pilot.serving().context("no TLS")?;
        tokio::time::timeout(PATIENCE, serving.ready()).await?;
        let roots = serving.roots().borrow().clone().context("no roots")?;
        fs::write(directory.path().join("roots"), &*roots)?;
        Ok(Self {
            _server: server,
            client,
            namespace,
            pilot,
            directory,
        })
    }

    /// A token of an account for an audience, bound to a pod.
    async fn token(
        &self,
        account: &str,
        audience: &str,
        pod: Option<&str>,
    ) -> anyhow::Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut spec = json!({ "audiences": [audience], "expirationSeconds": 600 });
        if let Some(name) = pod {
            let uid = pods.get(name).await?.metadata.uid;
            spec["boundObjectRef"] =
                json!({ "kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid });
        }
        let request: TokenRequest = serde_json::from_value(json!({ "spec": spec }))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let made = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await?;
        made.status
            .and_then(|status| status.token)
            .context("no token")
    }

    fn node(&self, name: &str) -> String {
        format!("{}-{name}", self.namespace)
    }

    fn config(&self, id: &str, token: Option<&Path>) -> ClientConfig {
        let address = self
            .pilot
            .addresses()
            .tls_xds
            .map(|address| address.to_string());
        let node = Node {
            id: id.to_owned(),
            ..Node::default()
        };
        let mut config =
            ClientConfig::new(format!("https://{}", address.unwrap_or_default()), node);
        config.roots = Some(self.directory.path().join("roots"));
        config.token = token.map(Path::to_owned);
        config
    }

    fn put(&self, file: &str, token: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(file);
        fs::write(&path, token)?;
        Ok(path)
    }

    /// Knocks as `id` and waits until it is refused for this reason.
    async fn is_refused(&self, id: &str, token: Option<&str>, why: &str) -> anyhow::Result<()> {
        let token = token.map(|token| self.put("refused", token)).transpose()?;
        let (client, events, driver) = client::client(self.config(id, token.as_deref()))?;
        let driver = tokio::spawn(driver.run());
        client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
        let mut state = client.state();
        let mut last = None;
        let refused = state.wait_for(|state| match state {
            ConnectionState::Disconnected { error, .. } => {
                last = Some(error.clone());
                error.contains(why)
            }
            _ => false,
        });
        let refused = tokio::time::timeout(PATIENCE, refused).await.map(drop);
        driver.abort();
        drop(events);
        refused
            .with_context(|| format!("{id} is to be refused with {why:?}, the last was {last:?}"))
    }

    /// Knocks as `id` and waits until it is served.
    async fn is_served(&self, id: &str, token: &Path) -> anyhow::Result<()> {
        let (client, mut events, driver) = client::client(self.config(id, Some(token)))?;
        let driver = tokio::spawn(driver.run());
        client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
        let served = async {
            while let Some(event) = events.next().await {
                if let Event::Update(update) = event {
                    let found = update
                        .resources
                        .iter()
                        .any(|resource| resource.name == CLUSTER);
                    update.commit();
                    if found {
                        return;
                    }
                }
            }
        };
        let served = tokio::time::timeout(PATIENCE, served).await;
        driver.abort();
        served.with_context(|| format!("{id} is not served: {:?}", client.state().borrow()))
    }
}

/// Two nodes with a proxy's pod on each, an application's pod, and their accounts.
fn objects(namespace: &str) -> String {
    let node = |name: &str| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {namespace}-{name}}}\n---\n")
    };
    let account = |name: &str| {
        format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n---\n")
    };
    let pod = |name: &str, account: &str, node: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {namespace}-{node}\n  \
             serviceAccountName: {account}\n  automountServiceAccountToken: false\n  \
             containers: [{{name: c, image: none}}]\n---\n"
        )
    };
    [
        node("a"),
        node("b"),
        account("node"),
        account("application"),
        pod("proxy-a", "node", "a"),
        pod("proxy-b", "node", "b"),
        pod("application", "application", "a"),
    ]
    .concat()
}

#[tokio::test]
async fn a_token_opens_the_door_of_its_own_node_and_no_other() -> anyhow::Result<()> {
    require!(apiserver);
    let door = Door::open().await?;
    let id = |node: &str| format!("node~10.0.0.1~{}~cluster.local", door.node(node));
    let good = door.token("node", "millrace", Some("proxy-a")).await?;
    let file = door.put("token", &good)?;
    door.is_served(&id("a"), &file).await?;

    door.is_refused(&id("a"), None, "there is no bearer token")
        .await?;
    door.is_refused(&id("a"), Some("nonsense"), "does not take the token")
        .await?;
    let elsewhere = door.token("node", "somebody-else", Some("proxy-a")).await?;
    door.is_refused(&id("a"), Some(&elsewhere), "audience")
        .await?;
    let other = door.token("node", "millrace", Some("proxy-b")).await?;
    let why = format!(
        "the token is of node {}, and not of {}",
        door.node("b"),
        door.node("a")
    );
    door.is_refused(&id("a"), Some(&other), &why).await?;
    let unbound = door.token("node", "millrace", None).await?;
    door.is_refused(&id("a"), Some(&unbound), "bound to no node")
        .await?;
    let application = door
        .token("application", "millrace", Some("application"))
        .await?;
    let why = format!(
        "{}/application is no service account of nodes' proxies",
        door.namespace
    );
    door.is_refused(&id("a"), Some(&application), &why).await?;

    // The application may be its own sidecar's pod, and no other.
    let sidecar = |pod: &str| {
        format!(
            "sidecar~10.0.0.9~{pod}.{ns}~{ns}.svc.cluster.local",
            ns = door.namespace
        )
    };
    let file = door.put("application", &application)?;
    door.is_served(&sidecar("application"), &file).await?;
    door.is_refused(
        &sidecar("proxy-a"),
        Some(&application),
        "the token is of pod",
    )
    .await?;

    door.pilot.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_token_that_was_replaced_is_read_again() -> anyhow::Result<()> {
    require!(apiserver);
    let door = Door::open().await?;
    let id = format!("node~10.0.0.1~{}~cluster.local", door.node("a"));
    let path = door.put("token", "outlived")?;
    let (client, mut events, driver) = client::client(door.config(&id, Some(&path)))?;
    let driver = tokio::spawn(driver.run());
    client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
    let mut state = client.state();
    let refused = state.wait_for(|state| matches!(state, ConnectionState::Disconnected { .. }));
    tokio::time::timeout(PATIENCE, refused).await??;
    door.put(
        "token",
        &door.token("node", "millrace", Some("proxy-a")).await?,
    )?;
    let served = async {
        while let Some(event) = events.next().await {
            if let Event::Update(update) = event {
                update.commit();
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(PATIENCE, served).await?);
    driver.abort();
    door.pilot.stop().await;
    Ok(())
}
