//! The rules of acceleration on the running kernel, each also with the rule left out: what it is for.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/accel.rs"]
mod accel;
#[path = "support/bpf.rs"]
mod bpf;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use accel::{Pair, Place, Stream, hear, mark_priority, promote, promoted, say, state, wait};
use bpf::{Captured, Fixture, PATIENCE, accept};
use millrace_agent::bpf::{AccelOutcome, Counter, PodEnrolment, experiment};
use millrace_agent::config::{AgentConfig, Paths};
use millrace_agent::kernel::Kernel;
use millrace_agent::redirect::Wish;
use millrace_runtime::handoff::{PromotionRequest, accel as handoff};
use millrace_testkit::eventually;
use nix::poll::PollFlags;
use nix::sys::socket::{setsockopt, sockopt};

#[test]
fn a_reader_that_never_reads_holds_the_sender_back_as_tcp_does() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    for size in [1, 100, 65_536] {
        let mut plain = place.connect(&listener);
        narrow(&plain);
        let by_tcp = fill(&mut plain.app, size);
        let held_by_tcp = held(&plain);
        let mut pair = promoted(&mut fixture, &place, &listener);
        narrow(&pair);
        let taken = fill(&mut pair.app, size);
        let seen = state(&pair.app).expect("promoted");
        assert!(seen.unread_redirected <= 65_536, "{size}: {seen:?}");
        let (redirected, rest) = (seen.unread_redirected as usize, seen.unread_tcp as usize);
        assert_eq!(redirected + rest, taken, "{size}: {seen:?}");
        // How many bytes TCP takes of small writes depends on how they are merged, but never more than
        // the buffers, which the kernel doubles, can hold.
        let buffers = 2 * (SNDBUF + RCVBUF);
        assert!(
            by_tcp <= buffers && rest <= buffers,
            "{size}: {by_tcp} bytes by TCP alone, {rest} beside {redirected} redirected"
        );
        let held = held(&pair);
        assert!(
            held <= held_by_tcp + 4 * 65_536,
            "{size}: {held} bytes of memory are held, {held_by_tcp} by TCP alone"
        );
        let mut heard = vec![0; taken];
        let mut length = 0;
        while length < taken {
            wait(&pair.proxy, PollFlags::POLLIN);
            length += pair.proxy.read(&mut heard[length..]).expect("read");
        }
        let expected: Vec<u8> = (0..taken as u64).map(|at| accel::tag(9, at)).collect();
        assert!(heard == expected, "{size}: bytes differ");
    }
    assert!(fixture.count(Counter::MessageCapped) > 0);
}

/// `SO_SNDBUF` of [`narrow`].
const SNDBUF: usize = 32_768;
/// `SO_RCVBUF` of [`narrow`].
const RCVBUF: usize = 131_072;

/// Small buffers, so that TCP is full soon.
fn narrow(pair: &Pair) {
    for end in [&pair.app, &pair.proxy] {
        setsockopt(end, sockopt::SndBuf, &SNDBUF).expect("SO_SNDBUF");
        setsockopt(end, sockopt::RcvBuf, &RCVBUF).expect("SO_RCVBUF");
    }
}

