//! A large mesh in front of a real pilot: its services and pods as the YAML that the file registry
//! watches, its nodes as delta xDS clients on loopback, each with a connection of its own and the very
//! client code that the proxy has.
//!
//! Started by `cargo xtask bench pilot`; writes one JSON object with what was measured.

mod expect;
mod figures;
mod measure;
mod mesh;
mod node;
mod pilot;
mod rule;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

/// Measures a pilot in a mesh of simulated nodes.
#[derive(Clone, Debug, Parser)]
#[command(name = "millrace-nodes", version, about)]
struct Args {
    /// The pilot's binary.
    #[arg(long)]
    pilot: PathBuf,
    /// The proxy's binary; without it nobody looks when a rule is in force.
    #[arg(long)]
    proxy: Option<PathBuf>,
    /// Where the JSON object goes.
    #[arg(long)]
    json: PathBuf,
    /// Services in the mesh.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Endpoints in the mesh, spread evenly over the services.
    #[arg(long, default_value_t = 100_000)]
    endpoints: usize,
    /// Nodes with a stream each.
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// How many changes of each kind are timed.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// How many pods are restarted one after the other.
    #[arg(long, default_value_t = 1_000)]
    restarts: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    raise_descriptor_limit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let figures = runtime.block_on(measure::run(&args))?;
    std::fs::write(&args.json, serde_json::to_string_pretty(&figures)? + "\n")
        .with_context(|| format!("writing {}", args.json.display()))
}

/// A connection per node, in this process and in the pilot that inherits the limit.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the descriptor limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the descriptor limit")
}
