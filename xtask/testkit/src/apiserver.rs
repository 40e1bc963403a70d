//! A real Kubernetes API server for tests: etcd and kube-apiserver on loopback, where a test that talks to a
//! stand-in would prove little.
//!
//! Input: the servers that [`crate::assets`] finds; output: a kubeconfig, clients, namespaces. No controller runs:
//! what a controller would write, a test writes. The servers die with the test, whatever ends it, and their directory
//! goes with them.

mod objects;
mod ports;

pub use self::objects::apply;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use parking_lot::Mutex;

use self::ports::HeldPort;
use crate::assets;
use crate::http::{self, Request};
use crate::kubernetes::{ADMIN, Ports, Servers};
use crate::spawn::{Process, spawn_here};
use crate::wait::until;

/// How long a start may take on a machine that does much else.
const START: Duration = Duration::from_mins(1);

/// A running control plane without controllers.
#[derive(Debug)]
pub struct ApiServer {
    // Dropped in this order: the servers end before their directory goes.
    apiserver: Mutex<Option<Process>>,
    etcd: Mutex<Option<Process>>,
    _ports: [HeldPort; 3],
    servers: Servers,
    dir: Directory,
}

impl ApiServer {
    /// The API server that the tests of this binary share: started by the first, ended with the last that holds it.
    ///
    /// # Errors
    ///
    /// If the servers are not there, or do not become ready.
    pub fn shared() -> anyhow::Result<Arc<Self>> {
        static SHARED: Mutex<Weak<ApiServer>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// Starts servers of one's own, for tests that break them, and waits until they are ready.
    ///
    /// # Errors
    ///
    /// If the servers are not there, or do not become ready.
    pub fn start() -> anyhow::Result<Self> {
        let assets = assets::find().context("no etcd and kube-apiserver")?;
        let dir = Directory::make()?;
        let [secure, client, peer] = [HeldPort::take()?, HeldPort::take()?, HeldPort::take()?];
        let ports = Ports {
            secure: secure.port(),
            client: client.port(),
            peer: peer.port(),
        };
        let address = Ipv4Addr::LOCALHOST.into();
        let server = Self {
            apiserver: Mutex::new(None),
            etcd: Mutex::new(None),
            _ports: [secure, client, peer],
            servers: Servers::prepare(&dir.path, assets, address, ports)?,
            dir,
        };
        server.start_etcd()?;
        server.resume()?;
        Ok(server)
    }

    /// The kubeconfig of somebody who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.servers.admin()
    }

