//! Half-close, resets, back-pressure and the idle timeout, each in both directions.

use std::cell::Cell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::fixture::pair;

/// A proxied connection: the outer ends, and the copy between the inner ones.
struct Proxied {
    client: TcpStream,
    server: TcpStream,
    downstream: Stream,
    upstream: Stream,
}

async fn proxied() -> Proxied {
    let (client, downstream) = pair().await;
    let (upstream, server) = pair().await;
    Proxied {
        client,
        server,
        downstream: Stream::new(downstream),
        upstream: Stream::new(upstream),
    }
}

async fn run(mut downstream: Stream, mut upstream: Stream, idle_timeout: Duration) -> End {
    let terms = Terms {
        scratch: &scratch(),
        idle_timeout,
        passed: |_, _| {},
    };
    let mut progress = Progress::default();
    let never = std::future::pending::<()>();
    match copy(&mut downstream, &mut upstream, &mut progress, &terms, never).await {
        Copied::Ended(end) => end,
        Copied::Parked(()) => unreachable!("nobody interrupts"),
    }
}

const NEVER: Duration = Duration::ZERO;

#[tokio::test]
async fn a_clients_fin_reaches_the_server_and_the_answer_still_comes_back() {
    let Proxied {
        mut client,
        mut server,
        downstream,
        upstream,
    } = proxied().await;
    let talk = async move {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        (question, answer)
    };
    let (end, (question, answer)) = tokio::join!(run(downstream, upstream, NEVER), talk);
    assert!(matches!(end, End::Finished));
    assert_eq!((&*question, &*answer), ("question", "answer"));
}

