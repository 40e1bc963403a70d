use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::format::Template;
use super::time::Civil;
use super::*;
use crate::resource::AccessLogFormat;

fn addresses() -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::from(([10, 96, 0, 5], 9080)),
        SocketAddr::from(([10, 1, 0, 2], 40000)),
    )
}

fn render(format: &str, record: &Record<'_>) -> String {
    let mut out = Vec::new();
    Template::new(format).unwrap().render(record, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_default_format_is_istio_s() {
    let (local, remote) = addresses();
    let mut headers = HeaderMap::new();
    headers.insert("user-agent", HeaderValue::from_static("curl/8"));
    let record = Record {
        duration: Duration::from_millis(12),
        method: Some("GET"),
        path: Some("/reviews/0"),
        authority: Some("reviews:9080"),
        protocol: Some("HTTP/1.1"),
        request: Headers::Map(&headers),
        status: 200,
        details: Some("via_upstream"),
        bytes_sent: 379,
        upstream_host: Some(SocketAddr::from(([10, 1, 0, 9], 9080))),
        upstream_cluster_raw: Some("outbound|9080|v1|reviews.default.svc.cluster.local"),
        route_name: Some("default"),
        ..Record::new(
            UNIX_EPOCH + Duration::from_millis(1_795_255_353_123),
            local,
            remote,
        )
    };
    let mut out = Vec::new();
    Compiled::new(None).unwrap().render(&record, &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "[2026-11-21T10:02:33.123Z] \"GET /reviews/0 HTTP/1.1\" 200 - via_upstream - \"-\" 0 379 \
         12 - \"-\" \"curl/8\" \"-\" \"reviews:9080\" \"10.1.0.9:9080\" \
         outbound|9080|v1|reviews.default.svc.cluster.local - 10.96.0.5:9080 10.1.0.2:40000 - \
         default\n"
    );
}

#[test]
fn operators_take_arguments() {
    let (local, remote) = addresses();
    let mut headers = HeaderMap::new();
    headers.insert("x-b", HeaderValue::from_static("second"));
    let record = Record {
        request: Headers::Map(&headers),
        grpc_status: Some(14),
        ..Record::new(
            UNIX_EPOCH + Duration::from_nanos(1_000_000_007),
            local,
            remote,
        )
    };
    for (format, expected) in [
        ("%REQ(X-A?X-B)%", "second"),
        ("%REQ(X-A?X-B):3%", "sec"),
        ("%REQ(X-A)%", "-"),
        ("%%", "%"),
        (
            "%START_TIME(%Y/%m/%dT%H:%M:%S %z)%",
            "1970/01/01T00:00:01 +0000",
        ),
        ("%START_TIME(%s.%3f %9f)%", "1.000 000000007"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.1.0.2"),
        ("%DOWNSTREAM_LOCAL_PORT%", "9080"),
        ("%GRPC_STATUS%/%GRPC_STATUS_NUMBER%", "Unavailable/14"),
        ("%DYNAMIC_METADATA(a:b)%", "-"),
    ] {
        assert_eq!(render(format, &record), expected, "{format}");
    }
}

#[test]
fn durations_between_points_have_a_unit() {
    let (local, remote) = addresses();
    let record = Record {
        duration: Duration::from_nanos(1_234_567),
        response_duration: Some(Duration::from_micros(1_200)),
        ..Record::new(UNIX_EPOCH, local, remote)
    };
    for (format, expected) in [
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ms)%", "1"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%", "1234"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ns)%", "1234567"),
        ("%COMMON_DURATION(US_RX_BEG:DS_TX_END:us)%", "34"),
        // Never reached, the wrong way round, not known to this proxy.
        ("%COMMON_DURATION(DS_RX_BEG:DS_RX_END:us)%", "-"),
        ("%COMMON_DURATION(DS_TX_END:US_RX_BEG:us)%", "-"),
        ("%COMMON_DURATION(US_CX_BEG:US_CX_END:us)%", "-"),
    ] {
        assert_eq!(render(format, &record), expected, "{format}");
    }
    for bad in [
        "%COMMON_DURATION(DS_RX_BEG:DS_TX_END)%",
        "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:s)%",
        "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us:us)%",
        "%COMMON_DURATION%",
    ] {
        assert!(Template::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn json_keeps_numbers_and_escapes_text() {
    let (local, remote) = addresses();
    let record = Record {
        status: 503,
        path: Some("/\"\\\u{1}"),
        ..Record::new(UNIX_EPOCH, local, remote)
    };
    let fields = vec![
        ("code".into(), "%RESPONSE_CODE%".into()),
        ("path".into(), "%REQ(:PATH)%".into()),
        ("none".into(), "%ROUTE_NAME%".into()),
        ("both".into(), "%RESPONSE_CODE% %RESPONSE_FLAGS%".into()),
    ];
    let mut out = Vec::new();
    let format = Compiled::new(Some(&AccessLogFormat::Json(fields))).unwrap();
    format.render(&record, &mut out);
    let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(
        value,
        serde_json::json!({"code": 503, "path": "/\"\\\u{1}", "none": null, "both": "503 -"})
    );
}

#[test]
fn what_cannot_be_compiled_is_named() {
    for (format, expected) in [
        ("%NOPE%", "unknown command operator %NOPE%"),
        ("%DURATION", "command operator \"DURATION\" is not closed"),
        ("%REQ(a b)%", "\"a b\" is not a header name"),
        (
            "%REQ(a):x%",
            "the length of command operator %REQ(a):x% is not a number",
        ),
    ] {
        assert_eq!(Template::new(format).unwrap_err().to_string(), expected);
    }
}

#[test]
fn lines_of_all_workers_reach_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log").display().to_string();
    let sinks = Sinks::new();
    let writer = sinks.start().unwrap();
    let threads: Vec<_> = (0..4)
        .map(|worker| {
            let line = sinks.line(&path, worker);
            std::thread::spawn(move || {
                for n in 0..500 {
                    line.write(|out| out.extend_from_slice(format!("{worker} {n}\n").as_bytes()));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    drop(writer);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2000);
    assert_eq!(sinks.dropped(), 0);
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let sinks = Sinks::new();
    let writer = sinks.start().unwrap();
    let line = sinks.line("/nonexistent/log", 0);
    line.write(|out| out.extend_from_slice(b"a\nb\n"));
    drop(writer);
    assert_eq!(sinks.dropped(), 2);
}

proptest! {
    /// Any format either compiles or is refused, and what compiles renders.
    #[test]
    fn no_format_panics(format in "[%A-Z_():?a-z0-9 -]{0,60}") {
        if let Ok(template) = Template::new(&format) {
            let (local, remote) = addresses();
            template.render(&Record::new(UNIX_EPOCH, local, remote), &mut Vec::new());
        }
    }

    /// Dates agree with the calendar's own arithmetic: a day later is a day later.
    #[test]
    fn days_follow_each_other(day in 0u64..80_000) {
        let date = |day: u64| {
            let text = Civil::new(UNIX_EPOCH + Duration::from_secs(day * 86_400)).to_string();
            let part = |range: std::ops::Range<usize>| text[range].parse::<u32>().unwrap();
            (part(0..4), part(5..7), part(8..10))
        };
        let (before, after) = (date(day), date(day + 1));
        let next_day = after.0 == before.0 && after.1 == before.1 && after.2 == before.2 + 1;
        let next_month = after.2 == 1 && before.2 >= 28;
        prop_assert!(next_day || next_month, "{before:?} {after:?}");
    }
}
