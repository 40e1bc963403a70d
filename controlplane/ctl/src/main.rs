//! `millctl`: what people use to look at a node and to turn its switches.

#![forbid(unsafe_code)]

mod analyze;
mod app;
mod bootstrap;
mod cli;
mod explain;
mod log;
mod peer;
mod pods;
mod precheck;
mod proxy_config;
mod proxy_status;
mod table;
mod version;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match app::run(cli).await {
        Ok(output) => print(&output),
        Err(error) => {
            eprintln!("millctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints to standard output; a reader that went away early (`| head`) is no failure.
fn print(output: &app::Output) -> ExitCode {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    let written = stdout
        .write_all(output.text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("millctl: cannot write: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::from(output.code),
    }
}
