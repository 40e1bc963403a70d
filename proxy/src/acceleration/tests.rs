//! Lanes and the agent's client against an agent that this test plays. The kernel knows nothing of
//! these connections, whatever the agent says: what lanes do with connections that are promoted indeed is
//! tested with the agent and the programs, end to end.

use std::future::poll_fn;
use std::time::Duration;

use millrace_runtime::handoff::accel::{
    ACCEL_VERSION, ACCELERATION_ANNOTATION, PRIORITY_NORMAL, PRIORITY_OUT,
};
use millrace_runtime::handoff::{
    AccelCall, AccelReply, BindOptions, CaptureMode, Connection, Families, Listener, PodSpec,
    PromotionRequest, PromotionResult, Refusal,
};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::Client;
use super::entry::Phase;
use super::lane::EARNED;
use super::*;
use crate::http::io::MessageSize;
use crate::pods::LocalPods;
use crate::socket::Stream;

const SOON: Duration = Duration::from_secs(20);
const SMALL: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub(super) fn pod(setting: Option<&str>, capture: CaptureMode) -> Arc<LocalPod> {
    let (wants, _) = mpsc::unbounded_channel();
    let mut spec = PodSpec {
        uid: "u1".into(),
        name: "app".into(),
        namespace: "default".into(),
        ..PodSpec::default()
    };
    if let Some(setting) = setting {
        spec.annotations
            .insert(ACCELERATION_ANNOTATION.into(), setting.into());
    }
    Arc::new(LocalPod::new(spec, Families::default(), capture, &wants))
}

/// The agent's side of `accel.sock`.
pub(super) struct FakeAgent {
    listener: Listener,
    _dir: tempfile::TempDir,
}

impl FakeAgent {
    pub(super) fn start(pods: &Arc<LocalPods>) -> (Self, Accelerator) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accel.sock");
        let options = BindOptions {
            mode: 0o600,
            owner: None,
        };
        let listener = Listener::bind(&path, options).unwrap();
        let accelerator = Accelerator::new();
        let shared = accelerator.0.clone();
        tokio::spawn(Client::new(path, accelerator, pods.clone()).run());
        let agent = Self {
            listener,
            _dir: dir,
        };
        (agent, shared)
    }

    pub(super) async fn welcome(
        &mut self,
        unavailable: Option<&str>,
    ) -> Connection<AccelCall, AccelReply> {
        let accepting = self.listener.accept();
        let (connection, _) = tokio::time::timeout(SOON, accepting)
            .await
            .unwrap()
            .unwrap();
        let hello = connection.recv().await.unwrap().unwrap().message;
        assert!(matches!(hello, AccelCall::Hello { version, .. } if version == ACCEL_VERSION));
        let welcome = AccelReply::Welcome {
            version: ACCEL_VERSION,
            unavailable: unavailable.map(str::to_owned),
        };
        connection.send(&welcome, &[]).await.unwrap();
        connection
    }
}

pub(super) async fn asked(connection: &Connection<AccelCall, AccelReply>) -> Vec<PromotionRequest> {
    match connection.recv().await.unwrap().unwrap().message {
        AccelCall::Promote { requests } => requests,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn answer(
    connection: &Connection<AccelCall, AccelReply>,
    request: &PromotionRequest,
    refused: Option<Refusal>,
) {
    let results = vec![PromotionResult {
        id: request.id,
        refused,
    }];
    let reply = AccelReply::Promoted { results };
    connection.send(&reply, &[]).await.unwrap();
}

pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(SOON, waiting).await.is_ok(), "{what}");
}

/// A connection between the proxy and an application of the pod.
pub(super) async fn connection(
    accelerator: &Accelerator,
    pod: &Arc<LocalPod>,
    carries: Carries,
) -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let mut stream = Stream::new(listener.accept().await.unwrap().0);
    stream.set_lane(accelerator.lane(pod, Side::Downstream));
    stream.carry(carries);
    (stream, application)
}

