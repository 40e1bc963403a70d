use millrace_xds::proto::envoy::r#type::matcher::v3::{RegexMatcher, StructMatcher};

use super::*;

const ID: &str = "node~10.0.0.1~worker-a~cluster.local";

fn matcher(pattern: MatchPattern, ignore_case: bool) -> NodeMatcher {
    NodeMatcher {
        node_id: Some(StringMatcher {
            match_pattern: Some(pattern),
            ignore_case,
        }),
        node_metadatas: Vec::new(),
    }
}

fn matches(pattern: MatchPattern, ignore_case: bool) -> bool {
    NodeId::new(&matcher(pattern, ignore_case), 0)
        .unwrap()
        .matches(ID)
}

#[test]
fn node_ids_are_matched_as_xds_matches_strings() {
    let text = |text: &str| text.to_owned();
    let regex = |regex: &str| {
        MatchPattern::SafeRegex(RegexMatcher {
            regex: text(regex),
            ..Default::default()
        })
    };
    assert!(matches(MatchPattern::Exact(text(ID)), false));
    assert!(!matches(MatchPattern::Exact(ID.to_uppercase()), false));
    assert!(matches(MatchPattern::Exact(ID.to_uppercase()), true));
    assert!(matches(MatchPattern::Prefix(text("node~10.0")), false));
    // A prefix is no regular expression.
    assert!(!matches(MatchPattern::Prefix(text("node~10x0")), false));
    assert!(!matches(
        MatchPattern::Prefix(text("node~10.0.0.1~worker-b")),
        false
    ));
    assert!(matches(MatchPattern::Suffix(text("cluster.local")), false));
    assert!(matches(MatchPattern::Contains(text("WORKER")), true));
    assert!(!matches(MatchPattern::Contains(text("WORKER")), false));
    assert!(matches(regex(".*worker-[ab].*"), false));
    // The whole id has to match.
    assert!(!matches(regex("worker-[ab]"), false));
}

#[test]
fn what_cannot_be_matched_is_refused_by_field() {
    let refused = |matcher: &NodeMatcher| {
        let status = NodeId::new(matcher, 2).err().unwrap();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.message().to_owned()
    };
    let by_metadata = NodeMatcher {
        node_id: None,
        node_metadatas: vec![StructMatcher::default()],
    };
    assert!(refused(&by_metadata).starts_with("node_matchers[2].node_metadatas: "));
    let empty = NodeMatcher {
        node_id: Some(StringMatcher::default()),
        node_metadatas: Vec::new(),
    };
    assert!(refused(&empty).starts_with("node_matchers[2].node_id: "));
    let broken = MatchPattern::SafeRegex(RegexMatcher {
        regex: "(".to_owned(),
        ..Default::default()
    });
    let broken = refused(&matcher(broken, false));
    assert!(
        broken.starts_with("node_matchers[2].node_id.safe_regex: "),
        "{broken}"
    );
}
