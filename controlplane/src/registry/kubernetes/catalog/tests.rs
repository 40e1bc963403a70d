use super::*;
use crate::model::Object;
use crate::model::problem::Finding;
use crate::model::validate::Validated;

fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

fn good(text: &str) -> Entry {
    let object = Object::ServiceAccount(name(text));
    Entry::judged(Kind::ServiceAccount, name(text), Validated::good(object))
}

fn refused(text: &str) -> Entry {
    let finding = Finding::error("spec", "is wrong");
    let object = Object::ServiceAccount(name(text));
    let judged = Validated::judged(object, vec![finding]);
    Entry::judged(Kind::ServiceAccount, name(text), judged)
}

fn told(catalog: &mut Catalog, change: Change) -> (Vec<String>, Vec<String>) {
    let what = What::Objects(Kind::ServiceAccount);
    catalog.take(Update { what, change });
    let (applied, deleted) = catalog.take_changes();
    let applied = applied.into_iter().map(|applied| applied.object.id().name);
    (
        applied.map(|name| name.name.to_string()).collect(),
        deleted.iter().map(|id| id.name.name.to_string()).collect(),
    )
}

#[test]
fn a_list_deletes_what_is_not_in_it_and_nothing_else() {
    let mut catalog = Catalog::default();
    told(&mut catalog, Change::Replaced(vec![good("a"), good("b")]));
    told(&mut catalog, Change::Applied(Box::new(good("c"))));
    let (applied, deleted) = told(&mut catalog, Change::Replaced(vec![good("a"), good("d")]));
    assert_eq!(applied, ["a", "d"]);
    assert_eq!(deleted, ["b", "c"]);
}

#[test]
fn a_broken_watch_deletes_nothing_and_is_a_problem_until_it_stands() {
    let mut catalog = Catalog::default();
    told(&mut catalog, Change::Replaced(vec![good("a")]));
    let (applied, deleted) = told(&mut catalog, Change::Broken("refused".to_owned()));
    assert_eq!((applied.len(), deleted.len()), (0, 0));
    let problems = catalog.problems();
    assert_eq!(problems[0].reason, Reason::Unreadable);
    let message = problems[0].to_string();
    assert!(
        message.contains("ServiceAccount objects cannot be watched"),
        "{message}"
    );
    told(&mut catalog, Change::Stands);
    assert_eq!(catalog.problems(), []);
}

#[test]
fn a_refused_object_keeps_its_last_good_version_until_it_is_deleted() {
    let mut catalog = Catalog::default();
    told(&mut catalog, Change::Replaced(vec![good("a")]));
    let (applied, deleted) = told(&mut catalog, Change::Replaced(vec![refused("a")]));
    assert_eq!((applied.len(), deleted.len()), (0, 0));
    let problem = catalog.problems()[0].to_string();
    assert_eq!(problem, "ServiceAccount default/a: spec: is wrong");
    let (_, deleted) = told(&mut catalog, Change::Deleted(name("a")));
    assert_eq!(deleted, ["a"]);
    assert_eq!(catalog.problems(), []);
}

#[test]
fn everything_is_known_when_every_kind_was_listed_once() {
    let mut catalog = Catalog::default();
    let configuration = CONFIG_KINDS.iter().map(|kind| kind.kind);
    for kind in OWN_KINDS.into_iter().chain(configuration) {
        assert!(!catalog.is_synced(), "{kind:?}");
        let what = What::Objects(kind);
        let change = Change::Replaced(Vec::new());
        catalog.take(Update { what, change });
    }
    assert!(catalog.is_synced());
}
