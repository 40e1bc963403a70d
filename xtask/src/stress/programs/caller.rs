//! The stress's own client of real HTTP/1.1 programs: asks for files and has bodies echoed, on connections
//! that are kept, one request at a time or a few, reading and writing in every way.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::drive::Tally;
use super::files::File;
use crate::stress::half::{STALLED, WAITS};
use crate::stress::tag::{Checker, Tag, Way};
use crate::stress::web::{Connection, Mood, SMALL, Style, length};

/// Requests of a connection at most.
const REQUESTS: u32 = 200;
/// Requests of a connection that are sent before the first answer, where more than one is.
const DEPTH: u32 = 3;

#[derive(Debug, clap::Args)]
pub(in crate::stress) struct Args {
    /// The service's address.
    #[arg(long)]
    to: SocketAddr,
    /// Its name, for `host`.
    #[arg(long)]
    host: String,
    /// Where the files are that the program serves.
    #[arg(long)]
    files: PathBuf,
    #[arg(long)]
    seconds: f64,
    #[arg(long)]
    threads: u32,
    #[arg(long)]
    seed: u64,
    /// The run that the files' tags are of.
    #[arg(long)]
    run: u32,
}

pub(in crate::stress) fn run(args: &Args) -> anyhow::Result<Tally> {
    let files = File::list(&args.files)?;
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let files = &files;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads)
            .map(|thread| {
                let rng = fastrand::Rng::with_seed(args.seed ^ u64::from(thread) << 40);
                let number = thread << 24;
                let caller = Caller {
                    args,
                    files,
                    rng,
                    mood: Mood::Anything,
                    number,
                    tally: Tally::default(),
                };
                scope.spawn(move || caller.run(end))
            })
            .collect();
        let mut sum = Tally::default();
        for thread in threads {
            let tally = thread.join();
            sum.add(
                &tally
                    .map_err(|_| anyhow::anyhow!("panicked"))
                    .context("a client")?,
            );
        }
        Ok(sum)
    })
}

struct Caller<'a> {
    args: &'a Args,
    files: &'a [File],
    rng: fastrand::Rng,
    /// Of the connection.
    mood: Mood,
    /// Of the last body that was sent.
    number: u32,
    tally: Tally,
}

/// One request, by what its answer is to be.
struct Call {
    tag: Tag,
    length: usize,
    what: String,
}

impl Caller<'_> {
    fn run(mut self, end: Instant) -> Tally {
        while Instant::now() < end {
            let wait = WAITS[self.rng.usize(..WAITS.len())];
            let seed = self.rng.u64(..);
            let stream = TcpStream::connect_timeout(&self.args.to, STALLED);
            let connected = stream.and_then(|stream| Connection::new(stream, wait, seed));
            let result = connected.and_then(|connection| self.converse(connection, end));
            let Err(error) = result else {
                continue;
            };
            if error.kind() == io::ErrorKind::TimedOut {
                self.tally.stalls += 1;
            } else {
                self.tally.errors += 1;
            }
            let request = self.tally.requests;
            self.tally
                .note(format!("{error}, {wait:?}, after {request} requests"));
        }
        self.tally
    }

    fn converse(&mut self, mut connection: Connection, end: Instant) -> io::Result<()> {
        self.mood = Mood::draw(&mut self.rng);
        let mut left = self.rng.u32(1..=REQUESTS);
        let depth = if self.rng.u8(..12) == 0 { DEPTH } else { 1 };
        while left > 0 && Instant::now() < end {
            let batch = depth.min(left);
            left -= batch;
            let calls = (0..batch)
                .map(|_| self.ask(&mut connection))
                .collect::<io::Result<Vec<_>>>()?;
            for call in &calls {
                if !self.answer(&mut connection, call)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn ask(&mut self, connection: &mut Connection) -> io::Result<Call> {
        let host = &self.args.host;
        if self.rng.bool() {
            let small = self.mood.is_small(&mut self.rng);
            let files: Vec<&File> = self
                .files
                .iter()
                .filter(|file| !small || file.length < SMALL)
                .collect();
            let file = files[self.rng.usize(..files.len())];
            let kind = if self.rng.u8(..3) == 0 { "c" } else { "f" };
            let path = format!("/{kind}/{}", file.name());
            connection.write(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())?;
            return Ok(Call {
                tag: file.tag(self.args.run),
                length: file.length,
                what: path,
            });
        }
        self.number += 1;
        let tag = Tag {
            run: self.args.run,
            number: self.number,
            way: Way::Up,
        };
        let length = length(&mut self.rng, self.mood);
        let style = Style::draw(&mut self.rng);
        let head = format!("POST /echo HTTP/1.1\r\nhost: {host}\r\n");
        connection.send(head, &tag.bytes(0, length), style)?;
        Ok(Call {
            tag,
            length,
            what: format!("/echo {style:?}"),
        })
    }

    /// Reads an answer; false where the connection ends with it.
    fn answer(&mut self, connection: &mut Connection, call: &Call) -> io::Result<bool> {
        let head = connection.head()?;
        let head = head.ok_or_else(|| io::Error::other(format!("no answer to {}", call.what)))?;
        if head.status() != Some(200) {
            let status = head.status();
            return Err(io::Error::other(format!("{status:?} to {}", call.what)));
        }
        let mut body = Checker::new(call.tag);
        connection.body(&head, &mut body)?;
        let checked = body.finish(Some(call.length as u64));
        self.tally.requests += 1;
        self.tally.bytes += checked.bytes;
        if checked.faults.any() {
            self.tally.mismatches += 1;
            let faults = checked.faults;
            self.tally.note(format!("{faults:?} in {}", call.what));
        }
        Ok(!head.has("connection", "close"))
    }
}