pub(super) fn exchange(stream: &Stream, times: u32) {
    let (lane, tcp) = stream.lane().unwrap();
    for _ in 0..times {
        lane.exchanged(tcp, 1024, false);
    }
}

/// Writes and says which mark it was written with.
async fn write(stream: &Stream, size: MessageSize, bytes: &[u8]) -> u32 {
    let (lane, tcp) = stream.lane().unwrap();
    let most = poll_fn(|cx| lane.poll_way(cx, tcp, size, bytes.len()))
        .await
        .unwrap();
    assert!(bytes.len() <= most);
    let count = tcp.try_write(bytes).unwrap();
    assert_eq!(count, bytes.len());
    lane.wrote(tcp, count);
    getsockopt(tcp, sockopt::Priority).unwrap().cast_unsigned()
}

/// A connection of HTTP/1.1 between the proxy and an application, with an agent that is willing.
struct Connected {
    stream: Stream,
    application: TcpStream,
    accelerator: Accelerator,
    pod: Arc<LocalPod>,
    pods: Arc<LocalPods>,
    agent: Connection<AccelCall, AccelReply>,
    _fake: FakeAgent,
}

async fn connected() -> Connected {
    let pods = Arc::new(LocalPods::default());
    let pod = pod(Some("auto"), CaptureMode::Ebpf);
    pods.insert(&pod);
    let (mut fake, accelerator) = FakeAgent::start(&pods);
    let agent = fake.welcome(None).await;
    until("the agent is known", || accelerator.is_available()).await;
    let (stream, application) = connection(&accelerator, &pod, Carries::Http1).await;
    Connected {
        stream,
        application,
        accelerator,
        pod,
        pods,
        agent,
        _fake: fake,
    }
}

async fn promoted() -> Connected {
    let it = connected().await;
    exchange(&it.stream, EARNED);
    let requests = asked(&it.agent).await;
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].local, it.stream.local_addr().unwrap());
    assert_eq!(requests[0].remote, it.application.local_addr().unwrap());
    answer(&it.agent, &requests[0], None).await;
    let lane = &it.stream.lane().unwrap().0;
    until("it is promoted", || lane.is_promoted()).await;
    it
}

#[tokio::test]
async fn lanes_are_for_pods_that_allow_them() {
    let accelerator = Accelerator::none();
    let lane = |setting, capture| accelerator.lane(&pod(setting, capture), Side::Upstream);
    assert!(lane(None, CaptureMode::Ebpf).is_none());
    assert!(lane(Some("off"), CaptureMode::Ebpf).is_none());
    assert!(lane(Some("on"), CaptureMode::Iptables).is_none());
    assert!(lane(Some("auto"), CaptureMode::Ebpf).is_some());
    assert!(lane(Some("on"), CaptureMode::Ebpf).is_some());
}

#[test]
fn only_an_operator_vouches_for_bytes() {
    use Acceleration::{Auto, Off, On};
    for (setting, carries, allowed) in [
        (Auto, Carries::Http1, true),
        (Auto, Carries::Bytes, false),
        (Auto, Carries::Unknown, false),
        (On, Carries::Http1, true),
        (On, Carries::Bytes, true),
        (On, Carries::Unknown, false),
        (Off, Carries::Http1, false),
        (Off, Carries::Bytes, false),
    ] {
        assert_eq!(
            carries.is_allowed(setting),
            allowed,
            "{setting} {carries:?}"
        );
    }
}

