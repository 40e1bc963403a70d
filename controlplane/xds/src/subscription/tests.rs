use super::*;

fn strings(terms: &[&str]) -> Vec<String> {
    terms.iter().map(ToString::to_string).collect()
}

fn terms(subscription: &Subscription) -> Vec<String> {
    subscription.selection().terms().collect()
}

#[test]
fn collections_hold_direct_children_only() {
    let selection: Selection = ["default/*"].into_iter().collect();
    assert!(selection.contains("default/0.0.0.0_9080"));
    assert!(!selection.contains("default/a/b"));
    assert!(!selection.contains("default"));
    assert!(!selection.contains("default/"));
    assert!(!selection.contains("other/0.0.0.0_9080"));
}

// xDS protocol, "How the client specifies what resources to return", SotW example.
#[test]
fn sotw_wildcard_example_of_the_specification() {
    let mut subscription = Subscription::default();
    let lds = TypeUrl::LISTENER;

    let change = subscription.apply_sotw(&lds, &[]);
    assert_eq!(change.subscribed, ["*"]);

    let change = subscription.apply_sotw(&lds, &strings(&["*", "A"]));
    assert_eq!(change.subscribed, ["A"]);
    assert_eq!(terms(&subscription), ["*", "A"]);

    let change = subscription.apply_sotw(&lds, &strings(&["A"]));
    assert_eq!(change.unsubscribed, ["*"]);
    assert_eq!(terms(&subscription), ["A"]);

    subscription.apply_sotw(&lds, &[]);
    assert!(subscription.selection().is_empty());
}

// xDS protocol, "How the client specifies what resources to return", incremental example.
#[test]
fn delta_wildcard_example_of_the_specification() {
    let mut subscription = Subscription::default();
    let lds = TypeUrl::LISTENER;

    subscription.apply_delta(&lds, &[], &[]);
    assert_eq!(terms(&subscription), ["*"]);

    subscription.apply_delta(&lds, &strings(&["A"]), &[]);
    assert_eq!(terms(&subscription), ["*", "A"]);

    subscription.apply_delta(&lds, &[], &strings(&["*"]));
    assert_eq!(terms(&subscription), ["A"]);

    subscription.apply_delta(&lds, &[], &strings(&["A"]));
    assert!(subscription.selection().is_empty());

    subscription.apply_delta(&lds, &[], &[]);
    assert!(subscription.selection().is_empty());
}

#[test]
fn types_always_named_by_others_have_no_legacy_wildcard() {
    for type_url in [TypeUrl::ENDPOINT, TypeUrl::ROUTE, TypeUrl::SECRET] {
        let mut subscription = Subscription::default();
        subscription.apply_delta(&type_url, &[], &[]);
        assert!(subscription.selection().is_empty());
        subscription.apply_sotw(&type_url, &[]);
        assert!(subscription.selection().is_empty());
    }
    let mut subscription = Subscription::default();
    subscription.apply_delta(&TypeUrl::NAME_TABLE, &[], &[]);
    assert!(subscription.selection().is_wildcard());
}

// xDS protocol, "Subscribing to Resources": repeated names must be answered.
#[test]
fn repeated_delta_subscription_is_to_be_answered() {
    let mut subscription = Subscription::default();
    subscription.apply_delta(&TypeUrl::ENDPOINT, &strings(&["A"]), &[]);
    let change = subscription.apply_delta(&TypeUrl::ENDPOINT, &strings(&["A"]), &[]);
    assert_eq!(change.subscribed, ["A"]);
}

// xDS protocol, "Unsubscribing from Resources": phantom unsubscriptions are ignored.
#[test]
fn phantom_unsubscription_changes_nothing() {
    let mut subscription = Subscription::default();
    subscription.apply_delta(&TypeUrl::ENDPOINT, &strings(&["A"]), &[]);
    let change = subscription.apply_delta(&TypeUrl::ENDPOINT, &[], &strings(&["B"]));
    assert_eq!(change, SubscriptionChange::default());
}
