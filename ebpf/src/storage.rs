//! Socket storage: what a socket is to the capture path.

use core::ptr;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::bpf_sk_storage_get;
use millrace_ebpf_abi::{AccelSocket, SocketState};

use crate::maps::{ACCEL_SOCKETS, SOCKETS};

/// The state of `sk`, if it has one.
#[inline(always)]
pub fn get<'a>(sk: *mut bpf_sock) -> Option<&'a mut SocketState> {
    // SAFETY: the verifier admits only a socket that the context vouches for; storage lives as long as it.
    unsafe {
        bpf_sk_storage_get(map(), sk.cast(), ptr::null_mut(), 0)
            .cast::<SocketState>()
            .as_mut()
    }
}

/// The state of `sk`, made if it has none; `None` if memory is short.
#[inline(always)]
pub fn get_or_create<'a>(sk: *mut bpf_sock) -> Option<&'a mut SocketState> {
    // SAFETY: as for `get`; without a value the kernel zeroes the new element.
    unsafe {
        bpf_sk_storage_get(
            map(),
            sk.cast(),
            ptr::null_mut(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
        .cast::<SocketState>()
        .as_mut()
    }
}

/// What `sk` is as an end of a promoted connection, if it is one.
#[inline(always)]
pub fn accel<'a>(sk: *mut bpf_sock) -> Option<&'a mut AccelSocket> {
    accel_with(sk, 0)
}

/// The same, made if it is none; `None` if memory is short.
#[inline(always)]
pub fn accel_or_create<'a>(sk: *mut bpf_sock) -> Option<&'a mut AccelSocket> {
    accel_with(sk, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
}

#[inline(always)]
fn accel_with<'a>(sk: *mut bpf_sock, flags: u64) -> Option<&'a mut AccelSocket> {
    let map = ptr::from_ref(&ACCEL_SOCKETS).cast_mut().cast();
    // SAFETY: as for `get`.
    unsafe {
        bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), flags)
            .cast::<AccelSocket>()
            .as_mut()
    }
}

#[inline(always)]
fn map() -> *mut core::ffi::c_void {
    ptr::from_ref(&SOCKETS).cast_mut().cast()
}
