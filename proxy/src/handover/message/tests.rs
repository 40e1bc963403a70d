//! The messages' own rules, and what no bytes may do.

use millrace_runtime::handoff::decode;
use proptest::prelude::*;

use super::*;

fn parcel(lengths: [usize; 4]) -> Parcel {
    let address = "10.1.0.7:40000".parse().unwrap();
    let flow = |pending| Flow {
        pending,
        ended: true,
        ..Flow::default()
    };
    Parcel {
        connection: 1 << 56 | 2,
        worker: 1,
        pod: Some("u-1".into()),
        direction: TrafficDirection::Outbound,
        peer: address,
        local: address,
        orig_dst: address,
        listener: "default/0.0.0.0_9080".to_owned(),
        filter_chain: "tcp".to_owned(),
        server_name: Some("a.example".to_owned()),
        age_us: 1,
        parked_ns: 2,
        unread: lengths[0],
        lane: None,
        carried: Carried::Bytes {
            pair: Pair {
                cluster: "c".to_owned(),
                host: address,
                attempts: 1,
                unread: lengths[1],
                lane: None,
                out: flow(lengths[2]),
                back: flow(lengths[3]),
                received: 5,
                sent: 6,
                idle_us: 7,
            },
        },
    }
}

#[test]
fn a_memory_file_travels_only_where_there_are_bytes() {
    let fds = |parcel: Parcel| Giving::give(1, Box::new(parcel)).fd_count();
    assert_eq!(fds(parcel([0; 4])), 2);
    assert_eq!(fds(parcel([0, 0, 1, 0])), 3);
    let mut alone = parcel([3, 0, 0, 0]);
    alone.carried = Carried::Http { http1: true };
    assert_eq!(fds(alone), 2);
}

/// What builds of this version say stays as it is; what later ones add is passed over.
#[test]
fn other_builds_of_this_version_are_understood() {
    let pair = r#"{"cluster":"c","host":"10.1.0.7:40000","attempts":1,"unread":1,"lane":null,
        "out":{"pending":2,"ended":true,"told":false,"broken":null,"later":0},
        "back":{"pending":3,"ended":true,"told":false,"broken":null},
        "received":5,"sent":6,"idle_us":7}"#;
    let given = format!(
        r#"{{"type":"give","id":9,"fds":3,"later":[],"parcel":{{"connection":72057594037927938,"worker":1,
        "pod":"u-1","direction":"Outbound","peer":"10.1.0.7:40000","local":"10.1.0.7:40000",
        "orig_dst":"10.1.0.7:40000","listener":"default/0.0.0.0_9080","filter_chain":"tcp",
        "server_name":"a.example","age_us":1,"parked_ns":2,"unread":0,"lane":null,"later":{{}},
        "carried":{{"kind":"bytes","pair":{pair}}}}}}}"#
    );
    let known = Giving::give(9, Box::new(parcel([0, 1, 2, 3])));
    assert_eq!(decode::<Giving>(given.as_bytes(), 3).unwrap(), known);
    let said = [
        (
            r#"{"type":"hello","version":2,"epoch":3,"pid":4}"#,
            Giving::Hello {
                version: 2,
                epoch: 3,
                pid: 4,
            },
        ),
        (r#"{"type":"go","id":9}"#, Giving::Go { id: 9 }),
    ];
    for (text, message) in said {
        assert_eq!(decode::<Giving>(text.as_bytes(), 0).unwrap(), message);
    }
    let declined = |reason| Taking::Declined { id: 9, reason };
    let answers = [
        (
            r#"{"type":"welcome","version":2,"epoch":3,"pid":4,"later":1}"#,
            Taking::Welcome {
                version: 2,
                epoch: 3,
                pid: 4,
            },
        ),
        (
            r#"{"type":"refused","version":7}"#,
            Taking::Refused { version: 7 },
        ),
        (r#"{"type":"taken","id":9}"#, Taking::Taken { id: 9 }),
        (r#"{"type":"stop"}"#, Taking::Stop),
        (
            r#"{"type":"declined","id":9,"reason":"unknown"}"#,
            declined(Decline::Unknown),
        ),
        (
            r#"{"type":"declined","id":9,"reason":"of another build"}"#,
            declined(Decline::Other),
        ),
    ];
    for (text, message) in answers {
        assert_eq!(decode::<Taking>(text.as_bytes(), 0).unwrap(), message);
    }
}

#[test]
fn lengths_beyond_every_measure_are_counted_without_wrapping() {
    let huge = parcel([usize::MAX, 1, usize::MAX, 7]);
    assert_eq!(huge.bytes(), usize::MAX);
    assert!(super::super::parcel::Unpacked::open(&huge, Vec::new()).is_err());
}

proptest! {
    #[test]
    fn a_connection_survives_the_wire(lengths in any::<[u16; 4]>(), id in any::<u64>()) {
        let message = Giving::give(id, Box::new(parcel(lengths.map(usize::from))));
        let bytes = serde_json::to_vec(&message).unwrap();
        prop_assert_eq!(decode::<Giving>(&bytes, message.fd_count()).unwrap(), message);
    }

    #[test]
    fn damaged_messages_never_panic(at in 0_usize..2000, byte in any::<u8>(), fds in 0_usize..5) {
        let parcel = Box::new(parcel([1, 2, 3, 4]));
        let mut bytes = serde_json::to_vec(&Giving::give(1, parcel)).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(message) = decode::<Giving>(&bytes, fds) {
            prop_assert_eq!(message.fd_count(), fds);
        }
        drop(decode::<Taking>(&bytes, fds));
    }
}
