use super::*;
use crate::proto::{Cluster, ClusterLoadAssignment, NameTable};

fn raw<M: WireResource>(name: &str, message: &M) -> RawResource {
    RawResource {
        name: name.into(),
        version: "1".into(),
        body: EncodedResource::encode(message).to_any(),
    }
}

fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        ..Default::default()
    }
}

#[test]
fn bad_resource_is_named_and_good_ones_apply() {
    let mut broken = raw("b", &cluster("b"));
    broken.body.value = vec![0x0a, 0x7f];
    let resources = [raw("a", &cluster("a")), broken, raw("c", &cluster("c"))];

    let decoded = decode_all(&resources, |message: Cluster| match message.name.as_str() {
        "c" => Err("no such thing"),
        _ => Ok(message.name),
    });

    assert_eq!(decoded.accepted, [("a".to_owned(), "a".to_owned())]);
    let rejected: Vec<_> = decoded.rejected.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(rejected, ["b", "c"]);
    assert_eq!(decoded.rejected[1].to_string(), "c: no such thing");
}

#[test]
fn message_under_another_name_is_rejected() {
    let error = raw("a", &cluster("b")).decode::<Cluster>().unwrap_err();
    assert_eq!(error.to_string(), "a: carries the name b");
}

#[test]
fn message_of_another_type_is_rejected() {
    let error = raw("a", &cluster("a"))
        .decode::<ClusterLoadAssignment>()
        .unwrap_err();
    assert!(error.message.starts_with("expected "), "{error}");
}

#[test]
fn nameless_messages_take_the_name_they_were_sent_under() {
    let resource = EncodedResource::encode_as("table", &NameTable::default());
    let raw = RawResource {
        name: "table".into(),
        version: String::new(),
        body: resource.to_any(),
    };
    assert!(raw.decode::<NameTable>().is_ok());
}