    /// A kubeconfig for whoever has this token, in a file of this name.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn kubeconfig_of(&self, name: &str, token: &str) -> anyhow::Result<PathBuf> {
        self.kubeconfig_at(name, token, self.addr())
    }

    /// The same through another address, of a relay that a test cuts.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn kubeconfig_at(
        &self,
        name: &str,
        token: &str,
        at: SocketAddr,
    ) -> anyhow::Result<PathBuf> {
        self.servers.write_kubeconfig(name, token, at)
    }

    /// The token of somebody who may do everything.
    pub fn admin_token(&self) -> &'static str {
        ADMIN
    }

    /// The key, as PEM, that signs service accounts' tokens.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn accounts_key(&self) -> anyhow::Result<String> {
        let path = self.servers.accounts_key();
        fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    }

    /// A client that may do everything, for the calling runtime.
    ///
    /// # Errors
    ///
    /// If its kubeconfig cannot be used.
    pub async fn client(&self) -> anyhow::Result<Client> {
        client_of(&self.kubeconfig_text(ADMIN)).await
    }

    /// A client for whoever has this token, for the calling runtime.
    ///
    /// # Errors
    ///
    /// If its kubeconfig cannot be used.
    pub async fn client_of(&self, token: &str) -> anyhow::Result<Client> {
        client_of(&self.kubeconfig_text(token)).await
    }

    /// Where the API server listens.
    pub fn addr(&self) -> SocketAddr {
        self.servers.at()
    }

    /// Kills the API server; etcd keeps what it has.
    ///
    /// # Errors
    ///
    /// If it does not go.
    pub fn kill(&self) -> anyhow::Result<()> {
        match self.apiserver.lock().take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts the API server, if it does not run, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it does not become ready.
    pub fn resume(&self) -> anyhow::Result<()> {
        let mut slot = self.apiserver.lock();
        if slot.is_none() {
            *slot = Some(self.start_apiserver()?);
        }
        let process = slot.as_mut().context("the API server was just started")?;
        let ready = self.kubeconfig_text(ADMIN);
        wait_ready(&ready, process).context("waiting for kube-apiserver")
    }

    /// Makes etcd forget all earlier versions, as a cluster does every five minutes.
    ///
    /// # Errors
    ///
    /// If etcd refuses.
    pub fn compact(&self) -> anyhow::Result<()> {
        let status = self.ask_etcd("/v3/maintenance/status", "{}")?;
        let status: serde_json::Value =
            serde_json::from_str(&status).context("reading etcd's status")?;
        let revision = status["header"]["revision"].as_str();
        let revision = revision.context("etcd names no revision")?;
        let body = format!(r#"{{"revision":"{revision}","physical":true}}"#);
        self.ask_etcd("/v3/kv/compaction", &body).map(drop)
    }

    fn ask_etcd(&self, path: &str, body: &str) -> anyhow::Result<String> {
        let at = self.servers.etcd_at();
        let stream = TcpStream::connect(at).context("connecting to etcd")?;
        let mut client = http::Client::over(stream)?;
        let request = Request::new("POST", "etcd", path)
            .header("content-type", "application/json")
            .body(body.as_bytes().to_vec());
        let response = client.send(&request)?;
        let text = response.text();
        ensure!(
            response.status == 200,
            "{path}: {}: {text}",
            response.status
        );
        Ok(text)
    }

    fn kubeconfig_text(&self, token: &str) -> String {
        self.servers.kubeconfig(token, self.addr())
    }

    fn start_etcd(&self) -> anyhow::Result<()> {
        let process = spawn_here("etcd", self.servers.etcd(), &self.dir.path)?;
        let mut slot = self.etcd.lock();
        let process = slot.insert(process);
        wait_for(process, || {
            self.ask_etcd("/v3/maintenance/status", "{}").map(drop)
        })
        .context("waiting for etcd")
    }

    fn start_apiserver(&self) -> anyhow::Result<Process> {
        spawn_here("kube-apiserver", self.servers.apiserver(), &self.dir.path)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Dropping a process kills it and waits.
        drop(self.apiserver.get_mut().take());
        drop(self.etcd.get_mut().take());
    }
}

async fn client_of(kubeconfig: &str) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).context("reading the kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .context("using the kubeconfig")?;
    Client::try_from(config).context("making a client")
}

/// Asks on a thread with a runtime of its own: the caller may or may not be on one.
fn wait_ready(kubeconfig: &str, process: &mut Process) -> anyhow::Result<()> {
    let ask = || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("making a runtime")?;
        wait_for(process, || {
            runtime.block_on(async {
                let client = client_of(kubeconfig).await?;
                let request = ::http::Request::get("/readyz").body(Vec::new())?;
                let ready = client.request_text(request).await;
                ready.context("asking /readyz").map(drop)
            })
        })
    };
    std::thread::scope(|scope| scope.spawn(ask).join())
        .map_err(|_| anyhow::anyhow!("the thread that waits has panicked"))?
}

/// Waits until `ready` succeeds; fails at once when the process has ended.
fn wait_for(
    process: &mut Process,
    mut ready: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    until(START, || match process.ensure_running() {
        Ok(()) => ready().map(Ok),
        Err(ended) => Ok(Err(ended)),
    })?
}

/// A temporary directory that is removed when this process ends, even by SIGKILL.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    keeper: Child,
}

impl Directory {
    fn make() -> anyhow::Result<Self> {
        let path = unique()?;
        // Reads until the pipe's other end is closed, which only the end of this process does for sure.
        let script = "read -r _; until rm -rf -- \"$0\"; do :; done";
        let mut keeper = Command::new("setsid");
        keeper
            .args(["sh", "-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let keeper = keeper
            .spawn()
            .context("starting the keeper of a temporary directory")?;
        Ok(Self { path, keeper })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if let Err(error) = self.keeper.wait() {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

fn unique() -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let name = format!(
        "millrace-apiserver-{}x{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let path = std::env::temp_dir().join(name);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}