#[tokio::test]
async fn nothing_is_sent_while_the_agent_decides() {
    let it = connected().await;
    exchange(&it.stream, EARNED - 1);
    assert_eq!(it.accelerator.entries().len(), 0, "it has not earned it");
    exchange(&it.stream, 1);
    let requests = asked(&it.agent).await;
    let mut writing = std::pin::pin!(write(&it.stream, MessageSize::Known(2), SMALL));
    assert!(futures_util::poll!(&mut writing).is_pending());
    answer(&it.agent, &requests[0], Some(Refusal::NotAccepted)).await;
    assert_eq!(writing.await, PRIORITY_NORMAL);
    let (lane, _) = it.stream.lane().unwrap();
    assert!(!lane.reads_all(), "plain TCP");
}

#[tokio::test]
async fn every_question_is_waited_for_anew() {
    let it = connected().await;
    for (exchanges, refused) in [(EARNED, Some(Refusal::NotAccepted)), (100, None)] {
        exchange(&it.stream, exchanges);
        let requests = asked(&it.agent).await;
        let mut writing = std::pin::pin!(write(&it.stream, MessageSize::Known(2), SMALL));
        assert!(
            futures_util::poll!(&mut writing).is_pending(),
            "{refused:?}"
        );
        if let Some(refused) = refused {
            answer(&it.agent, &requests[0], Some(refused)).await;
            writing.await;
            exchange(&it.stream, EARNED);
            // Longer than an agent may take.
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(1)).await;
            tokio::time::resume();
        }
    }
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_not_waited_for() {
    let it = connected().await;
    exchange(&it.stream, EARNED);
    let requests = asked(&it.agent).await;
    let mark = write(&it.stream, MessageSize::Known(2), SMALL).await;
    assert_eq!(mark, PRIORITY_OUT, "it may not be promoted any more");
    assert!(it.accelerator.entries().is_empty());
    // A late answer means nothing.
    answer(&it.agent, &requests[0], None).await;
    let stats = it.accelerator.stats();
    until("it has arrived", || stats.promotions() == 1).await;
    assert!(!it.stream.lane().unwrap().0.is_promoted());
}

#[tokio::test]
async fn what_an_agent_that_left_has_done_is_asked_of_the_kernel() {
    let it = connected().await;
    exchange(&it.stream, EARNED);
    let _unanswered = asked(&it.agent).await;
    let entry = it.accelerator.entries().remove(0);
    drop(it.agent);
    until("nobody will answer", || entry.phase() == Phase::Unanswered).await;
    assert!(
        it.stream.lane().unwrap().0.reads_all(),
        "it may be promoted"
    );
    let mark = write(&it.stream, MessageSize::Known(2), SMALL).await;
    assert_eq!(mark, PRIORITY_OUT);
    assert_eq!(entry.phase(), Phase::Refused(Refusal::Withdrawn));
}

#[tokio::test]
async fn the_kernel_is_believed_more_than_the_agent() {
    let it = promoted().await;
    let known = MessageSize::Known(2);
    write(&it.stream, known, SMALL).await;
    assert!(!it.stream.lane().unwrap().0.is_promoted());
    assert_eq!(
        write(&it.stream, known, &vec![0; 40_000]).await,
        PRIORITY_NORMAL
    );
}

#[tokio::test]
async fn a_final_refusal_is_not_asked_about_again_and_counted() {
    let it = connected().await;
    exchange(&it.stream, EARNED);
    let requests = asked(&it.agent).await;
    answer(&it.agent, &requests[0], Some(Refusal::Blocking)).await;
    let stats = it.accelerator.stats();
    until("it is refused", || stats.refusals(Refusal::Blocking) == 1).await;
    until("it is forgotten", || it.accelerator.entries().is_empty()).await;
    exchange(&it.stream, 1000);
    assert!(it.accelerator.entries().is_empty());
    assert!(!it.stream.lane().unwrap().0.reads_all());
    // Another connection asks all the same, so that the agent hears of that one next.
    let (other, _application) = connection(&it.accelerator, &it.pod, Carries::Http1).await;
    exchange(&other, EARNED);
    assert_eq!(asked(&it.agent).await[0].local, other.local_addr().unwrap());
}

