//! Builds the descriptor set for reflection: every message of envoy-types, from the descriptors that
//! its own code was generated from, and our own, without comments.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use prost_types::FileDescriptorSet;

/// Within envoy-types' package. Compiling its .proto files instead is not possible with
/// protox, which resolves relative names against packages that a file does not import.
const ENVOY_DESCRIPTORS: &str = "src/generated/types.bin";

fn main() -> Result<(), Box<dyn Error>> {
    let path = envoy_types_dir()?.join(ENVOY_DESCRIPTORS);
    let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut set = FileDescriptorSet::decode(bytes.as_slice())?;
    set.file.extend(own()?.file);
    for file in &mut set.file {
        file.source_code_info = None;
    }
    let out = Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(out, set.encode_to_vec())?;
    println!("cargo:rerun-if-changed={}", path.display());
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    Ok(())
}

/// Our own, without the well-known types, which the others have already.
fn own() -> Result<FileDescriptorSet, Box<dyn Error>> {
    let mut set = protox::compile(["nds.proto", "mcp.proto", "networking.proto"], ["proto"])?;
    set.file.retain(|file| !file.name().starts_with("google/"));
    Ok(set)
}

/// Asks cargo where the package lies, since the file has no other address. Offline at
/// first: only packages that nothing built so far needed may still have to be fetched.
fn envoy_types_dir() -> Result<PathBuf, Box<dyn Error>> {
    let metadata = metadata(&["--offline"]).or_else(|_| metadata(&[]))?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let manifest = packages
        .filter(|package| package["name"] == "envoy-types")
        .find_map(|package| package["manifest_path"].as_str())
        .ok_or("cargo metadata does not list envoy-types")?;
    let dir = Path::new(manifest)
        .parent()
        .ok_or("manifest without a folder")?;
    Ok(dir.to_owned())
}

fn metadata(options: &[&str]) -> Result<serde_json::Value, Box<dyn Error>> {
    let output = Command::new(std::env::var_os("CARGO").ok_or("CARGO is not set")?)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
        ])
        .arg(std::env::var_os("TARGET").ok_or("TARGET is not set")?)
        .args(options)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
