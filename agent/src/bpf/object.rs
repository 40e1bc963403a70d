//! The kernel programs: embedded by the build script, loaded into the kernel, or found there again.

use std::os::fd::{AsFd, OwnedFd};

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use ::object::{Object, ObjectSection};
use millrace_ebpf_abi::{ABI, ABI_SECTION};

use super::accel::AccelPrograms;
use super::layout::Layout;
use super::loader::{BpfConfig, Replace};
use super::log::Logs;
use super::maps::NAMES;
use super::pins::{Pins, unpin};
use super::programs::{CGROUP_PROGRAMS, CgroupProgram, LOOKUP, MESSAGE, PROMOTE};
use super::{BpfError, btf, sys};
use crate::broker::chain;
use millrace_ebpf_abi::KernelLayout;

/// ELF readers want the bytes aligned.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
    env!("OUT_DIR"),
    "/millrace-ebpf.o"
)));

/// The programs in the kernel, attached or not.
pub(super) struct Loaded {
    pub(super) programs: Vec<(CgroupProgram, OwnedFd)>,
    pub(super) lookup: OwnedFd,
    /// Those of acceleration, or why there are none; capture does without.
    pub(super) accel: Result<AccelPrograms, String>,
    pub(super) logs: Logs,
}

impl Loaded {
    /// Loads the programs with the pinned maps, which are made if there are none. A pinned program of the
    /// same instructions is taken instead of the loaded one, so that links need not change.
    pub(super) fn load(pins: &Pins, config: &BpfConfig) -> Result<Self, BpfError> {
        // A program pinned with maps that somebody removed since works on maps that nobody sees.
        let maps_complete = NAMES.iter().all(|name| pins.map(name).exists());
        let reuse = maps_complete && config.replace == Replace::Changed;
        let layout = btf::kernel_layout();
        let constants = Constants {
            layout: *layout.as_ref().unwrap_or(&KernelLayout::UNKNOWN),
            experiment: config.experiment,
            max_entries: &config.max_entries,
        };
        let mut ebpf = load_object(embedded()?, Some(pins), &constants)?;
        let mut program = |name| {
            let fresh = load_program(&mut ebpf, name)?;
            match sys::get(&pins.program(name)) {
                Ok(pinned) if reuse && is_alike(&pinned, &fresh) => Ok(pinned),
                _ => Ok(fresh),
            }
        };
        Ok(Self {
            programs: CGROUP_PROGRAMS
                .iter()
                .map(|cgroup| Ok((*cgroup, program(cgroup.name)?)))
                .collect::<Result<_, BpfError>>()?,
            lookup: program(LOOKUP)?,
            accel: layout.and_then(|_| {
                let mut load = |name| program(name).map_err(|error| chain(&error));
                Ok(AccelPrograms {
                    message: load(MESSAGE)?,
                    promote: load(PROMOTE)?,
                })
            }),
            logs: Logs::open(&mut ebpf)?,
        })
    }
}

/// Pins a program that links use, in place of the one before.
pub(super) fn pin(pins: &Pins, name: &str, program: &OwnedFd) -> Result<(), BpfError> {
    let path = pins.program(name);
    if sys::get(&path).is_ok_and(|pinned| is_same(&pinned, program)) {
        return Ok(());
    }
    unpin(&path)?;
    sys::pin(program.as_fd(), &path).map_err(BpfError::bpffs("pinning", path))
}

/// What came of loading programs, each by its name.
pub(super) type Tried<E> = Vec<(&'static str, Result<(), E>)>;

/// Loads every program with maps of its own and lets it go again, for the probe: those of capture, and, with what
/// they need to know of the kernel, those of acceleration.
pub(super) fn try_all() -> (Tried<BpfError>, Tried<String>) {
    let layout = btf::kernel_layout();
    let constants = Constants {
        layout: *layout.as_ref().unwrap_or(&KernelLayout::UNKNOWN),
        experiment: 0,
        max_entries: &[],
    };
    let mut accel = vec![("kernel structures", layout.map(drop))];
    let mut ebpf = match embedded().and_then(|object| load_object(object, None, &constants)) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            accel.push(("object", Err(chain(&error))));
            return (vec![("object", Err(error))], accel);
        }
    };
    let mut load = |name| load_program(&mut ebpf, name).map(drop);
    let capture = CGROUP_PROGRAMS
        .iter()
        .map(|program| program.name)
        .chain([LOOKUP])
        .map(|name| (name, load(name)))
        .collect();
    accel.extend([MESSAGE, PROMOTE].map(|name| (name, load(name).map_err(|error| chain(&error)))));
    (capture, accel)
}

