//! `millrace-pilot`: reads its flags, starts [`millrace_controlplane::app`], waits for a signal.
#![forbid(unsafe_code)]

use anyhow::Context as _;
use clap::Parser as _;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_runtime::signal::Signals;

// Streams come and go in bursts, on several threads: an allocator that gives memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let level = millrace_runtime::telemetry::init(&config.log, config.log_format)
        .context("starting logs")?;
    tracing::info!(?config, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut signals = Signals::install().context("installing signal handlers")?;
        let mut pilot = Pilot::start(config, Some(level)).await?;
        // A registry that dies ends the process: what it would serve can only get older.
        tokio::select! {
            signal = signals.stop() => tracing::info!(%signal, "stopping"),
            failure = pilot.failed() => {
                pilot.stop().await;
                return Err(failure);
            }
        }
        pilot.stop().await;
        Ok(())
    })
}
