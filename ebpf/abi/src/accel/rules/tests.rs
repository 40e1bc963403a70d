use super::*;

fn end() -> EndFacts {
    EndFacts {
        cookie: 7,
        netns_cookie: 4100,
        state: ESTABLISHED,
        mark: GUARD_MARK,
        has_file: true,
        file_flags: O_NONBLOCK,
        rcvlowat: 1,
        peek_off: -1,
        tsflags: 0,
        excluded_flags: 0,
        has_filter: false,
        inq: false,
        mptcp: false,
    }
}

#[test]
fn an_end_is_promoted_only_if_its_program_cannot_notice() {
    type Spoil = fn(&mut EndFacts);
    let cases: [(Spoil, AccelOutcome); 13] = [
        (|e| e.netns_cookie = 4200, AccelOutcome::NotFound),
        (|e| e.state = 8, AccelOutcome::NotEstablished),
        (|e| e.mptcp = true, AccelOutcome::Mptcp),
        (|e| e.has_file = false, AccelOutcome::NotAccepted),
        (|e| e.file_flags = 0, AccelOutcome::Blocking),
        (|e| e.mark = 0, AccelOutcome::NotProxys),
        (|e| e.rcvlowat = 2, AccelOutcome::SocketOption),
        (|e| e.peek_off = 0, AccelOutcome::SocketOption),
        (|e| e.tsflags = 8, AccelOutcome::SocketOption),
        (|e| e.excluded_flags = 4, AccelOutcome::SocketOption),
        (|e| e.has_filter = true, AccelOutcome::SocketOption),
        (|e| e.inq = true, AccelOutcome::SocketOption),
        (|e| e.cookie = 0, AccelOutcome::NoCookie),
    ];
    assert_eq!(end_verdict(&end(), 4100, true), Ok(()));
    for (spoil, outcome) in cases {
        let mut spoilt = end();
        spoil(&mut spoilt);
        assert_eq!(end_verdict(&spoilt, 4100, true), Err(outcome), "{spoilt:?}");
    }
    // The application's accepted end of a delivery inherits the mark, or has none.
    for mark in [0, 0x1_0539] {
        assert_eq!(
            end_verdict(&EndFacts { mark, ..end() }, 4100, false),
            Ok(())
        );
    }
}

fn message() -> Message {
    Message {
        setting: Some(Acceleration::Auto),
        flags: AccelSocket::READY | AccelSocket::PROXY,
        priority: priority::NORMAL,
        size: 100,
        experiment: 0,
    }
}

#[test]
fn the_proxys_mark_and_the_pods_setting_come_first() {
    let table = [
        (message(), None),
        (
            Message {
                setting: None,
                ..message()
            },
            Some(Counter::MessageOff),
        ),
        (
            Message {
                setting: Some(Acceleration::Off),
                ..message()
            },
            Some(Counter::MessageOff),
        ),
        (
            Message {
                priority: priority::OUT,
                ..message()
            },
            Some(Counter::MessageMarked),
        ),
        (
            Message {
                priority: priority::LEAVING,
                ..message()
            },
            Some(Counter::MessageMarked),
        ),
        // Nobody takes it out, so that it must go.
        (
            Message {
                setting: None,
                flags: AccelSocket::READY | AccelSocket::PROXY | AccelSocket::OPTION,
                priority: priority::FORCED,
                ..message()
            },
            None,
        ),
        (
            Message {
                flags: AccelSocket::READY,
                setting: None,
                priority: priority::FORCED,
                ..message()
            },
            Some(Counter::MessageOff),
        ),
        (
            Message {
                priority: 6,
                ..message()
            },
            Some(Counter::MessageMarked),
        ),
        (
            Message {
                size: MAX_REDIRECTED + 1,
                ..message()
            },
            Some(Counter::MessageTooLarge),
        ),
        (
            Message {
                flags: AccelSocket::READY | AccelSocket::OPTION,
                ..message()
            },
            Some(Counter::MessageOption),
        ),
        // An application's own priority and size mean nothing here.
        (
            Message {
                flags: AccelSocket::READY,
                priority: 6,
                size: MAX_REDIRECTED + 1,
                ..message()
            },
            None,
        ),
    ];
    for (message, way) in table {
        assert_eq!(stays_with_tcp(&message), way, "{message:?}");
    }
}

fn sight() -> Sight {
    Sight {
        peer_alive: true,
        peer_flags: AccelSocket::READY,
        peer_priority: 0,
        peer_copied_seq: 500,
        peer_unread: 0,
        peer_rcvbuf: 131_072,
        state: ESTABLISHED,
        write_seq: 500,
        armed_from: 400,
        unread_messages: 0,
        pressure: false,
    }
}

