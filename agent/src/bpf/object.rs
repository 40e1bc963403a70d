//! The kernel programs as bytes, embedded by the build script.

use super::BpfError;

/// ELF readers want the bytes aligned.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
    env!("OUT_DIR"),
    "/millrace-ebpf.o"
)));

/// The object file.
///
/// # Errors
///
/// If the agent was built without one.
pub(super) fn embedded() -> Result<&'static [u8], BpfError> {
    if EMBEDDED.0.is_empty() {
        return Err(BpfError::Stub);
    }
    Ok(&EMBEDDED.0)
}
