use core::net::IpAddr;

use super::*;

/// What a pod's maps and namespace would answer.
#[derive(Default)]
struct Facts {
    port_rule: Option<Rule>,
    cidr_rule: Option<Rule>,
    listener: bool,
    is_from_pod_itself: bool,
    announced: Option<Announced>,
    mark_is_forged: bool,
}

impl ConnectFacts for Facts {
    fn port_rule(&self, rule_set: u64, _: u16) -> Option<Rule> {
        assert_eq!(rule_set, RULE_SET);
        self.port_rule
    }

    fn cidr_rule(&self, rule_set: u64, _: &Addr) -> Option<Rule> {
        assert_eq!(rule_set, RULE_SET);
        self.cidr_rule
    }

    fn listener_present(&self, _: u8, _: &Addr, _: u16) -> bool {
        self.listener
    }

    fn is_proxys_own(&self) -> bool {
        !self.mark_is_forged
    }
}

impl LookupFacts for Facts {
    fn port_rule(&self, rule_set: u64, _: u16) -> Option<Rule> {
        assert_eq!(rule_set, RULE_SET);
        self.port_rule
    }

    fn is_from_pod_itself(&self) -> bool {
        self.is_from_pod_itself
    }

    fn announced(&self) -> Option<Announced> {
        self.announced
    }
}

const RULE_SET: u64 = 3;
const CAPTURE: u32 =
    PodPolicy::CAPTURE_OUTBOUND | PodPolicy::CAPTURE_INBOUND | PodPolicy::CAPTURE_DNS;
const ALL_RULES: u32 =
    PodPolicy::OUTBOUND_PORT_RULES | PodPolicy::OUTBOUND_CIDR_RULES | PodPolicy::INBOUND_PORT_RULES;

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("address in a test").into()
}

fn policy(flags: u32) -> PodPolicy {
    PodPolicy {
        rule_set: RULE_SET,
        flags,
        outbound_port: ports::OUTBOUND,
        inbound_port: ports::INBOUND,
        hbone_port: ports::HBONE,
        dns_port: ports::DNS_CAPTURE,
        address_v4: addr("10.0.0.2"),
        address_v6: addr("fd00::2"),
        reserved: 0,
    }
}

fn connect_to(policy: &PodPolicy, to: (&str, u16), protocol: u8, facts: &Facts) -> ConnectVerdict {
    let input = ConnectInput {
        policy: Some(policy),
        node_flags: 0,
        mark: 0,
        protocol,
        destination: OrigDst::new(addr(to.0), to.1),
    };
    connect_verdict(&input, facts)
}

#[test]
fn tcp_of_an_enrolled_pod_is_redirected_whatever_its_family() {
    let policy = policy(CAPTURE);
    for to in ["10.96.0.1", "::ffff:10.96.0.1", "fd00:96::1"] {
        assert_eq!(
            connect_to(&policy, (to, 80), TCP, &Facts::default()),
            ConnectVerdict::Redirect(15001, Counter::ConnectRedirected),
            "{to}"
        );
    }
}

#[test]
fn dns_goes_to_the_dns_listener_by_udp_and_tcp() {
    let policy = policy(CAPTURE);
    for protocol in [TCP, UDP] {
        assert_eq!(
            connect_to(&policy, ("10.96.0.10", 53), protocol, &Facts::default()),
            ConnectVerdict::Redirect(15053, Counter::ConnectDnsRedirected)
        );
    }
}

#[test]
fn what_is_left_alone_is_counted_by_its_reason() {
    use ConnectVerdict::Pass;
    let all = policy(CAPTURE);
    let cases = [
        (("127.0.0.1", 80), TCP, Counter::ConnectLoopback),
        (("127.0.0.53", 53), UDP, Counter::ConnectLoopback),
        (("::1", 80), TCP, Counter::ConnectLoopback),
        (("0.0.0.0", 80), TCP, Counter::ConnectLoopback),
        (("10.0.0.2", 80), TCP, Counter::ConnectOwnAddress),
        (("fd00::2", 80), TCP, Counter::ConnectOwnAddress),
        (("10.96.0.1", 80), UDP, Counter::ConnectOtherProtocol),
        (("10.96.0.1", 53), 132, Counter::ConnectOtherProtocol),
    ];
    for (to, protocol, counter) in cases {
        assert_eq!(
            connect_to(&all, to, protocol, &Facts::default()),
            Pass(counter),
            "{to:?} {protocol}"
        );
    }
    let inbound_only = policy(PodPolicy::CAPTURE_INBOUND);
    assert_eq!(
        connect_to(&inbound_only, ("10.96.0.1", 80), TCP, &Facts::default()),
        Pass(Counter::ConnectOutboundOff)
    );
    assert_eq!(
        connect_to(&inbound_only, ("10.96.0.1", 53), UDP, &Facts::default()),
        Pass(Counter::ConnectOtherProtocol)
    );
}

