//! A cluster: some nodes joined by a fabric, alone in the world.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;

use crate::cgroup::{Cgroup, cgroup2_mount};
use crate::host::{Host, Parts};
use crate::netns::Netns;
use crate::node::{Node, POD_BLOCKS};
use crate::registry::RunId;
use crate::{bin, clean, ip};

/// The fabric's own addresses; nodes are `.1` to `.199`, other hosts from `.200` on.
const ROUTER: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(172, 30, 0, 254),
    Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 254),
);
const FIRST_OTHER: u8 = 200;

/// Sysctls of every namespace that routes: forwarding without the machine's own filters.
const ROUTING: [(&str, &str); 5] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// How a cluster differs from the usual.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Lets the processes outlive this one, for a cluster that is left running on purpose.
    pub detached: bool,
    /// Where the binaries under test are; by default where [`binary`](crate::binary) finds them.
    pub binaries: Option<PathBuf>,
}

/// The nodes of one run and what joins them. Handles of nodes and pods keep it alive; when the
/// last one goes, everything of the run is removed.
#[derive(Clone, Debug)]
pub struct Cluster {
    run: Arc<Run>,
}

/// One run's root; shared by all that belongs to it.
#[derive(Debug)]
pub(crate) struct Run {
    id: RunId,
    options: ClusterOptions,
    fabric: Host,
    cgroup: Cgroup,
    next_node: AtomicU8,
    next_other: AtomicU8,
    next_pod: AtomicU16,
    /// Number and namespace of every node made so far, for the routes between them.
    nodes: Mutex<Vec<(u8, String)>>,
}

impl Cluster {
    /// Makes an empty cluster; the first of a process also removes what dead runs left behind.
    pub fn new() -> anyhow::Result<Self> {
        Self::with(ClusterOptions::default())
    }

    /// As [`Cluster::new`], with options.
    pub fn with(options: ClusterOptions) -> anyhow::Result<Self> {
        static SWEEP: Once = Once::new();
        ensure!(
            crate::skip::is_root(),
            "network namespaces and cgroups need root"
        );
        let mount = cgroup2_mount().context("no cgroup2 is mounted")?;
        let mut swept = Ok(Vec::new());
        SWEEP.call_once(|| swept = clean::dead());
        swept.context("removing what earlier runs left behind")?;

        let id = RunId::claim()?;
        let made = Run::make(id.clone(), options, &mount);
        if made.is_err()
            && let Err(error) = clean::remove(&id)
        {
            eprintln!("{error:#}");
        }
        Ok(Self {
            run: Arc::new(made?),
        })
    }

    /// The run's id.
    pub fn id(&self) -> &RunId {
        &self.run.id
    }

    /// Adds a node with pods in `10.244.N.0/24` (those after the 253rd in `10.245.N.0/24` and so on) and
    /// `fd00:244:N::/64`, N counting from 1.
    pub fn node(&self, name: &str) -> anyhow::Result<Node> {
        let number = self.run.next_node.fetch_add(1, Ordering::Relaxed);
        ensure!(number < FIRST_OTHER, "a cluster has at most 199 nodes");
        Node::make(Arc::clone(&self.run), name, number)
            .with_context(|| format!("making the node {name}"))
    }

    /// Adds a host on the fabric that is not a node: pilot's place, or an outside server's.
    pub fn host(&self, name: &str) -> anyhow::Result<FabricHost> {
        let number = self.run.next_other.fetch_add(1, Ordering::Relaxed);
        ensure!(number < 254, "a cluster has at most 54 other hosts");
        let cgroup = self.run.cgroup.child(name)?;
        let netns = self.run.attach(name, number)?;
        let host = Host::start(Parts {
            netns,
            cgroup,
            log_dir: self.run.id.state_dir().join(name).join("log"),
            view: None,
            detached: self.run.options.detached,
        })?;
        Ok(FabricHost {
            host,
            number,
            _run: Arc::clone(&self.run),
        })
    }

    /// A path at which every user of the cluster may execute `program`: its own, or that of a copy.
    pub fn executable(&self, program: &Path) -> anyhow::Result<PathBuf> {
        bin::reachable(program, &self.run.id.program_dir())
    }

    /// One of the binaries under test, where every user of the cluster may execute it.
    pub fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        match &self.run.options.binaries {
            Some(dir) => self.executable(&dir.join(name)),
            None => self.executable(&bin::binary(name)?),
        }
    }

    /// Lets the cluster outlive this process, which must end without dropping its handles
    /// (`std::process::exit`); [`clean::all`] removes it.
    pub fn keep(&self) -> anyhow::Result<()> {
        ensure!(
            self.run.options.detached,
            "only a detached cluster can be kept"
        );
        self.run.id.keep()
    }
}

