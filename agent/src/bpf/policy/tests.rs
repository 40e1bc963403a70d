use super::*;

fn nets(text: &[&str]) -> Vec<IpNet> {
    text.iter()
        .map(|net| net.parse().expect("CIDR in a test"))
        .collect()
}

fn ips(text: &[&str]) -> Vec<IpAddr> {
    text.iter()
        .map(|ip| ip.parse().expect("address in a test"))
        .collect()
}

#[test]
fn default_captures_all_and_fails_closed() {
    let words = CapturePolicy::default().words(7, &ips(&["10.0.0.2", "fd00::2"]));
    assert_eq!(words.rule_set, 7);
    assert_eq!(
        words.flags,
        PodPolicy::CAPTURE_OUTBOUND | PodPolicy::CAPTURE_INBOUND | PodPolicy::CAPTURE_DNS
    );
    assert_eq!((words.outbound_port, words.inbound_port), (15001, 15006));
    assert_eq!(IpAddr::from(words.address_v4), ips(&["10.0.0.2"])[0]);
    assert_eq!(IpAddr::from(words.address_v6), ips(&["fd00::2"])[0]);
}

#[test]
fn included_range_inside_an_excluded_one_is_left_out() {
    let policy = CapturePolicy {
        include_outbound_cidrs: Some(nets(&["10.1.2.0/24", "192.168.0.0/16"])),
        exclude_outbound_cidrs: nets(&["10.0.0.0/8"]),
        ..CapturePolicy::default()
    };
    let rules = policy.cidr_rules(&[]);
    assert_eq!(
        rules,
        vec![
            (nets(&["192.168.0.0/16"])[0], Rule::Include),
            (nets(&["10.0.0.0/8"])[0], Rule::Exclude)
        ]
    );
    let words = policy.words(1, &[]);
    assert!(words.has(PodPolicy::OUTBOUND_INCLUDE_ONLY | PodPolicy::OUTBOUND_CIDR_RULES));
}

#[test]
fn ipv4_prefixes_are_counted_within_the_mapped_address() {
    let policy = CapturePolicy {
        exclude_outbound_cidrs: nets(&["10.0.0.0/8", "fd00::/64"]),
        ..CapturePolicy::default()
    };
    let prefixes: Vec<u32> = policy
        .cidr_elements(1, &[])
        .iter()
        .map(|element| element.0)
        .collect();
    assert_eq!(prefixes, [64 + 96 + 8, 64 + 64]);
}

#[test]
fn further_addresses_of_the_pod_become_rules() {
    let policy = CapturePolicy::default();
    let addresses = ips(&["10.0.0.2", "fd00::2", "10.0.0.3"]);
    assert_eq!(
        policy.cidr_rules(&addresses),
        vec![(nets(&["10.0.0.3/32"])[0], Rule::Own)]
    );
    assert!(
        policy
            .words(1, &addresses)
            .has(PodPolicy::OUTBOUND_CIDR_RULES)
    );
}

#[test]
fn excluded_port_is_written_after_an_included_one() {
    let policy = CapturePolicy {
        include_outbound_ports: vec![80],
        exclude_outbound_ports: vec![80],
        include_inbound_ports: Some(vec![]),
        ..CapturePolicy::default()
    };
    let key = PortKey::new(3, Direction::Outbound, 80);
    assert_eq!(
        policy.port_elements(3),
        vec![(key, Rule::Include as u8), (key, Rule::Exclude as u8)]
    );
    assert!(
        policy
            .words(3, &[])
            .has(PodPolicy::INBOUND_INCLUDE_ONLY | PodPolicy::INBOUND_PORT_RULES)
    );
}
