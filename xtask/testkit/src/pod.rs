//! A pod: namespaces, a veth into its node's bridge, two addresses, a cgroup, its own resolver
//! configuration and host name.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::host::{Host, Parts};
use crate::ip;
use crate::netns::Netns;
use crate::node::Inner as NodeInner;
use crate::registry::STATE_ROOT;
use crate::sandbox::View;

/// The address that every pod's resolver asks, as in a cluster with the usual service range.
pub const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Sysctls of a pod: its addresses are usable at once.
const SYSCTLS: [(&str, &str); 2] = [
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodOptions {
    /// The pod's name, unique on its node.
    pub name: String,
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// Labels, as services and subsets select by.
    pub labels: BTreeMap<String, String>,
    /// Annotations, as `millrace.io/capture`.
    pub annotations: BTreeMap<String, String>,
    /// Names and numbers of the container's ports; a name tells the protocol.
    pub ports: Vec<(String, u16)>,
    /// Which of the node's addresses the pod has; by default ones that no pod of it has had.
    pub number: Option<u16>,
}

impl PodOptions {
    /// A pod of the namespace `default` without labels.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            service_account: "default".to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            number: None,
        }
    }

    /// In another namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With a container port.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.to_owned(), port));
        self
    }

    /// With a service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With the addresses of this number: up to 254 it is their last byte.
    #[must_use]
    pub fn number(mut self, number: u16) -> Self {
        self.number = Some(number);
        self
    }
}

/// A running pod; as a [`Host`] it acts inside the pod. Dropping it removes it as a container
/// runtime does: its link and processes go at once.
#[derive(Debug)]
pub struct Pod {
    options: PodOptions,
    number: u16,
    uid: String,
    host: Host,
    cgroup: Cgroup,
    node: Arc<NodeInner>,
}

impl Pod {
    pub(crate) fn make(
        node: Arc<NodeInner>,
        options: PodOptions,
        number: u16,
    ) -> anyhow::Result<Self> {
        let (v4, v6) = (node.pod_v4(number), node.pod_v6(number));
        let run = node.run();
        let uid = uid(run.id().as_str(), &v6, run.serial());
        let dir = node.dir().join("sandboxes").join(&uid);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;

        let prefix = run.id().netns_prefix();
        let netns = Netns::create(&format!("{prefix}{}-{}", node.name(), options.name))?;
        netns.sysctl(&SYSCTLS)?;
        link(&node, &netns, number)?;
        // The kubelet's layout: a pod's directory with one per container below it.
        let cgroup = node.pods().child(&format!("pod{uid}"))?;
        let host = Host::start(Parts {
            netns,
            cgroup: cgroup.child("app")?,
            log_dir: node.dir().join("log").join(&options.name),
            view: Some(view(&dir, &options, v4, v6)?),
            detached: run.detached(),
        })?;
        Ok(Self {
            options,
            number,
            uid,
            host,
            cgroup,
            node,
        })
    }

    /// What the pod was made from.
    pub fn options(&self) -> &PodOptions {
        &self.options
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The Kubernetes uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The name of the pod's node.
    pub fn node_name(&self) -> &str {
        self.node.name()
    }

    /// The pod's IPv4 address.
    pub fn ip(&self) -> IpAddr {
        self.node.pod_v4(self.number).into()
    }

    /// The pod's IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        self.node.pod_v6(self.number).into()
    }

    /// The pod's IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// The pod as its node's agent is told of it.
    pub fn description(&self) -> Value {
        let ports = self.options.ports.iter();
        json!({
            "uid": self.uid,
            "name": self.options.name,
            "namespace": self.options.namespace,
            "service_account": self.options.service_account,
            "labels": self.options.labels,
            "annotations": self.options.annotations,
            "ips": [self.ip(), self.ip6()],
            "node": self.node_name(),
            "netns": self.netns().path(),
            "cgroup": self.cgroup_dir(),
            "ports": ports.map(|(name, port)| json!({ "name": name, "port": port })).collect::<Vec<_>>(),
        })
    }

