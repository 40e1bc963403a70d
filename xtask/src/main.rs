//! `cargo xtask`: the one entry point for building, testing, showing and measuring Millrace.

mod backend;
mod bench;
mod bpf;
mod build;
mod clean;
mod client;
mod demo;
mod dependencies;
mod fuzz;
mod interrupt;
mod layout;
mod lint;
mod run;
mod setup;
mod stress;
mod tally;
mod test;
mod ui;
mod vmtest;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Build, test, show and measure Millrace")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find what building and testing need, install what is missing, and say what was done.
    Setup(setup::Args),
    /// Build the kernel programs, then the binaries.
    Build(build::Args),
    /// Run every check and every test.
    Test(test::Args),
    /// Check formatting, layout and lints.
    Lint,
    /// Check file sizes and the direction of dependencies.
    Layout,
    /// Run the fuzz targets for a while.
    Fuzz(fuzz::Args),
    /// Rewrite the golden files from what the code produces now.
    Bless,
    /// Run Bookinfo in a mesh of two nodes and show that it is routed as the rules say.
    Demo(demo::Args),
    /// Measure Millrace against no mesh, sidecars and stock Envoy.
    Bench(bench::Args),
    /// Exchange tagged bytes in every way over every mode of capture and acceleration.
    Stress(stress::Args),
    /// Run the tests of the kernel programs on Debian's kernels, in an emulated machine.
    Vmtest(vmtest::Args),
    /// Remove whatever a killed run left behind, and what was kept running.
    CleanHost(clean::Args),
    /// Send requests and report what came back; run inside pods by the demo and the bench.
    #[command(hide = true)]
    Client(client::Args),
    /// Serve fixed answers; run inside pods by the bench.
    #[command(hide = true)]
    Backend(backend::Args),
    /// Exchange tagged bytes; run inside pods by the stress.
    #[command(hide = true)]
    StressPeer(stress::peer::Args),
    /// Run tests as the first process of an emulated machine.
    #[command(hide = true)]
    VmGuest(vmtest::guest::Args),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Task::Setup(args) => setup::run(&args),
        Task::Build(args) => build::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Lint => lint::run(),
        Task::Layout => layout::run(),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Bless => test::bless(),
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Stress(args) => stress::run(&args),
        Task::CleanHost(args) => clean::run(&args),
        Task::Client(args) => client::run(&args),
        Task::Backend(args) => backend::run(&args),
        Task::StressPeer(args) => stress::peer::run(&args),
        Task::Vmtest(args) => vmtest::run(&args),
        Task::VmGuest(args) => vmtest::guest::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<ui::Reported>() {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
