//! When a pair asks, what it waits for, and what it does with the answer, against an agent that this test plays.

use std::future::poll_fn;
use std::sync::Arc;

use millrace_runtime::handoff::accel::{PRIORITY_DIRECT, PRIORITY_NORMAL, SpliceRequest};
use millrace_runtime::handoff::{AccelCall, AccelReply, CaptureMode, Connection, PromotionResult};
use nix::sys::socket::{getsockopt, sockopt};

use super::super::lane::EARNED;
use super::super::tests::{FakeAgent, answer, asked, connection, exchange, pod, until};
use super::super::{Accelerator, Carries};
use super::*;
use crate::pods::LocalPods;

type Agent = Connection<AccelCall, AccelReply>;

struct Pair {
    streams: [Stream; 2],
    accelerator: Accelerator,
    agent: Agent,
    _fake: FakeAgent,
    _applications: [TcpStream; 2],
}

/// Two connections that are promoted, as far as the proxy knows.
async fn promoted(settings: [&str; 2]) -> Pair {
    let pods = Arc::new(LocalPods::default());
    let (mut fake, accelerator) = FakeAgent::start(&pods);
    let agent = fake.welcome(None).await;
    until("the agent is known", || accelerator.is_available()).await;
    let mut pairs = Vec::new();
    for setting in settings {
        let pod = pod(Some(setting), CaptureMode::Ebpf);
        // The client gives up what is of pods that are gone.
        pods.insert(&pod);
        let (stream, application) = connection(&accelerator, &pod, Carries::Http1).await;
        exchange(&stream, EARNED);
        let requests = asked(&agent).await;
        answer(&agent, &requests[0], None).await;
        let lane = stream.lane().unwrap().0;
        until("it is promoted", || lane.is_promoted()).await;
        stream.carry(Carries::Bytes);
        pairs.push((stream, application));
    }
    let [one, other] = <[_; 2]>::try_from(pairs).unwrap();
    Pair {
        streams: [one.0, other.0],
        accelerator,
        agent,
        _fake: fake,
        _applications: [one.1, other.1],
    }
}

impl Pair {
    /// A message from the first to the second; whether it has to wait.
    fn heard(&self, splicer: &mut Splicer, bytes: usize) -> bool {
        splicer.heard(&self.streams[0], &self.streams[1], bytes)
    }

    /// Messages until one has to wait, which the first that may does.
    fn asks(&self, splicer: &mut Splicer) {
        assert!((0..FIRST).any(|_| self.heard(splicer, 100)), "it asks");
    }

    async fn request(&self) -> SpliceRequest {
        match self.agent.recv().await.unwrap().unwrap().message {
            AccelCall::Splice { requests } => requests[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&self, request: &SpliceRequest, refused: Option<Refusal>) {
        let results = vec![PromotionResult {
            id: request.id,
            refused,
        }];
        let reply = AccelReply::Spliced { results };
        self.agent.send(&reply, &[]).await.unwrap();
    }

    async fn answered(&self, splicer: &mut Splicer) -> bool {
        poll_fn(|cx| splicer.poll_answer(cx, &self.streams[0])).await
    }

    fn marks(&self) -> [u32; 2] {
        let mark = |stream: &Stream| getsockopt(stream.tcp(), sockopt::Priority);
        self.streams
            .each_ref()
            .map(|stream| mark(stream).unwrap().cast_unsigned())
    }
}

#[tokio::test]
async fn the_way_is_open_from_the_agents_answer_to_the_next_message() {
    let pair = promoted(["on", "on"]).await;
    let mut splicer = Splicer::default();
    for _ in 1..FIRST {
        assert!(!pair.heard(&mut splicer, 100));
    }
    assert!(!pair.heard(&mut splicer, MAX_REDIRECTED + 1), "not in hand");
    assert!(pair.heard(&mut splicer, 100));
    let request = pair.request().await;
    let cookies = pair
        .streams
        .each_ref()
        .map(|stream| stream.cookie().unwrap());
    assert_eq!(request.ends.each_ref().map(|end| end.cookie), cookies);
    assert_eq!(pair.marks(), [PRIORITY_NORMAL; 2]);
    pair.answer(&request, None).await;
    assert!(pair.answered(&mut splicer).await);
    assert_eq!(
        pair.marks(),
        [PRIORITY_NORMAL; 2],
        "what it held comes first"
    );
    splicer.open(true, &pair.streams[0], &pair.streams[1]);
    assert_eq!(pair.marks(), [PRIORITY_DIRECT; 2]);
    assert_eq!(pair.accelerator.stats().splices(), 1);
    let in_force = |pair: &Pair| {
        let entries = pair.accelerator.entries();
        entries.iter().filter(|entry| entry.is_spliced()).count()
    };
    assert_eq!(in_force(&pair), 2);
    assert!(!pair.heard(&mut splicer, 100));
    assert_eq!(pair.marks(), [PRIORITY_NORMAL; 2]);
    assert_eq!(in_force(&pair), 0);
    for _ in 1..AGAIN {
        assert!(!pair.heard(&mut splicer, 100));
    }
    assert!(pair.heard(&mut splicer, 100), "asks again");
}

#[tokio::test]
async fn what_is_not_written_keeps_the_way_shut() {
    let pair = promoted(["on", "on"]).await;
    let mut splicer = Splicer::default();
    pair.asks(&mut splicer);
    let request = pair.request().await;
    pair.answer(&request, None).await;
    assert!(pair.answered(&mut splicer).await);
    splicer.open(false, &pair.streams[0], &pair.streams[1]);
    assert_eq!(pair.marks(), [PRIORITY_NORMAL; 2]);
    assert!(!pair.heard(&mut splicer, 100));
}

#[tokio::test]
async fn a_refusal_that_lasts_is_the_last_one() {
    let pair = promoted(["on", "on"]).await;
    for (refusal, asks_again) in [(Refusal::Unread, true), (Refusal::Blocking, false)] {
        let mut splicer = Splicer::default();
        pair.asks(&mut splicer);
        let request = pair.request().await;
        pair.answer(&request, Some(refusal)).await;
        assert!(!pair.answered(&mut splicer).await);
        let again = (0..AGAIN).any(|_| pair.heard(&mut splicer, 100));
        assert_eq!(again, asks_again, "{refusal:?}");
        if again {
            drop(pair.request().await);
        }
    }
}

#[tokio::test]
async fn an_agent_that_does_not_answer_holds_a_message_up_for_a_moment() {
    let pair = promoted(["on", "on"]).await;
    let mut splicer = Splicer::default();
    pair.asks(&mut splicer);
    tokio::time::pause();
    assert!(!pair.answered(&mut splicer).await);
    assert!(!splicer.is_asking());
    assert_eq!(pair.marks(), [PRIORITY_NORMAL; 2]);
}

#[tokio::test]
async fn both_operators_have_to_vouch() {
    for settings in [["on", "auto"], ["auto", "on"]] {
        let pair = promoted(settings).await;
        let mut splicer = Splicer::default();
        let asks = (0..1000).any(|_| pair.heard(&mut splicer, 100));
        assert!(!asks, "{settings:?}");
    }
}