    /// The pod as a Kubernetes object, ready and running.
    pub fn manifest(&self) -> Value {
        let ports = self.options.ports.iter();
        let ports: Vec<_> = ports
            .map(|(name, port)| json!({ "name": name, "containerPort": port }))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.options.name,
                "namespace": self.options.namespace,
                "uid": self.uid,
                "labels": self.options.labels,
                "annotations": self.options.annotations,
            },
            "spec": {
                "nodeName": self.node_name(),
                "serviceAccountName": self.options.service_account,
                "containers": [{ "name": "app", "image": "app", "ports": ports }],
            },
            "status": {
                "phase": "Running",
                "podIP": self.ip(),
                "podIPs": [{ "ip": self.ip() }, { "ip": self.ip6() }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        })
    }

    /// The cgroup2 directory of the pod's node: of its pods and of what it runs for them.
    pub fn node_cgroup_dir(&self) -> &Path {
        self.node.cgroup().path()
    }

    /// The pod's own cgroup2 directory, above its containers'.
    pub fn cgroup_dir(&self) -> &Path {
        self.cgroup.path()
    }
}

/// A pod is a host with a name and addresses.
impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Sockets that others hold in the namespace keep it alive; the link must go all the same.
        let node = self.node.host().netns().name();
        if let Err(error) = ip::batch_lenient(node, &format!("link delete v{}\n", self.number)) {
            eprintln!("{error:#}");
        }
    }
}

fn link(node: &NodeInner, netns: &Netns, number: u16) -> anyhow::Result<()> {
    let (pod, v4, v6) = (netns.name(), node.pod_v4(number), node.pod_v6(number));
    let (gateway4, gateway6) = (node.gateway_v4(number), node.pod_v6(1));
    let mac = ip::hardware_address(v4);
    ip::batch(
        node.host().netns().name(),
        &format!(
            "link add v{number} type veth peer name eth0 address {mac} netns {pod}\n\
             link set v{number} master br0 up\n"
        ),
    )?;
    ip::batch(
        pod,
        &format!(
            "link set lo up\n\
             address add {v4}/24 dev eth0\n\
             address add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {gateway4}\n\
             route add default via {gateway6}\n"
        ),
    )
}

/// A uid in Kubernetes' form, another for every pod: also for one that gets the address of another.
fn uid(run: &str, address: &Ipv6Addr, serial: u16) -> String {
    let (pid, counter) = run.split_once('x').unwrap_or((run, "0"));
    let number = |text: &str| text.parse::<u32>().unwrap_or_default();
    let segments = address.segments();
    format!(
        "{:08x}-{:04x}-4000-8{:03x}-{:04x}{:08x}",
        number(pid),
        number(counter) & 0xffff,
        serial & 0xfff,
        segments[2],
        segments[7]
    )
}

fn view(dir: &Path, options: &PodOptions, v4: Ipv4Addr, v6: Ipv6Addr) -> anyhow::Result<View> {
    let (name, namespace) = (&options.name, &options.namespace);
    let resolv_conf = format!(
        "nameserver {CLUSTER_DNS}\n\
         search {namespace}.svc.cluster.local svc.cluster.local cluster.local\n\
         options ndots:5\n"
    );
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{v4} {name}\n{v6} {name}\n");
    let binds = [("resolv.conf", resolv_conf), ("hosts", hosts)]
        .into_iter()
        .map(|(file, text)| {
            let source = dir.join(file);
            fs::write(&source, text).with_context(|| format!("writing {}", source.display()))?;
            let place = Path::new("/etc").join(file);
            let place = fs::canonicalize(&place)
                .with_context(|| format!("{} must exist to be replaced", place.display()))?;
            Ok((source, place))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(View {
        binds,
        hidden: machine_mounts(),
        hostname: name.clone(),
    })
}

/// Mounts that a pod may not keep alive: names of network namespaces, and other runs' bpffs.
fn machine_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut hidden: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|at| at.starts_with("/run/netns") || at.starts_with(STATE_ROOT))
        .collect();
    hidden.reverse();
    hidden
}
