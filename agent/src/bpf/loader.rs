//! Loads the programs, attaches them, and adopts what an earlier agent left pinned.
//!
//! A link that is there keeps its place and, if its program is the same, its program; another program takes
//! over in one step per link. Maps are never made twice. So neither a crash nor an upgrade of the agent is
//! seen by a running connection, nor by a new one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use millrace_ebpf_abi::{ABI_VERSION, LogLevel, NodeConfig};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::maps::{MapOccupancy, Maps, NAMES, occupancy};
use super::pins::{self, Pins, unpin};
use super::programs::{CGROUP_PROGRAMS, CgroupProgram, LOOKUP};
use super::sys::{self, LinkInfo};
use super::{BpfError, CounterValue, EventStream, LogPump, PodTraffic, enrolment, object};

/// What the loader must know of the node.
#[derive(Clone, Debug)]
pub struct BpfConfig {
    /// Directory for the pins; bpffs is mounted if it is not below one.
    pub bpffs_dir: PathBuf,
    /// cgroup2 directory that holds pods, broker and kubelet.
    pub cgroup: PathBuf,
    /// Cookie of the host's network namespace, see [`sys::netns_cookie`].
    pub host_netns_cookie: u64,
    /// How much the programs say.
    pub log_level: LogLevel,
    /// Which attached programs to replace.
    pub replace: Replace,
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
    cgroup: PathBuf,
    programs: Vec<(CgroupProgram, OwnedFd)>,
    adoption: Adoption,
    older: Vec<PathBuf>,
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
        let object = object::embedded()?;
        let pins = Pins::open(&config.bpffs_dir)?;
        let mut ebpf = load_object(object, Some(&pins))?;
        let mut programs = Vec::with_capacity(CGROUP_PROGRAMS.len());
        for program in CGROUP_PROGRAMS {
            programs.push((program, load_program(&mut ebpf, program.name)?));
        }
        let lookup = load_program(&mut ebpf, LOOKUP)?;
        let mut bpf = Self {
            maps: Maps::open(&pins)?,
            older: pins.other_versions()?,
            pins,
            lookup,
            host_netns_cookie: config.host_netns_cookie,
            next_rule_set: 1,
            cgroup: config.cgroup.clone(),
            programs,
            adoption: Adoption::default(),
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
        self.attach_all(Replace::Changed)?;
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

    /// A reader of what the programs log; one at a time.
    ///
    /// # Errors
    ///
    /// If the ring cannot be opened.
    pub fn log_pump(&self) -> Result<LogPump, BpfError> {
        LogPump::open(self.lookup.as_fd())
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
        if self.is_waiting() {
            tracing::warn!(found = ?self.older, "programs of another ABI version stay in charge until every pod is enrolled");
            return Ok(());
        }
        self.attach_all(config.replace)
    }

    fn attach_all(&mut self, replace: Replace) -> Result<(), BpfError> {
        let mut adoption = Adoption {
            pods: self.enrolled()?.len(),
            ..Adoption::default()
        };
        let mut made = Vec::new();
        for (program, fd) in &self.programs {
            let path = self.pins.link(program.name);
            match self.attach(*program, fd.as_fd(), &path, replace) {
                Ok(Outcome::Attached) => {
                    adoption.attached += 1;
                    made.push(path);
                }
                Ok(Outcome::Kept) => adoption.kept += 1,
                Ok(Outcome::Replaced) => adoption.replaced += 1,
                Err(error) => {
                    // Half a set would redirect without answering for it.
                    for path in made {
                        unpin(&path)?;
                    }
                    return Err(error);
                }
            }
        }
        adoption.replaced += self.refresh_lookups(replace == Replace::Always)?;
        tracing::info!(?adoption, cgroup = %self.cgroup.display(), "eBPF programs in place");
        self.adoption = adoption;
        Ok(())
    }

    fn attach(
        &self,
        program: CgroupProgram,
        fd: BorrowedFd<'_>,
        path: &Path,
        replace: Replace,
    ) -> Result<Outcome, BpfError> {
        let error = |source| BpfError::Attach {
            program: program.name,
            target: self.cgroup.display().to_string(),
            source,
        };
        let wanted = enrolment::inode(&self.cgroup).map_err(error)?;
        let mut stale = false;
        match sys::get(path) {
            Ok(link) => {
                let info =
                    sys::link_info(link.as_fd()).map_err(BpfError::bpffs("examining", path))?;
                if info.cgroup_id() == wanted {
                    if replace == Replace::Changed && is_same_program(info, fd) {
                        return Ok(Outcome::Kept);
                    }
                    sys::link_update(link.as_fd(), fd).map_err(error)?;
                    return Ok(Outcome::Replaced);
                }
                stale = true;
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BpfError::bpffs("opening", path)(source)),
        }
        let cgroup = File::open(&self.cgroup).map_err(error)?;
        let link = sys::link_create(fd, cgroup.as_fd(), program.attach_type).map_err(error)?;
        if stale {
            // Attached elsewhere, or to a cgroup that is gone; ours is in place already.
            unpin(path)?;
        }
        sys::pin(link.as_fd(), path).map_err(BpfError::bpffs("pinning", path))?;
        Ok(Outcome::Attached)
    }
}

enum Outcome {
    Attached,
    Kept,
    Replaced,
}

/// Whether a link has this very program, by the digest of its instructions.
pub(super) fn is_same_program(link: LinkInfo, program: BorrowedFd<'_>) -> bool {
    let attached = sys::program_by_id(link.program_id).and_then(|fd| sys::program_tag(fd.as_fd()));
    matches!((attached, sys::program_tag(program)), (Ok(attached), Ok(ours)) if attached == ours)
}

/// Loads every program with maps of its own and lets it go again, for the probe.
pub(super) fn try_programs() -> Vec<(&'static str, Result<(), BpfError>)> {
    let names = CGROUP_PROGRAMS
        .iter()
        .map(|program| program.name)
        .chain([LOOKUP]);
    match object::embedded().and_then(|object| load_object(object, None)) {
        Ok(mut ebpf) => names
            .map(|name| (name, load_program(&mut ebpf, name).map(drop)))
            .collect(),
        Err(error) => vec![("object", Err(error))],
    }
}

fn load_object(object: &[u8], pins: Option<&Pins>) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    // Nothing in the object is relocated against the kernel's types, and reading them takes long.
    loader.btf(None);
    // A refused program is tried again with the log on, so that the error carries it.
    loader.verifier_log_level(VerifierLogLevel::default());
    if let Some(pins) = pins {
        for name in NAMES {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader
        .load(object)
        .map_err(|error| BpfError::Object(Box::new(error)))
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, BpfError> {
    let error = |source: ProgramError| BpfError::Program {
        program: name,
        source: Box::new(source),
    };
    let program = ebpf.program_mut(name).ok_or(BpfError::NoProgram(name))?;
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .map_err(error)?;
    let fd = program.fd().map_err(error)?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|source| error(source.into()))
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