#[test]
fn a_forged_mark_guards_nothing() {
    let policy = policy(CAPTURE);
    let input = ConnectInput {
        policy: Some(&policy),
        node_flags: 0,
        mark: GUARD_MARK,
        protocol: TCP,
        destination: OrigDst::new(addr("10.96.0.1"), 80),
    };
    let facts = |mark_is_forged| Facts {
        mark_is_forged,
        ..Facts::default()
    };
    assert_eq!(
        connect_verdict(&input, &facts(true)),
        ConnectVerdict::Redirect(15001, Counter::ConnectRedirected)
    );
    assert_eq!(
        connect_verdict(&input, &facts(false)),
        ConnectVerdict::Pass(Counter::ConnectGuardMark)
    );
}

#[test]
fn only_the_low_half_of_the_mark_guards() {
    let policy = policy(CAPTURE);
    for (mark, guarded) in [
        (0x539, true),
        (0x1_0539, true),
        (0xffff_0539, true),
        (0x1539, false),
        (0x5390, false),
    ] {
        let input = ConnectInput {
            policy: Some(&policy),
            node_flags: NodeConfig::PROXY_GONE,
            mark,
            protocol: TCP,
            destination: OrigDst::new(addr("10.96.0.1"), 80),
        };
        let passed = connect_verdict(&input, &Facts::default())
            == ConnectVerdict::Pass(Counter::ConnectGuardMark);
        assert_eq!(passed, guarded, "{mark:#x}");
    }
}

#[test]
fn rules_follow_istios_order() {
    use ConnectVerdict::{Pass, Redirect};
    let captured = Redirect(15001, Counter::ConnectRedirected);
    let dns = Redirect(15053, Counter::ConnectDnsRedirected);
    let only = PodPolicy::OUTBOUND_INCLUDE_ONLY;
    let (include, exclude, own) = (Some(Rule::Include), Some(Rule::Exclude), Some(Rule::Own));
    // (extra flags, port, rule of the port, rule of the range, verdict)
    let cases = [
        (0, 80, None, None, captured),
        (0, 80, exclude, None, Pass(Counter::ConnectExcludedPort)),
        (0, 80, exclude, include, Pass(Counter::ConnectExcludedPort)),
        (0, 80, None, exclude, Pass(Counter::ConnectExcludedCidr)),
        (0, 80, include, exclude, captured),
        (0, 80, None, own, Pass(Counter::ConnectOwnAddress)),
        (0, 80, include, own, Pass(Counter::ConnectOwnAddress)),
        (only, 80, None, None, Pass(Counter::ConnectNotIncluded)),
        (only, 80, include, None, captured),
        (only, 80, None, include, captured),
        (only, 80, None, exclude, Pass(Counter::ConnectExcludedCidr)),
        (only, 53, None, None, dns),
        (0, 53, None, exclude, dns),
        (0, 53, exclude, None, Pass(Counter::ConnectExcludedPort)),
    ];
    for (flags, port, port_rule, cidr_rule, expected) in cases {
        let policy = policy(CAPTURE | ALL_RULES | flags);
        let facts = Facts {
            port_rule,
            cidr_rule,
            ..Facts::default()
        };
        assert_eq!(
            connect_to(&policy, ("10.96.0.1", port), TCP, &facts),
            expected,
            "{flags:#b} {port} {port_rule:?} {cidr_rule:?}"
        );
    }
}

#[test]
fn rules_are_not_looked_up_unless_the_policy_says_that_there_are_some() {
    let facts = Facts {
        port_rule: Some(Rule::Exclude),
        cidr_rule: Some(Rule::Exclude),
        ..Facts::default()
    };
    assert_eq!(
        connect_to(&policy(CAPTURE), ("10.96.0.1", 80), TCP, &facts),
        ConnectVerdict::Redirect(15001, Counter::ConnectRedirected)
    );
}

