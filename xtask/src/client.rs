//! `cargo xtask client`: the plain clients that the demo and the bench start inside pods. They know
//! nothing of a mesh; what they saw goes to stdout as JSON.

mod each;
mod hold;
mod http;
mod http2;
mod latency;
mod load;
mod stream;
mod tcp;

use anyhow::Context as _;
use clap::Subcommand;
use serde::Serialize;

use crate::ui;

pub(crate) use hold::{Answered, Held};
pub(crate) use http::{Called, HttpArgs};
pub(crate) use latency::Latencies;
pub(crate) use load::{LoadArgs, Measured};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// A number of HTTP/1.1 requests, counted by what answered.
    Http(HttpArgs),
    /// HTTP/2 requests for a time, one in flight per connection.
    Http2 {
        #[command(flatten)]
        load: LoadArgs,
        /// The request's authority.
        #[arg(long)]
        authority: String,
        /// The request's path.
        #[arg(long, default_value = "/")]
        path: String,
    },
    /// Messages that a TCP echo server returns, for a time, one in flight per connection.
    Tcp {
        #[command(flatten)]
        load: LoadArgs,
        /// The length of a message.
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        /// In how many writes it is sent.
        #[arg(long, default_value_t = 1)]
        writes: usize,
    },
    /// TCP connections, each for one message, its echo and the server's end.
    Connect {
        #[command(flatten)]
        load: LoadArgs,
    },
    /// DNS questions of unconnected sockets.
    Dns {
        #[command(flatten)]
        load: LoadArgs,
        /// The name whose address is asked for.
        #[arg(long)]
        name: String,
    },
    /// Many connections at once.
    Hold(hold::HoldArgs),
    /// Streams in one direction.
    Stream {
        #[command(flatten)]
        load: LoadArgs,
        /// Who sends.
        #[arg(long, value_enum)]
        direction: stream::Direction,
        /// The length of a write.
        #[arg(long, default_value_t = 65536)]
        bytes: usize,
    },
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.kind {
        Kind::Http(args) => report(&http::run(args)?),
        Kind::Http2 {
            load,
            authority,
            path,
        } => {
            let request = http2::Request::new(authority, path)?;
            report(&load::run(load, || request.conversation())?)
        }
        Kind::Tcp {
            load,
            bytes,
            writes,
        } => {
            let load = load::run(load, || tcp::PingPong::new(*bytes, *writes));
            report(&load?)
        }
        Kind::Connect { load } => report(&each::connections(load)),
        Kind::Hold(args) => hold::run(args),
        Kind::Dns { load, name } => report(&each::questions(load, name)?),
        Kind::Stream {
            load,
            direction,
            bytes,
        } => report(&stream::run(load, *direction, *bytes)),
    }
}

fn report(value: &impl Serialize) -> anyhow::Result<()> {
    ui::result(serde_json::to_string(value).context("encoding the report")?);
    Ok(())
}
