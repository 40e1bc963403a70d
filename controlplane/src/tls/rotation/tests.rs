//! Authorities over their whole life, by a clock of the test's own.

use std::time::{Duration, UNIX_EPOCH};

use super::*;

const LIFE: Duration = Duration::from_hours(1000);

fn hour(hours: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_hours(500_000 + hours)
}

fn at(authorities: &Authorities, hours: u64) -> Authorities {
    authorities.renewed("test", LIFE, hour(hours)).unwrap()
}

#[test]
fn the_next_authority_is_trusted_before_it_signs_and_the_old_one_after() {
    let first = Authorities::create("test", LIFE, hour(0)).unwrap();
    assert_eq!(at(&first, 799), first);
    let published = at(&first, 801);
    assert_eq!(published.signing, first.signing);
    let next = published.next.clone().unwrap();
    assert!(published.roots().starts_with(&first.roots()));
    assert!(published.roots().contains(next.root().pem()));
    assert_eq!(at(&published, 849), published);
    let switched = at(&published, 852);
    assert_eq!((&switched.signing, &switched.next), (&next, &None));
    assert_eq!(switched.retired, [first.signing.root().clone()]);
    assert_eq!(at(&switched, 999), switched);
    let alone = at(&switched, 1001);
    assert_eq!((&alone.signing, &alone.retired), (&next, &vec![]));
}

#[test]
fn whoever_renews_when_renewal_is_due_has_something_to_renew() {
    let mut authorities = Authorities::create("test", LIFE, hour(0)).unwrap();
    for _ in 0..8 {
        let due = authorities.renewal();
        let before = due - Duration::from_secs(2);
        assert_eq!(
            authorities.renewed("test", LIFE, before).unwrap(),
            authorities
        );
        let renewed = authorities.renewed("test", LIFE, due).unwrap();
        assert_ne!(renewed, authorities);
        authorities = renewed;
    }
}

#[test]
fn an_authority_that_ended_unseen_is_replaced_at_once() {
    let first = Authorities::create("test", LIFE, hour(0)).unwrap();
    let late = at(&first, 1001);
    assert_ne!(late.signing, first.signing);
    assert_eq!((late.next, late.retired), (None, vec![]));
}

#[test]
fn what_was_kept_is_read_again_and_nothing_else() {
    let one = Authority::create("test", LIFE, hour(0)).unwrap();
    let other = Authority::create("test", LIFE, hour(0)).unwrap();
    assert_eq!(
        Authority::read(one.root().pem(), one.key_pem()).unwrap(),
        one
    );
    let swapped = Authority::read(one.root().pem(), other.key_pem());
    assert!(matches!(swapped, Err(TlsError::Mismatch)), "{swapped:?}");
    for broken in ["", "nonsense", one.key_pem()] {
        assert!(Authority::read(broken, one.key_pem()).is_err(), "{broken}");
    }
    let shown = format!("{one:?}");
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}

#[test]
fn a_server_is_never_certified_beyond_its_authority() {
    let authority = Authority::create("test", LIFE, hour(0)).unwrap();
    let names = ["pilot.svc".to_owned(), "10.0.0.1".to_owned()];
    let issued = authority
        .issue(&names, Duration::from_hours(24), hour(990))
        .unwrap();
    assert_eq!(issued.validity.until, hour(1000));
    let early = authority
        .issue(&names, Duration::from_hours(24), hour(1))
        .unwrap();
    assert_eq!(early.validity.until, hour(25));
    assert!(reissue(&early) < hour(13));
}
