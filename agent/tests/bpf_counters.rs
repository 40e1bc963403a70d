//! Every counter is reached by a test, or it is said why it is not.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/bpf.rs"]
mod bpf;

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use bpf::{Captured, accept, addr, has_connection, listen, node, udp};
use millrace_agent::bpf::{AccelOutcome, CapturePolicy, Counter, PodEnrolment};

const SERVICE: &str = "10.96.0.10:9080";

/// Counters that no test on a running kernel reaches, and why.
const EXPLAINED: [(Counter, &str); 6] = [
    (
        Counter::PromoteUnsupported,
        "needs a kernel with kTLS; the errnos that count as it are compared in the abi's tests",
    ),
    (
        Counter::PromoteFailed,
        "an error that the kernel is not known to give, or BTF of other structures",
    ),
    (
        Counter::LeaveUnsettled,
        "needs a message on its way at that very moment, which random traffic meets as it likes",
    ),
    (
        Counter::UnspliceShutDown,
        "whoever has shut its side down sends nothing but what is under way at that moment; the rule is compared in the \
         abi's tests",
    ),
    (Counter::UnsplicePressure, "as of messages to the proxy"),
    (
        Counter::MessagePressure,
        "TCP's limit of memory is the whole machine's; the rule is compared in the abi's tests",
    ),
];

#[test]
fn every_counter_is_compared_by_a_test_or_explained() {
    let compared = compared();
    for counter in Counter::ALL {
        let explained = EXPLAINED.iter().any(|(known, _)| known == counter);
        let reached = is_compared(&compared, *counter);
        assert_ne!(
            reached, explained,
            "{counter:?} is compared by a test: {reached}, explained: {explained}"
        );
    }
}

/// The text of the tests on the running kernel, without blanks.
fn compared() -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let files = std::fs::read_dir(directory).expect("the tests");
    let text = files
        .map(|file| file.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .map(|path| std::fs::read_to_string(path).expect("readable"));
    text.collect::<String>().split_whitespace().collect()
}

/// Whether a test compares the count, by itself or as a line of a table, or the promotion's outcome, whose count
/// `promote_at` compares.
fn is_compared(tests: &str, counter: Counter) -> bool {
    let outcome = [
        AccelOutcome::Done,
        AccelOutcome::NotFound,
        AccelOutcome::NotEstablished,
        AccelOutcome::NotProxys,
        AccelOutcome::NoCookie,
        AccelOutcome::NotAccepted,
        AccelOutcome::Blocking,
        AccelOutcome::SocketOption,
        AccelOutcome::Mptcp,
        AccelOutcome::InUse,
        AccelOutcome::Unsupported,
        AccelOutcome::Full,
        AccelOutcome::Failed,
    ];
    let outcome = outcome.iter().find(|known| known.counter() == counter);
    tests.contains(&format!(".count(Counter::{counter:?})"))
        || tests.contains(&format!(",Counter::{counter:?},),"))
        || outcome.is_some_and(|outcome| tests.contains(&format!("),AccelOutcome::{outcome:?}")))
        || outcome
            .is_some_and(|outcome| tests.contains(&format!("outcome,AccelOutcome::{outcome:?}")))
}

#[test]
fn what_connects_outside_of_capture_is_counted() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let socket = udp(&app.pod, "0.0.0.0:0");
    socket.connect(addr("10.96.0.10:123")).expect("not TCP");
    assert_eq!(fixture.count(Counter::ConnectOtherProtocol), 1);

    let inbound_only = CapturePolicy {
        outbound: false,
        dns: false,
        ..CapturePolicy::default()
    };
    let server = fixture.pod("server");
    let direct = listen(&server, "0.0.0.0:9080");
    let quiet = fixture.captured("quiet", inbound_only);
    let _client = quiet.pod.connect(server.at(9080)).expect("direct");
    accept(&direct);
    assert!(!has_connection(&quiet.outbound4));
    assert_eq!(fixture.count(Counter::ConnectOutboundOff), 1);
}

#[test]
fn what_comes_in_outside_of_capture_is_counted() {
    let mut fixture = node!();
    let client_pod = fixture.pod("client");
    let app = fixture.captured("app", CapturePolicy::default());
    let datagrams = udp(&app.pod, "0.0.0.0:9080");
    let socket = udp(&client_pod, "0.0.0.0:0");
    socket.send_to(b"ping", app.pod.at(9080)).expect("sent");
    datagrams.recv_from(&mut [0; 8]).expect("received");
    assert_eq!(fixture.count(Counter::LookupOtherProtocol), 1);

    let outbound_only = CapturePolicy {
        inbound: false,
        ..CapturePolicy::default()
    };
    let quiet = fixture.captured("quiet", outbound_only);
    let application = listen(&quiet.pod, "0.0.0.0:9080");
    let _client = client_pod.connect(quiet.pod.at(9080)).expect("direct");
    accept(&application);
    assert_eq!(fixture.count(Counter::LookupInboundOff), 1);

    // An address that the pod has and nobody told the agent of.
    let partly = Captured::new(fixture.pod("partly"));
    let inbound = partly.inbound.iter().map(|listener| listener.as_fd());
    let enrolment = PodEnrolment {
        netns_cookie: partly.cookie,
        netns: partly.pod.netns().file().as_fd(),
        ips: vec![partly.pod.ip()],
        policy: CapturePolicy::default(),
        inbound_listeners: inbound.collect(),
    };
    fixture.bpf().enroll(&enrolment).expect("enrolled");
    let application = listen(&partly.pod, "[::]:9080");
    let unknown = SocketAddr::new(partly.pod.ip6(), 9080);
    let _client = client_pod.connect(unknown).expect("direct");
    accept(&application);
    assert_eq!(fixture.count(Counter::LookupNotEnrolled), 1);
}

#[test]
fn answers_that_are_left_alone_are_counted() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let server = fixture.pod("server");
    let other = udp(&server, "0.0.0.0:123");
    let socket = udp(&app.pod, "0.0.0.0:0");
    socket.send_to(b"ping", server.at(123)).expect("direct");
    let (_, asked) = other.recv_from(&mut [0; 8]).expect("received");
    other.send_to(b"pong", asked).expect("answered");
    let (_, source) = socket.recv_from(&mut [0; 8]).expect("an answer");
    assert_eq!(source, server.at(123));
    assert!(fixture.count(Counter::RecvmsgPassed) >= 1);

    let _client = app.pod.connect(addr(SERVICE)).expect("captured");
    let (proxy, _) = accept(&app.outbound4);
    let mut short = [0_u8; 4];
    let mut length = 4;
    // SAFETY: the buffer is as long as `length` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            proxy.as_raw_fd(),
            libc::SOL_IP,
            80,
            short.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!((result, short), (-1, [0; 4]));
    assert_eq!(fixture.count(Counter::GetsockoptShortBuffer), 1);
}
