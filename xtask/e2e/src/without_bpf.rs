//! Runs a program that may not call bpf(2): a seccomp filter, as container runtimes install it, answers
//! with `EPERM`. `without-bpf PROGRAM [ARGUMENT...]`; every process that the program starts is refused too.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::libc;

/// Where the number of the system call is in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: without-bpf PROGRAM [ARGUMENT...]");
        return ExitCode::from(2);
    };
    if let Err(error) = forbid_bpf() {
        eprintln!("without-bpf: no filter can be installed: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("without-bpf: {}: {error}", program.display());
    ExitCode::FAILURE
}

/// Installs the filter for the calling thread and all that it starts. Needs `CAP_SYS_ADMIN`, in place of which
/// others have to give up new privileges.
fn forbid_bpf() -> io::Result<()> {
    let bpf = u32::try_from(libc::SYS_bpf).map_err(io::Error::other)?;
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER)?,
        // Equal: on to the next; else over it.
        jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, bpf, 0, 1)?,
        statement(libc::BPF_RET | libc::BPF_K, refusal)?,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW)?,
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the filter and its description outlive the call, which copies them.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn statement(code: u32, k: u32) -> io::Result<libc::sock_filter> {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> io::Result<libc::sock_filter> {
    let code = u16::try_from(code).map_err(io::Error::other)?;
    Ok(libc::sock_filter { code, jt, jf, k })
}
