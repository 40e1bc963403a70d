//! The promotion program, of type `SCHED_CLS` because that type can look sockets of any namespace up and put them
//! into a map. Attached nowhere: the agent runs it with `BPF_PROG_TEST_RUN`, its packet holding the command.
//!
//! Both ends are put into the map or neither is. Until both are, and say so in their storage, the message
//! program leaves everything to TCP. An application's end leaves the map when nothing is left for it to read,
//! and is an ordinary socket again; the proxy's stays, as it may have bytes to read that a sender is just
//! putting there. The proxy's mark allows each of the two: it takes the mark back where it cannot wait, then
//! looks whether the program is at work (`BUSY`), which notes that before it looks at the mark.

use core::arch::asm;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4;
use aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6;
use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1};
use aya_ebpf::helpers::{
    bpf_ktime_get_coarse_ns, bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem,
    bpf_sk_lookup_tcp, bpf_sk_release,
};
use aya_ebpf::programs::TcContext;
use core::ffi::c_void;
use millrace_ebpf_abi::{
    AccelCommand, AccelOutcome, AccelReport, AccelSocket, Counter, OrigDst, end_verdict,
    experiment, priority,
};

use crate::count::count;
use crate::ctx::Sock;
use crate::kernel::{self, KernelSock};
use crate::maps::ACCELERATED;
use crate::skmsg::sums;
use crate::{splice, storage};

/// Carries the packet's command out; the return value is an [`AccelOutcome`].
#[inline(always)]
pub fn command(ctx: &TcContext) -> i32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + AccelReport::PACKET > end {
        return AccelOutcome::Malformed as i32;
    }
    let command = (data + AccelCommand::AT) as *const AccelCommand;
    let report = (data + AccelReport::AT) as *mut AccelReport;
    // SAFETY: the range was just checked, and the verifier checks it again.
    let operation = unsafe { (&raw const (*command).operation).read_unaligned() };
    if !kernel::is_known() {
        return AccelOutcome::NoLayout as i32;
    }
    match operation {
        AccelCommand::PROMOTE => {
            let outcome = with_ends(ctx, command, report, join);
            count(outcome.counter());
            outcome as i32
        }
        AccelCommand::LEAVE => {
            let outcome = with_ends(ctx, command, report, leave);
            count(match outcome {
                AccelOutcome::Done => Counter::LeaveDone,
                AccelOutcome::Unread => Counter::LeaveUnread,
                AccelOutcome::Unsettled => Counter::LeaveUnsettled,
                _ => Counter::LeaveRefused,
            });
            outcome as i32
        }
        AccelCommand::SPLICE => {
            let outcome = splice::command(command);
            count(match outcome {
                AccelOutcome::Done => Counter::SpliceDone,
                AccelOutcome::Unread => Counter::SpliceUnread,
                AccelOutcome::Off => Counter::SpliceOff,
                _ => Counter::SpliceRefused,
            });
            outcome as i32
        }
        AccelCommand::INSPECT => inspect(command, report) as i32,
        _ => AccelOutcome::Malformed as i32,
    }
}

/// Looks both ends up and does `what` with them.
#[inline(always)]
fn with_ends(
    ctx: &TcContext,
    command: *const AccelCommand,
    report: *mut AccelReport,
    what: impl FnOnce(Sock, Sock, u64) -> Result<(), Refused>,
) -> AccelOutcome {
    // SAFETY: within the packet, as checked by the caller.
    let (local, remote, nsid, netns_cookie) = unsafe {
        (
            OrigDst::new(
                (&raw const (*command).local).read_unaligned(),
                (&raw const (*command).local_port).read_unaligned(),
            ),
            OrigDst::new(
                (&raw const (*command).remote).read_unaligned(),
                (&raw const (*command).remote_port).read_unaligned(),
            ),
            (&raw const (*command).nsid).read_unaligned(),
            (&raw const (*command).netns_cookie).read_unaligned(),
        )
    };
    let proxy = find(ctx, nsid, &local, &remote);
    if proxy.is_null() {
        return AccelOutcome::NotFound;
    }
    let application = find(ctx, nsid, &remote, &local);
    if application.is_null() {
        // SAFETY: the reference that the lookup took.
        unsafe { bpf_sk_release(proxy.cast()) };
        return AccelOutcome::NotFound;
    }
    let outcome = what(Sock::found(proxy), Sock::found(application), netns_cookie);
    // SAFETY: the references that the lookups took.
    unsafe {
        bpf_sk_release(application.cast());
        bpf_sk_release(proxy.cast());
    }
    let (outcome, errno) = match outcome {
        Ok(()) => (AccelOutcome::Done, 0),
        Err(refused) => refused,
    };
    // SAFETY: within the packet, as checked by the caller.
    unsafe { (&raw mut (*report).errno).write_unaligned(errno) };
    outcome
}