#[tokio::test]
async fn a_passing_refusal_is_asked_about_again() {
    let it = connected().await;
    exchange(&it.stream, EARNED);
    let requests = asked(&it.agent).await;
    answer(&it.agent, &requests[0], Some(Refusal::NotAccepted)).await;
    until("it is refused", || it.accelerator.entries().is_empty()).await;
    exchange(&it.stream, 100);
    let again = asked(&it.agent).await;
    assert_eq!(again[0].local, requests[0].local);
    assert_ne!(again[0].id, requests[0].id);
}

#[tokio::test]
async fn without_a_willing_agent_nobody_asks() {
    let pods = Arc::new(LocalPods::default());
    let pod = pod(Some("on"), CaptureMode::Ebpf);
    let (mut fake, accelerator) = FakeAgent::start(&pods);
    let (stream, _application) = connection(&accelerator, &pod, Carries::Http1).await;
    exchange(&stream, 100);
    assert!(accelerator.entries().is_empty());
    let _agent = fake.welcome(Some("no BTF")).await;
    let unavailable = Agent::Unavailable("no BTF".to_owned());
    until("the agent is known", || accelerator.agent() == unavailable).await;
    exchange(&stream, 100);
    assert!(accelerator.entries().is_empty());
}

#[tokio::test]
async fn a_client_that_pipelines_returns_to_tcp() {
    let it = promoted().await;
    let (lane, tcp) = it.stream.lane().unwrap();
    lane.exchanged(tcp, 1024, true);
    assert_eq!(it.accelerator.stats().returns(Returned::Pipelining), 1);
    write(&it.stream, MessageSize::Known(2), SMALL).await;
    exchange(&it.stream, 1000);
    assert!(it.accelerator.entries().is_empty(), "it does not ask again");
}

#[tokio::test]
async fn a_connection_of_large_exchanges_does_not_ask() {
    let it = connected().await;
    let (lane, tcp) = it.stream.lane().unwrap();
    for _ in 0..100 {
        exchange(&it.stream, EARNED - 1);
        lane.exchanged(tcp, 1 << 20, false);
    }
    assert_eq!(it.accelerator.entries().len(), 0);
    exchange(&it.stream, 63);
    assert_eq!(it.accelerator.entries().len(), 0, "the last was large");
    exchange(&it.stream, 1);
    assert_eq!(
        it.accelerator.entries().len(),
        1,
        "they have been small since"
    );
}

#[tokio::test]
async fn a_pod_that_is_switched_off_returns_to_tcp() {
    let it = promoted().await;
    it.pods.insert(&pod(Some("off"), CaptureMode::Ebpf));
    let stats = it.accelerator.stats();
    until("it returned", || stats.returns(Returned::Setting) == 1).await;
}

#[tokio::test]
async fn an_agent_that_leaves_changes_nothing_for_what_is_promoted() {
    let it = promoted().await;
    drop(it.agent);
    until("the agent is gone", || !it.accelerator.is_available()).await;
    assert!(it.stream.lane().unwrap().0.is_promoted());
}

#[tokio::test]
async fn closing_with_unread_bytes_resets_and_is_forgotten() {
    let mut it = promoted().await;
    it.application.write_all(b"never read").await.unwrap();
    it.stream.readable().await.unwrap();
    drop(it.stream);
    let end = it.application.read(&mut [0; 8]).await;
    let kind = end.map_err(|error| error.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::ConnectionReset));
    assert!(it.accelerator.entries().is_empty());
}

#[tokio::test]
async fn every_message_is_read_and_the_end_is_an_end() {
    let mut it = promoted().await;
    let mut buffer = [0; 64];
    for message in [&b"a"[..], b"bc", b"def"] {
        it.application.write_all(message).await.unwrap();
        let count = it.stream.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], message);
    }
    it.application.shutdown().await.unwrap();
    assert_eq!(it.stream.read(&mut buffer).await.unwrap(), 0);
}
