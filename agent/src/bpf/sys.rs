//! The few calls of bpf(2) that aya has no function for: links that are created, replaced and looked into
//! independent of the program's type; and the cookie of a network namespace.

#![expect(
    unsafe_code,
    reason = "bpf(2) and SO_NETNS_COOKIE have no safe wrapper"
)]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

const MAP_CREATE: libc::c_long = 0;
const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_ATTACH: libc::c_long = 8;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

#[derive(Default)]
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

const MAP_TYPE_ARRAY: u32 = 2;

/// Makes the smallest of maps and lets it go: whether bpf(2) can be called at all.
pub(super) fn try_call() -> io::Result<()> {
    let mut attr = MapCreate {
        kind: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
    };
    bpf(MAP_CREATE, &mut attr).and_then(own).map(drop)
}

/// What a link is attached to; 0 where the target is gone.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub(super) struct LinkInfo {
    kind: u32,
    id: u32,
    /// Id of the attached program.
    pub(super) program_id: u32,
    pad: u32,
    /// For a cgroup link the id of the cgroup; for a namespace link the inode of the namespace and, in the
    /// upper half, the attach type.
    target: u64,
    attach_type: u64,
}

impl LinkInfo {
    /// Id of the cgroup that a cgroup link is attached to.
    pub(super) fn cgroup_id(&self) -> u64 {
        self.target
    }

    /// Inode of the namespace that a namespace link is attached to.
    pub(super) fn netns_inode(&self) -> u64 {
        self.target & u64::from(u32::MAX)
    }
}

#[derive(Default)]
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches `program` to a cgroup or a namespace.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: number(program),
        target: number(target),
        attach_type,
        flags: 0,
    };
    bpf(LINK_CREATE, &mut attr).and_then(own)
}

/// Before the programs that are attached to the same cgroup already.
const FLAG_BEFORE: u32 = 1 << 3;
/// Before all programs without this flag, those of cgroups below included.
const FLAG_PREORDER: u32 = 1 << 6;

#[derive(Default)]
#[repr(C)]
struct LinkCreateFirst {
    create: LinkCreate,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Attaches `program` to a cgroup so that it runs before every other one, where the kernel lets links say
/// that (6.17); else after those that are attached already.
pub(super) fn link_create_first(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateFirst {
        create: LinkCreate {
            program: number(program),
            target: number(cgroup),
            attach_type,
            flags: FLAG_BEFORE | FLAG_PREORDER,
        },
        ..LinkCreateFirst::default()
    };
    match bpf(LINK_CREATE, &mut attr).and_then(own) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            link_create(program, cgroup, attach_type)
        }
        result => result,
    }
}

#[derive(Default)]
#[repr(C)]
struct ProgramQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    flags_of_each: u64,
    links: u64,
    flags_of_links: u64,
    revision: u64,
}

/// Which programs to ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Attached {
    /// Those attached to the target itself.
    Here = 0,
    /// Those that run for the processes in a cgroup, in the order in which they run.
    Effective = 1,
}

/// Most programs at one hook that are looked at.
const MOST_PROGRAMS: usize = 256;

/// Ids of the programs attached to a cgroup or a network namespace.
pub(super) fn query(
    target: BorrowedFd<'_>,
    attach_type: u32,
    which: Attached,
) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut attr = ProgramQuery {
        target: number(target),
        attach_type,
        query_flags: which as u32,
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).map_err(io::Error::other)?,
        ..ProgramQuery::default()
    };
    bpf(PROG_QUERY, &mut attr)?;
    let count = usize::try_from(attr.count).map_err(io::Error::other)?;
    Ok(ids[..count.min(MOST_PROGRAMS)].to_vec())
}

#[derive(Default)]
#[repr(C)]
struct GetById {
    id: u32,
    next: u32,
    flags: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct NamedProgramInfo {
    head: [u64; 8],
    name: [u8; 16],
}

/// The name of the program with this id. Needs `CAP_SYS_ADMIN`, which the agent does not have.
///
/// # Errors
///
/// If there is no such program any more, or the kernel does not let the caller ask.
pub fn program_name(id: u32) -> io::Result<String> {
    let mut attr = GetById {
        id,
        ..GetById::default()
    };
    let program = bpf(PROG_GET_FD_BY_ID, &mut attr).and_then(own)?;
    let info: NamedProgramInfo = info(program.as_fd())?;
    let end = info.name.iter().position(|byte| *byte == 0);
    let name = &info.name[..end.unwrap_or(info.name.len())];
    Ok(String::from_utf8_lossy(name).into_owned())
}

#[derive(Default)]
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Replaces the program of a link in one step: every event sees the old one or the new one.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link: number(link),
        program: number(program),
        ..LinkUpdate::default()
    };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// What `link` is attached to.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

