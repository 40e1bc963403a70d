//! bpf(2) by hand: what somebody else on the node may do to our links and maps, and small programs of others.
#![allow(
    dead_code,
    unsafe_code,
    clippy::expect_used,
    reason = "each test binary uses its part, and helpers of tests may panic"
)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_DELETE: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;
const PROG_QUERY: libc::c_long = 16;

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const SOCK_ADDR: u32 = 18;
/// `BPF_PROG_TYPE_SK_LOOKUP`.
const SK_LOOKUP: u32 = 30;
/// `BPF_SK_LOOKUP` of `enum bpf_attach_type`.
const LOOKUP: u32 = 36;
/// `BPF_F_BEFORE | BPF_F_PREORDER`.
pub(crate) const FIRST: u32 = 1 << 3 | 1 << 6;

fn bpf(command: libc::c_long, attr: &mut [u64]) -> io::Result<libc::c_long> {
    // SAFETY: every pointer in `attr` outlives the call, and words beyond the structure are zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn own(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel just made it for us.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("descriptor")) }
}

fn number(fd: &impl std::os::fd::AsRawFd) -> u64 {
    u64::try_from(fd.as_raw_fd()).expect("descriptor")
}

fn get(path: &Path) -> OwnedFd {
    let name = CString::new(path.as_os_str().as_bytes()).expect("path");
    let object = bpf(OBJ_GET, &mut [name.as_ptr() as u64, 0]);
    own(object.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Detaches what is pinned at `path`, as `bpftool link detach` does; the pin stays.
pub(crate) fn detach(path: &Path) {
    bpf(LINK_DETACH, &mut [number(&get(path))]).expect("detached");
}

/// Deletes an element of a pinned map whose key is a 64-bit number.
pub(crate) fn delete(path: &Path, key: u64) {
    let map = get(path);
    bpf(
        MAP_DELETE,
        &mut [number(&map), (&raw const key) as u64, 0, 0],
    )
    .expect("deleted");
}

/// One instruction.
fn instruction(op: u8, registers: u8, offset: i16, value: u32) -> u64 {
    u64::from(op)
        | u64::from(registers) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(value) << 32
}

/// A program of somebody else's.
#[derive(Debug)]
pub(crate) struct Program {
    fd: OwnedFd,
    /// Its number in `enum bpf_attach_type`.
    hook: u32,
}

/// Offsets in `struct bpf_sock_addr`: `user_ip4`, the first word of `user_ip6`, `user_port`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;

/// Where an address is in the context, and its words as they are there.
fn words(ip: IpAddr) -> Vec<(i16, u32)> {
    let (at, octets) = match ip {
        IpAddr::V4(ip) => (USER_IP4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (USER_IP6, ip.octets().to_vec()),
    };
    let words = octets
        .chunks(4)
        .map(|word| u32::from_ne_bytes(word.try_into().expect("four")));
    (at..).step_by(4).zip(words).collect()
}

/// A program at a hook of a socket load balancer: where the address is that of `from`, whatever the port, address
/// and port become those of `to`, in the fields that a CNI's program rewrites.
pub(crate) fn translator(name: &str, hook: u32, from: IpAddr, to: SocketAddr) -> Program {
    const R1_TO_R2: u8 = 0x12;
    const R2_TO_R1: u8 = 0x21;
    const R2: u8 = 2;
    let mut rewrite = Vec::new();
    for (at, word) in words(to.ip()) {
        rewrite.push(instruction(0xb4, R2, 0, word));
        rewrite.push(instruction(0x63, R2_TO_R1, at, 0));
    }
    rewrite.push(instruction(0xb4, R2, 0, u32::from(to.port().to_be())));
    rewrite.push(instruction(0x63, R2_TO_R1, USER_PORT, 0));

    let mut program = Vec::new();
    let compared = words(from);
    for (number, (at, word)) in compared.iter().enumerate() {
        // r2 = the word; if r2 != what it is of `from` goto out
        let rest = 3 * (compared.len() - number - 1) + rewrite.len();
        program.push(instruction(0x61, R1_TO_R2, *at, 0));
        program.push(instruction(0xb4, 3, 0, *word));
        program.push(instruction(
            0x5e,
            0x32,
            i16::try_from(rest).expect("short"),
            0,
        ));
    }
    program.extend(rewrite);
    program.extend(RETURN_ONE);
    load(name, SOCK_ADDR, hook, &program)
}

/// A program that chooses no socket: every connection goes on as without it.
pub(crate) fn chooser(name: &str) -> Program {
    load(name, SK_LOOKUP, LOOKUP, &RETURN_ONE)
}

/// `out: return 1`: proceed, or `SK_PASS`.
const RETURN_ONE: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

fn load(name: &str, kind: u32, hook: u32, program: &[u64]) -> Program {
    let license = c"GPL";
    let mut log = vec![0_u8; 1 << 16];
    let mut label = [0_u8; 16];
    label[..name.len()].copy_from_slice(name.as_bytes());
    let halves = |at: usize| u64::from_ne_bytes(label[at..at + 8].try_into().expect("eight"));
    let mut attr = [
        u64::from(kind) | (program.len() as u64) << 32,
        program.as_ptr() as u64,
        license.as_ptr() as u64,
        1 | (log.len() as u64) << 32,
        log.as_mut_ptr() as u64,
        0,
        halves(0),
        halves(8),
        u64::from(hook) << 32,
    ];
    let loaded = bpf(PROG_LOAD, &mut attr);
    let fd =
        own(loaded.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&log))));
    Program { fd, hook }
}

/// Attaches at a cgroup, or at the namespace that this is the file of, until the link is dropped.
///
/// # Errors
/// If the kernel does not know the flags.
pub(crate) fn attach(program: &Program, target: &Path, flags: u32) -> io::Result<OwnedFd> {
    let target = File::open(target).expect("cgroup or namespace");
    let attr = &mut [
        number(&program.fd) | number(&target) << 32,
        u64::from(program.hook) | u64::from(flags) << 32,
        0,
        0,
    ];
    bpf(LINK_CREATE, attr).map(own)
}

/// How many programs are attached at a hook of this cgroup or namespace.
fn attached(target: &Path, hook: u32) -> u64 {
    let target = File::open(target).expect("cgroup or namespace");
    let mut ids = [0_u32; 64];
    let attr = &mut [
        number(&target) | u64::from(hook) << 32,
        0,
        ids.as_mut_ptr() as u64,
        ids.len() as u64,
        0,
        0,
        0,
        0,
    ];
    bpf(PROG_QUERY, attr).expect("asked");
    attr[3] & u64::from(u32::MAX)
}

impl Program {
    /// How many programs are attached at this one's hook.
    pub(crate) fn company(&self, target: &Path) -> u64 {
        attached(target, self.hook)
    }
}
