//! What the programs say of themselves: logs switched at run time, events, telemetry, the probe.

#[path = "support/bpf.rs"]
mod bpf;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::Arc;

use bpf::{PATIENCE, accept, addr, listen, node};
use millrace_agent::bpf::{
    CapturePolicy, Counter, Direction, EventKind, LogLevel, OnCaptureLoss, PodTelemetry, probe,
};
use millrace_testkit::eventually;
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::subscriber::Subscriber;

const SERVICE: &str = "10.96.0.10:9080";

/// Keeps what is logged to the programs' target.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<String>>>);

impl Subscriber for Memory {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "millrace_ebpf"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
        self.0 = format!("{} {value:?}", self.0);
    }
}

#[test]
fn log_level_is_switched_while_programs_run() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let memory = Memory::default();
    let lines = Arc::clone(&memory.0);
    let _guard = tracing::subscriber::set_default(memory);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let pump = {
        let _inside = runtime.enter();
        let pump = fixture.bpf().log_pump().expect("the log ring");
        assert!(fixture.bpf().log_pump().expect("asked again").is_none());
        pump.expect("not taken before")
    };
    let mut connect = |level| {
        fixture.bpf().set_log_level(level).expect("switched");
        assert_eq!(fixture.bpf().log_level().expect("read"), level);
        drop(app.pod.connect(addr(SERVICE)).expect("captured"));
        accept(&app.outbound4);
    };
    connect(LogLevel::Off);
    connect(LogLevel::Warn);
    connect(LogLevel::Debug);
    connect(LogLevel::Off);
    // The ring keeps the order: once this one has come, nothing older is still under way.
    connect(LogLevel::Debug);
    runtime.block_on(async {
        let both = async {
            while lines.lock().len() < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = pump.run() => panic!("the ring cannot be read: {ended:?}"),
            both = tokio::time::timeout(PATIENCE, both) => both.expect("two messages come"),
        }
    });

    let expected = format!(
        "DEBUG connect redirected: netns {} destination [::ffff:10.96.0.10]:9080 outcome {}",
        app.cookie,
        Counter::ConnectRedirected.outcome()
    );
    assert_eq!(*lines.lock(), [expected.clone(), expected]);
}

#[test]
fn what_could_not_be_captured_is_told_at_once() {
    let mut fixture = node!();
    let server = fixture.pod("server");
    let listener = listen(&server, "0.0.0.0:9080");
    let policy = CapturePolicy {
        on_capture_loss: OnCaptureLoss::Open,
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", policy);
    app.stop_listening();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    let mut events = fixture.bpf().events().expect("the event ring");
    app.pod.connect(server.at(9080)).expect("direct");
    accept(&listener);
    let event = runtime
        .block_on(async { tokio::time::timeout(PATIENCE, events.next()).await })
        .expect("an event")
        .expect("readable");

    assert_eq!(event.netns_cookie, app.cookie);
    assert_eq!(event.kind, EventKind::WentDirect);
    assert_eq!(event.reason, Counter::ConnectListenerMissing);
    assert_eq!(event.direction, Direction::Outbound);
    assert_eq!(event.destination, server.at(9080));
}

#[test]
fn telemetry_counts_the_applications_own_connections() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let mut client = app.pod.connect(addr(SERVICE)).expect("captured");
    let (mut proxy, _) = accept(&app.outbound4);
    client.write_all(&[1; 1000]).expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    proxy.read_to_end(&mut Vec::new()).expect("read");
    proxy.write_all(&[2; 500]).expect("write");
    drop(proxy);
    client.read_to_end(&mut Vec::new()).expect("read");
    drop(client);

    let sums = |fixture: &mut bpf::Fixture, direction| -> PodTelemetry {
        let traffic = fixture.bpf().traffic().expect("telemetry");
        let of_app = traffic
            .iter()
            .find(|t| t.netns_cookie == app.cookie && t.direction == direction);
        of_app.expect("both directions").sums
    };
    eventually(PATIENCE, "the connection is counted as closed", || {
        sums(&mut fixture, Direction::Outbound).closed == 1
    });
    let outbound = sums(&mut fixture, Direction::Outbound);
    assert_eq!(outbound.opened, 1);
    // The FIN and, at the sender, the SYN count as one byte each.
    assert!((1000..=1002).contains(&outbound.sent_bytes), "{outbound:?}");
    assert!(
        (500..=501).contains(&outbound.received_bytes),
        "{outbound:?}"
    );
    assert!(outbound.rtt_us_sum > 0, "{outbound:?}");
    assert_eq!(
        sums(&mut fixture, Direction::Inbound).opened,
        0,
        "the proxy's socket is not the application's"
    );

    // Inbound that is not steered: the host's probe.
    let application = listen(&app.pod, "0.0.0.0:9080");
    drop(fixture.node.connect(app.pod.at(9080)).expect("direct"));
    drop(accept(&application));
    eventually(PATIENCE, "the accepted connection is counted", || {
        sums(&mut fixture, Direction::Inbound).closed == 1
    });
}

#[test]
fn running_kernel_passes_the_probe() {
    millrace_testkit::require!(root);
    let capabilities = probe();
    assert_eq!(capabilities.ebpf(), Ok(()), "{capabilities:#?}");
    assert!(capabilities.features.len() > 20);
    let text = serde_json::to_string(&capabilities).expect("serialises");
    assert_eq!(
        serde_json::from_str::<millrace_agent::bpf::Capabilities>(&text).expect("parses"),
        capabilities
    );
}
