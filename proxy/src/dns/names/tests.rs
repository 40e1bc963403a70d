use super::*;

fn table() -> NameTable {
    let mut builder = NameTableBuilder::default();
    let v4: IpAddr = "10.96.0.5".parse().unwrap();
    let v6: IpAddr = "fd00::5".parse().unwrap();
    assert!(builder.add("reviews.default.svc.cluster.local", &[v4, v6]));
    assert!(builder.add("ratings.other.svc.cluster.local", &[v4]));
    assert!(builder.add("api.example.com.", &[v4]));
    assert!(builder.add("*.wild.example.com", &[v6]));
    assert!(builder.add("empty.default.svc.cluster.local", &[]));
    builder.build()
}

fn find(query: &str) -> Option<(usize, usize, Option<String>)> {
    let scope = Scope {
        namespace: Some("default"),
        domain: "cluster.local",
    };
    let table = table();
    let found = table.find(query, scope)?;
    let Addresses { v4, v6 } = found.addresses;
    Some((v4.len(), v6.len(), found.canonical))
}

#[test]
fn full_and_short_names_are_found() {
    for name in [
        "reviews",
        "reviews.default",
        "reviews.default.svc",
        "reviews.default.svc.cluster.local",
    ] {
        assert_eq!(find(name), Some((1, 1, None)), "{name}");
    }
    assert_eq!(find("ratings.other"), Some((1, 0, None)));
    assert_eq!(
        find("ratings"),
        None,
        "short names are of the pod's namespace"
    );
}

#[test]
fn search_expansions_are_aliases_of_what_was_meant() {
    for (query, canonical) in [
        (
            "api.example.com.default.svc.cluster.local",
            "api.example.com",
        ),
        ("api.example.com.svc.cluster.local", "api.example.com"),
        ("api.example.com.cluster.local", "api.example.com"),
        (
            "reviews.default.svc.cluster.local.default.svc.cluster.local",
            "reviews.default.svc.cluster.local",
        ),
        (
            "reviews.default.default.svc.cluster.local",
            "reviews.default",
        ),
    ] {
        let found = find(query).unwrap_or_else(|| panic!("{query} is not found"));
        assert_eq!(found.2.as_deref(), Some(canonical), "{query}");
    }
    assert_eq!(find("api.example.com.other.svc.cluster.local"), None);
}

#[test]
fn wildcards_stand_for_one_label_or_more() {
    assert_eq!(find("a.wild.example.com"), Some((0, 1, None)));
    assert_eq!(find("a.b.wild.example.com"), Some((0, 1, None)));
    assert_eq!(find("wild.example.com"), None);
}

#[test]
fn a_name_without_addresses_exists() {
    assert_eq!(find("empty"), Some((0, 0, None)));
}

#[test]
fn other_names_are_not_of_the_mesh() {
    for name in [
        "",
        ".",
        "example.org",
        "com",
        "nosuch.default.svc.cluster.local",
    ] {
        assert_eq!(find(name), None, "{name:?}");
    }
}

#[test]
fn bad_host_names_are_refused() {
    let mut builder = NameTableBuilder::default();
    let long = "a".repeat(64);
    for name in ["", "a..b", "a b", "*", "a.*.b", long.as_str()] {
        assert!(!builder.add(name, &[]), "{name:?}");
    }
}