/// Kernel memory that both ends are charged with: what they have received, and what they have queued to send
/// (`SO_MEMINFO`, its first and its sixth number).
fn held(pair: &Pair) -> usize {
    let of = |end: &TcpStream| {
        let mut numbers = [0_u32; 9];
        let mut length = libc::socklen_t::try_from(size_of_val(&numbers)).expect("short");
        // SAFETY: the buffer is as long as `length` says and outlives the call.
        let result = unsafe {
            libc::getsockopt(
                end.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                numbers.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        numbers[0] as usize + numbers[5] as usize
    };
    of(&pair.app) + of(&pair.proxy)
}

/// Sends messages of `size` bytes until the kernel takes no more, at most 64 MiB.
fn fill(to: &mut TcpStream, size: usize) -> usize {
    let mut stream = Stream::new(9);
    while stream.sent < 64 << 20 {
        if stream.send(to, size).expect("sent") == 0 {
            break;
        }
    }
    usize::try_from(stream.sent).expect("fits")
}

/// Without rule 3 nothing holds the sender back.
#[test]
fn without_rule_3_a_sender_is_not_held_back() {
    accel::require!();
    let mut fixture = Fixture::with_experiment(experiment::NO_RULE_3);
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    assert_eq!(fill(&mut pair.app, 16_384), 64 << 20);
}

#[test]
fn nothing_overtakes_bytes_that_went_by_tcp() {
    accel::require!();
    let said = |left_out| {
        let mut fixture = Fixture::with_experiment(left_out);
        let place = Place::new(&mut fixture, "app");
        let listener = place.listener("127.0.0.1:0");
        let mut pair = place.connect(&listener);
        pair.exchange();
        let promotion = place.promotion(&pair);
        assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
        say(&mut pair.app, b"first ");
        say(&mut pair.app, b"second");
        let mut heard = [0; 12];
        for half in heard.chunks_mut(6) {
            wait(&pair.proxy, PollFlags::POLLIN);
            pair.proxy.read_exact(half).expect("read");
        }
        let unread = u64::from(left_out & experiment::NO_RULE_1 == 0);
        assert_eq!(fixture.count(Counter::MessageUnreadTcp), unread);
        heard
    };
    assert_eq!(&said(0), b"first second");
    assert_eq!(&said(experiment::NO_RULE_1), b"secondfirst ");
}

#[test]
fn a_side_that_is_shut_down_sends_no_more() {
    accel::require!();
    let sends = |left_out| {
        let mut fixture = Fixture::with_experiment(left_out);
        let place = Place::new(&mut fixture, "app");
        let listener = place.listener("127.0.0.1:0");
        let mut pair = promoted(&mut fixture, &place, &listener);
        pair.app.shutdown(Shutdown::Write).expect("shutdown");
        let sent = pair.app.write(b"too late").map_err(|error| error.kind());
        let by_rule_2 = u64::from(left_out & experiment::NO_RULE_2 == 0);
        assert_eq!(fixture.count(Counter::MessageShutDown), by_rule_2);
        sent
    };
    assert_eq!(sends(0), Err(ErrorKind::BrokenPipe));
    // A FIN counts like a byte by TCP, so that rule 1 is in the way as long as it is unread.
    let without = experiment::NO_RULE_1 | experiment::NO_RULE_2;
    assert_eq!(sends(experiment::NO_RULE_1), Err(ErrorKind::BrokenPipe));
    assert_eq!(sends(without), Ok(8));
}

/// A `recv` that sleeps since before the promotion: for blocking sockets it is easy to have, and why they are
/// refused; for others it lasts a moment.
#[test]
fn a_read_that_began_before_promotion_loses_nothing() {
    accel::require!();
    let heard = |experiment| {
        let mut fixture = Fixture::with_experiment(experiment | experiment::BLOCKING);
        let place = Place::new(&mut fixture, "app");
        let listener = place.listener("127.0.0.1:0");
        let mut pair = place.connect(&listener);
        pair.exchange();
        let promotion = place.promotion(&pair);
        let Pair { mut app, mut proxy } = pair;
        proxy.set_nonblocking(false).expect("O_NONBLOCK");
        let (told, reader) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                told.send(nix::unistd::gettid()).expect("somebody listens");
                let mut heard = [0; 16];
                let length = proxy.read(&mut heard).expect("read");
                heard[..length].to_vec()
            });
            sleeps_in_recv(reader.recv().expect("a thread"));
            assert_eq!(promote(&mut fixture, promotion), AccelOutcome::Done);
            say(&mut app, b"last words");
            app.shutdown(Shutdown::Write).expect("shutdown");
            reading.join().expect("reads")
        })
    };
    assert_eq!(heard(0), b"last words");
    assert_eq!(heard(experiment::NO_RULE_4), b"", "the end came first");
}

/// Waits until a thread of this process sleeps in `recvfrom(2)` (number 45 on x86-64) or `read(2)`.
fn sleeps_in_recv(thread: nix::unistd::Pid) {
    let path = format!("/proc/self/task/{thread}/syscall");
    eventually(PATIENCE, "the reader sleeps", || {
        std::fs::read_to_string(&path)
            .is_ok_and(|text| text.starts_with("45 ") || text.starts_with("0 "))
    });
}

