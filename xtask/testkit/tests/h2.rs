//! The HTTP/2 echo server and client against each other.
#![cfg(feature = "h2")]

use bytes::Bytes;
use http::Request;
use millrace_testkit::h2::{Client, EchoServer};
use millrace_testkit::{Cluster, require};

#[test]
fn requests_share_a_connection_and_grpc_has_trailers() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let (a, b) = (node.pod("a")?, node.pod("b")?);
    let server = EchoServer::start(b.listen(b.at(0))?, "b")?;
    let mut client = Client::connect(&a, server.address())?;

    let request = |n: usize| Request::get(format!("http://b/{n}")).body(Bytes::new());
    let answers = client.send_all((0..20).map(request).collect::<Result<_, _>>()?)?;
    for (n, answer) in answers.iter().enumerate() {
        let seen: serde_json::Value = serde_json::from_slice(&answer.body)?;
        assert_eq!(seen["path"], format!("http://b/{n}"));
    }

    let call = Request::post("http://b/shop.Cart/Add").header("content-type", "application/grpc");
    let answer = client.send(call.body(Bytes::from_static(b"\0\0\0\0\0"))?)?;
    assert_eq!(answer.body.len(), 5);
    assert_eq!(answer.trailers["grpc-status"], "0");
    Ok(())
}