#[test]
fn capture_loss_is_decided_by_the_pod() {
    use ConnectVerdict::{Direct, Redirect, Refuse};
    let redirected = Redirect(15001, Counter::ConnectRedirected);
    // (open, proxy gone, listener, verdict)
    let cases = [
        (false, false, false, redirected),
        (false, true, true, Refuse(Counter::ConnectProxyGoneRefused)),
        (true, true, true, Direct(Counter::ConnectProxyGoneDirect)),
        (true, false, false, Direct(Counter::ConnectListenerMissing)),
        (true, false, true, redirected),
    ];
    for (open, gone, listener, expected) in cases {
        let policy = policy(CAPTURE | if open { PodPolicy::OPEN } else { 0 });
        let input = ConnectInput {
            policy: Some(&policy),
            node_flags: if gone { NodeConfig::PROXY_GONE } else { 0 },
            mark: 0,
            protocol: TCP,
            destination: OrigDst::new(addr("10.96.0.1"), 80),
        };
        let facts = Facts {
            listener,
            ..Facts::default()
        };
        assert_eq!(
            connect_verdict(&input, &facts),
            expected,
            "{open} {gone} {listener}"
        );
    }
}

fn inbound(
    policy: &PodPolicy,
    ingress_ifindex: u32,
    port: u16,
    node_flags: u32,
    facts: &Facts,
) -> LookupVerdict {
    let input = LookupInput {
        policy: Some(policy),
        node_flags,
        protocol: TCP,
        ingress_ifindex,
        local_port: port,
    };
    lookup_verdict(&input, facts)
}

#[test]
fn inbound_is_steered_unless_there_is_a_reason() {
    use LookupVerdict::{Pass, Steer};
    let only = PodPolicy::INBOUND_INCLUDE_ONLY;
    let with_rule = |port_rule| Facts {
        port_rule: Some(port_rule),
        ..Facts::default()
    };
    let announced = |announced| Facts {
        announced: Some(announced),
        ..Facts::default()
    };
    let own = Facts {
        is_from_pod_itself: true,
        ..Facts::default()
    };
    // (extra flags, interface, port, facts, verdict)
    let cases = [
        (0, 2, 80, Facts::default(), Steer),
        (0, 1, 80, Facts::default(), Pass(Counter::LookupLocal)),
        (0, 0, 80, Facts::default(), Pass(Counter::LookupLocal)),
        (0, 2, 80, own, Pass(Counter::LookupLocal)),
        (
            0,
            2,
            80,
            announced(Announced::Host),
            Pass(Counter::LookupHostOriginated),
        ),
        (
            0,
            2,
            80,
            announced(Announced::Delivery),
            Pass(Counter::LookupDelivery),
        ),
        (
            0,
            2,
            80,
            with_rule(Rule::Exclude),
            Pass(Counter::LookupExcludedPort),
        ),
        (only, 2, 80, with_rule(Rule::Include), Steer),
        (
            only,
            2,
            80,
            Facts::default(),
            Pass(Counter::LookupNotIncluded),
        ),
    ];
    for (flags, interface, port, facts, expected) in cases {
        let policy = policy(CAPTURE | ALL_RULES | flags);
        assert_eq!(
            inbound(&policy, interface, port, 0, &facts),
            expected,
            "{flags:#b} {interface}"
        );
    }
    for port in [15001, 15006, 15008, 15053, 15020, 15021, 15090] {
        let verdict = inbound(&policy(CAPTURE), 2, port, 0, &Facts::default());
        assert_eq!(verdict, Pass(Counter::LookupReservedPort), "{port}");
    }
    let outbound_only = policy(PodPolicy::CAPTURE_OUTBOUND);
    let verdict = inbound(&outbound_only, 2, 80, 0, &Facts::default());
    assert_eq!(verdict, Pass(Counter::LookupInboundOff));
}

#[test]
fn inbound_capture_loss_is_decided_by_the_pod() {
    let (closed, open) = (policy(CAPTURE), policy(CAPTURE | PodPolicy::OPEN));
    let refuse = LookupVerdict::Refuse(Counter::LookupListenerMissingRefused);
    let direct = LookupVerdict::Direct(Counter::LookupListenerMissingDirect);
    assert_eq!(missing_listener(&closed), refuse);
    assert_eq!(missing_listener(&open), direct);
    let gone = NodeConfig::PROXY_GONE;
    assert_eq!(inbound(&closed, 2, 80, gone, &Facts::default()), refuse);
    assert_eq!(inbound(&open, 2, 80, gone, &Facts::default()), direct);
    let probe = Facts {
        announced: Some(Announced::Host),
        ..Facts::default()
    };
    let passed = LookupVerdict::Pass(Counter::LookupHostOriginated);
    assert_eq!(
        inbound(&closed, 2, 80, gone, &probe),
        passed,
        "a probe needs no proxy"
    );
}

