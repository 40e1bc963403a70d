//! A reader that never reads: the sender is held back as TCP holds it, the sockets of the pods keep a
//! bounded number of bytes, and others on the node notice nothing. What the kernel counts for all
//! TCP sockets of the machine is shown, too, but other programs have a part in it.

use std::fmt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use millrace_testkit::Pod;
use serde::Serialize;

use super::lane::{Lane, Setting};

/// Lengths of the sender's writes.
const CHUNKS: [usize; 2] = [64 * 1024, 1];
const SECONDS: f64 = 4.0;
/// Most that one connection through the proxy may cost: twice a send and a receive buffer of the
/// usual limits (`tcp_wmem`, `tcp_rmem`: 4 and 6 MiB), and as much again for how the kernel counts.
const MOST: u64 = 48 << 20;
const SAMPLE: Duration = Duration::from_millis(50);
const PAGE: u64 = 4096;

/// What was seen with one length of writes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Found {
    mode: String,
    chunk: usize,
    /// What the sender's kernel took.
    bytes: u64,
    held_back: bool,
    /// The most that the sockets of both pods held: the applications' and the proxy's.
    held: u64,
    /// How far the memory of all TCP sockets of the machine grew.
    machine: u64,
    error: Option<String>,
    /// Why a request of another program failed meanwhile.
    other: Option<String>,
}

impl Found {
    pub(super) fn ok(&self) -> bool {
        // A byte at a time may not fill the buffers within the time.
        (self.held_back || self.chunk == 1)
            && self.error.is_none()
            && self.other.is_none()
            && self.held <= MOST
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<14} writes of {:>5} to a reader that never reads: {} bytes taken, held back {}, \
             the pods' sockets hold {} KiB, the machine's grew by {} KiB{}{}",
            self.mode,
            self.chunk,
            self.bytes,
            self.held_back,
            self.held / 1024,
            self.machine / 1024,
            shown(" ERROR ", self.error.as_ref()),
            shown(" OTHERS NOTICED ", self.other.as_ref()),
        )
    }
}

fn shown(title: &str, what: Option<&String>) -> String {
    what.map_or_else(String::new, |what| format!("{title}{what}"))
}

/// All lanes at once: each has pods of its own.
pub(super) fn check_all(setting: &Setting<'_>, lanes: &[Lane]) -> anyhow::Result<Vec<Found>> {
    thread::scope(|scope| {
        let checks: Vec<_> = lanes
            .iter()
            .map(|lane| scope.spawn(|| check(setting, lane).with_context(|| lane.mode.name())))
            .collect();
        let ends = checks.into_iter().map(|check| {
            let end = check.join();
            end.map_err(|_| anyhow::anyhow!("a check panicked"))?
        });
        ends.collect()
    })
}

/// Both lengths of writes over one lane, the worse of them.
fn check(setting: &Setting<'_>, lane: &Lane) -> anyhow::Result<Found> {
    let mut worst: Option<Found> = None;
    for chunk in CHUNKS {
        let found = flood(setting, lane, chunk)?;
        let so_far = worst.as_ref();
        if so_far.is_none_or(|worst| (found.ok(), worst.held) < (worst.ok(), found.held)) {
            worst = Some(found);
        }
    }
    worst.context("no length of writes")
}

fn flood(setting: &Setting<'_>, lane: &Lane, chunk: usize) -> anyhow::Result<Found> {
    let before = socket_memory()?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut held, mut most, mut other) = (0, before, None);
            while !over.load(Ordering::Relaxed) {
                most = most.max(socket_memory().unwrap_or(u64::MAX));
                let both = lane.ends().iter().map(|pod| sockets_of(pod)).sum();
                match both {
                    Ok(bytes) => held = held.max(bytes),
                    Err(error) => drop(other.get_or_insert(format!("{error:#}"))),
                }
                if let Err(error) = lane.ask() {
                    other.get_or_insert(format!("{error:#}"));
                }
                thread::sleep(SAMPLE);
            }
            (held, most, other)
        });
        let flooded = lane.flood(setting, chunk, SECONDS);
        over.store(true, Ordering::Relaxed);
        let watched = watching.join();
        let (held, most, other) = watched.map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        let flooded = flooded?;
        Ok(Found {
            mode: lane.mode.name(),
            chunk,
            bytes: flooded.bytes,
            held_back: flooded.held_back,
            held,
            machine: most.saturating_sub(before),
            error: flooded.error,
            other,
        })
    })
}

/// What the TCP sockets of a pod's namespace hold, by whoever has them: received and not read, sent and
/// not acknowledged.
fn sockets_of(pod: &Pod) -> anyhow::Result<u64> {
    let mut ss = Command::new("ss");
    ss.args(["--tcp", "--memory", "--numeric", "--no-header"]);
    let text = pod.stdout(ss)?;
    Ok(text.split_whitespace().filter_map(held_by).sum())
}

/// `r`, `t` and `w` of `skmem:(r0,rb131072,t0,tb87040,f0,w0,o0,bl0,d0)`.
fn held_by(word: &str) -> Option<u64> {
    let fields = word.strip_prefix("skmem:(")?.strip_suffix(')')?;
    let field = |name: &str| {
        let numbers = fields
            .split(',')
            .filter_map(|field| field.strip_prefix(name));
        numbers
            .filter_map(|number| number.parse::<u64>().ok())
            .sum::<u64>()
    };
    Some(field("r") + field("t") + field("w"))
}

/// What the kernel's TCP sockets hold, of the whole machine.
fn socket_memory() -> anyhow::Result<u64> {
    let text =
        std::fs::read_to_string("/proc/net/sockstat").context("reading /proc/net/sockstat")?;
    parse(&text).context("/proc/net/sockstat says nothing of TCP's memory")
}

fn parse(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("TCP:"))?;
    let mut words = line.split(' ').skip_while(|word| *word != "mem");
    words.nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read() {
        let text =
            "sockets: used 74\nTCP: inuse 5 orphan 0 tw 3 alloc 12 mem 7\nUDP: inuse 2 mem 1\n";
        assert_eq!(parse(text), Some(7 * 4096));
        assert_eq!(parse("UDP: inuse 2 mem 1\n"), None);
        assert!(socket_memory().is_ok());
        let word = "skmem:(r1392,rb131072,t5,tb3939840,f2704,w100,o0,bl0,d0)";
        assert_eq!(held_by(word), Some(1392 + 5 + 100));
        assert_eq!(held_by("ESTAB"), None);
    }
}
