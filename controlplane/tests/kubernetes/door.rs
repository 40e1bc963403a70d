//! A pilot that asks for tokens, the API server that reviews them, and clients that knock.

use std::collections::BTreeMap;
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
use millrace_xds::TypeUrl;
use millrace_xds::client::{self, ClientConfig, ConnectionState, Event, Events};
use millrace_xds::node::Node;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::mesh::PATIENCE;

pub(crate) const CLUSTER: &str = "outbound|80||reviews.default.svc.cluster.local";
pub(crate) const MESH: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n  \
                               clusterIP: 10.96.0.1\n  ports: [{name: http, port: 80}]\n---\n";

/// A pilot with a door, and what is needed to knock.
pub(crate) struct Door {
    /// It ends with the last who holds it.
    pub(crate) server: Arc<ApiServer>,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) pilot: Pilot,
    pub(crate) directory: tempfile::TempDir,
}

impl Door {
    /// With an API server that others use too.
    pub(crate) async fn open() -> anyhow::Result<Self> {
        Self::open_with(ApiServer::shared()?, None, &[]).await
    }

    /// With these rights instead of all, and further flags.
    pub(crate) async fn open_with(
        server: Arc<ApiServer>,
        kubeconfig: Option<PathBuf>,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let client = server.client().await?;
        let namespace = server.namespace(&client).await?;
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("config");
        fs::create_dir(&config)?;
        fs::write(config.join("mesh.yaml"), mesh(&namespace))?;
        apply(&client, &namespace, &objects(&namespace)).await?;
        let account = format!("{namespace}/node");
        let flags = [
            ["--xds-addr", "127.0.0.1:0"],
            ["--http-addr", "127.0.0.1:0"],
            ["--tls-xds-addr", "127.0.0.1:0"],
            ["--tls-name", "127.0.0.1"],
            ["--node-account", &account],
        ];
        // Who may do everything writes where nobody else does.
        let own = ["--namespace", &namespace];
        let own = if kubeconfig.is_none() { &own[..] } else { &[] };
        let kubeconfig = kubeconfig.unwrap_or_else(|| server.kubeconfig());
        let paths = [("--config-dir", config), ("--kubeconfig", kubeconfig)];
        let flags = flags.iter().flatten().chain(own).chain(more);
        let paths = paths
            .into_iter()
            .flat_map(|(flag, path)| [flag.into(), path.into_os_string()]);
        let all = std::iter::once("pilot".into())
            .chain(flags.map(Into::into))
            .chain(paths);
        let pilot = Pilot::start(Config::try_parse_from(all)?, None).await?;
        let serving = pilot.serving().context("no TLS")?;
        tokio::time::timeout(PATIENCE, serving.ready()).await?;
        let roots = serving.roots().borrow().clone().context("no roots")?;
        fs::write(directory.path().join("roots"), &*roots)?;
        Ok(Self {
            server,
            client,
            namespace,
            pilot,
            directory,
        })
    }

    /// The mesh as it is at first: a service, and a pod of its namespace on each node.
    pub(crate) fn mesh(&self) -> String {
        mesh(&self.namespace)
    }

    /// Makes this the mesh.
    pub(crate) fn put_mesh(&self, yaml: &str) -> anyhow::Result<()> {
        // In one step: half of a mesh is another one.
        let new = self.put("mesh", yaml)?;
        Ok(fs::rename(
            new,
            self.directory.path().join("config/mesh.yaml"),
        )?)
    }

    /// A token of an account for an audience, bound to a pod.
    pub(crate) async fn token(
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

    pub(crate) fn node(&self, name: &str) -> String {
        format!("{}-{name}", self.namespace)
    }

    /// The id of a node's proxy.
    pub(crate) fn node_id(&self, name: &str) -> String {
        format!("node~10.0.0.1~{}~cluster.local", self.node(name))
    }

    /// The id of a sidecar in the test's namespace.
    pub(crate) fn sidecar_id(&self, pod: &str) -> String {
        format!(
            "sidecar~10.0.0.9~{pod}.{ns}~{ns}.svc.cluster.local",
            ns = self.namespace
        )
    }

    /// Where and how to knock.
    pub(crate) fn config(&self, id: &str, token: Option<&Path>) -> ClientConfig {
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
        config.roots = Some(self.roots());
        config.token = token.map(Path::to_owned);
        config
    }

    pub(crate) fn roots(&self) -> PathBuf {
        self.directory.path().join("roots")
    }

    pub(crate) fn put(&self, file: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(file);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Knocks as `id` and waits until it is refused for this reason.
    pub(crate) async fn is_refused(
        &self,
        id: &str,
        token: Option<&str>,
        why: &str,
    ) -> anyhow::Result<()> {
        let token = token.map(|token| self.put("refused", token)).transpose()?;
        let mut guest = Guest::new(self.config(id, token.as_deref()))?;
        guest.client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
        guest.is_sent_away(why).await.context(id.to_owned())
    }

    /// Knocks as `id` and waits until it is served.
    pub(crate) async fn is_served(&self, id: &str, token: &Path) -> anyhow::Result<()> {
        let mut guest = Guest::new(self.config(id, Some(token)))?;
        guest.client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
        let has = |guest: &Guest| guest.has(CLUSTER);
        guest.until(has).await.context(id.to_owned())
    }
}

/// A client that keeps the names of what it is told.
pub(crate) struct Guest {
    pub(crate) client: client::Client,
    events: Events,
    driver: JoinHandle<()>,
    /// Whether each name is there.
    pub(crate) told: BTreeMap<String, bool>,
}

impl Guest {
    pub(crate) fn new(config: ClientConfig) -> anyhow::Result<Self> {
        let (client, events, driver) = client::client(config)?;
        Ok(Self {
            client,
            events,
            driver: tokio::spawn(driver.run()),
            told: BTreeMap::new(),
        })
    }

    /// Whether it was told that a name is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.told.get(name) == Some(&true)
    }

    /// Whether it was told that a name is not there.
    pub(crate) fn lacks(&self, name: &str) -> bool {
        self.told.get(name) == Some(&false)
    }

    /// Takes updates until something holds.
    pub(crate) async fn until(&mut self, holds: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let waiting = async {
            while !holds(self) {
                match self.events.next().await {
                    Some(Event::Update(update)) => {
                        let there = update.resources.iter();
                        let there = there.map(|resource| (resource.name.clone(), true));
                        let gone = update.removed.iter().map(|name| (name.clone(), false));
                        self.told.extend(there.chain(gone));
                        update.commit();
                    }
                    Some(_) => {}
                    None => return,
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.with_context(|| {
            let state = self.client.state().borrow().clone();
            format!("{state:?}, told {:?}", self.told)
        })
    }

    /// Waits until its stream was closed with this reason.
    pub(crate) async fn is_sent_away(&mut self, why: &str) -> anyhow::Result<()> {
        let mut state = self.client.state();
        let mut last = None;
        let away = state.wait_for(|state| match state {
            ConnectionState::Disconnected { error, .. } => {
                last = Some(error.clone());
                error.contains(why)
            }
            _ => false,
        });
        let away = tokio::time::timeout(PATIENCE, away).await.map(drop);
        away.with_context(|| format!("to be sent away with {why:?}, the last was {last:?}"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn mesh(namespace: &str) -> String {
    let [a, b] = ["a", "b"].map(|node| format!("{namespace}-{node}"));
    let pods = pod("default", "one", &a, "10.1.0.1") + &pod("default", "other", &b, "10.1.0.2");
    MESH.to_owned() + &pods
}

/// A pod of the mesh that the file registry reads.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIP: {ip}}}\n---\n"
    )
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
