//! What the proxies count of a known number of requests and connections, by both reporters.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use millrace_testkit::http::{Client, Request};
use millrace_testkit::raw::exchange_half_closed;
use millrace_testkit::{h2, until};

use crate::observation::Observation;
use crate::scene::{SOON, Scene};
use crate::server;

/// Metrics whose values follow from the traffic alone.
const COUNTED: [&str; 3] = [
    "istio_requests_total",
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
];

type Series = BTreeMap<String, u64>;

/// What tells a series apart, and all that it says besides.
fn shown(series: &str) -> Option<(String, String)> {
    let (metric, labels) = series.strip_suffix('}')?.split_once('{')?;
    let mut labels: BTreeMap<&str, &str> = labels
        .split(',')
        .filter_map(|label| label.split_once('='))
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect();
    let mut of = |name| labels.remove(name).unwrap_or_default().to_owned();
    let aspect = format!(
        "{metric} by {} at {}, {} {}",
        of("reporter"),
        of("destination_workload"),
        of("request_protocol"),
        of("response_code")
    );
    let rest = labels.iter().map(|(name, value)| format!("{name}={value}"));
    Some((aspect, rest.collect::<Vec<_>>().join(" ")))
}

/// The sum of each series over all proxies.
fn scrape(scene: &Scene) -> anyhow::Result<Series> {
    let mut sums = Series::new();
    for page in scene.metrics()? {
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            if COUNTED.iter().any(|name| series.starts_with(name)) {
                *sums.entry(series.to_owned()).or_default() += value.parse::<u64>()?;
            }
        }
    }
    Ok(sums)
}

fn grown(before: &Series, now: &Series) -> Series {
    let difference = |(series, value): (&String, &u64)| {
        let grown = value - before.get(series).copied().unwrap_or_default();
        (grown > 0).then(|| (series.clone(), grown))
    };
    now.iter().filter_map(difference).collect()
}

fn total(series: &Series, metric: &str, reporter: &str) -> u64 {
    let reporter = format!("reporter=\"{reporter}\"");
    let of = |name: &&String| name.starts_with(metric) && name.contains(&reporter);
    series
        .iter()
        .filter(|(name, _)| of(name))
        .map(|(_, value)| value)
        .sum()
}

/// Three requests to one place and two to the other, one that fails, one call of gRPC, three connections.
pub(crate) fn counted(scene: &Scene) -> anyhow::Result<Observation> {
    // Connections of earlier behaviours may still be ending.
    let mut before = Series::new();
    until(SOON, || {
        before = scrape(scene)?;
        for reporter in ["source", "destination"] {
            let of =
                |what: &str| total(&before, &format!("istio_tcp_connections_{what}"), reporter);
            let (opened, closed) = (of("opened"), of("closed"));
            ensure!(
                opened == closed,
                "{opened} were opened, {closed} are closed"
            );
        }
        Ok(())
    })?;
    for (place, requests) in [("near", 3), ("far", 2)] {
        let mut client = Client::connect(&scene.client, scene.service(place, server::HTTP, false))?;
        for _ in 0..requests {
            client.send(&Request::get(&format!("{place}:8080"), "/counted"))?;
        }
    }
    let failing = Request::get("near:8080", "/counted").header("x-echo-status", "500");
    scene.ask(scene.service("near", server::HTTP, false), &failing)?;
    let mut client =
        h2::Client::connect(&scene.client, scene.service("near", server::GRPC, false))?;
    let call = http::Request::post(format!("http://near:{}/echo.Echo/Call", server::GRPC))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Bytes::new())?;
    client.send(call)?;
    for place in ["near", "near", "far"] {
        let mut stream = scene
            .client
            .connect(scene.service(place, server::ECHO, false))?;
        exchange_half_closed(&mut stream, b"counted", SOON)?;
    }

    let mut grew = Series::new();
    let complete = until(SOON, || {
        grew = grown(&before, &scrape(scene)?);
        for reporter in ["source", "destination"] {
            let requests = total(&grew, "istio_requests_total", reporter);
            ensure!(requests >= 7, "{requests} requests by {reporter}");
            let closed = total(&grew, "istio_tcp_connections_closed_total", reporter);
            ensure!(closed >= 3, "{closed} connections by {reporter}");
        }
        Ok(())
    });
    let mut seen = Observation::default();
    seen.see_result("complete", complete.map(|()| "yes"));
    for (series, value) in grew {
        let (aspect, labels) = shown(&series).context("labels of a series")?;
        seen.see(aspect, format!("{value} with {labels}"));
    }
    Ok(seen)
}