/// The socket at `local` that is connected to `remote`; a packet from there would find it.
#[inline(always)]
fn find(ctx: &TcContext, nsid: u32, local: &OrigDst, remote: &OrigDst) -> *mut bpf_sock {
    let (tuple, size) = if local.addr.is_v4() {
        let ipv4 = Tuple4 {
            saddr: remote.addr.v4_word(),
            daddr: local.addr.v4_word(),
            sport: remote.port.to_be(),
            dport: local.port.to_be(),
        };
        (bpf_sock_tuple__bindgen_ty_1 { ipv4 }, size_of::<Tuple4>())
    } else {
        let ipv6 = Tuple6 {
            saddr: remote.addr.words(),
            daddr: local.addr.words(),
            sport: remote.port.to_be(),
            dport: local.port.to_be(),
        };
        (bpf_sock_tuple__bindgen_ty_1 { ipv6 }, size_of::<Tuple6>())
    };
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: tuple,
    };
    // SAFETY: the tuple outlives the call.
    unsafe {
        bpf_sk_lookup_tcp(
            ctx.as_ptr(),
            &raw mut tuple,
            size as u32,
            u64::from(nsid),
            0,
        )
    }
}

type Refused = (AccelOutcome, i32);

/// Puts both ends into the map, or neither.
#[inline(always)]
fn join(proxy: Sock, application: Sock, netns_cookie: u64) -> Result<(), Refused> {
    let full = (AccelOutcome::Full, 0);
    let near = storage::accel_or_create(proxy.raw()).ok_or(full)?;
    let far = storage::accel_or_create(application.raw()).ok_or(full)?;
    if (near.flags | far.flags) & AccelSocket::READY != 0 {
        return Err((AccelOutcome::InUse, 0));
    }
    // The proxy's end of a connection that left is in the map still.
    let kept = begin(near) & AccelSocket::LEFT;
    let joined = join_marked(proxy, application, netns_cookie, kept != 0);
    near.flags = if joined.is_ok() {
        AccelSocket::READY | AccelSocket::PROXY
    } else {
        kept
    };
    if joined.is_ok()
        && let Some(sums) = sums(netns_cookie)
    {
        sums.promoted += 1;
    }
    joined
}

#[inline(always)]
fn join_marked(
    proxy: Sock,
    application: Sock,
    netns_cookie: u64,
    is_kept: bool,
) -> Result<(), Refused> {
    let failed = (AccelOutcome::Failed, 0);
    let near = storage::accel(proxy.raw()).ok_or(failed)?;
    let far = storage::accel(application.raw()).ok_or(failed)?;
    if proxy.priority() != priority::NORMAL {
        return Err((AccelOutcome::Withdrawn, 0));
    }
    near.netns_cookie = netns_cookie;
    far.netns_cookie = netns_cookie;
    prepare(proxy, near, true)?;
    prepare(application, far, false)?;
    if !is_kept {
        insert(proxy, near.cookie)?;
    }
    if let Err(refused) = insert(application, far.cookie) {
        if !is_kept {
            // Nobody has redirected anything to it, so nothing is lost.
            delete(near.cookie);
        }
        return Err(refused);
    }
    introduce(near, far);
    introduce(far, near);
    // Bytes that are counted from here on are read by a `recv` that knows of the map, or before such a one.
    near.armed_from = KernelSock::at(near.own).write_seq().ok_or(failed)?;
    far.armed_from = KernelSock::at(far.own).write_seq().ok_or(failed)?;
    far.flags = AccelSocket::READY;
    Ok(())
}

/// Takes the application's end out of the map, if nothing that was redirected is left for it to read.
#[inline(always)]
fn leave(proxy: Sock, application: Sock, _netns_cookie: u64) -> Result<(), Refused> {
    let not_found = (AccelOutcome::NotFound, 0);
    let near = storage::accel(proxy.raw()).ok_or(not_found)?;
    let far = storage::accel(application.raw()).ok_or(not_found)?;
    let is_pair = near.flags & far.flags & AccelSocket::READY != 0
        && near.flags & AccelSocket::PROXY != 0
        && near.peer_cookie == far.cookie;
    if !is_pair {
        return Err(not_found);
    }
    let before = begin(near);
    let left = leave_marked(proxy, far);
    near.flags = if left.is_ok() {
        AccelSocket::LEFT | AccelSocket::PROXY
    } else {
        before
    };
    left
}

#[inline(always)]
fn leave_marked(proxy: Sock, far: &mut AccelSocket) -> Result<(), Refused> {
    if proxy.priority() != priority::LEAVING {
        return Err((AccelOutcome::Withdrawn, 0));
    }
    if far.spliced != 0 && !splice::settle(far) {
        return Err((AccelOutcome::Unsettled, 0));
    }
    let unread = KernelSock::at(far.own).redirected_unread();
    if unread.ok_or((AccelOutcome::Failed, 0))? > 0 {
        return Err((AccelOutcome::Unread, 0));
    }
    // What the application sends goes by TCP from here on, behind what it has redirected.
    far.flags = 0;
    far.spliced = 0;
    delete(far.cookie);
    Ok(())
}

