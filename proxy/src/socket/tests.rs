//! The stream type and canonical addresses.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

async fn pair() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (Stream::new(server), client)
}

#[tokio::test]
async fn bytes_put_back_are_read_first() {
    let (mut stream, mut client) = pair().await;
    client.write_all(b" world").await.unwrap();
    client.shutdown().await.unwrap();
    stream.unread(Bytes::from_static(b"lo"));
    stream.unread(Bytes::from_static(b"hel"));
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello world");
}

#[tokio::test]
async fn short_reads_do_not_end_reading_when_only_eagain_counts() {
    let (mut stream, mut client) = pair().await;
    stream.read_until_would_block();
    let mut buf = [0; 64];
    for message in [&b"a"[..], b"bc", b"def"] {
        client.write_all(message).await.unwrap();
        let n = stream.read(&mut buf).await.unwrap();
        assert_eq!(&buf[..n], message);
    }
}

#[tokio::test]
async fn a_reset_is_noticed_after_the_read_side_has_ended() {
    let (mut stream, mut client) = pair().await;
    client.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    client.set_zero_linger().unwrap();
    drop(client);
    stream.failed().await;
}

#[test]
fn mapped_addresses_are_unmapped() {
    for (from, to) in [
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
    ] {
        assert_eq!(
            canonical(from.parse().unwrap()),
            to.parse::<SocketAddr>().unwrap()
        );
    }
}
