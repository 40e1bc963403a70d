use super::*;

fn sight() -> SpliceSight {
    SpliceSight {
        size: 100,
        settings: [Some(Acceleration::On); 2],
        priorities: [priority::DIRECT; 2],
        flags: [AccelSocket::READY; 2],
        state: 1,
        is_unbroken: true,
        peer_unread: 0,
        peer_rcvbuf: 1 << 20,
        unread_messages: 0,
        pressure: false,
    }
}

#[test]
fn every_rule_ends_a_splice_by_itself() {
    type Spoil = fn(&mut SpliceSight);
    let cases: [(Spoil, Counter); 16] = [
        (
            |s| s.settings[0] = Some(Acceleration::Auto),
            Counter::UnspliceOff,
        ),
        (
            |s| s.settings[1] = Some(Acceleration::Auto),
            Counter::UnspliceOff,
        ),
        (|s| s.settings[1] = None, Counter::UnspliceOff),
        (
            |s| s.priorities[0] = priority::NORMAL,
            Counter::UnspliceMarked,
        ),
        (
            |s| s.priorities[1] = priority::LEAVING,
            Counter::UnspliceMarked,
        ),
        (
            |s| s.priorities[1] = priority::FORCED,
            Counter::UnspliceMarked,
        ),
        (
            |s| s.flags[0] |= AccelSocket::OPTION,
            Counter::UnspliceOption,
        ),
        (
            |s| s.flags[1] |= AccelSocket::OPTION,
            Counter::UnspliceOption,
        ),
        (|s| s.flags[1] = 0, Counter::UnspliceGone),
        (|s| s.state = 4, Counter::UnspliceShutDown),
        (|s| s.is_unbroken = false, Counter::UnspliceBroken),
        (|s| s.size = 1 << 20, Counter::UnspliceCapped),
        (|s| s.peer_unread = 65_500, Counter::UnspliceCapped),
        (|s| s.peer_rcvbuf = 0, Counter::UnspliceCapped),
        (
            |s| (s.peer_unread, s.unread_messages) = (1, 64),
            Counter::UnspliceCapped,
        ),
        (|s| s.pressure = true, Counter::UnsplicePressure),
    ];
    assert_eq!(splice_way(&sight()), Ok(()));
    // The other application has shut its side down; this one may go on.
    assert_eq!(
        splice_way(&SpliceSight {
            state: 8,
            ..sight()
        }),
        Ok(())
    );
    for (spoil, why) in cases {
        let mut spoilt = sight();
        spoilt.peer_unread = 1;
        spoil(&mut spoilt);
        assert_eq!(splice_way(&spoilt), Err(why), "{spoilt:?}");
    }
}

#[test]
fn a_splice_begins_only_where_nothing_is_on_its_way() {
    type Spoil = fn(&mut Pipe);
    let empty = Pipe {
        refs: 1,
        write_seq: 10,
        proxy_copied_seq: 10,
        proxy_unread: 0,
        proxy_write_seq: 20,
        copied_seq: 20,
    };
    assert!(pipe_is_empty(&empty));
    let cases: [Spoil; 4] = [
        |p| p.refs = 2,
        |p| p.proxy_copied_seq = 9,
        |p| p.proxy_unread = 1,
        |p| p.copied_seq = 19,
    ];
    for spoil in cases {
        let mut spoilt = empty;
        spoil(&mut spoilt);
        assert!(!pipe_is_empty(&spoilt), "{spoilt:?}");
    }
}
