//! Flags of the three modes.

use super::*;

fn config(line: &str) -> Result<Config, InvalidArgs> {
    let words = std::iter::once("millrace-proxy").chain(line.split_whitespace());
    Config::try_from(Args::try_parse_from(words).unwrap())
}

#[test]
fn a_nodes_proxy_has_istios_node_id_and_the_fixed_ports() {
    let line = "--node-name n1 --node-ip 10.0.0.1 --xds-addr http://127.0.0.1:15010 --epoch 3";
    let config = config(line).unwrap();
    let Mode::Node { run_dir, xds } = config.mode else {
        panic!("not a node's proxy");
    };
    assert_eq!(run_dir, PathBuf::from("/run/millrace"));
    assert_eq!(xds.node_id, "node~10.0.0.1~n1~cluster.local");
    assert_eq!(config.epoch, 3);
    assert_eq!(config.admin_addr, Some("127.0.0.1:15000".parse().unwrap()));
    assert_eq!(config.ready_addr, Some("0.0.0.0:15021".parse().unwrap()));
    assert!(config.workers >= 1);
}

#[test]
fn envoys_flags_name_a_sidecar() {
    let line = "--sidecar --xds-addr http://pilot:15010 --restart-epoch 1 --drain-time-s 45 \
        --service-node sidecar~10.1.1.1~p.default~default.svc.cluster.local --concurrency 2 -l debug";
    let config = config(line).unwrap();
    let Mode::Sidecar { xds, .. } = config.mode else {
        panic!("not a sidecar");
    };
    assert_eq!(
        xds.node_id,
        "sidecar~10.1.1.1~p.default~default.svc.cluster.local"
    );
    assert_eq!((config.epoch, config.workers), (1, 2));
}

#[test]
fn the_times_of_an_upgrade_are_understood_in_every_spelling() {
    let of = |flags: &str| {
        let config = config(&format!("-c envoy.yaml {flags}")).unwrap();
        (
            config.drain_time.as_secs(),
            config.parent_shutdown.as_secs(),
        )
    };
    assert_eq!(of(""), (45, 60));
    assert_eq!(
        of("--drain-duration 5s --parent-shutdown-duration 1m10s"),
        (5, 70)
    );
    assert_eq!(
        of("--drainDuration 45s --parentShutdownDuration 1m0s"),
        (45, 60)
    );
    assert_eq!(of("--drain-time-s 7 --parent-shutdown-time-s 8"), (7, 8));
}

#[test]
fn a_sidecars_node_id_is_made_of_its_pod() {
    let line = "--sidecar --xds-addr http://pilot:15010 --pod-name p --pod-namespace shop --node-ip 10.1.1.1";
    let Mode::Sidecar { xds, .. } = config(line).unwrap().mode else {
        panic!("not a sidecar");
    };
    assert_eq!(
        xds.node_id,
        "sidecar~10.1.1.1~p.shop~shop.svc.cluster.local"
    );
}

#[test]
fn alone_from_a_file_no_port_is_opened_that_the_file_does_not_ask_for() {
    let config = config("-c envoy.yaml").unwrap();
    assert_eq!(config.admin_addr, None);
    assert_eq!((config.metrics_addr, config.ready_addr), (None, None));
}

#[test]
fn what_is_missing_is_named() {
    for (line, part) in [
        ("--xds-addr http://p:1", "--node-name"),
        ("--node-name n", "--xds-addr"),
        ("--sidecar --xds-addr http://p:1", "--pod-name"),
        ("--node-name n --xds-addr pilot:15010", "http://host:port"),
        (
            "--node-name n --xds-addr http://p:1 --workers 1000",
            "--workers",
        ),
    ] {
        let error = config(line).unwrap_err().to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
}

#[test]
fn epochs_that_have_no_broker_meet_by_name() {
    let of = |line: &str| {
        let name = config(line).unwrap().hot_restart;
        name.map(|name| name.display().to_string())
    };
    let sidecar = "--sidecar --xds-addr http://p:1 --pod-name p --pod-namespace s";
    assert_eq!(of(sidecar).unwrap(), "@millrace-sidecar-0");
    // Envoy's arguments of R30.
    let file = "-c envoy-rev0.json --restart-epoch 0 --drain-time-s 45 --parent-shutdown-time-s 60";
    assert_eq!(of(file).unwrap(), "@millrace-proxy-0");
    assert_eq!(
        of(&format!("{file} --base-id 7")).unwrap(),
        "@millrace-proxy-7"
    );
    // One that nobody means to follow.
    assert_eq!(of("-c envoy.yaml"), None);
    let node = "--node-name n1 --xds-addr http://127.0.0.1:15010 --epoch 3";
    assert_eq!(of(node), None);
}