#[test]
fn fionread_counts_redirected_bytes() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    say(&mut pair.proxy, b"0123456789");
    let waiting = || {
        let mut count = 0_i32;
        // SAFETY: writes one integer that outlives the call.
        let result = unsafe { libc::ioctl(pair.app.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        assert_eq!(result, 0);
        count
    };
    assert_eq!(waiting(), 10);
    (&pair.app).read_exact(&mut [0; 4]).expect("read");
    assert_eq!(waiting(), 6);
    (&pair.app).read_exact(&mut [0; 6]).expect("read");
    // But only those on Linux 6.18 (`tcp_bpf_ioctl`), where 6.12.117 counts 6. nginx asks when a read has filled its buffer, and takes 0 for
    // "nothing left until the next event": why an application in the map is sent nothing by TCP.
    mark_priority(&pair.proxy, handoff::PRIORITY_OUT);
    say(&mut pair.proxy, b"by TCP");
    wait(&pair.app, PollFlags::POLLIN);
    assert!(matches!(waiting(), 0 | 6));
    hear(&mut pair.app, b"by TCP");
}

/// What the proxy must not do, and why: an edge-triggered reader that takes a short read for the last one.
#[test]
fn both_kinds_pending_are_two_reads_and_counted() {
    accel::require!();
    let mut fixture = Fixture::new();
    let place = Place::new(&mut fixture, "app");
    let listener = place.listener("127.0.0.1:0");
    let mut pair = promoted(&mut fixture, &place, &listener);
    say(&mut pair.proxy, b"small");
    mark_priority(&pair.proxy, handoff::PRIORITY_OUT);
    say(&mut pair.proxy, b"by TCP");
    assert_eq!(fixture.count(Counter::MessageMixed), 1);
    let mut buffer = [0; 64];
    wait(&pair.app, PollFlags::POLLIN);
    assert_eq!(pair.app.read(&mut buffer).expect("read"), 5);
    wait(&pair.app, PollFlags::POLLIN);
    assert_eq!(pair.app.read(&mut buffer).expect("read"), 6);
}

/// The agent ends the acceleration of a pod whose program leaves redirected bytes unread.
#[test]
fn a_stalled_reader_ends_the_acceleration_of_its_pod() {
    accel::require!();
    let mut fixture = Fixture::new();
    fixture.kill_agent();
    let kernel = Kernel::load(&agent(&fixture));
    let app = Captured::new(fixture.pod("app"));
    kernel
        .enroll(&PodEnrolment {
            netns_cookie: app.cookie,
            netns: app.pod.netns().file().as_fd(),
            ips: vec![app.pod.ip(), app.pod.ip6()],
            policy: accel::accelerated(),
            inbound_listeners: app
                .inbound
                .iter()
                .map(|listener| listener.as_fd())
                .collect(),
        })
        .expect("enrolled");
    let node = &fixture.node;
    let uid = "u-1".into();
    let netns = app.pod.netns().file();
    node.run(|| {
        kernel.accelerate(
            &uid,
            app.cookie,
            netns.as_fd(),
            accel::accelerated().acceleration,
        );
        Ok(())
    })
    .expect("runs");
    let listener = accel::listener(&app.pod, bpf::addr("127.0.0.1:0"), Some(accel::PROXY_MARK));
    let connect = || {
        let to = listener.local_addr().expect("bound");
        let socket = app.pod.connect(to).expect("connected");
        Pair::new(socket, accept(&listener).0)
    };
    let ask = |pair: &Pair| {
        let request = PromotionRequest {
            id: 1,
            uid: uid.clone(),
            local: pair.proxy.local_addr().expect("bound"),
            remote: pair.proxy.peer_addr().expect("connected"),
        };
        let result = node.run(|| Ok(kernel.promote(&request)));
        result.expect("runs").refused
    };
    let mut pair = connect();
    assert_eq!(ask(&pair), None);
    pair.exchange();
    pair.exchange();
    // What the proxy does not read for a while holds an application back and is nobody's fault.
    say(&mut pair.app, b"unread");
    kernel.suspend_stalled(Duration::ZERO);
    assert!(!kernel.pod_acceleration(app.cookie).suspended);
    hear(&mut pair.proxy, b"unread");
    say(&mut pair.proxy, b"unread");
    kernel.suspend_stalled(Duration::from_hours(1));
    assert!(!kernel.pod_acceleration(app.cookie).suspended);
    kernel.suspend_stalled(Duration::ZERO);
    let counts = kernel.pod_acceleration(app.cookie);
    assert_eq!((counts.stalled, counts.suspended), (1, true));
    hear(&mut pair.app, b"unread");
    pair.exchange();
    let after = kernel.pod_acceleration(app.cookie);
    assert_eq!(after.redirected_messages, counts.redirected_messages);
    assert_eq!(ask(&connect()), Some(handoff::Refusal::Off));
}

fn agent(fixture: &Fixture) -> AgentConfig {
    let node = &fixture.node;
    AgentConfig {
        paths: Paths {
            run_dir: node.run_dir(),
            state_dir: node.state_dir(),
            bpffs_dir: node.bpffs_dir(),
        },
        node_name: "node".to_owned(),
        pods_dir: node.pods_dir(),
        cgroup: Some(node.cgroup_root().to_owned()),
        capture: Wish::Auto,
        host_netns_cookie: Some(bpf::cookie_of(node)),
        proxy_uid: 0,
        canary_interval: None,
    }
}