#[derive(Default)]
#[repr(C)]
struct ProgAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches `program` to a map of sockets, in place of the one before; the map keeps it.
pub(super) fn attach_to_map(
    program: BorrowedFd<'_>,
    map: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<()> {
    let mut attr = ProgAttach {
        target: number(map),
        program: number(program),
        attach_type,
        flags: 0,
    };
    bpf(PROG_ATTACH, &mut attr).map(drop)
}

#[derive(Default)]
#[repr(C)]
struct TestRun {
    program: u32,
    value: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs `program` once on `packet`, which it may change, and returns what it returned.
pub(super) fn test_run(program: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<u32> {
    let size = u32::try_from(packet.len()).map_err(io::Error::other)?;
    let mut attr = TestRun {
        program: number(program),
        size_in: size,
        size_out: size,
        data_in: packet.as_ptr() as u64,
        data_out: packet.as_mut_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(attr.value)
}

#[derive(Default)]
#[repr(C)]
struct MapElement {
    map: u32,
    pad: u32,
    key: u64,
    next_or_value: u64,
    flags: u64,
}

/// Steps after which a listing ends: after an element that is gone the kernel begins anew.
const MOST_STEPS: u32 = 1 << 20;

/// The keys of a map whose keys are 64-bit numbers; elements come and go meanwhile.
pub(super) fn keys(map: BorrowedFd<'_>) -> io::Result<BTreeSet<u64>> {
    let mut keys = BTreeSet::new();
    let mut last: Option<u64> = None;
    for _ in 0..MOST_STEPS {
        let mut next = 0_u64;
        let mut attr = MapElement {
            map: number(map),
            key: last
                .as_ref()
                .map_or(0, |key| std::ptr::from_ref(key) as u64),
            next_or_value: (&raw mut next) as u64,
            ..MapElement::default()
        };
        match bpf(MAP_NEXT_KEY, &mut attr) {
            Ok(_) => {
                keys.insert(next);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
            Err(error) => return Err(error),
        }
        last = Some(next);
    }
    Ok(keys)
}

/// Removes an element of such a map; one that is not there is fine.
pub(super) fn remove(map: BorrowedFd<'_>, key: u64) -> io::Result<()> {
    let mut attr = MapElement {
        map: number(map),
        key: (&raw const key) as u64,
        ..MapElement::default()
    };
    match bpf(MAP_DELETE, &mut attr) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
}

/// Digest of a program's instructions.
pub(super) fn program_tag(program: BorrowedFd<'_>) -> io::Result<[u8; 8]> {
    info::<ProgramInfo>(program).map(|info| info.tag)
}

/// Id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    info::<ProgramInfo>(program).map(|info| info.id)
}

#[derive(Default)]
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Elements that one call returns at most, and the most that a bucket of a map may hold.
const BATCH: usize = 1024;

/// Every element of a hash map, in few calls; one that is there all the while is among them.
pub(super) fn elements<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    let mut keys = vec![K::default(); BATCH];
    let mut values = vec![V::default(); BATCH];
    // The number of a bucket (`__htab_map_lookup_and_delete_batch`).
    let (mut from, mut to) = (None, 0_u32);
    loop {
        let mut attr = Batch {
            from: from
                .as_ref()
                .map_or(0, |from: &u32| std::ptr::from_ref(from) as u64),
            to: std::ptr::from_mut(&mut to) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(BATCH).map_err(io::Error::other)?,
            map: number(map),
            ..Batch::default()
        };
        let result = bpf(MAP_LOOKUP_BATCH, &mut attr);
        let is_last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = usize::try_from(attr.count).map_err(io::Error::other)?;
        all.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if is_last {
            return Ok(all);
        }
        from = Some(to);
    }
}

/// Gives `object` a name under bpffs, which keeps it alive.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Object {
        path: path.as_ptr() as u64,
        fd: number(object),
        flags: 0,
    };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

/// The object pinned at `path`.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Object {
        path: path.as_ptr() as u64,
        ..Object::default()
    };
    bpf(OBJ_GET, &mut attr).and_then(own)
}

/// The cookie of the calling thread's network namespace.
///
/// # Errors
///
/// If the kernel is older than 5.14 or refuses a socket.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket_netns_cookie(socket.as_fd())
}

/// The cookie of the namespace that a socket was made in.
pub(super) fn socket_netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the buffer is as long as `length` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[derive(Default)]
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

fn info<T: Copy + Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut value = T::default();
    let mut attr = InfoByFd {
        fd: number(object),
        length: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: (&raw mut value) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(value)
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is the structure of `command`, initialised in full; pointers in it outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn own(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_testkit::require;

    use super::*;

    const MAP_TYPE_HASH: u32 = 1;
    const MAP_UPDATE: libc::c_long = 2;

    #[derive(Default)]
    #[repr(C)]
    struct Update {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }

    #[test]
    fn elements_come_at_once_however_many_there_are() -> anyhow::Result<()> {
        require!(root);
        for count in [0, 1, 3 * BATCH as u64 + 1] {
            let mut attr = MapCreate {
                kind: MAP_TYPE_HASH,
                key_size: 8,
                value_size: 8,
                max_entries: 8192,
            };
            let map = bpf(MAP_CREATE, &mut attr).and_then(own)?;
            for key in 0..count {
                let value = key * 2;
                let mut attr = Update {
                    map: number(map.as_fd()),
                    key: (&raw const key) as u64,
                    value: (&raw const value) as u64,
                    ..Update::default()
                };
                bpf(MAP_UPDATE, &mut attr)?;
            }
            let all: BTreeMap<u64, u64> = elements(map.as_fd())?.into_iter().collect();
            assert!(all.into_iter().eq((0..count).map(|key| (key, key * 2))));
        }
        Ok(())
    }
}
