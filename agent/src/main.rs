//! The `millrace-agent` binary: reads the command line and hands over to the library.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use caps::Capability;
use clap::Parser as _;
use millrace_agent::cli::{Cli, Command, InitArgs};
use millrace_agent::config::Paths;
use millrace_agent::{api, app, bpf, broker, cleanup, dump, iptables, node, privileges};
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::signal::Signals;
use millrace_runtime::telemetry::{self, LevelHandle};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::runtime;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let level = telemetry::init(&bpf::with_programs(&cli.log), cli.log_format)?;
    millrace_runtime::limits::raise_open_files();
    match cli.command {
        Command::Run(args) => {
            follow_launcher(args.with_launcher)?;
            mount_bpffs(&args.paths.bpffs_dir);
            reduce(&privileges::AGENT);
            block_on(app::run(args.config(), level))
        }
        Command::Broker(args) => {
            follow_launcher(args.with_launcher)?;
            privileges::require(&privileges::ENTERING).context("starting the broker")?;
            reduce(&privileges::BROKER);
            std::fs::create_dir_all(&args.run_dir)
                .with_context(|| format!("making {}", args.run_dir.display()))?;
            block_on(serve_broker(args.config(), level))
        }
        Command::Node(args) => {
            privileges::require(&privileges::LAUNCHER).context("starting the node")?;
            block_on(node::run(args.config(&cli.log, cli.log_format)))
        }
        Command::Init(args) => init(&args),
        Command::Cleanup(args) => {
            let done = if args.here {
                cleanup::here()?
            } else {
                let pods_dir = args.pods_dir.clone();
                let pods_dir = pods_dir.unwrap_or_else(|| args.paths.state_dir.join("pods"));
                block_on(cleanup::node(&Paths::from(&args.paths), &pods_dir))?
            };
            for what in done {
                say(&format!("removed {what}"));
            }
            Ok(())
        }
        Command::Dump(args) => {
            let all = block_on(dump::collect(&args.run_dir.join("agent.sock")))?;
            say(&serde_json::to_string_pretty(&all)?);
            Ok(())
        }
        Command::Probe => {
            say(&serde_json::to_string_pretty(&api::abilities(None))?);
            Ok(())
        }
        Command::Version => {
            say(&BuildInfo::of("millrace-agent").to_string());
            Ok(())
        }
    }
}

/// One thread is enough: no byte of traffic passes here, and a process that enters namespaces on
/// throw-away threads is easier to follow.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(work)
}

fn follow_launcher(follow: bool) -> anyhow::Result<()> {
    if follow {
        prctl::set_pdeathsig(Signal::SIGTERM).context("following the launcher")?;
    }
    Ok(())
}

/// While this process still may. Where it may not, loading the programs says what is missing.
fn mount_bpffs(dir: &Path) {
    if privileges::require(&[Capability::CAP_SYS_ADMIN]).is_ok()
        && let Err(error) = bpf::ensure_bpffs(dir)
    {
        tracing::warn!(error = %broker::chain(&error), "bpffs is not mounted");
    }
}

/// Without the right to give capabilities up there are none worth keeping.
fn reduce(keep: &[Capability]) {
    if let Err(error) = privileges::keep_only(keep) {
        tracing::warn!(error = %broker::chain(&error), "capabilities are kept");
    }
}

async fn serve_broker(config: broker::BrokerConfig, _level: LevelHandle) -> anyhow::Result<()> {
    let mut signals = Signals::install().context("installing signal handlers")?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        let signal = signals.stop().await;
        tracing::info!(%signal, "broker stops, pods keep what they have");
        stopping.cancel();
    });
    broker::run(config, stop)
        .await
        .context("serving agent and proxies")
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let families = broker::routes::families();
    let config = args.config(families.v6)?;
    if args.dry_run {
        for set in iptables::rulesets(&config) {
            say(set.script(|_, _| false).trim_end());
        }
        return Ok(());
    }
    let applied =
        iptables::install(&iptables::rulesets(&config)).context("writing the capture rules")?;
    if config.ipv6 && !config.seed_era {
        broker::routes::add_sidecar_source().context("preparing IPv6 for a sidecar")?;
    }
    tracing::info!(tools = ?applied.tools, seed_era = config.seed_era, "capture rules are in place");
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "what a command answers goes to standard output"
)]
fn say(text: &str) {
    println!("{text}");
}