/// A host on the fabric beside the nodes.
#[derive(Debug)]
pub struct FabricHost {
    host: Host,
    number: u8,
    _run: Arc<Run>,
}

impl FabricHost {
    /// The host's address on the fabric.
    pub fn ip(&self) -> IpAddr {
        fabric_v4(self.number).into()
    }

    /// The host's IPv6 address on the fabric.
    pub fn ip6(&self) -> IpAddr {
        fabric_v6(self.number).into()
    }
}

/// A fabric host is a host with an address.
impl Deref for FabricHost {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Run {
    fn make(id: RunId, options: ClusterOptions, mount: &Path) -> anyhow::Result<Self> {
        let cgroup = Cgroup::create(mount.join(id.cgroup_name()))?;
        let netns = Netns::create(&format!("{}fabric", id.netns_prefix()))?;
        netns.sysctl(&ROUTING)?;
        let (v4, v6) = ROUTER;
        let mac = ip::hardware_address(v4);
        ip::batch(
            netns.name(),
            &format!(
                "link set lo up\n\
                 link add br0 address {mac} type bridge\n\
                 address add {v4}/24 dev br0\n\
                 address add {v6}/64 dev br0 nodad\n\
                 link set br0 up\n"
            ),
        )?;
        let fabric = Host::start(Parts {
            netns,
            cgroup: cgroup.child("fabric")?,
            log_dir: id.state_dir().join("fabric").join("log"),
            view: None,
            detached: options.detached,
        })?;
        Ok(Self {
            id,
            options,
            fabric,
            cgroup,
            next_node: AtomicU8::new(1),
            next_other: AtomicU8::new(FIRST_OTHER),
            next_pod: AtomicU16::new(0),
            nodes: Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> &RunId {
        &self.id
    }

    pub(crate) fn detached(&self) -> bool {
        self.options.detached
    }

    /// Another number for every pod of the run.
    pub(crate) fn serial(&self) -> u16 {
        self.next_pod.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A new namespace with `eth0` on the fabric.
    pub(crate) fn attach(&self, name: &str, number: u8) -> anyhow::Result<Netns> {
        let netns = Netns::create(&format!("{}{name}", self.id.netns_prefix()))?;
        netns.sysctl(&ROUTING)?;
        netns.sysctl(&[
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
        ])?;
        let peer = netns.name();
        ip::batch(
            self.fabric.netns().name(),
            &format!(
                "link add h{number} type veth peer name eth0 netns {peer}\n\
                 link set h{number} master br0 up\n"
            ),
        )?;
        let (v4, v6) = (fabric_v4(number), fabric_v6(number));
        let (router4, router6) = ROUTER;
        ip::batch(
            peer,
            &format!(
                "link set lo up\n\
                 link set eth0 up\n\
                 address add {v4}/24 dev eth0\n\
                 address add {v6}/64 dev eth0 nodad\n\
                 route add default via {router4}\n\
                 route add default via {router6}\n"
            ),
        )?;
        Ok(netns)
    }

    /// Adds the routes between a new node's pods and everybody else.
    pub(crate) fn route(&self, number: u8, netns: &Netns) -> anyhow::Result<()> {
        let mut nodes = self.nodes.lock();
        let to = |other: u8| {
            let (v4, v6) = (fabric_v4(other), fabric_v6(other));
            let blocks: Vec<String> = POD_BLOCKS
                .map(|block| format!("route replace 10.{block}.{other}.0/24 via {v4}\n"))
                .collect();
            format!(
                "{}route replace fd00:244:{other}::/64 via {v6}\n",
                blocks.concat()
            )
        };
        ip::batch(self.fabric.netns().name(), &to(number))?;
        for (_, other) in &*nodes {
            // That node may be gone by now.
            ip::batch_lenient(other, &to(number))?;
        }
        let known: String = nodes.iter().map(|(other, _)| to(*other)).collect();
        ip::batch(netns.name(), &known)?;
        nodes.push((number, netns.name().to_owned()));
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(dir) = std::env::var_os("MILLRACE_TEST_LOGS") {
            let to = Path::new(&dir).join(self.id.as_str());
            save_logs(&self.id.state_dir(), &to);
        }
        if let Err(error) = clean::remove(&self.id) {
            eprintln!("cleaning up run {}: {error:#}", self.id.as_str());
        }
    }
}

/// Copies every `*.log` below `from`; best effort, for a person who asked for it.
fn save_logs(from: &Path, to: &Path) {
    let Ok(entries) = fs::read_dir(from) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let target = to.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            save_logs(&entry.path(), &target);
        } else if target
            .extension()
            .is_some_and(|extension| extension == "log")
        {
            fs::create_dir_all(to).ok();
            fs::copy(entry.path(), target).ok();
        }
    }
}

pub(crate) fn fabric_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, number)
}

pub(crate) fn fabric_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, u16::from(number))
}
