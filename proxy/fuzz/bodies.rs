//! What is fuzzed of the proxy: everything that reads bytes from clients, peers, files and the
//! control plane. The same bodies run as property tests on stable (`tests/fuzz.rs`) and under
//! libfuzzer (`fuzz_targets`). None may panic, hang, or decide by how bytes arrive.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::UNIX_EPOCH;

use millrace_proxy::access_log::Record;
use millrace_proxy::access_log::format::Template;
use millrace_proxy::bootstrap;
use millrace_proxy::dns::message::{self, Limit};
use millrace_proxy::dns::names::{NameTableBuilder, Scope};
use millrace_proxy::handover::claim::{Claiming, Granting};
use millrace_proxy::handover::message::{Giving, Taking};
use millrace_proxy::http::framing::HeadScan;
use millrace_proxy::http::header_block::BlockScan;
use millrace_proxy::listener::inspector::{Needs, Progress, inspect};
use millrace_proxy::xds::{convert, disk};
use millrace_runtime::handoff::accel::AccelState;
use millrace_runtime::handoff::{
    AccelCall, AccelReply, AgentCall, Message, ProxyRequest, ToAgent, ToProxy, decode,
};
use millrace_xds::Version;
use millrace_xds::node::Node;

/// The first bytes of a connection: `ClientHello`, HTTP, or neither. What is decided of a prefix
/// stays decided.
pub(crate) fn inspector(data: &[u8]) {
    let needs = Needs {
        tls: true,
        http: true,
    };
    let mut decided = None;
    for end in 0..=data.len().min(512) {
        let now = inspect(&data[..end], needs);
        if let Some(before) = &decided {
            assert_eq!(before, &now, "{end} bytes");
        } else if now != Progress::More {
            decided = Some(now);
        }
    }
    drop(inspect(data, needs));
}

/// A DNS question, and an answer from upstream.
pub(crate) fn dns(data: &[u8]) {
    let mut builder = NameTableBuilder::default();
    let name = "reviews.default.svc.cluster.local";
    assert!(builder.add(name, &[IpAddr::V4(Ipv4Addr::LOCALHOST)]));
    let names = builder.build();
    for limit in [Limit::Datagram, Limit::Stream] {
        let scope = Scope {
            namespace: Some("default"),
            domain: "cluster.local",
        };
        message::decide(data, &names, scope, limit);
    }
    message::failure(data);
    let (query, answer) = data.split_at(data.len() / 2);
    message::answers(answer, query);
}

/// A state file, with and without a checksum that fits.
pub(crate) fn state(data: &[u8]) {
    drop(disk::parse(data, "n"));
    let header = format!("millrace-state/1 n {}\n", Version::of(data));
    drop(disk::parse(&[header.as_bytes(), data].concat(), "n"));
}

/// Heads of HTTP/1 requests and frames of HTTP/2: how the bytes are cut makes no difference.
pub(crate) fn framing(data: &[u8]) {
    let (mut whole, mut cut) = (HeadScan::default(), HeadScan::default());
    let (mut at_once, mut in_parts) = (data.to_vec(), data.to_vec());
    whole.feed(&mut at_once);
    in_parts.chunks_mut(3).for_each(|part| cut.feed(part));
    assert_eq!(whole.take_ambiguous(), cut.take_ambiguous());
    assert_eq!(at_once, in_parts);
    whole.next_head();
    whole.feed(&mut at_once);

    let (mut whole, mut cut) = (BlockScan::default(), BlockScan::default());
    whole.feed(data);
    data.chunks(3).for_each(|part| cut.feed(part));
    assert_eq!(whole.unfinished(), cut.unfinished());
}

/// A static bootstrap, of the seed era or of today: it is read or the mistake is named.
pub(crate) fn bootstrap(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        drop(bootstrap::parse(text, "f.yaml", &Node::default()));
    }
}

/// Resources of every type from a control plane.
pub(crate) fn resources(data: &[u8]) {
    drop(convert::listener(data));
    drop(convert::route_configuration(data));
    drop(convert::cluster(data, true));
    drop(convert::endpoints(data));
    drop(convert::name_table(data));
}

/// A format of the access log.
pub(crate) fn access_log(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(template) = Template::new(text) {
        let address = SocketAddr::from(([10, 1, 0, 2], 40000));
        let record = Record::new(UNIX_EPOCH, address, address);
        template.render(&record, &mut Vec::new());
    }
}

/// Messages between broker, agent, proxy and its epochs, the first byte being the number of descriptors, and what the
/// kernel programs tell of a connection.
pub(crate) fn handoff(data: &[u8]) {
    fn one<M: Message>(bytes: &[u8], fds: usize) {
        if let Ok(message) = decode::<M>(bytes, fds) {
            assert_eq!(message.fd_count(), fds);
        }
    }
    let Some((fds, bytes)) = data.split_first() else {
        return;
    };
    let fds = usize::from(*fds);
    one::<ProxyRequest>(bytes, fds);
    one::<ToProxy>(bytes, fds);
    one::<AgentCall>(bytes, fds);
    one::<ToAgent>(bytes, fds);
    one::<Giving>(bytes, fds);
    one::<Taking>(bytes, fds);
    one::<Claiming>(bytes, fds);
    one::<Granting>(bytes, fds);
    one::<AccelCall>(bytes, fds);
    one::<AccelReply>(bytes, fds);
    if let Some(state) = bytes.first_chunk() {
        AccelState::from_bytes(state);
    }
}
