//! Loads the programs, attaches them, and adopts what an earlier agent left pinned.
//!
//! A link that is there keeps its place and, if its program is the same, its program; another program takes
//! over in one step per link. Maps are never made twice. So neither a crash nor an upgrade of the agent is
//! seen by a running connection, nor by a new one.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use millrace_ebpf_abi::{ABI_VERSION, LogLevel, NodeConfig};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::accel::AccelPrograms;
use super::foreign::Search;
use super::log::Logs;
use super::maps::{MapOccupancy, Maps, occupancy};
use super::object::{self, Loaded};
use super::pins::{self, Pins};
use super::programs::CgroupProgram;
use super::verify::Decided;
use super::{BpfError, CounterValue, EventStream, LogPump, PodTraffic};

/// What the loader must know of the node.
#[derive(Clone, Debug)]
pub struct BpfConfig {
    /// Directory for the pins; bpffs is mounted if it is not below one.
    pub bpffs_dir: PathBuf,
    /// cgroup2 directory that holds pods, broker and kubelet.
    pub cgroup: PathBuf,
    /// Cookie of the host's network namespace, see [`super::netns_cookie`].
    pub host_netns_cookie: u64,
    /// How much the programs say.
    pub log_level: LogLevel,
    /// Which attached programs to replace.
    pub replace: Replace,
    /// Rules of acceleration that an experiment switches off (`millrace_ebpf_abi::experiment`); 0 in service.
    pub experiment: u32,
    /// Sizes of maps that an experiment makes smaller, by their names; none in service.
    pub max_entries: Vec<(&'static str, u32)>,
}

/// Which attached programs an adopting agent replaces by its own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Replace {
    /// Those that differ.
    #[default]
    Changed,
    /// All.
    Always,
}

/// What the loader found and did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Adoption {
    /// Links that were attached.
    pub attached: u32,
    /// Links that were there and kept their program.
    pub kept: u32,
    /// Links that were there and got another program.
    pub replaced: u32,
    /// Pods that were enrolled already.
    pub pods: usize,
}

/// The loaded programs and their maps. Dropping it changes nothing for the pods.
pub struct Bpf {
    pub(super) pins: Pins,
    pub(super) maps: Maps,
    pub(super) lookup: OwnedFd,
    pub(super) host_netns_cookie: u64,
    pub(super) next_rule_set: u64,
    pub(super) cgroup: PathBuf,
    pub(super) programs: Vec<(CgroupProgram, OwnedFd)>,
    pub(super) accel: Result<AccelPrograms, String>,
    pub(super) adoption: Adoption,
    /// What this agent has written for each pod, by the cookie of its namespace.
    pub(super) decided: HashMap<u64, Decided>,
    /// Programs of others below the cgroup, as far as they have been looked for.
    pub(super) search: Search,
    older: Vec<PathBuf>,
    logs: Option<Logs>,
}

impl Bpf {
    /// Loads the programs and attaches them, or adopts the ones that are attached.
    ///
    /// Where pins of another ABI version are found, its programs stay in charge until [`Self::take_over`].
    ///
    /// # Errors
    ///
    /// If bpffs or the cgroup cannot be used, the kernel refuses a program, or pinned maps do not fit. What
    /// this call attached is detached again.
    pub fn load_or_adopt(config: &BpfConfig) -> Result<Self, BpfError> {
        check_cgroup(&config.cgroup)?;
        let layout = object::layout(&config.max_entries)?;
        let pins = Pins::open(&config.bpffs_dir, &layout)?;
        let Loaded {
            programs,
            lookup,
            accel,
            logs,
        } = Loaded::load(&pins, config)?;
        let mut bpf = Self {
            maps: Maps::open(&pins)?,
            older: pins.other_versions()?,
            pins,
            lookup,
            host_netns_cookie: config.host_netns_cookie,
            next_rule_set: 1,
            cgroup: config.cgroup.clone(),
            programs,
            accel,
            adoption: Adoption::default(),
            decided: HashMap::new(),
            search: Search::default(),
            logs: Some(logs),
        };
        bpf.start(config)?;
        Ok(bpf)
    }

    /// What was found and done at start.
    pub fn adoption(&self) -> Adoption {
        self.adoption
    }

    /// Whether programs of another ABI version are still in charge.
    pub fn is_waiting(&self) -> bool {
        !self.older.is_empty()
    }

