//! The supervisor's rules under a paused clock.

use super::*;

const CONFIG: u64 = 7;

fn exited(epoch: u32) -> Event {
    Event::Exited {
        epoch: Epoch(epoch),
        clean: false,
    }
}

fn started() -> Supervisor {
    let mut supervisor = Supervisor::new();
    assert_eq!(
        supervisor.handle(Event::Desired(CONFIG)),
        [Order::Start(Epoch(0))]
    );
    supervisor
}

/// Waits for the deadline and returns how long that took.
async fn wait(supervisor: &Supervisor) -> Duration {
    let start = Instant::now();
    tokio::time::sleep_until(supervisor.deadline().expect("a deadline")).await;
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn an_equal_configuration_starts_nothing() {
    let mut supervisor = started();
    assert_eq!(supervisor.handle(Event::Desired(CONFIG)), []);
    assert_eq!(
        supervisor.handle(Event::Desired(8)),
        [Order::Start(Epoch(1))]
    );
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_ten_times_with_doubling_delays_and_epochs_rise_by_one() {
    let mut supervisor = started();
    let mut delays = Vec::new();
    for epoch in 0..BUDGET {
        assert_eq!(supervisor.handle(exited(epoch)), []);
        delays.push(wait(&supervisor).await.as_millis());
        assert_eq!(
            supervisor.handle(Event::Tick),
            [Order::Start(Epoch(epoch + 1))]
        );
    }
    let expected: Vec<u128> = (0..BUDGET).map(|n| 200 << n).collect();
    assert_eq!(delays, expected);
    assert_eq!(
        supervisor.handle(exited(BUDGET)),
        [Order::Leave { failed: true }]
    );
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ran_for_long_has_a_full_budget() {
    let mut supervisor = started();
    for epoch in 0..3 {
        supervisor.handle(exited(epoch));
        wait(&supervisor).await;
        supervisor.handle(Event::Tick);
    }
    tokio::time::sleep(PROVEN).await;
    supervisor.handle(exited(3));
    assert_eq!(wait(&supervisor).await, FIRST_DELAY);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_drains_the_old_epoch_once_the_new_one_is_ready() {
    let mut supervisor = started();
    supervisor.handle(Event::Ready(Epoch(0)));
    assert_eq!(supervisor.handle(Event::Upgrade), [Order::Start(Epoch(1))]);
    assert_eq!(
        supervisor.handle(Event::Ready(Epoch(1))),
        [Order::Drain(Epoch(0))]
    );
    assert_eq!(supervisor.handle(exited(0)), []);
    assert_eq!(supervisor.deadline(), None);
    assert_eq!(supervisor.running().collect::<Vec<_>>(), [Epoch(1)]);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_fails_leaves_the_old_epoch_serving() {
    let mut supervisor = started();
    supervisor.handle(Event::Ready(Epoch(0)));
    supervisor.handle(Event::Upgrade);
    assert_eq!(supervisor.handle(exited(1)), []);
    assert_eq!(supervisor.running().collect::<Vec<_>>(), [Epoch(0)]);
    assert_eq!(supervisor.deadline(), None);

    supervisor.handle(Event::Upgrade);
    assert_eq!(wait(&supervisor).await, READY_WITHIN);
    assert_eq!(supervisor.handle(Event::Tick), [Order::End(Epoch(2))]);
    assert_eq!(supervisor.handle(exited(2)), []);
    assert_eq!(supervisor.running().collect::<Vec<_>>(), [Epoch(0)]);
}

#[tokio::test(start_paused = true)]
async fn the_old_epoch_failing_during_an_upgrade_is_not_restarted() {
    let mut supervisor = started();
    supervisor.handle(Event::Ready(Epoch(0)));
    supervisor.handle(Event::Upgrade);
    assert_eq!(supervisor.handle(exited(0)), []);
    assert_eq!(supervisor.deadline(), None);
    assert_eq!(supervisor.running().collect::<Vec<_>>(), [Epoch(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_all_epochs_and_then_leaves() {
    let mut supervisor = started();
    supervisor.handle(Event::Upgrade);
    assert_eq!(
        supervisor.handle(Event::Stop),
        [Order::End(Epoch(0)), Order::End(Epoch(1))]
    );
    assert_eq!(supervisor.handle(exited(1)), []);
    assert_eq!(
        supervisor.handle(exited(0)),
        [Order::Leave { failed: false }]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_waiting_leaves_at_once() {
    let mut supervisor = started();
    supervisor.handle(exited(0));
    assert_eq!(
        supervisor.handle(Event::Stop),
        [Order::Leave { failed: false }]
    );
    assert_eq!(supervisor.deadline(), None);
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_ends_giving_up() {
    let mut supervisor = Supervisor::tireless(Duration::from_secs(1));
    supervisor.handle(Event::Desired(CONFIG));
    for epoch in 0..30 {
        supervisor.handle(Event::NotStarted(Epoch(epoch)));
        assert!(wait(&supervisor).await <= Duration::from_secs(1));
        supervisor.handle(Event::Tick);
    }
}
