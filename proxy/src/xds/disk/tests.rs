use super::*;
use proptest::prelude::*;

fn sample() -> Vec<Saved> {
    vec![
        Saved {
            type_url: TypeUrl::CLUSTER,
            name: "outbound|9080||reviews.default.svc.cluster.local".into(),
            version: "1".into(),
            body: Bytes::from_static(b"\x0a\x03abc"),
        },
        Saved {
            type_url: TypeUrl::NAME_TABLE,
            name: String::new(),
            version: String::new(),
            body: Bytes::new(),
        },
    ]
}

#[test]
fn state_round_trips() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/xds.state");
    assert!(load(&path, "n").unwrap().is_none());
    save(&path, "node ~n", &sample()).unwrap();
    assert_eq!(load(&path, "node ~n").unwrap().unwrap(), sample());
    save(&path, "node ~n", &[]).unwrap();
    assert_eq!(load(&path, "node ~n").unwrap().unwrap(), []);
}

#[test]
fn damage_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.state");
    save(&path, "a", &sample()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let cases: [(Vec<u8>, &str, &str); 5] = [
        (good.clone(), "b", "belongs to node \"a\""),
        (Vec::new(), "a", "has no header"),
        (good[..good.len() - 1].to_vec(), "a", "checksum"),
        (b"millrace-state/9 a 00\n".to_vec(), "a", "unknown format"),
        (b"millrace-state/1 a\n".to_vec(), "a", "incomplete"),
    ];
    for (content, node, expected) in cases {
        let error = parse(&content, node).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} has no {expected:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(bytes: Vec<u8>) {
        drop(parse(&bytes, "n"));
        drop(decode(Bytes::from(bytes)));
    }

    #[test]
    fn one_changed_byte_is_noticed(at in 0usize..1000, xor in 1u8..) {
        let body = encode(&sample()).unwrap();
        let header = format!("{FORMAT} n {}\n", Version::of(&body));
        let mut content = [header.as_bytes(), &body].concat();
        let at = header.len() + at % body.len();
        content[at] ^= xor;
        prop_assert!(parse(&content, "n").is_err());
    }
}