/// Says that this program is at work, before it looks at the proxy's mark; the flags before that.
#[inline(always)]
fn begin(near: &mut AccelSocket) -> u32 {
    const { assert!(AccelSocket::FLAGS_AT.is_multiple_of(8)) };
    let mut word = u64::from(AccelSocket::BUSY);
    // SAFETY: `flags` is the lower half of an aligned word of the storage, whose upper half nobody changes now.
    // An atomic operation that fetches is a full barrier between this and what is read next (Linux 5.12).
    unsafe {
        asm!(
            "{word} = atomic_fetch_or((u64 *)({at} + 0), {word})",
            word = inout(reg) word,
            at = in(reg) &raw mut near.flags,
        );
    }
    word as u32
}

#[inline(always)]
fn delete(cookie: u64) {
    let mut key = cookie;
    // SAFETY: map and key outlive the call.
    unsafe { bpf_map_delete_elem(map(), (&raw mut key).cast()) };
}

/// Notes address and cookie of an end that may be promoted.
#[inline(always)]
fn prepare(sock: Sock, state: &mut AccelSocket, as_proxy: bool) -> Result<(), Refused> {
    // Through memory, as the verifier forbids arithmetic on the pointer; numbers may be added to.
    // SAFETY: a field of the storage.
    unsafe { (&raw mut state.own).write_volatile(sock.raw() as u64) };
    // SAFETY: as before.
    let address = unsafe { (&raw const state.own).read_volatile() };
    let mut facts = kernel::end_facts(sock, address).ok_or((AccelOutcome::Failed, 0))?;
    if kernel::experiment() & experiment::BLOCKING != 0 {
        facts.file_flags = !0;
    }
    end_verdict(&facts, state.netns_cookie, as_proxy).map_err(|outcome| (outcome, 0))?;
    state.cookie = facts.cookie;
    let pressure = KernelSock::at(address).pressure();
    state.pressure = pressure.ok_or((AccelOutcome::Failed, 0))?;
    Ok(())
}

#[inline(always)]
fn insert(sock: Sock, cookie: u64) -> Result<(), Refused> {
    let mut key = cookie;
    // SAFETY: map and key outlive the call; the verifier takes a socket for this map's value.
    let errno = unsafe {
        bpf_map_update_elem(
            map(),
            (&raw mut key).cast(),
            sock.raw().cast(),
            u64::from(BPF_NOEXIST),
        )
    };
    if errno == 0 {
        Ok(())
    } else {
        Err((AccelOutcome::of_insertion(errno), errno as i32))
    }
}

#[inline(always)]
fn introduce(state: &mut AccelSocket, other: &AccelSocket) {
    state.peer = other.own;
    state.peer_cookie = other.cookie;
    // SAFETY: a field of the storage; the address is only ever read through.
    unsafe { (&raw mut state.peer_state).write_volatile(ptr::from_ref(other) as u64) };
    state.unread_messages = 0;
}

/// Tells how an end of a promoted connection is.
#[inline(always)]
fn inspect(command: *const AccelCommand, report: *mut AccelReport) -> AccelOutcome {
    // SAFETY: within the packet, as checked by the caller.
    let mut key = unsafe { (&raw const (*command).key).read_unaligned() };
    // SAFETY: map and key outlive the call.
    let found = unsafe { bpf_map_lookup_elem(map(), (&raw mut key).cast()) }.cast::<bpf_sock>();
    if found.is_null() {
        return AccelOutcome::NotFound;
    }
    let outcome = describe(Sock::found(found), report);
    // SAFETY: the reference that the lookup took.
    unsafe { bpf_sk_release(found.cast()) };
    outcome
}

#[inline(always)]
fn describe(sock: Sock, report: *mut AccelReport) -> AccelOutcome {
    let Some(state) = storage::accel(sock.raw()) else {
        return AccelOutcome::NotFound;
    };
    let Some(answer) = kernel::answer(state) else {
        return AccelOutcome::NotFound;
    };
    let (local, remote) = (sock.local(), sock.remote());
    // SAFETY: asks for nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let is_proxy = state.flags & AccelSocket::PROXY != 0;
    let moved_at = if is_proxy { splice::moved_to(state) } else { 0 };
    let redirected_at = state.redirected_at.max(moved_at);
    let spliced = splice::of(state).is_some_and(|splice| splice.on != 0);
    let value = AccelReport {
        answer,
        idle_ns: now.wrapping_sub(redirected_at),
        netns_cookie: state.netns_cookie,
        local: local.addr,
        remote: remote.addr,
        local_port: local.port,
        remote_port: remote.port,
        flags: state.flags,
        errno: 0,
        spliced: u32::from(spliced && !is_proxy),
    };
    // SAFETY: within the packet, as checked by the caller.
    unsafe { report.write_unaligned(value) };
    AccelOutcome::Done
}

#[inline(always)]
fn map() -> *mut c_void {
    ptr::from_ref(&ACCELERATED).cast_mut().cast()
}
