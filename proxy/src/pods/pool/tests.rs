//! Refill, growth and shrinking of a socket pool.

use std::net::TcpListener;

use super::*;

fn pool() -> (SocketPool, mpsc::UnboundedReceiver<Want>) {
    let (wants, asked) = mpsc::unbounded_channel();
    let pool = SocketPool::new("u-1".into(), SocketKind::Outbound, Family::V4, wants);
    (pool, asked)
}

fn sockets(n: usize) -> Vec<OwnedFd> {
    (0..n)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap().into())
        .collect()
}

#[tokio::test]
async fn an_empty_pool_asks_once_and_serves_who_waits() {
    let (pool, mut asked) = pool();
    let (a, b, ()) = tokio::join!(pool.take(), pool.take(), async {
        tokio::task::yield_now().await;
        let want = asked.recv().await.unwrap();
        assert!(want.count > 1);
        assert!(asked.try_recv().is_err());
        pool.fill(sockets(usize::from(want.count)));
    });
    assert!(a.is_some() && b.is_some());
}

#[tokio::test]
async fn a_pool_above_half_of_its_target_asks_for_nothing() {
    let (pool, mut asked) = pool();
    pool.prefetch();
    pool.fill(sockets(usize::from(asked.recv().await.unwrap().count)));
    assert!(pool.take().await.is_some());
    pool.fill(sockets(usize::from(asked.recv().await.unwrap().count)));
    assert!(pool.take().await.is_some());
    assert!(asked.try_recv().is_err());
    assert!(pool.take().await.is_some());
    assert!(asked.try_recv().is_ok());
}

#[tokio::test]
async fn who_waits_on_a_closed_pool_gets_nothing() {
    let (pool, _asked) = pool();
    let (got, ()) = tokio::join!(pool.take(), async {
        tokio::task::yield_now().await;
        pool.close();
    });
    assert!(got.is_none());
    assert!(pool.take().await.is_none());
}

#[tokio::test]
async fn a_failed_want_is_told_and_asked_anew() {
    let (pool, mut asked) = pool();
    let (got, ()) = tokio::join!(pool.take(), async {
        tokio::task::yield_now().await;
        asked.recv().await.unwrap();
        pool.failed();
    });
    assert!(got.is_none());
    pool.prefetch();
    assert!(asked.try_recv().is_ok());
}

#[tokio::test]
async fn an_idle_pool_gives_descriptors_back() {
    let (pool, mut asked) = pool();
    for _ in 0..8 {
        let (_, ()) = tokio::join!(pool.take(), async {
            tokio::task::yield_now().await;
            while asked.try_recv().is_ok() {}
            pool.fill(sockets(1));
            pool.failed();
        });
    }
    pool.fill(sockets(100));
    for _ in 0..12 {
        pool.tick();
    }
    assert!(pool.ready() <= MIN_TARGET * 2);
    for _ in 0..IDLE {
        pool.tick();
    }
    assert!(pool.ready() <= IDLE_TARGET * 2);
}

#[tokio::test]
async fn the_first_connection_of_an_idle_pod_finds_a_socket_and_calls_for_more() {
    let (pool, mut asked) = pool();
    pool.prefetch();
    assert_eq!(asked.recv().await.unwrap().count, 1);
    pool.fill(sockets(1));
    assert_eq!(pool.ready(), 1);
    assert!(pool.take().await.is_some());
    let want = asked.try_recv().unwrap();
    assert_eq!(usize::from(want.count), MIN_TARGET);
}