#[tokio::test]
async fn a_servers_fin_reaches_the_client_and_the_client_may_go_on() {
    let Proxied {
        mut client,
        mut server,
        downstream,
        upstream,
    } = proxied().await;
    let talk = async move {
        server.write_all(b"220 hello").await.unwrap();
        server.shutdown().await.unwrap();
        let mut greeting = String::new();
        client.read_to_string(&mut greeting).await.unwrap();
        client.write_all(b"thanks").await.unwrap();
        drop(client);
        let mut thanks = String::new();
        server.read_to_string(&mut thanks).await.unwrap();
        (greeting, thanks)
    };
    let (end, (greeting, thanks)) = tokio::join!(run(downstream, upstream, NEVER), talk);
    assert!(matches!(end, End::Finished));
    assert_eq!((&*greeting, &*thanks), ("220 hello", "thanks"));
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

fn is_reset(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn a_clients_reset_reaches_the_server_as_a_reset() {
    let Proxied {
        client,
        mut server,
        downstream,
        upstream,
    } = proxied().await;
    reset(client);
    let end = run(downstream, upstream, NEVER).await;
    assert!(matches!(end, End::Reset(Side::Downstream, _)));
    assert!(is_reset(&server.read(&mut [0; 8]).await));
}

#[tokio::test]
async fn a_servers_reset_reaches_the_client_as_a_reset() {
    let Proxied {
        mut client,
        server,
        downstream,
        upstream,
    } = proxied().await;
    reset(server);
    let end = run(downstream, upstream, NEVER).await;
    assert!(matches!(end, End::Reset(Side::Upstream, _)));
    assert!(is_reset(&client.read(&mut [0; 8]).await));
}

#[tokio::test]
async fn a_reset_after_half_close_is_passed_on_though_nothing_is_read() {
    let Proxied {
        mut client,
        mut server,
        downstream,
        upstream,
    } = proxied().await;
    let talk = async move {
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        reset(client);
        server
    };
    let (end, mut server) = tokio::join!(run(downstream, upstream, NEVER), talk);
    assert!(matches!(end, End::Reset(Side::Downstream, _)));
    let error = loop {
        // What is written before the reset arrives is accepted by the kernel.
        match server.write(b"late").await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    let kind = error.kind();
    assert!(
        kind == io::ErrorKind::ConnectionReset || kind == io::ErrorKind::BrokenPipe,
        "{error}"
    );
}

#[tokio::test]
async fn what_a_server_said_before_it_went_away_is_delivered() {
    let Proxied {
        mut client,
        mut server,
        downstream,
        upstream,
    } = proxied().await;
    let talk = async move {
        server.write_all(b"too large").await.unwrap();
        // Closing with the question unread makes the kernel send a reset after the answer.
        client.write_all(b"a question nobody reads").await.unwrap();
        server.readable().await.unwrap();
        drop(server);
        let mut answer = vec![0; 64];
        let n = client.read(&mut answer).await.unwrap();
        answer.truncate(n);
        answer
    };
    let (_, answer) = tokio::join!(run(downstream, upstream, NEVER), talk);
    assert_eq!(answer, b"too large");
}

#[tokio::test]
async fn a_stalled_reader_stops_the_writer_and_memory_is_bounded() {
    let Proxied {
        client,
        server,
        mut downstream,
        mut upstream,
    } = proxied().await;
    // Small kernel buffers, so that what is taken beyond them is the proxy's.
    for stream in [&downstream, &upstream] {
        let socket = socket2::SockRef::from(stream);
        socket.set_send_buffer_size(4096).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
    }
    socket2::SockRef::from(&client)
        .set_send_buffer_size(4096)
        .unwrap();
    socket2::SockRef::from(&server)
        .set_recv_buffer_size(4096)
        .unwrap();
    let (read, scratch) = (Cell::new(0), scratch());
    let terms = Terms {
        scratch: &scratch,
        idle_timeout: NEVER,
        passed: |_, n| read.set(read.get() + n),
    };
    let mut progress = Progress::default();
    let never = std::future::pending::<()>();
    let copying = copy(&mut downstream, &mut upstream, &mut progress, &terms, never);
    let mut copying = pin!(copying);
    let chunk = [7_u8; 16 * 1024];
    let mut sent = 0;
    let mut stalled = 0;
    // The writer is stopped when several rounds of both sides move nothing more.
    while stalled < 200 {
        let before = (sent, read.get());
        if let Ok(n) = client.try_write(&chunk) {
            sent += n;
        }
        assert!(futures_util::poll!(copying.as_mut()).is_pending());
        tokio::task::yield_now().await;
        stalled = if before == (sent, read.get()) {
            stalled + 1
        } else {
            0
        };
    }
    assert!(sent < 8 * 1024 * 1024, "{sent} bytes went in");
    let held = socket2::SockRef::from(&server).recv_buffer_size().unwrap();
    assert!(
        read.get() <= BUFFER + held + 256 * 1024,
        "{} bytes read",
        read.get()
    );

    // The reader wakes up: every byte arrives.
    drop(client);
    let drain = async move {
        let mut server = server;
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        all
    };
    let (end, all) = tokio::join!(copying, drain);
    assert!(matches!(end, Copied::Ended(End::Finished)));
    assert_eq!(all.len(), sent);
}

#[tokio::test(start_paused = true)]
async fn an_idle_pair_is_closed_and_bytes_put_it_off() {
    let Proxied {
        mut client,
        mut server,
        downstream,
        upstream,
    } = proxied().await;
    let begin = Instant::now();
    let talk = async {
        tokio::time::advance(Duration::from_secs(8)).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 1);
    };
    let (end, ()) = tokio::join!(run(downstream, upstream, Duration::from_secs(10)), talk);
    assert!(matches!(end, End::Idle));
    assert!(begin.elapsed() >= Duration::from_secs(18));
}

#[tokio::test]
async fn bytes_arrive_whole_and_in_order_both_ways() {
    let Proxied {
        client,
        server,
        downstream,
        upstream,
    } = proxied().await;
    let pattern: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let exchange = |stream: TcpStream| {
        let pattern = &pattern;
        async move {
            let (mut read, mut write) = stream.into_split();
            let mut got = Vec::new();
            let send = async {
                write.write_all(pattern).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let ((), received) = tokio::join!(send, read.read_to_end(&mut got));
            received.unwrap();
            assert!(got == *pattern);
        }
    };
    let both = async { tokio::join!(exchange(client), exchange(server)) };
    let (end, _) = tokio::join!(run(downstream, upstream, NEVER), both);
    assert!(matches!(end, End::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_parked_without_an_idle_timeout_has_not_been_idle() {
    let mut proxied = proxied().await;
    let terms = Terms {
        scratch: &scratch(),
        idle_timeout: NEVER,
        passed: |_, _| {},
    };
    let mut progress = Progress::default();
    let (near, far) = (&mut proxied.downstream, &mut proxied.upstream);
    let park = tokio::time::sleep(Duration::from_hours(2));
    let copied = copy(near, far, &mut progress, &terms, park).await;
    assert!(matches!(copied, Copied::Parked(())));
    assert_eq!(progress.quiet(), Duration::ZERO);
}
