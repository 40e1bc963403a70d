//! Many connections at once: made as fast as some threads can, held until a file appears, and closed.
//! Where the server echoes, each is asked for an echo when all are made and again in the end.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Latencies;
use crate::ui;

const PATIENCE: Duration = Duration::from_secs(20);
/// How often the file is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// After as many failures in a row a thread gives up: the rest would fail too.
const HOPELESS: usize = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct HoldArgs {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// How many connections.
    #[arg(long)]
    connections: usize,
    /// By how many threads they are made.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// They are held until this file is there.
    #[arg(long)]
    until: PathBuf,
    /// Ask for echoes.
    #[arg(long)]
    echo: bool,
}

/// What became of the connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) established: usize,
    /// Why others were not, as the application sees it.
    pub(crate) errors: BTreeMap<String, usize>,
    /// Until the last was made, or had its echo.
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) latencies: Latencies,
}

/// What answered in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(crate) alive: usize,
}

#[derive(Default)]
struct Share {
    streams: Vec<TcpStream>,
    errors: Vec<String>,
    samples: Vec<Duration>,
}

pub(super) fn run(args: &HoldArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let threads = args.threads.max(1);
    let shares: Vec<Share> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|at| {
                let count =
                    args.connections / threads + usize::from(at < args.connections % threads);
                scope.spawn(move || open(args, count))
            })
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .collect()
    });
    let mut held = Held {
        seconds: started.elapsed().as_secs_f64(),
        ..Held::default()
    };
    let (mut streams, mut samples) = (Vec::new(), Vec::new());
    for share in shares {
        streams.extend(share.streams);
        samples.extend(share.samples);
        for error in share.errors {
            *held.errors.entry(error).or_default() += 1;
        }
    }
    held.established = streams.len();
    held.latencies = Latencies::of(&mut samples);
    ui::result(serde_json::to_string(&held)?);
    wait(&args.until);
    if args.echo {
        let alive = streams.iter_mut().filter_map(|stream| echo(stream).ok());
        let alive = alive.count();
        ui::result(serde_json::to_string(&Answered { alive })?);
    }
    Ok(())
}

fn open(args: &HoldArgs, count: usize) -> Share {
    let (mut share, mut row) = (Share::default(), 0);
    while share.streams.len() + share.errors.len() < count && row < HOPELESS {
        let began = Instant::now();
        match TcpStream::connect_timeout(&args.to, PATIENCE) {
            Ok(stream) => {
                share.samples.push(began.elapsed());
                share.streams.push(stream);
                row = 0;
            }
            Err(error) => {
                share.errors.push(error.to_string());
                row += 1;
            }
        }
    }
    if args.echo {
        let made = std::mem::take(&mut share.streams);
        for mut stream in made {
            match echo(&mut stream) {
                Ok(()) => share.streams.push(stream),
                Err(error) => share.errors.push(format!("no echo: {error}")),
            }
        }
    }
    share
}

fn wait(file: &Path) {
    while !file.exists() {
        thread::sleep(LOOK);
    }
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"still there?")?;
    stream.read_exact(&mut [0; 12])
}
