//! A node: a host whose bridge carries pods, with directories of its own for what an agent needs.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Deref, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cgroup::Cgroup;
use crate::cluster::{Run, fabric_v4, fabric_v6};
use crate::host::{Host, Parts};
use crate::ip;
use crate::pod::{Pod, PodOptions};

/// A node of a cluster; as a [`Host`] it acts in the node's own namespace, as a kubelet would.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    name: String,
    number: u8,
    host: Host,
    pods: Cgroup,
    cgroup: Cgroup,
    dir: PathBuf,
    next_pod: AtomicU16,
    run: Arc<Run>,
}

impl Node {
    pub(crate) fn make(run: Arc<Run>, name: &str, number: u8) -> anyhow::Result<Self> {
        let dir = run.id().state_dir().join(name);
        for sub in ["run", "state", "pods", "bpf", "log"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        mount_bpffs(&dir.join("bpf"))?;
        let cgroup = run.cgroup().child(name)?;
        let pods = cgroup.child("pods")?;
        let netns = run.attach(name, number)?;
        let mac = ip::hardware_address(Ipv4Addr::new(10, 244, number, 1));
        let gateways: Vec<String> = POD_BLOCKS
            .map(|block| format!("address add 10.{block}.{number}.1/24 dev br0\n"))
            .collect();
        let gateways = gateways.concat();
        ip::batch(
            netns.name(),
            &format!(
                "link add br0 address {mac} type bridge\n\
                 address add fd00:244:{number}::1/64 dev br0 nodad\n\
                 {gateways}\
                 link set br0 up\n"
            ),
        )?;
        run.route(number, &netns)?;
        let host = Host::start(Parts {
            netns,
            cgroup: cgroup.child("system")?,
            log_dir: dir.join("log"),
            view: None,
            detached: run.detached(),
        })?;
        let next_pod = AtomicU16::new(FIRST_POD);
        let name = name.to_owned();
        let inner = Inner {
            name,
            number,
            host,
            pods,
            cgroup,
            dir,
            next_pod,
            run,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Makes a pod with this name in the namespace `default`.
    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        self.pod_with(PodOptions::named(name))
    }

    /// Makes a pod.
    pub fn pod_with(&self, options: PodOptions) -> anyhow::Result<Pod> {
        let number = match options.number {
            Some(number) => number,
            None => self.inner.next_number(),
        };
        ensure!(
            is_pod(number),
            "a node's pods are numbered from 2 to 1022 without those that end in a byte 0, 1 or 255"
        );
        let name = options.name.clone();
        Pod::make(Arc::clone(&self.inner), options, number)
            .with_context(|| format!("making the pod {name}"))
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The node's address on the fabric.
    pub fn ip(&self) -> IpAddr {
        fabric_v4(self.inner.number).into()
    }

    /// The node's IPv6 address on the fabric.
    pub fn ip6(&self) -> IpAddr {
        fabric_v6(self.inner.number).into()
    }

    /// The addresses of the node in its pods' network, from which it reaches them.
    pub fn gateways(&self) -> [IpAddr; 2] {
        [self.inner.pod_v4(1).into(), self.inner.pod_v6(1).into()]
    }

    /// The directory for sockets of the node's processes (`MILLRACE_RUN_DIR`).
    pub fn run_dir(&self) -> PathBuf {
        self.inner.dir.join("run")
    }

    /// The directory for state that outlives processes (`MILLRACE_STATE_DIR`).
    pub fn state_dir(&self) -> PathBuf {
        self.inner.dir.join("state")
    }

    /// The directory of pod descriptions that the node's agent watches.
    pub fn pods_dir(&self) -> PathBuf {
        self.inner.dir.join("pods")
    }

    /// A bpffs of the node's own.
    pub fn bpffs_dir(&self) -> PathBuf {
        self.inner.dir.join("bpf")
    }

    /// The cgroup2 directory above the node's processes and pods: where programs are attached.
    pub fn cgroup_root(&self) -> &Path {
        self.inner.cgroup.path()
    }
}

/// A node is a host with pods.
impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.inner.host
    }
}

impl Inner {
    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub(crate) fn pods(&self) -> &Cgroup {
        &self.pods
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn pod_v4(&self, pod: u16) -> Ipv4Addr {
        let [block, last] = pod.to_be_bytes();
        Ipv4Addr::new(10, POD_BLOCKS.start() + block, self.number, last)
    }

    /// The node's own address among those of pods like `pod`.
    pub(crate) fn gateway_v4(&self, pod: u16) -> Ipv4Addr {
        let [block, _] = pod.to_be_bytes();
        self.pod_v4(u16::from_be_bytes([block, 1]))
    }

    pub(crate) fn pod_v6(&self, pod: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x244, u16::from(self.number), 0, 0, 0, 0, pod)
    }

    fn next_number(&self) -> u16 {
        loop {
            let number = self.next_pod.fetch_add(1, Ordering::Relaxed);
            if is_pod(number) || number > LAST_POD {
                return number;
            }
        }
    }
}

/// The second bytes of pods' IPv4 addresses: each has room for 253 pods of every node.
pub(crate) const POD_BLOCKS: RangeInclusive<u8> = 244..=247;
const FIRST_POD: u16 = 2;
/// More ports than that a bridge has not.
const LAST_POD: u16 = 1022;

fn is_pod(number: u16) -> bool {
    let [_, last] = number.to_be_bytes();
    (FIRST_POD..=LAST_POD).contains(&number) && (2..255).contains(&last)
}

impl Drop for Inner {
    fn drop(&mut self) {
        umount2(&self.dir.join("bpf"), MntFlags::MNT_DETACH).ok();
    }
}

fn mount_bpffs(at: &Path) -> anyhow::Result<()> {
    mount(
        Some("bpf"),
        at,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0755"),
    )
    .with_context(|| format!("mounting a bpffs at {}", at.display()))
}
