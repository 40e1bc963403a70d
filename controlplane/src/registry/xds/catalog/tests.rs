use millrace_xds::EncodedResource;

use super::*;

const ROUTES: &str = "networking.istio.io/v1/VirtualService";
const OLDER: &str = "networking.istio.io/v1alpha3/VirtualService";

fn catalog() -> Catalog {
    let mut catalog = Catalog::new("xds://a:1", "cluster.local");
    catalog.take_wanted();
    catalog
}

fn response(url: &str, objects: &[(&str, Value)]) -> ResponseUpdate {
    let type_url = TypeUrl::from(url);
    let resource = |(name, spec): &(&str, Value)| {
        let object = mcp::Object {
            namespace: "shop".to_owned(),
            name: (*name).to_owned(),
            version: "1".to_owned(),
            spec: spec.clone(),
            ..mcp::Object::default()
        };
        let body = mcp::pack("networking.istio.io", "VirtualService", &object).unwrap();
        let name = format!("shop/{name}");
        RawResource {
            body: EncodedResource::from_bytes(type_url.clone(), &name, body.into()).to_any(),
            name,
            version: String::new(),
        }
    };
    ResponseUpdate {
        resources: objects.iter().map(resource).collect(),
        version: String::new(),
        removed: Vec::new(),
        type_url,
    }
}

fn routes(to: &str) -> Value {
    json!({"hosts": ["cart"], "http": [{"route": [{"destination": {"host": to}}]}]})
}

fn wrong() -> Value {
    json!({"hosts": ["cart"], "http": [{"match": [{"uri": {"regex": "("}}]}]})
}

/// What is applied and deleted, by name.
fn told(event: Option<RegistryEvent>) -> (Vec<String>, Vec<String>) {
    match event {
        None => (Vec::new(), Vec::new()),
        Some(RegistryEvent::Changed { applied, deleted }) => (
            applied
                .iter()
                .map(|it| it.object.id().to_string())
                .collect(),
            deleted.iter().map(ToString::to_string).collect(),
        ),
        Some(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_response_has_all_of_a_type_and_only_what_differs_is_told() {
    let mut catalog = catalog();
    let (event, rejected) =
        catalog.take(&response(ROUTES, &[("a", routes("x")), ("b", routes("x"))]));
    assert_eq!((told(event).0.len(), rejected), (2, Vec::new()));
    let (event, _) = catalog.take(&response(ROUTES, &[("a", routes("x")), ("b", routes("y"))]));
    assert_eq!(
        told(event),
        (vec!["VirtualService shop/b".to_owned()], Vec::new())
    );
    let (event, _) = catalog.take(&response(ROUTES, &[("b", routes("y"))]));
    assert_eq!(
        told(event),
        (Vec::new(), vec!["VirtualService shop/a".to_owned()])
    );
}

#[test]
fn a_refused_object_is_named_with_its_field_and_keeps_its_last_good_version() {
    let mut catalog = catalog();
    drop(catalog.take(&response(ROUTES, &[("a", routes("x"))])));
    let (event, rejected) = catalog.take(&response(ROUTES, &[("a", wrong()), ("b", routes("x"))]));
    assert_eq!(told(event).0.last().unwrap(), "VirtualService shop/b");
    let [only] = rejected.as_slice() else {
        panic!("{rejected:?}");
    };
    assert_eq!(only.name, "shop/a");
    for part in ["VirtualService shop/a", "spec.http[0].match[0].uri.regex"] {
        assert!(only.message.contains(part), "{only}");
    }
    let Some(RegistryEvent::Problems(problems)) = catalog.problems() else {
        panic!("it is a problem");
    };
    assert!(
        problems
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    );
    // It is refused as long as it stands, and gone when the server has it no longer.
    let (_, again) = catalog.take(&response(ROUTES, &[("a", wrong())]));
    assert_eq!(again, rejected);
    let (event, _) = catalog.take(&response(ROUTES, &[]));
    assert_eq!(told(event).1, ["VirtualService shop/a"]);
}

#[test]
fn older_versions_are_asked_for_where_the_newest_has_nothing() {
    let mut catalog = catalog();
    drop(catalog.take(&response(ROUTES, &[])));
    let wanted = catalog.take_wanted();
    assert!(wanted.contains(&TypeUrl::from(OLDER)), "{wanted:?}");
    let (event, _) = catalog.take(&response(OLDER, &[("a", routes("x"))]));
    assert_eq!(told(event).0, ["VirtualService shop/a"]);
    // The newest counts as soon as it is there, and losing one of two loses nothing.
    let (event, _) = catalog.take(&response(ROUTES, &[("a", routes("y"))]));
    assert_eq!(told(event).0, ["VirtualService shop/a"]);
    let (event, _) = catalog.take(&response(OLDER, &[]));
    assert_eq!(told(event).1, Vec::<String>::new());
}

#[test]
fn it_is_synced_when_every_type_that_was_asked_for_is_answered() {
    let mut catalog = Catalog::new("xds://a:1", "cluster.local");
    for _ in 0..2 {
        assert!(!catalog.is_synced());
        for url in catalog.take_wanted() {
            drop(catalog.take(&response(url.as_str(), &[])));
        }
    }
    assert!(catalog.is_synced());
    assert_eq!(catalog.take_wanted(), []);
}

#[test]
fn a_lost_server_is_a_problem_and_takes_nothing_with_it() {
    let mut catalog = catalog();
    drop(catalog.take(&response(ROUTES, &[("a", routes("x"))])));
    catalog.set_broken(Some("refused".to_owned()));
    let Some(RegistryEvent::Problems(problems)) = catalog.problems() else {
        panic!("it is a problem");
    };
    assert!(problems[0].message.contains("xds://a:1"), "{problems:?}");
    assert!(catalog.problems().is_none(), "it is said once");
    catalog.set_broken(None);
    assert_eq!(
        catalog.problems(),
        Some(RegistryEvent::Problems(Vec::new()))
    );
}