    /// Attaches the programs where those of another ABI version are still in charge and removes these.
    ///
    /// To be called when every pod is enrolled. A connection is seen by both for a moment; the first one
    /// redirects it to loopback, which the second leaves alone.
    ///
    /// # Errors
    ///
    /// If a program cannot be attached or an old pin not removed.
    pub fn take_over(&mut self) -> Result<(), BpfError> {
        let older = std::mem::take(&mut self.older);
        if older.is_empty() {
            return Ok(());
        }
        self.attach_all()?;
        for version in older {
            tracing::info!(pins = %version.display(), "removing the programs of another ABI version");
            pins::remove_version(&version)?;
        }
        Ok(())
    }

    /// Switches what the programs say, at once and for all of them.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn set_log_level(&mut self, level: LogLevel) -> Result<(), BpfError> {
        let config = self.maps.node.read()?;
        self.maps.node.write(NodeConfig {
            log_level: level.value(),
            ..config
        })
    }

    /// What the programs say now.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn log_level(&self) -> Result<LogLevel, BpfError> {
        Ok(LogLevel::from_value(self.maps.node.read()?.log_level))
    }

    /// Tells the programs that the proxy is gone or back: open pods go direct meanwhile, closed ones get an
    /// error.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn set_proxy_gone(&mut self, gone: bool) -> Result<(), BpfError> {
        let mut config = self.maps.node.read()?;
        config.flags &= !NodeConfig::PROXY_GONE;
        if gone {
            config.flags |= NodeConfig::PROXY_GONE;
        }
        self.maps.node.write(config)
    }

    /// Tells the programs in which cgroups broker and proxies live: from then on the proxy's mark counts on
    /// their sockets alone. None means that it is not known, and the mark says all.
    ///
    /// # Errors
    ///
    /// If a map cannot be written.
    pub fn set_trusted(&mut self, cgroups: &[u64]) -> Result<(), BpfError> {
        self.maps.trusted.set(cgroups)?;
        let mut config = self.maps.node.read()?;
        config.flags &= !NodeConfig::CREATORS_KNOWN;
        if !cgroups.is_empty() {
            config.flags |= NodeConfig::CREATORS_KNOWN;
        }
        self.maps.node.write(config)
    }

    /// Every counter, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<Vec<CounterValue>, BpfError> {
        self.maps.counters.all()
    }

    /// How full the maps are that programs or pods fill.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn occupancy(&self) -> Result<Vec<MapOccupancy>, BpfError> {
        occupancy(&self.pins)
    }

    /// L4 telemetry of every enrolled pod.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn traffic(&self) -> Result<Vec<PodTraffic>, BpfError> {
        self.maps.telemetry.all()
    }

    /// The reader of what the programs log; `None` if it was taken before. Needs a tokio reactor.
    ///
    /// # Errors
    ///
    /// If the ring cannot be polled.
    pub fn log_pump(&mut self) -> Result<Option<LogPump>, BpfError> {
        self.logs.take().map(LogPump::open).transpose()
    }

    /// A reader of the programs' events; one at a time.
    ///
    /// # Errors
    ///
    /// If the ring cannot be opened.
    pub fn events(&self) -> Result<EventStream, BpfError> {
        EventStream::open(&self.pins)
    }

    /// Ends all capture: detaches every program and removes every pin of every ABI version.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub fn detach_all(self) -> Result<(), BpfError> {
        let root = self.root();
        drop(self);
        Self::clean(&root)
    }

    /// The same without loading anything, for `cleanup`.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub fn clean(bpffs_dir: &Path) -> Result<(), BpfError> {
        pins::remove_all(bpffs_dir)
    }

    fn root(&self) -> PathBuf {
        self.pins.root().to_owned()
    }

    fn start(&mut self, config: &BpfConfig) -> Result<(), BpfError> {
        let flags = self.maps.node.read()?.flags;
        self.maps.node.write(NodeConfig {
            host_netns_cookie: config.host_netns_cookie,
            abi_version: ABI_VERSION,
            log_level: config.log_level.value(),
            flags,
            reserved: 0,
        })?;
        self.sweep()?;
        self.attach_accel();
        if self.is_waiting() {
            tracing::warn!(found = ?self.older, "programs of another ABI version stay in charge until every pod is enrolled");
            return Ok(());
        }
        self.attach_all()
    }
}

fn check_cgroup(path: &Path) -> Result<(), BpfError> {
    let error = |source| BpfError::Cgroup {
        path: path.to_owned(),
        source,
    };
    let kind = statfs(path)
        .map_err(|errno| error(errno.into()))?
        .filesystem_type();
    if kind == CGROUP2_SUPER_MAGIC {
        return Ok(());
    }
    Err(error(io::Error::other("it is not in a cgroup2 mount")))
}
