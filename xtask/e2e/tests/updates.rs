//! Configuration changes at random, in any order, under traffic: no request meets a half of a change.
//!
//! The rules of the service that is called, the rules of others beside it, services, pods and scopes come, change and
//! go; a rule may come before what it names, and what it names may go before the rule. Every state that is reached is
//! one in which the service can be called, so every request has to be answered with 200.

#[path = "updates/change.rs"]
mod change;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use change::Changes;
use millrace_e2e::Scene;
use millrace_testkit::mesh::MeshPod;
use millrace_testkit::{require, until};

/// How many objects are written or removed unless `MILLRACE_UPDATES` says otherwise.
const UPDATES: u64 = 4_000;
const SOON: Duration = Duration::from_secs(30);

/// Connections of bytes to the same service, each of which has to echo.
struct Echoes {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Echoes {
    fn start(scene: &Scene) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (pod, to) = (Arc::clone(&scene.client), scene.service.at(Scene::TCP));
        let thread = thread::spawn({
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    echo(&pod, to)?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        Self {
            stop,
            done,
            thread: Some(thread),
        }
    }

    fn stop(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it runs")?;
        thread.join().map_err(|_| anyhow!("it panicked"))??;
        Ok(self.done.load(Ordering::Relaxed))
    }
}

impl Drop for Echoes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn echo(pod: &MeshPod, to: std::net::SocketAddr) -> anyhow::Result<()> {
    let mut stream = pod.connect(to)?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    ensure!(answer == *b"hello", "{answer:?}");
    Ok(())
}

/// The value of a counter of pilot's, over all its labels.
fn counted(metrics: &str, name: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    let values = lines.filter_map(|line| line.rsplit_once(' '));
    values
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

fn updates() -> anyhow::Result<u64> {
    std::env::var("MILLRACE_UPDATES").map_or(Ok(UPDATES), |text| {
        text.parse()
            .with_context(|| format!("MILLRACE_UPDATES: {text}"))
    })
}

#[test]
fn no_request_meets_a_half_of_a_change() -> anyhow::Result<()> {
    require!(cluster);
    let updates = updates()?;
    let scene = Scene::start("ebpf")?;
    let third = scene.service.backend(&scene.near, "v3", "ebpf")?;
    scene.answered_by("echo-v3")?;

    let load = scene.load()?;
    let bytes = Echoes::start(&scene);
    let seed = std::env::var("MILLRACE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("MILLRACE_SEED={seed} repeats the changes of this run");
    let mut changes = Changes::new(&scene.mesh, &third.pod, &load, seed);
    let result = changes.until(updates);
    let made = changes.made();
    let outcome = load.stop()?;
    let echoed = bytes.stop().context("bytes")?;
    result.with_context(|| format!("after {made} updates: {:?}", outcome.ensure_flawless()))?;
    let metrics = scene.mesh.pilot().debug("/metrics")?.text();
    eprintln!(
        "{made} updates in {} pushes; {} requests answered, {} failed, the slowest in {:?}; {echoed} connections echoed",
        counted(&metrics, "millrace_pilot_pushes_total"),
        outcome.answered,
        outcome.failures.len(),
        outcome.slowest,
    );
    outcome
        .ensure_flawless()
        .with_context(|| format!("the proxy's log:\n{}", scene.near.log()))?;
    assert_eq!(counted(&metrics, "millrace_pilot_xds_nacks_total"), 0);

    // And what came of it all is what was written last.
    scene.only("v2")?;
    until(SOON, || {
        for _ in 0..20 {
            let answer = scene.ask()?;
            let from = answer.headers.first("x-server").unwrap_or("-");
            ensure!(from == "echo-v2", "{} from {from}", answer.status);
        }
        Ok(())
    })
}
