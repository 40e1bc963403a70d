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
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_DELETE: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT`.
pub(crate) const CONNECT4: u32 = 10;
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

fn word(ip: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(ip.octets())
}

/// A socket load balancer of one service: connections to `service` go to `backend`, whatever the port there;
/// `user_ip4` and `user_port` of `struct bpf_sock_addr` are rewritten as a CNI's program does it.
pub(crate) fn load_balancer(name: &str, service: Ipv4Addr, backend: SocketAddrV4) -> OwnedFd {
    const R1_TO_R2: u8 = 0x12;
    const R2_TO_R1: u8 = 0x21;
    const R2: u8 = 2;
    let program = [
        // r2 = user_ip4; if r2 != service goto out
        instruction(0x61, R1_TO_R2, 4, 0),
        instruction(0xb4, 3, 0, word(service)),
        instruction(0x5e, 0x32, 4, 0),
        // user_ip4 = backend; user_port = its port
        instruction(0xb4, R2, 0, word(*backend.ip())),
        instruction(0x63, R2_TO_R1, 4, 0),
        instruction(0xb4, R2, 0, u32::from(backend.port().to_be())),
        instruction(0x63, R2_TO_R1, 24, 0),
        // out: return 1
        instruction(0xb7, 0, 0, 1),
        instruction(0x95, 0, 0, 0),
    ];
    let license = c"GPL";
    let mut log = vec![0_u8; 1 << 16];
    let mut label = [0_u8; 16];
    label[..name.len()].copy_from_slice(name.as_bytes());
    let halves = |at: usize| u64::from_ne_bytes(label[at..at + 8].try_into().expect("eight"));
    let mut attr = [
        u64::from(SOCK_ADDR) | (program.len() as u64) << 32,
        program.as_ptr() as u64,
        license.as_ptr() as u64,
        1 | (log.len() as u64) << 32,
        log.as_mut_ptr() as u64,
        0,
        halves(0),
        halves(8),
        u64::from(CONNECT4) << 32,
    ];
    let loaded = bpf(PROG_LOAD, &mut attr);
    own(loaded.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&log))))
}

/// Attaches at a cgroup until the link is dropped.
///
/// # Errors
/// If the kernel does not know the flags.
pub(crate) fn attach(program: &OwnedFd, cgroup: &Path, flags: u32) -> io::Result<OwnedFd> {
    let cgroup = File::open(cgroup).expect("cgroup");
    let attr = &mut [
        number(program) | number(&cgroup) << 32,
        u64::from(CONNECT4) | u64::from(flags) << 32,
        0,
        0,
    ];
    bpf(LINK_CREATE, attr).map(own)
}