#[test]
fn peer_is_hidden_only_where_the_socket_was_redirected_to() {
    let asked = OrigDst::new(addr("10.96.0.1"), 80);
    let state = SocketState {
        orig_dst: asked,
        redirected_port: 15001,
        role: SocketRole::Redirected as u8,
        counted: 0,
    };
    let loopback = addr("127.0.0.1");
    assert_eq!(hidden_peer(Some(&state), &loopback, 15001), Some(asked));
    assert_eq!(
        hidden_peer(Some(&state), &addr("::ffff:127.0.0.1"), 15001),
        Some(asked)
    );
    assert_eq!(hidden_peer(Some(&state), &loopback, 15053), None);
    assert_eq!(hidden_peer(Some(&state), &addr("10.96.0.2"), 15001), None);
    assert_eq!(hidden_peer(None, &loopback, 15001), None);
    for role in [SocketRole::Plain, SocketRole::Accepted] {
        let state = SocketState {
            role: role as u8,
            ..state
        };
        assert_eq!(
            hidden_peer(Some(&state), &loopback, 15001),
            None,
            "{role:?}"
        );
    }
}

#[test]
fn original_destination_is_told_in_its_own_family_only() {
    let (v4, v6) = (addr("10.96.0.1"), addr("fd00:96::1"));
    // (level, option, known, answer)
    let cases = [
        (SOL_IP, SO_ORIGINAL_DST, Some(v4), OrigDstAnswer::V4),
        (SOL_IPV6, SO_ORIGINAL_DST, Some(v6), OrigDstAnswer::V6),
        (SOL_IP, SO_ORIGINAL_DST, Some(v6), OrigDstAnswer::Leave),
        (SOL_IPV6, SO_ORIGINAL_DST, Some(v4), OrigDstAnswer::Leave),
        (SOL_IP, SO_ORIGINAL_DST, None, OrigDstAnswer::Leave),
    ];
    for (level, optname, known, expected) in cases {
        assert_eq!(
            getsockopt_verdict(level, optname, || known),
            expected,
            "{level} {known:?}"
        );
    }
}

#[test]
fn other_options_cost_nothing() {
    for (level, optname) in [(1, 80), (SOL_IP, 1), (SOL_IPV6, 26)] {
        let asked = || -> Option<Addr> { unreachable!("nobody needs to know") };
        assert_eq!(
            getsockopt_verdict(level, optname, asked),
            OrigDstAnswer::Leave
        );
    }
}

#[test]
fn callbacks_mean_what_the_kernel_numbers_say() {
    assert_eq!(sockops_event(3, 0), SocketEvent::Connecting);
    assert_eq!(sockops_event(4, 0), SocketEvent::Connected);
    assert_eq!(sockops_event(5, 0), SocketEvent::Accepted);
    assert_eq!(sockops_event(10, 7), SocketEvent::Closed);
    for (op, state) in [(10, 1), (1, 0), (2, 0), (6, 7), (12, 0)] {
        assert_eq!(
            sockops_event(op, state),
            SocketEvent::Ignore,
            "{op} {state}"
        );
    }
}

#[test]
fn applications_sockets_are_told_from_the_proxys() {
    // (accepted, mark, application's)
    let cases = [
        (false, 0, true),
        (false, 0x539, false),
        (false, 0x1_0539, false),
        (true, 0, true),
        (true, 0x539, false),
        (true, 0x1_0539, true),
    ];
    for (accepted, mark, expected) in cases {
        assert_eq!(
            is_application_socket(accepted, mark),
            expected,
            "{accepted} {mark:#x}"
        );
    }
}

#[test]
fn announcements_follow_namespace_and_mark() {
    let node = NodeConfig {
        host_netns_cookie: 1,
        ..NodeConfig::default()
    };
    assert_eq!(announcement(1, &node, 0), Some(Announced::Host));
    assert_eq!(announcement(9, &node, 0x1_0539), Some(Announced::Delivery));
    for mark in [0, 0x539, 0x1_0000] {
        assert_eq!(announcement(9, &node, mark), None, "{mark:#x}");
    }
}

#[test]
fn reversed_tuple_is_the_other_ends() {
    let tuple = crate::SockTuple {
        netns_cookie: 5,
        local: addr("10.0.0.1"),
        remote: addr("127.0.0.1"),
        local_port: 4000,
        remote_port: 15001,
        reserved: 0,
    };
    let other = tuple.reversed();
    assert_eq!((other.local, other.local_port), (tuple.remote, 15001));
    assert_eq!(other.reversed(), tuple);
}
