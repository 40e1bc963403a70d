//! What a Kubernetes control plane is made of, wherever it runs: command lines, certificates, kubeconfigs.
//!
//! Input: a directory, the programs, an address; output: commands for whoever starts them. Used by the API server of
//! tests on loopback and by the control plane of a mesh on its fabric.

mod pki;

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use self::pki::Pki;

/// The token of a member of `system:masters`.
pub(crate) const ADMIN: &str = "millrace-test-admin";
/// Virtual addresses of services, of both families.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:96::/112";
/// The controllers whose work is visible: who backs a service, and what goes with its owner.
const CONTROLLERS: &str = "endpointslice-controller,garbage-collector-controller";

/// Where servers listen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    /// The API server.
    pub(crate) secure: u16,
    /// etcd, for the API server.
    pub(crate) client: u16,
    /// etcd, for others of its kind.
    pub(crate) peer: u16,
}

/// One control plane's files and addresses.
#[derive(Debug)]
pub(crate) struct Servers {
    dir: PathBuf,
    assets: PathBuf,
    pki: Pki,
    address: IpAddr,
    ports: Ports,
}

impl Servers {
    /// Writes what the servers read: certificates, keys, tokens, the kubeconfig of who may do everything.
    pub(crate) fn prepare(
        dir: &Path,
        assets: PathBuf,
        address: IpAddr,
        ports: Ports,
    ) -> anyhow::Result<Self> {
        let servers = Self {
            dir: dir.to_owned(),
            assets,
            pki: Pki::make(dir, address)?,
            address,
            ports,
        };
        let users = format!("{ADMIN},admin,admin,system:masters\n");
        write_private(&dir.join("tokens.csv"), &users)?;
        servers.write_kubeconfig("admin", ADMIN, servers.at())?;
        Ok(servers)
    }

    /// Where the API server listens.
    pub(crate) fn at(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.secure)
    }

    /// Where etcd listens: only ever on loopback.
    pub(crate) fn etcd_at(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.ports.client)
    }

    /// The kubeconfig of somebody who may do everything.
    pub(crate) fn admin(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// The text of a kubeconfig for whoever has this token, by this way to the API server.
    pub(crate) fn kubeconfig(&self, token: &str, at: SocketAddr) -> String {
        let authority = self.pki.authority.display();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"https://{at}\", certificate-authority: \"{authority}\"}}}}]\n\
             users: [{{name: test, user: {{token: \"{token}\"}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
        )
    }

    /// The same in a file of this name.
    pub(crate) fn write_kubeconfig(
        &self,
        name: &str,
        token: &str,
        at: SocketAddr,
    ) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(format!("{name}.kubeconfig"));
        fs::write(&path, self.kubeconfig(token, at))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The key that signs service accounts' tokens.
    #[cfg(feature = "apiserver")]
    pub(crate) fn accounts_key(&self) -> &Path {
        &self.pki.accounts
    }

    /// A program of the control plane's.
    pub(crate) fn program(&self, name: &str) -> Command {
        Command::new(self.assets.join(name))
    }

    /// The command that starts etcd.
    pub(crate) fn etcd(&self) -> Command {
        let url = |port: u16| format!("http://{}:{port}", Ipv4Addr::LOCALHOST);
        let (client, peer) = (url(self.ports.client), url(self.ports.peer));
        let mut command = self.program("etcd");
        command
            .arg("--data-dir")
            .arg(self.dir.join("etcd"))
            .args(["--name", "default", "--log-level", "warn"])
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            // Whoever made this may hold the ports; what is stored need not survive the machine.
            .args(["--socket-reuse-port", "--unsafe-no-fsync"]);
        command
    }

    /// The command that starts the API server.
    pub(crate) fn apiserver(&self) -> Command {
        let file = |name: &str| self.dir.join(name);
        let mut command = self.program("kube-apiserver");
        command
            .args(["--etcd-servers", &format!("http://{}", self.etcd_at())])
            .args(["--bind-address", &self.address.to_string()])
            .arg("--permit-port-sharing")
            .args(["--advertise-address", &self.address.to_string()])
            .args(["--secure-port", &self.ports.secure.to_string()])
            .args(["--endpoint-reconciler-type", "none"])
            .args(["--service-cluster-ip-range", SERVICE_RANGES])
            .args(["--authorization-mode", "RBAC"])
            // It would wait for a controller that makes every namespace's account.
            .args(["--disable-admission-plugins", "ServiceAccount"])
            .arg("--token-auth-file")
            .arg(file("tokens.csv"))
            .arg("--cert-dir")
            .arg(file("apiserver"))
            .arg("--tls-cert-file")
            .arg(&self.pki.certificate)
            .arg("--tls-private-key-file")
            .arg(&self.pki.key)
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .arg("--service-account-key-file")
            .arg(&self.pki.accounts_public)
            .arg("--service-account-signing-key-file")
            .arg(&self.pki.accounts);
        command
    }

    /// The command that starts the controllers.
    pub(crate) fn controllers(&self) -> Command {
        let mut command = self.program("kube-controller-manager");
        command
            .arg("--kubeconfig")
            .arg(self.admin())
            .args(["--controllers", CONTROLLERS])
            .args(["--leader-elect=false", "--bind-address", "127.0.0.1"])
            .arg("--cert-dir")
            .arg(self.dir.join("controllers"));
        command
    }
}

/// The objects of YAML text.
///
/// # Errors
///
/// If it is not YAML.
pub fn documents(yaml: &str) -> anyhow::Result<Vec<Value>> {
    let objects = serde_saphyr::from_multiple::<Value>(yaml).context("reading YAML")?;
    Ok(objects
        .into_iter()
        .filter(|object| !object.is_null())
        .collect())
}

/// Writes a file that only its owner reads.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = fs::OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("making {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("writing {}", path.display()))
}
