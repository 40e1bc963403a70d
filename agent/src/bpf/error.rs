//! What can go wrong with the kernel programs and their maps.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why the kernel programs could not be loaded, attached or told something.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// Built with `MILLRACE_EBPF_STUB=1`.
    #[error(
        "this agent was built without its eBPF programs (MILLRACE_EBPF_STUB=1); install a full build"
    )]
    Stub,
    /// Built from other sources than the agent.
    #[error(
        "the eBPF object is of another build than this agent (it says {found:?}, wanted {wanted:?}); run \
         `cargo xtask build`"
    )]
    Abi {
        /// What the object says of itself, if anything.
        found: Option<[u32; 2]>,
        /// What this agent was built with.
        wanted: [u32; 2],
    },
    /// The object file or one of its maps was refused.
    #[error("the eBPF object could not be loaded")]
    Object(#[source] Box<EbpfError>),
    /// The verifier or the kernel refused a program.
    #[error("eBPF program {program} could not be loaded")]
    Program {
        /// Which.
        program: &'static str,
        /// The kernel's answer with the end of the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// No such program in the object.
    #[error("the eBPF object has no program {0}; it is of another version")]
    NoProgram(&'static str),
    /// A program could not be attached or replaced.
    #[error("eBPF program {program} could not be attached to {target}")]
    Attach {
        /// Which.
        program: &'static str,
        /// The cgroup directory or the namespace.
        target: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A program could not be run.
    #[error("eBPF program {program} could not be run")]
    Run {
        /// Which.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file or directory under bpffs, or the mount itself.
    #[error("{action} {path}")]
    Bpffs {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The cgroup directory to attach to.
    #[error("cgroup2 directory {path} cannot be used")]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A pinned map is not what this agent expects.
    #[error(
        "map {map} pinned by another build does not fit; run `millrace-agent cleanup` and start again"
    )]
    Layout {
        /// Which.
        map: &'static str,
        /// What differs.
        #[source]
        source: Box<MapError>,
    },
    /// A map could not be read or written.
    #[error("map {map} could not be {action}")]
    Map {
        /// Which.
        map: &'static str,
        /// What was attempted, as a participle.
        action: &'static str,
        /// Why not; "argument list too long" means that it is full.
        #[source]
        source: Box<MapError>,
    },
    /// This cannot be enrolled.
    #[error("network namespace {netns_cookie} cannot be enrolled: {reason}")]
    Enrolment {
        /// Which.
        netns_cookie: u64,
        /// Why not.
        reason: String,
    },
}

impl BpfError {
    pub(super) fn map(map: &'static str, action: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map {
            map,
            action,
            source: Box::new(source),
        }
    }

    pub(super) fn bpffs(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Bpffs {
            action,
            path: path.into(),
            source,
        }
    }
}