/// What the object is given before it is loaded.
struct Constants<'a> {
    layout: KernelLayout,
    experiment: u32,
    max_entries: &'a [(&'static str, u32)],
}

/// The layout of the object's maps, with the sizes that are to replace the declared ones.
pub(super) fn layout(max_entries: &[(&'static str, u32)]) -> Result<Layout, BpfError> {
    Layout::declared(embedded()?, max_entries)
}

fn embedded() -> Result<&'static [u8], BpfError> {
    if EMBEDDED.0.is_empty() {
        return Err(BpfError::Stub);
    }
    Ok(&EMBEDDED.0)
}

fn load_object(
    object: &[u8],
    pins: Option<&Pins>,
    constants: &Constants<'_>,
) -> Result<Ebpf, BpfError> {
    check_abi(object)?;
    let mut loader = EbpfLoader::new();
    // Nothing in the object is relocated against the kernel's types, and reading them takes long.
    loader.btf(None);
    // A refused program is tried again with the log on, so that the error carries it.
    loader.verifier_log_level(VerifierLogLevel::default());
    loader.override_global("LAYOUT", &constants.layout, true);
    loader.override_global("EXPERIMENT", &constants.experiment, true);
    for (name, size) in constants.max_entries {
        loader.map_max_entries(name, *size);
    }
    if let Some(pins) = pins {
        for name in NAMES {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader
        .load(object)
        .map_err(|error| BpfError::Object(Box::new(error)))
}

/// Refuses an object that was built from other sources than the agent.
fn check_abi(object: &[u8]) -> Result<(), BpfError> {
    let found = abi_of(object);
    if found == Some(ABI) {
        return Ok(());
    }
    Err(BpfError::Abi { found, wanted: ABI })
}

fn abi_of(object: &[u8]) -> Option<[u32; 2]> {
    let file = ::object::File::parse(object).ok()?;
    let data = file.section_by_name(ABI_SECTION)?.data().ok()?;
    let word = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?));
    Some([word(0)?, word(4)?])
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, BpfError> {
    let error = |source: ProgramError| BpfError::Program {
        program: name,
        source: Box::new(source),
    };
    let program = ebpf.program_mut(name).ok_or(BpfError::NoProgram(name))?;
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SkMsg(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .map_err(error)?;
    let fd = program.fd().map_err(error)?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|source| error(source.into()))
}

/// Whether two programs have the same instructions.
fn is_alike(one: &OwnedFd, other: &OwnedFd) -> bool {
    let tag = |program: &OwnedFd| sys::program_tag(program.as_fd());
    matches!((tag(one), tag(other)), (Ok(one), Ok(other)) if one == other)
}

/// Whether two descriptors are of one program.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let id = |program: &OwnedFd| sys::program_id(program.as_fd());
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_object_is_of_this_build() {
        let object = embedded().expect("tests are built with an object");
        assert_eq!(abi_of(object), Some(ABI));
    }

    #[test]
    fn object_of_another_build_is_refused() {
        let object = embedded().expect("tests are built with an object");
        let at = object
            .windows(8)
            .position(|window| window == ABI.map(u32::to_le_bytes).as_flattened())
            .expect("the object says what it is");
        let mut other = object.to_vec();
        other[at + 4] ^= 1;
        let error = check_abi(&other).expect_err("refused");
        assert!(
            error.to_string().contains("another build than this agent"),
            "{error}"
        );
        assert!(check_abi(b"no object at all").is_err());
    }
}
