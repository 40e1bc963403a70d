//! `cargo xtask demo`: Bookinfo in a mesh of two nodes, routed as the rules say, measured, and compared
//! with the same call outside the mesh.

mod bookinfo;
mod capture;
mod hops;
mod narrate;
mod report;
mod rules;
mod split;

use anyhow::{Context as _, ensure};
use millrace_testkit::mesh::Mesh;
use millrace_testkit::{Cluster, ClusterOptions};
use serde_json::json;

use crate::{build, clean, interrupt, setup, ui, workspace};

use bookinfo::Bookinfo;
use narrate::Narrator;
use report::Report;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object on one line of stdout, and everything else on stderr.
    #[arg(long)]
    json: bool,
    /// Let pilot read a real Kubernetes API server, to which kubectl applies all that it otherwise reads from a
    /// directory.
    #[arg(long)]
    kubernetes: bool,
    /// Leave everything running at the end and say how to look around.
    #[arg(long)]
    keep: bool,
    /// How many requests measure each split.
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u64).range(5000..))]
    requests: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and loads eBPF programs: run it as root"
    );
    interrupt::clean_up_on_signal()?;
    setup::ensure_for_build()?;
    if args.kubernetes {
        setup::ensure_for_kubernetes()?;
    }
    let binaries = build::release_or_given()?;
    let narrator = Narrator::new(args.json);
    let cluster = Cluster::with(ClusterOptions {
        detached: args.keep,
        binaries: Some(binaries),
    })?;
    let shown = show(&cluster, args, &narrator)?;
    let left = finish(cluster, args, &narrator, shown)?;
    ensure!(
        left.is_empty(),
        "the demo left something behind: {}",
        left.join(", ")
    );
    Ok(())
}

/// What is still running after the show.
struct Shown {
    report: Report,
    bookinfo: Bookinfo,
    mesh: Mesh,
}

fn show(cluster: &Cluster, args: &Args, narrator: &Narrator) -> anyhow::Result<Shown> {
    narrator.title("A mesh of two nodes");
    let mesh = start(cluster, args, narrator)?;
    let mut bookinfo = Bookinfo::deploy(&mesh)?;
    let mut report = Report::new();
    report.pods = capture::table(&bookinfo, narrator)?;

    for step in &rules::STEPS {
        let split = rules::show(step, &mesh, &mut bookinfo, args.requests, narrator)
            .with_context(|| format!("step \"{}\"", step.title))?;
        report.splits.push(split);
    }
    report.switch = Some(capture::switch(&bookinfo, args.requests, narrator)?);
    report.hops = Some(hops::show(&bookinfo, narrator)?);
    Ok(Shown {
        report,
        bookinfo,
        mesh,
    })
}

fn start(cluster: &Cluster, args: &Args, narrator: &Narrator) -> anyhow::Result<Mesh> {
    let settings = hops::mesh_config();
    if !args.kubernetes {
        narrator.say("pilot watches a directory of Kubernetes YAML; each node runs an agent, a broker and a proxy");
        return Mesh::start_with(cluster, &settings);
    }
    let deploy = workspace::root().join("deploy");
    let mesh = Mesh::start_on_kubernetes(cluster, &settings, &deploy)?;
    let plane = mesh.pilot().control_plane().context("no control plane")?;
    narrator.say(format_args!(
        "pilot watches a Kubernetes API server ({}) with the rights of its own ServiceAccount; each node runs an agent, \
         a broker and a proxy",
        plane.version()?
    ));
    Ok(mesh)
}

fn finish(
    cluster: Cluster,
    args: &Args,
    narrator: &Narrator,
    shown: Shown,
) -> anyhow::Result<Vec<String>> {
    let Shown {
        report,
        bookinfo,
        mesh,
    } = shown;
    let ok = report.ok();
    narrator.verdict(&report);
    if args.json {
        let mut object = report.json();
        if args.keep {
            object["run"] = json!(cluster.id().as_str());
            object["ways_in"] = json!(bookinfo.ways_in()?);
        }
        ui::result(object);
    }
    if args.keep {
        narrator.look_around(&bookinfo.ways_in()?, cluster.id().as_str());
        cluster.keep()?;
        // Its handles would remove it all.
        std::process::exit(i32::from(!ok));
    }
    let id = cluster.id().as_str().to_owned();
    drop((bookinfo, mesh, cluster));
    ensure!(ok, "not everything was as it should be");
    clean::traces(&id)
}
