//! What first bytes are taken for, and that no byte sequence is a problem.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::fixture::pair;
use crate::socket::Stream;

const BOTH: Needs = Needs {
    tls: true,
    http: true,
};

fn protocol(bytes: &[u8]) -> String {
    match inspect(bytes, BOTH) {
        Progress::More => "more".to_owned(),
        Progress::Done(d) if d.tls => format!("tls {}", d.server_name.unwrap_or_default()),
        Progress::Done(d) => d
            .application_protocols
            .first()
            .map_or("raw", |p| p)
            .to_owned(),
    }
}

#[test]
fn first_bytes_are_told_apart() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], "http/1.1"),
        (b"GET / HTTP/1.0\n", "http/1.0"),
        (b"\r\nPOST /a?b=c HTTP/1.1\r\n", "http/1.1"),
        (b"PROPFIND /a HTTP/1.1\r\n", "http/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2c"),
        (b"PRI * HTTP/2.0\r\n\r\n", "more"),
        (b"PUT /a HTTP/1.1\r\n", "http/1.1"),
        (b"", "more"),
        (b"G", "more"),
        (b"GET /index.html HT", "more"),
        (b"GET /index.html HTTP/1.1\r", "more"),
        (b"*1\r\n$4\r\nPING\r\n", "raw"),
        (b"PING\r\n", "raw"),
        (b"GET foo\r\n", "raw"),
        (b"GET / HTTP/3.0\r\n", "raw"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "raw"),
        (b"AN_UNUSUALLY_LONG_WORD_THAT_IS_NO_METHOD", "raw"),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", "raw"),
        (b"\x16", "more"),
        (b"\x16\x03\x01", "more"),
        (b"\x16\x02", "raw"),
        (b"\x16\x03\x01\x00\x05\x02", "raw"),
    ] {
        assert_eq!(protocol(bytes), expected, "{}", bytes.escape_ascii());
    }
}

/// A `ClientHello` in records of at most `fragment` bytes.
fn client_hello(sni: &str, alpn: &[&str], fragment: usize) -> Vec<u8> {
    fn vector16(content: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(content.len()).unwrap().to_be_bytes().to_vec();
        out.extend(content);
        out
    }
    let extension =
        |kind: u16, data: Vec<u8>| [kind.to_be_bytes().to_vec(), vector16(&data)].concat();
    let name = [vec![0], vector16(sni.as_bytes())].concat();
    let protocols: Vec<u8> = alpn
        .iter()
        .flat_map(|p| [vec![u8::try_from(p.len()).unwrap()], p.as_bytes().to_vec()].concat())
        .collect();
    let extensions = [
        extension(43, vec![2, 3, 4]),
        extension(0, vector16(&name)),
        extension(16, vector16(&protocols)),
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend(vector16(&[0x13, 0x01]));
    body.extend([1, 0]);
    body.extend(vector16(&extensions));
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [vec![1], length[1..].to_vec(), body].concat();
    let records = message.chunks(fragment);
    records
        .flat_map(|r| [vec![22, 3, 1], vector16(r)].concat())
        .collect()
}

#[test]
fn sni_and_alpn_are_read_whatever_the_records() {
    for fragment in [1, 7, 64, 16_384] {
        let hello = client_hello("A.Example.com", &["h2", "http/1.1"], fragment);
        let Progress::Done(found) = inspect(&hello, BOTH) else {
            panic!("undecided");
        };
        assert!(found.tls);
        assert_eq!(found.server_name.as_deref(), Some("a.example.com"));
        assert_eq!(found.application_protocols, ["h2", "http/1.1"]);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        inspect(&bytes, BOTH);
    }

    #[test]
    fn damaged_hellos_never_panic(at in 0_usize..200, byte in any::<u8>(), cut in 0_usize..200) {
        let mut hello = client_hello("a.example.com", &["h2"], 50);
        let n = hello.len();
        hello[at % n] = byte;
        inspect(&hello, BOTH);
        inspect(&hello[..cut % n], BOTH);
    }

    /// What is decided stays decided: a longer prefix of the same bytes gives the same answer.
    #[test]
    fn a_decision_does_not_depend_on_how_bytes_arrive(
        which in 0_usize..5,
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = match which {
            0 => b"GET /a HTTP/1.1\r\n".to_vec(),
            1 => HTTP2_PREFACE.to_vec(),
            2 => client_hello("a.example.com", &["h2"], 20),
            3 => b"*1\r\n".to_vec(),
            _ => Vec::new(),
        };
        bytes.extend(tail);
        let mut decided = None;
        for n in 0..=bytes.len() {
            let now = inspect(&bytes[..n], BOTH);
            if let Some(before) = &decided {
                prop_assert_eq!(before, &now);
            } else if now != Progress::More {
                decided = Some(now);
            }
        }
    }
}

#[tokio::test]
async fn what_was_read_is_read_again_by_the_filter() {
    let (mut client, server) = pair().await;
    let mut stream = Stream::new(server);
    let mut inspector = Inspector::new(BOTH);
    let send = async {
        for part in ["GE", "T / HT", "TP/1.1\r\n", "Host: a\r\n\r\n"] {
            client.write_all(part.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.shutdown().await.unwrap();
    };
    let (detected, ()) = tokio::join!(inspector.run(&mut stream), send);
    assert_eq!(detected.unwrap().application_protocols, ["http/1.1"]);
    inspector.finish(&mut stream);
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[tokio::test]
async fn a_client_that_closes_early_has_spoken_something_else() {
    let (mut client, server) = pair().await;
    let mut stream = Stream::new(server);
    client.write_all(b"GET").await.unwrap();
    drop(client);
    let mut inspector = Inspector::new(BOTH);
    let detected = inspector.run(&mut stream).await.unwrap();
    assert_eq!(detected, Detected::default());
    assert!(inspector.has_spoken());
}

#[tokio::test]
async fn no_more_is_read_than_the_limit() {
    let (mut client, server) = pair().await;
    let mut stream = Stream::new(server);
    let mut inspector = Inspector::new(BOTH);
    let mut line = b"GET /".to_vec();
    line.resize(3 * MAX_INSPECTED, b'a');
    let send = async move {
        client.write_all(&line).await.unwrap();
        client
    };
    let (detected, _client) = tokio::join!(inspector.run(&mut stream), send);
    assert_eq!(detected.unwrap().application_protocols, ["http/1.1"]);
    assert!(inspector.bytes.len() <= MAX_INSPECTED);
}
