//! What becomes of connections when one of the two dies, hangs or speaks differently.

use serde_json::json;
use tokio::time::Instant;

use super::message::Described;
use super::*;

#[tokio::test]
async fn what_was_given_and_not_answered_is_the_takers_when_its_giver_dies() {
    let node = Node::new().await;
    let new = node.epoch(1, &["t"]);
    let (session, will) = introduced(&node).await;
    let mut connections = Vec::new();
    let mut given = Vec::new();
    for id in 0..3 {
        let ((client, near), (server, far)) = (ends().await, ends().await);
        let give = Giving::give(id, raw(client.peer_addr().unwrap()));
        given.push((give, near, far));
        connections.push((client, server));
    }
    // There is room for all, so nothing here waits, and the taker, which has this thread too, does not
    // run before its giver is gone.
    for (give, near, far) in &given {
        let fds = [near.as_fd(), far.as_fd()];
        session.send(give, &fds).await.unwrap();
    }
    drop((session, will, given));
    for (client, server) in &mut connections {
        exchange(client, server).await;
    }
    assert_eq!(new.handover.stats().adopted_total(), 3);
}

#[tokio::test]
async fn a_successor_that_hangs_does_not_keep_connections_silent() {
    let node = Node::new().await;
    let old = node.epoch(0, &["t"]);
    let (mut client, mut server) = node.connect(&old).await;
    let successor = node.impostor();
    let hang = async {
        let (session, _) = successor.accept::<Giving, Taking>().await.unwrap();
        session.recv().await.unwrap();
        session.send(&WELCOME, &[]).await.unwrap();
        let will = session.recv().await.unwrap().unwrap().fds.remove(0);
        let given = session.recv().await.unwrap().unwrap();
        assert!(matches!(given.message, Giving::Give { .. }));
        (session, Will::from(will), given.fds)
    };
    let (leaving, (session, will, _fds)) = tokio::join!(old.leave(), hang);
    drop(successor);
    // It neither answers nor goes away.
    exchange(&mut client, &mut server).await;
    assert!(!will.holds());
    assert!(leaving.handover.stats().kept_total() > 0);
    drop(session);
    let new = node.epoch(2, &["t"]);
    assert_eq!(leaving.emptied().await, 1);
    exchange(&mut client, &mut server).await;
    assert_eq!(new.handover.stats().adopted_total(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_offered_after_a_conversation_goes_back_at_once() {
    let node = Node::new().await;
    let successor = node.impostor();
    let (handover, offers) = Handover::new(0);
    let giver = tokio::spawn(Giver::new(node.path(), (handover.clone(), offers)).run());
    let (_session, _) = successor.accept::<Giving, Taking>().await.unwrap();
    // As a connection that had its turn before that successor went, of whose welcome nobody hears.
    handover.set_stage(Stage::Open);
    let turn = handover.turn().await;
    let begun = Instant::now();
    let (client, _) = pair().await;
    let contents = Contents::pack(&[], [b""; 4]).unwrap();
    let parcel = *raw(client.local_addr().unwrap());
    assert_eq!(turn.give(parcel, contents).await, Err(Kept::Lost));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    giver.abort();
}

#[tokio::test]
async fn what_cannot_be_read_declines_its_connection_alone() {
    let node = Node::new().await;
    let new = node.epoch(1, &["t"]);
    let (session, _will) = introduced(&node).await;
    let ((mut client, near), (mut server, far)) = (ends().await, ends().await);
    let fds = [near.as_fd(), far.as_fd()];
    let strange = Giving::Give {
        id: 1,
        fds: 2,
        parcel: Described::Unreadable(json!({ "connection": 1, "carried": { "kind": "quic" } })),
    };
    session.send(&strange, &fds).await.unwrap();
    let known = Giving::give(2, raw(client.peer_addr().unwrap()));
    session.send(&known, &fds).await.unwrap();
    let answers = [
        session.recv().await.unwrap().unwrap().message,
        session.recv().await.unwrap().unwrap().message,
    ];
    let reason = Decline::Malformed;
    let expected = [Taking::Declined { id: 1, reason }, Taking::Taken { id: 2 }];
    assert_eq!(answers, expected);
    session.send(&Giving::Go { id: 2 }, &[]).await.unwrap();
    drop((near, far));
    exchange(&mut client, &mut server).await;
    assert_eq!(new.handover.stats().adopted_total(), 1);
}

#[tokio::test]
async fn what_is_let_go_late_is_served_by_an_epoch_that_leaves_itself() {
    let node = Node::new().await;
    let middle = node.epoch(1, &["t"]);
    let ((mut client, near), (mut server, far)) = (ends().await, ends().await);
    let peer = client.peer_addr().unwrap();
    let (session, will) = given(&node, [&near, &far], peer).await;
    // Does not wait for ever for what was taken.
    let leaving = middle.leave().await;
    session.send(&Giving::Go { id: 3 }, &[]).await.unwrap();
    drop((near, far));
    exchange(&mut client, &mut server).await;
    will.revoke().unwrap();
    drop((session, client, server));
    assert_eq!(leaving.emptied().await, 0);
}

#[tokio::test]
async fn bytes_and_connections_are_counted_once() {
    let node = Node::new().await;
    let old = node.epoch(0, &["t"]);
    let (mut client, mut server) = node.connect(&old).await;
    exchange(&mut client, &mut server).await;
    let new = node.epoch(1, &["t"]);
    let telemetry = old.fixture.parts.telemetry.clone();
    assert_eq!(old.leave().await.emptied().await, 1);
    exchange(&mut client, &mut server).await;
    exchange(&mut client, &mut server).await;
    drop((client, server));
    let count = |telemetry: &Arc<Telemetry>| {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(TelemetryCollector(telemetry.clone())));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_received_bytes_total",
            "istio_tcp_sent_bytes_total",
        ]
        .map(|name| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
        })
    };
    while count(&new.fixture.parts.telemetry)[1] == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(count(&telemetry), [1, 0, 4, 4]);
    assert_eq!(count(&new.fixture.parts.telemetry), [0, 1, 8, 8]);
}
