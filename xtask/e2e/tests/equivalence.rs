//! One suite of behaviours for every way of capturing. Each behaviour is observed in a scene of each mode; the
//! observations must be what `equivalence/observed.golden` says, in every mode, but for the differences
//! that `equivalence/differences.rs` permits with their reasons.
//!
//! `MILLRACE_BLESS=1` rewrites the golden from the first mode.

#![allow(
    clippy::unnecessary_wraps,
    reason = "behaviours have one type, whether or not they can fail as a whole"
)]

#[path = "equivalence/addresses.rs"]
mod addresses;
#[path = "equivalence/bytes.rs"]
mod bytes;
#[path = "equivalence/counts.rs"]
mod counts;
#[path = "equivalence/differences.rs"]
mod differences;
#[path = "equivalence/dns.rs"]
mod dns;
#[path = "equivalence/ending.rs"]
mod ending;
#[path = "equivalence/observation.rs"]
mod observation;
#[path = "equivalence/outside.rs"]
mod outside;
#[path = "equivalence/pods.rs"]
mod pods;
#[path = "equivalence/routes.rs"]
mod routes;
#[path = "equivalence/rules.rs"]
mod rules;
#[path = "equivalence/scene.rs"]
mod scene;
#[path = "equivalence/server.rs"]
mod server;
#[path = "equivalence/web.rs"]
mod web;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use differences::PERMITTED;
use millrace_testkit::require;
use observation::Observation;
use scene::{Mode, Scene};

/// Something that applications or operators can see, and how it is observed.
struct Behaviour {
    name: &'static str,
    observe: fn(&Scene) -> anyhow::Result<Observation>,
}

const fn behaviour(
    name: &'static str,
    observe: fn(&Scene) -> anyhow::Result<Observation>,
) -> Behaviour {
    Behaviour { name, observe }
}

/// In the order in which they are observed; the last ends the client's proxy.
const BEHAVIOURS: &[Behaviour] = &[
    behaviour("addresses of TCP", addresses::of_both_ends),
    behaviour("addresses of HTTP", addresses::of_http),
    behaviour("addresses of no service", addresses::of_no_service),
    behaviour("original destination", addresses::logged),
    behaviour("names", dns::names),
    behaviour("ways to ask for names", dns::ways),
    behaviour("headers", web::headers),
    behaviour("shapes of HTTP", web::shapes),
    behaviour("gRPC", web::grpc),
    behaviour("bytes", bytes::echoed),
    behaviour("server first", bytes::server_first),
    behaviour("half-close", bytes::half_closed),
    behaviour("reset", bytes::reset),
    behaviour("routed requests", routes::requests),
    behaviour("failed requests", routes::failures),
    behaviour("routed connections", routes::connections),
    behaviour("metrics", counts::counted),
    behaviour("probes", pods::probes),
    behaviour("host ports", pods::host_ports),
    behaviour("init containers", pods::init_containers),
    behaviour("jobs", pods::jobs),
    behaviour("drain", ending::drained),
];

/// What was seen, by behaviour.
type Seen = BTreeMap<&'static str, Observation>;

/// Observes every behaviour in a scene of one mode; with the time that each took, for people.
fn observe(mode: Mode) -> anyhow::Result<(Seen, String)> {
    let mut times = format!("{}:", mode.name());
    let mut since = Instant::now();
    let mut lap = |what: &str| {
        let now = Instant::now();
        let took = now.duration_since(since);
        since = now;
        write!(times, " {what} {took:.1?},")
    };
    let scene = Scene::start(mode)?;
    lap("start")?;
    let mut seen = Seen::new();
    for behaviour in BEHAVIOURS {
        let observation = (behaviour.observe)(&scene)
            .with_context(|| format!("{}, {}:\n{}", mode.name(), behaviour.name, scene.log()))?;
        seen.insert(behaviour.name, observation);
        lap(behaviour.name)?;
    }
    Ok((seen, times))
}

const GOLDEN: &str = "tests/equivalence/observed.golden";

fn text(seen: &Seen) -> anyhow::Result<String> {
    let mut text = String::new();
    for behaviour in BEHAVIOURS {
        writeln!(text, "[{}]", behaviour.name)?;
        for (aspect, value) in &seen[behaviour.name].0 {
            writeln!(text, "{aspect} -> {}", value.escape_debug())?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

/// What the golden says of each behaviour and aspect, as [`text`] writes it.
fn expected(golden: &str) -> BTreeMap<(String, String), String> {
    let mut expected = BTreeMap::new();
    let mut behaviour = "";
    for line in golden.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            behaviour = name;
        } else if let Some((aspect, value)) = line.split_once(" -> ") {
            expected.insert((behaviour.to_owned(), aspect.to_owned()), value.to_owned());
        }
    }
    expected
}

/// What a mode is expected to show: the golden with the mode's permitted differences.
fn expected_of(mode: Mode, golden: &str) -> BTreeMap<(String, String), String> {
    let mut all = expected(golden);
    for difference in PERMITTED
        .iter()
        .filter(|difference| difference.mode == mode)
    {
        assert!(
            !difference.reason.is_empty(),
            "every difference has a reason"
        );
        for aspect in difference.aspects {
            let key = (difference.behaviour.to_owned(), (*aspect).to_owned());
            let value = difference.value.escape_debug().to_string();
            let replaced = all.insert(key, value.clone());
            assert_ne!(
                replaced.as_ref(),
                Some(&value),
                "{}: {aspect} does not differ from the other modes",
                difference.behaviour
            );
        }
    }
    all
}

#[test]
fn every_way_of_capturing_shows_the_same_behaviour() -> anyhow::Result<()> {
    require!(cluster);
    let threads = Mode::ALL.map(|mode| (mode, std::thread::spawn(move || observe(mode))));
    let mut seen = BTreeMap::new();
    for (mode, thread) in threads {
        let result = thread.join().map_err(|_| anyhow!("the scene panicked"));
        let (observed, times) = result.with_context(|| mode.name())??;
        println!("{times}");
        seen.insert(mode, observed);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    if std::env::var("MILLRACE_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(&path, text(&seen[&Mode::ALL[0]])?)?;
    }
    let golden = std::fs::read_to_string(&path).context(GOLDEN)?;
    let mut wrong = String::new();
    for (mode, seen) in &seen {
        let found = expected(&text(seen)?);
        let wanted = expected_of(*mode, &golden);
        let mut keys: Vec<_> = found.keys().chain(wanted.keys()).collect();
        keys.sort();
        keys.dedup();
        for key @ (behaviour, aspect) in keys {
            let (is, should) = (found.get(key), wanted.get(key));
            if is != should {
                let shown = |value: Option<&String>| value.cloned().unwrap_or("(nothing)".into());
                writeln!(
                    wrong,
                    "{}: {behaviour}: {aspect}\n    seen     {}\n    expected {}",
                    mode.name(),
                    shown(is),
                    shown(should)
                )?;
            }
        }
    }
    assert!(wrong.is_empty(), "not the same:\n{wrong}");
    Ok(())
}
