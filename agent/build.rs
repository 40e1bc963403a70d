//! Embeds the kernel programs: `MILLRACE_EBPF_OBJECT`, else what `cargo xtask build` left in `target/bpf`.
//!
//! Without an object the build stops and says how to get one. `MILLRACE_EBPF_STUB=1` builds an agent
//! without programs, which says so when it is asked to load them.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=MILLRACE_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=MILLRACE_EBPF_STUB");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set by cargo")?)
        .join("millrace-ebpf.o");
    if env::var_os("MILLRACE_EBPF_STUB").is_some_and(|value| value == "1") {
        return fs::write(&out, []).map_err(|error| format!("writing {}: {error}", out.display()));
    }
    let object = object()?;
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        return Err(format!(
            "no eBPF object at {}; run `cargo xtask setup && cargo xtask build`, or set MILLRACE_EBPF_OBJECT to an \
             object file, or MILLRACE_EBPF_STUB=1 for an agent that cannot load programs",
            object.display()
        ));
    }
    // The copy is aligned by the crate that embeds it; ELF readers want eight bytes.
    fs::copy(&object, &out)
        .map(drop)
        .map_err(|error| format!("copying {}: {error}", object.display()))
}

/// The fixed place does not follow `CARGO_TARGET_DIR`: the object is built for another target and shared.
fn object() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("MILLRACE_EBPF_OBJECT") {
        return Ok(path.into());
    }
    let agent =
        env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set by cargo")?;
    let workspace = Path::new(&agent)
        .parent()
        .ok_or("the agent's crate has no parent directory")?;
    Ok(workspace.join("target/bpf/millrace-ebpf.o"))
}
