//! gRPC's own client makes the faults that rules ask for, keeps users at one server, and leaves out one that fails.
//!
//! Needs `MILLRACE_GRPC_PYTHON`, as all of [`crate::grpc`].

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use crate::PATIENCE;
use crate::grpc::{Called, Peer, TARGET, scene, settled};

const USERS: u32 = 16;

/// Calls until the answer fits, whatever the others are.
fn until_fits(caller: &mut Peer, probe: &Value, fits: impl Fn(&Called) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let got = caller.call(probe);
        if fits(&got) {
            return;
        }
        assert!(Instant::now() < deadline, "still {got:?}");
    }
}

/// Whether one server answered all calls, as taking turns never comes to.
fn is_of_one(called: &Called) -> bool {
    called.answers.len() == 1 && called.codes.len() == 1 && called.codes.contains_key("OK")
}

#[test]
fn grpcs_own_client_makes_the_faults_of_a_route() {
    let Some(scene) = scene() else { return };
    scene.apply("faults.yaml", "routes.yaml");
    let hello = json!({"method": "Hello", "count": 20});
    let mut caller = settled(&scene, TARGET, &hello, &Called::only("v1", 20));

    let gone = caller.call(&json!({"method": "Gone", "count": 1}));
    assert_eq!(gone, Called::failed("NOT_FOUND"));
    let half = caller.call(&json!({"method": "Half", "count": 400}));
    // Half is 200; 40 is four standard deviations.
    let aborted = half.codes["UNAVAILABLE"];
    assert!((160..=240).contains(&aborted), "{half:?}");
    assert_eq!(half.codes["OK"], 400 - aborted, "{half:?}");
    // What is held for an hour is given up before it reaches the server.
    let late = caller.call(&json!({"method": "Late", "count": 1, "timeout": 1}));
    assert_eq!(late, Called::failed("DEADLINE_EXCEEDED"));
    let seen = caller.call(&json!({"method": "Seen", "count": 1}));
    assert_eq!(seen, Called::only("0", 1), "a call that was to wait came");

    fs::remove_file(scene.config.path().join("routes.yaml")).unwrap();
    let gone = json!({"method": "Gone", "count": 1});
    until_fits(&mut caller, &gone, |called| called.codes.contains_key("OK"));
    scene.nothing_is_rejected();
}

#[test]
fn grpcs_own_client_keeps_users_and_channels_at_one_server() {
    let Some(scene) = scene() else { return };
    scene.apply("hash.yaml", "rules.yaml");
    let of_user = |user: u32| {
        let metadata = json!({ "x-user": format!("user-{user}") });
        json!({"method": "Hello", "count": 10, "metadata": metadata})
    };
    let mut caller = scene.caller(TARGET);
    until_fits(&mut caller, &of_user(0), is_of_one);
    let mut servers = BTreeSet::new();
    for user in 0..USERS {
        let got = caller.call(&of_user(user));
        assert!(is_of_one(&got), "user {user}: {got:?}");
        servers.extend(got.answers.into_keys());
    }
    assert_eq!(servers.len(), 2, "all users are at one server");

    let hello = json!({"method": "Hello", "count": 20});
    let mut sticky = scene.caller("xds:///sticky:9090");
    until_fits(&mut sticky, &hello, is_of_one);
    scene.nothing_is_rejected();
}

#[test]
fn grpcs_own_client_leaves_out_a_server_that_fails() {
    let Some(scene) = scene() else { return };
    let sick = json!({"method": "Sick", "count": 40});
    let failing = |called: &Called| called.codes.get("INTERNAL") == Some(&20);
    let mut caller = scene.caller(TARGET);
    until_fits(&mut caller, &sick, failing);

    scene.apply("outlier.yaml", "rules.yaml");
    let well = Called::only("v2", 40);
    until_fits(&mut caller, &sick, |called| *called == well);
    let hello = caller.call(&json!({"method": "Hello", "count": 40}));
    assert_eq!(
        hello, well,
        "the one that fails some calls is asked for none"
    );
    scene.nothing_is_rejected();
}
