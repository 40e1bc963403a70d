//! `millrace-proxy`: reads its flags, starts logging and runs the proxy on the control thread.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use millrace_proxy::app;
use millrace_proxy::config::{Args, Config};
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::telemetry::{self, Format};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.version {
        use std::io::Write;
        let printed = writeln!(std::io::stdout(), "{}", BuildInfo::of("millrace-proxy"));
        return printed.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let format = if args.log_json {
        Format::Json
    } else {
        Format::Text
    };
    let level = telemetry::init(&args.log_level, format).context("reading --log-level")?;
    let config = Config::try_from(args)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("making the control runtime")?
        .block_on(app::run(config, level))
}