#[test]
fn each_rule_sends_a_message_by_tcp() {
    type Change = fn(&mut Sight);
    fn marked(sight: &mut Sight, priority: u32) {
        sight.peer_flags |= AccelSocket::PROXY;
        sight.peer_priority = priority;
    }
    let table: [(Change, Result<(), Counter>); 20] = [
        (|_| (), Ok(())),
        (|s| s.peer_alive = false, Err(Counter::MessagePeerGone)),
        (
            |s| s.peer_flags |= AccelSocket::OPTION,
            Err(Counter::MessageOption),
        ),
        (|s| marked(s, priority::NORMAL), Ok(())),
        (|s| marked(s, priority::OUT), Err(Counter::MessageWithdrawn)),
        (
            |s| marked(s, priority::LEAVING),
            Err(Counter::MessageWithdrawn),
        ),
        (
            |s| marked(s, priority::FORCED),
            Err(Counter::MessageWithdrawn),
        ),
        (|s| marked(s, 5), Err(Counter::MessageWithdrawn)),
        (|s| s.state = 4, Err(Counter::MessageShutDown)),
        (|s| s.state = CLOSE_WAIT, Ok(())),
        (|s| s.peer_copied_seq = 499, Err(Counter::MessageUnreadTcp)),
        (|s| s.armed_from = 500, Err(Counter::MessageNotArmed)),
        (|s| s.peer_unread = 32_768 - 99, Err(Counter::MessageCapped)),
        (|s| s.peer_unread = 32_768 - 100, Ok(())),
        (|s| s.unread_messages = MAX_UNREAD_MESSAGES - 1, Ok(())),
        (
            |s| {
                s.peer_unread = 64;
                s.unread_messages = MAX_UNREAD_MESSAGES;
            },
            Err(Counter::MessageCapped),
        ),
        // Everything was read since: the count begins anew.
        (|s| s.unread_messages = MAX_UNREAD_MESSAGES, Ok(())),
        // A buffer smaller than a message: one at a time.
        (|s| s.peer_rcvbuf = 396, Ok(())),
        (
            |s| {
                s.peer_rcvbuf = 396;
                s.peer_unread = 1;
            },
            Err(Counter::MessageCapped),
        ),
        (|s| s.pressure = true, Err(Counter::MessagePressure)),
    ];
    let from_app = Message {
        flags: AccelSocket::READY,
        ..message()
    };
    for (change, way) in table {
        let mut sight = sight();
        change(&mut sight);
        assert_eq!(message_way(&from_app, &sight), way, "{sight:?}");
    }
}

/// Nothing is sent to an application by TCP, and the proxy sees to it that no `recv` is under way at an end.
#[test]
fn what_the_proxy_sends_needs_no_arming() {
    let unarmed = Sight {
        armed_from: 500,
        ..sight()
    };
    assert_eq!(message_way(&message(), &unarmed), Ok(()));
}

#[test]
fn once_armed_a_direction_stays_armed() {
    let armed = Message {
        flags: AccelSocket::READY | AccelSocket::ARMED,
        ..message()
    };
    let wrapped = Sight {
        armed_from: 500,
        ..sight()
    };
    assert_eq!(message_way(&armed, &wrapped), Ok(()));
}

#[test]
fn the_cap_is_a_quarter_of_the_receive_buffer_and_at_most_64_kib() {
    let large = Sight {
        peer_rcvbuf: 6_291_456,
        ..sight()
    };
    let sized = |size| Message { size, ..message() };
    assert_eq!(message_way(&sized(MAX_UNREAD), &large), Ok(()));
    assert_eq!(
        message_way(&sized(MAX_UNREAD + 1), &large),
        Err(Counter::MessageCapped)
    );
    assert_eq!(
        message_way(&sized(u32::MAX), &large),
        Err(Counter::MessageCapped)
    );
}

#[test]
fn an_experiment_switches_one_rule_off() {
    let message = || Message {
        flags: AccelSocket::READY,
        ..message()
    };
    let without = |experiment| Message {
        experiment,
        ..message()
    };
    let table = [
        (
            experiment::NO_RULE_1,
            Sight {
                peer_copied_seq: 1,
                ..sight()
            },
        ),
        (
            experiment::NO_RULE_2,
            Sight {
                state: 4,
                ..sight()
            },
        ),
        (
            experiment::NO_RULE_3,
            Sight {
                peer_unread: 1 << 30,
                ..sight()
            },
        ),
        (
            experiment::NO_RULE_4,
            Sight {
                armed_from: 500,
                ..sight()
            },
        ),
    ];
    for (experiment, sight) in table {
        assert!(message_way(&message(), &sight).is_err());
        assert_eq!(message_way(&without(experiment), &sight), Ok(()));
    }
    let marked = Message {
        flags: AccelSocket::READY | AccelSocket::PROXY,
        priority: priority::OUT,
        ..without(experiment::NO_RULE_5)
    };
    assert_eq!(stays_with_tcp(&marked), None);
}

#[test]
fn options_that_cannot_be_honoured_are_known() {
    let returns = [(1, 18), (1, 42), (1, 37), (1, 65), (6, 36), (1, 26)];
    for (level, name) in returns {
        assert_eq!(option_verdict(level, name), OptionVerdict::Return);
    }
    for (level, name) in [(6, 31), (1, 60)] {
        assert_eq!(option_verdict(level, name), OptionVerdict::Refuse);
    }
    // TCP_NODELAY, SO_RCVBUF, SO_PRIORITY
    for (level, name) in [(6, 1), (1, 8), (1, 12)] {
        assert_eq!(option_verdict(level, name), OptionVerdict::Ignore);
    }
}

#[test]
fn outcomes_are_numbered_in_order() {
    for (index, outcome) in AccelOutcome::ALL.into_iter().enumerate() {
        assert_eq!(outcome as usize, index);
        assert_eq!(AccelOutcome::from_value(outcome as u32), outcome);
    }
    assert_eq!(AccelOutcome::from_value(99), AccelOutcome::Failed);
    assert_eq!(AccelOutcome::of_insertion(-16), AccelOutcome::InUse);
    assert_eq!(AccelOutcome::of_insertion(-95), AccelOutcome::Unsupported);
}
