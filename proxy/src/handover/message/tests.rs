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
    let fds = |parcel: Parcel| {
        let parcel = Box::new(parcel);
        Giving::Give { id: 1, parcel }.fd_count()
    };
    assert_eq!(fds(parcel([0; 4])), 2);
    assert_eq!(fds(parcel([0, 0, 1, 0])), 3);
    let mut alone = parcel([3, 0, 0, 0]);
    alone.carried = Carried::Http { http1: true };
    assert_eq!(fds(alone), 2);
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
        let parcel = Box::new(parcel(lengths.map(usize::from)));
        let message = Giving::Give { id, parcel };
        let bytes = serde_json::to_vec(&message).unwrap();
        prop_assert_eq!(decode::<Giving>(&bytes, message.fd_count()).unwrap(), message);
    }

    #[test]
    fn damaged_messages_never_panic(at in 0_usize..2000, byte in any::<u8>(), fds in 0_usize..5) {
        let parcel = Box::new(parcel([1, 2, 3, 4]));
        let mut bytes = serde_json::to_vec(&Giving::Give { id: 1, parcel }).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(message) = decode::<Giving>(&bytes, fds) {
            prop_assert_eq!(message.fd_count(), fds);
        }
        drop(decode::<Taking>(&bytes, fds));
    }
}
