//! The guard as an `nft` script: one transaction. Pure.
//!
//! The table `inet millrace_guard` sees what the IP stack sends, `netdev millrace_guard` what packet sockets
//! put on a device behind its back. Every connection of the pod is judged by its first packet: a socket
//! of the broker's opened it, or it came in; what belongs to neither is refused, SYN or not. Connections that came
//! in before there was a guard are known by name.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use millrace_runtime::handoff::{CaptureMode, DELIVERY_BIT, IptablesConfig};

use super::super::creator::Creator;
use super::TABLE;
use super::older::Older;

/// Bit of a mark on a datagram by which the broker finds out whether the rules know its sockets.
pub(super) const PROOF_BIT: u32 = 0x2_0000;
/// Bit of a mark on a datagram by which the broker says that inbound connections are steered.
pub(super) const STEERED_BIT: u32 = 0x4_0000;
/// How long that holds: long enough for a broker that is replaced.
const STEERED_FOR: &str = "10s";
/// The set that remembers it, an element for each family.
pub(crate) const STEERED: &str = "steered";
/// Sets of the node's own addresses: name, family, type.
const NODE: [(&str, &str, &str); 2] = [("node4", "ip", "ipv4_addr"), ("node6", "ip6", "ipv6_addr")];
/// Conntrack mark of connections that came into the pod.
const CAME_IN: &str = "0x10000000";
/// Conntrack mark of connections that a socket of the broker's opened.
const OURS: &str = "0x20000000";
/// Where packets are seen that come in.
const ARRIVING: &str = "prerouting priority -150";
/// Sets of the connections that are older than the guard: name, family, type of its address.
const OLDER: [(&str, &str, &str); 2] = [
    ("older4", "ip", "ipv4_addr"),
    ("older6", "ip6", "ipv6_addr"),
];
/// An empty chain which says that packet sockets are not held, since the kernel cannot do it.
pub(crate) const UNHELD: &str = "unheld";
const OPENS: &str = "tcp flags & (fin | syn | rst | ack) == syn";
/// Loopback is the first device of every namespace (`loopback_net_init`); its number is compared faster than its
/// name, which another device could be given.
const LOOPBACK: &str = "1";
/// Ends a chain that is about what opens a connection: nearly every packet of one does not.
const GOES_ON: &str = "tcp flags & (fin | syn | rst | ack) != syn accept";

/// What the script says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) config: &'a IptablesConfig,
    pub(super) mode: CaptureMode,
    /// Refuses what is not captured; else only forged marks are taken off.
    pub(super) closed: bool,
    /// Whose sockets are the proxy's; `None` trusts the mark.
    pub(super) creator: Option<&'a Creator>,
    /// Devices on which packet sockets are held; `None` where the kernel cannot do that.
    pub(super) devices: Option<&'a [String]>,
    /// Connections that came in before the pod's first guard.
    pub(super) older: &'a [Older],
    /// The node's own addresses.
    pub(super) node: &'a [IpAddr],
}

/// Marks what comes in from now on, in a namespace that has no guard yet; refused where a whole one is, though
/// not where one was begun and not finished. What is older is then in the kernel's table of sockets.
pub(super) fn watching() -> String {
    let mut script = Script::default();
    for rules in [Vec::new(), arriving()] {
        script.line(format_args!("table inet {TABLE} {{"));
        script.chain("arriving", Some(ARRIVING), &rules);
        script.line(format_args!("}}"));
        if rules.is_empty() {
            script.line(format_args!("flush chain inet {TABLE} arriving"));
        }
    }
    // A whole guard has the set, and then all of this is undone.
    let (name, _, address) = OLDER[0];
    script.line(format_args!(
        "create set inet {TABLE} {name} {{ type {address}; }}"
    ));
    script.line(format_args!("delete set inet {TABLE} {name}"));
    script.text
}

fn arriving() -> Vec<String> {
    vec![
        format!("iif {LOOPBACK} accept"),
        GOES_ON.to_owned(),
        // What passes through the pod did not come to it.
        "fib daddr type != local accept".to_owned(),
        format!("{OPENS} ct mark set ct mark | {CAME_IN}"),
        format!("udp dport 53 ct state new ct mark set ct mark | {CAME_IN}"),
    ]
}

impl Wanted<'_> {
    /// Rules of earlier guards go in the same transaction; the set of cgroups stays, since sockets of an
    /// earlier broker live on.
    pub(super) fn script(&self) -> String {
        let mut script = Script::default();
        script.line(format_args!("table inet {TABLE} {{ }}"));
        script.line(format_args!("flush table inet {TABLE}"));
        script.line(format_args!("table inet {TABLE} {{"));
        if let Some(creator) = self.creator {
            script.line(format_args!(
                "set {} {{ typeof socket cgroupv2 level {}; }}",
                set_of(creator),
                creator.level
            ));
            script.line(format_args!(
                "set nobody {{ typeof socket cgroupv2 level 1; }}"
            ));
        }
        self.sets(&mut script);
        script.chain("judge", None, &self.judge());
        // Before raw, so that conntrack zones and nat see no forged mark.
        script.chain(
            "authenticate",
            Some("output priority -310"),
            &self.authenticate(),
        );
        script.chain("untracked", Some("output priority -305"), &self.untracked());
        // In open pods too, which may be closed at any time: what is under way then goes on.
        script.chain("arriving", Some(ARRIVING), &arriving());
        script.chain("entering", Some("input priority 10"), &self.entering());
        script.chain("leaving", Some("output priority 10"), &self.leaving());
        script.chain("forwarded", Some("forward priority 10"), &self.forwarded());
        if self.devices.is_none() {
            script.chain(UNHELD, None, &[]);
        }
        script.line(format_args!("}}"));
        if let Some(creator) = self.creator {
            script.line(format_args!("{}", admission(creator)));
        }
        for older in self.older {
            let set = OLDER[usize::from(older.remote.is_ipv6())].0;
            let (remote, port, local) = (older.remote, older.remote_port, older.local_port);
            script.line(format_args!(
                "add element inet {TABLE} {set} {{ {remote} . {port} . {local} }}"
            ));
        }
        for (at, (name, _, _)) in NODE.into_iter().enumerate() {
            script.line(format_args!("flush set inet {TABLE} {name}"));
            for address in self.node.iter().filter(|a| usize::from(a.is_ipv6()) == at) {
                script.line(format_args!(
                    "add element inet {TABLE} {name} {{ {address} }}"
                ));
            }
        }
        script.line(format_args!("table netdev {TABLE} {{ }}"));
        script.line(format_args!("delete table netdev {TABLE}"));
        if let Some(devices) = self.devices.filter(|held| self.closed && !held.is_empty()) {
            packet_sockets(&mut script, devices);
        }
        script.text
    }

    /// What the guard remembers: connections that are older, the node's addresses, the broker's word.
    fn sets(&self, script: &mut Script) {
        for (name, _, address) in OLDER {
            script.line(format_args!(
                "set {name} {{ type {address} . inet_service . inet_service; }}"
            ));
        }
        for (name, _, address) in NODE {
            script.line(format_args!("set {name} {{ type {address}; }}"));
        }
        if self.stands_in().is_some() {
            script.line(format_args!(
                "set {STEERED} {{ typeof meta nfproto; flags dynamic,timeout; size 2; timeout {STEERED_FOR}; }}"
            ));
        }
    }

    /// Takes a mark off that the socket's creator may not have: to all that follows the packet is an
    /// application's. Only what opens a connection is looked at, since answers to a delivery carry the mark
    /// of the delivery by right; nor is the rest the broker's word, whose mark an accepted socket may have taken
    /// over from an application's packet (`tcp_fwmark_accept`).
    fn authenticate(&self) -> Vec<String> {
        let Some(creator) = self.creator else {
            return Vec::new();
        };
        let (known, mark) = (known(creator), self.config.proxy_mark);
        let mut rules = vec![
            format!("meta mark & 0xffff != {mark:#x} accept"),
            GOES_ON.to_owned(),
            format!("oif {LOOPBACK} meta mark & {PROOF_BIT:#x} != 0 {known} drop"),
        ];
        if self.stands_in().is_some() {
            rules.push(format!(
                "oif {LOOPBACK} meta mark & {STEERED_BIT:#x} != 0 {known} update @{STEERED} {{ meta nfproto }} drop"
            ));
        }
        rules.extend([
            format!("{known} accept"),
            format!("{OPENS} meta mark set 0"),
            "udp dport 53 meta mark set 0".to_owned(),
        ]);
        rules
    }

    /// Without nat rules nothing on loopback needs conntrack, which would cost each message there.
    fn untracked(&self) -> Vec<String> {
        if !self.closed || self.mode != CaptureMode::Ebpf {
            return Vec::new();
        }
        let ports = format!("{{ {}, {} }}", self.config.proxy_port, self.config.dns_port);
        let mut rules = vec![
            format!("oif != {LOOPBACK} accept"),
            format!("meta mark & {DELIVERY_BIT:#x} != 0 notrack accept"),
        ];
        for loopback in ["ip {} 127.0.0.1", "ip6 {} ::1"] {
            for (side, port) in [("daddr", "dport"), ("saddr", "sport")] {
                let address = loopback.replace("{}", side);
                rules.push(format!("{address} th {port} {ports} notrack accept"));
            }
        }
        rules
    }

    /// Where programs decide who enters: the creator of the sockets that they steer to.
    fn stands_in(&self) -> Option<&Creator> {
        let decided = self.closed && self.mode.is_by_programs();
        self.creator.filter(|_| decided)
    }

    /// Without programs that steer, a connection of a stranger would find the application itself. As long as the
    /// broker says that they are there, they have decided already.
    fn entering(&self) -> Vec<String> {
        let Some(creator) = self.stands_in() else {
            return Vec::new();
        };
        let mut rules = vec![
            format!("iif {LOOPBACK} accept"),
            GOES_ON.to_owned(),
            "meta l4proto != tcp accept".to_owned(),
            format!("meta nfproto @{STEERED} accept"),
        ];
        for port in &self.config.inbound_ports_exclude {
            rules.push(format!("tcp dport {port} accept"));
        }
        rules.push(format!("{} accept", known(creator)));
        for (set, family, _) in NODE {
            // Those that the node makes itself go straight to the application, as with programs.
            rules.push(format!("{family} saddr @{set} accept"));
        }
        match &self.config.inbound_ports_include {
            None => rules.push("reject with tcp reset".to_owned()),
            Some(ports) => rules.extend(
                ports
                    .iter()
                    .map(|port| format!("tcp dport {port} reject with tcp reset")),
            ),
        }
        rules
    }

    fn leaving(&self) -> Vec<String> {
        if !self.closed {
            return Vec::new();
        }
        let known = self
            .creator
            .map(|creator| format!("{} ", known(creator)))
            .unwrap_or_default();
        let mark = self.config.proxy_mark;
        let mut rules = vec![
            format!("oif {LOOPBACK} accept"),
            format!("meta mark & 0xffff == {mark:#x} {known}ct mark set ct mark | {OURS} accept"),
            "meta l4proto != { tcp, udp } accept".to_owned(),
            // What nat rules have just turned round still names the device that it had.
            "fib daddr type local accept".to_owned(),
            format!("{OPENS} goto judge"),
            format!("ct direction reply ct mark & {CAME_IN} != 0 accept"),
        ];
        for (set, family, _) in OLDER {
            rules.push(format!(
                "{family} daddr . tcp dport . tcp sport @{set} accept"
            ));
        }
        if self.creator.is_some() {
            // A socket of any cgroup, which is then an application's: the kernel's own have none.
            rules.push("socket cgroupv2 level 1 != @nobody goto judge".to_owned());
        }
        // What the kernel says for a socket that is gone.
        rules.push(format!("ct mark & {OURS} != 0 accept"));
        rules.push("tcp flags & rst == rst accept".to_owned());
        rules.push("goto judge".to_owned());
        rules
    }

    fn forwarded(&self) -> Vec<String> {
        if !self.closed {
            return Vec::new();
        }
        vec![
            format!("ct mark & {CAME_IN} != 0 accept"),
            "goto judge".to_owned(),
        ]
    }

    /// What capture leaves alone passes, in the order in which capture decides; the rest is refused.
    fn judge(&self) -> Vec<String> {
        let config = self.config;
        if !self.closed {
            return Vec::new();
        }
        let mut rules = Vec::new();
        for port in &config.outbound_ports_exclude {
            rules.push(format!(
                "meta l4proto {{ tcp, udp }} th dport {port} accept"
            ));
        }
        if config.redirect_dns {
            let servers: Vec<String> = config.dns_servers.iter().map(destination).collect();
            let anywhere = [String::new()];
            let servers = if servers.is_empty() {
                &anywhere[..]
            } else {
                &servers[..]
            };
            for server in servers {
                rules.push(format!("{server}udp dport 53 reject"));
                rules.push(format!("{server}tcp dport 53 reject with tcp reset"));
            }
        }
        for cidr in &config.outbound_cidrs_exclude {
            rules.push(format!("{}accept", network(cidr)));
        }
        let refuse = "reject with tcp reset";
        for port in &config.outbound_ports_include {
            rules.push(format!("tcp dport {port} {refuse}"));
        }
        match &config.outbound_cidrs_include {
            None => rules.push(format!("meta l4proto tcp {refuse}")),
            Some(cidrs) => {
                for cidr in cidrs {
                    rules.push(format!("{}meta l4proto tcp {refuse}", network(cidr)));
                }
            }
        }
        rules
    }
}

/// What the IP stack sends has a route by then; what a packet socket sends has none, whatever else it
/// claims to be. Both what the socket says of the frame and the frame itself must be harmless.
fn packet_sockets(script: &mut Script, devices: &[String]) {
    let devices: Vec<String> = devices.iter().map(|name| format!("\"{name}\"")).collect();
    let hook = format!("egress devices = {{ {} }} priority 10", devices.join(", "));
    let mut rules = vec![
        "meta rtclassid >= 0 accept".to_owned(),
        "ether type arp meta protocol arp accept".to_owned(),
    ];
    for family in ["ip", "ip6"] {
        let frame = format!("ether type {family} meta protocol {family}");
        rules.push(format!("{frame} meta l4proto != {{ tcp, udp }} accept"));
        rules.push(format!("{frame} udp dport != 53 accept"));
    }
    rules.push("drop".to_owned());
    script.line(format_args!("table netdev {TABLE} {{"));
    script.chain("leaving", Some(&hook), &rules);
    script.line(format_args!("}}"));
}

/// The command that adds a cgroup to those whose sockets are the proxy's.
pub(super) fn admission(creator: &Creator) -> String {
    format!(
        "add element inet {TABLE} {} {{ \"{}\" }}",
        set_of(creator),
        creator.nft_path
    )
}

fn set_of(creator: &Creator) -> String {
    format!("creators_{}", creator.level)
}

fn known(creator: &Creator) -> String {
    format!(
        "socket cgroupv2 level {} @{}",
        creator.level,
        set_of(creator)
    )
}

fn destination(address: &IpAddr) -> String {
    network(&IpNet::from(*address))
}

/// A match of the destination, with a space behind it.
fn network(cidr: &IpNet) -> String {
    match cidr {
        IpNet::V4(_) => format!("ip daddr {} ", cidr.trunc()),
        IpNet::V6(_) => format!("ip6 daddr {} ", cidr.trunc()),
    }
}

#[derive(Default)]
struct Script {
    text: String,
}

impl Script {
    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        if writeln!(self.text, "{text}").is_err() {
            // fmt::Write for String never fails.
            self.text.push('\n');
        }
    }

    fn chain(&mut self, name: &str, hook: Option<&str>, rules: &[String]) {
        self.line(format_args!("chain {name} {{"));
        if let Some(hook) = hook {
            self.line(format_args!("type filter hook {hook}; policy accept;"));
        }
        for rule in rules {
            self.line(format_args!("{rule}"));
        }
        self.line(format_args!("}}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker() -> Creator {
        Creator {
            id: 7,
            level: 2,
            nft_path: "node/broker".to_owned(),
        }
    }

    fn script(closed: bool, mode: CaptureMode, creator: Option<&Creator>) -> String {
        let config = IptablesConfig::default();
        let devices = ["eth0".to_owned()];
        Wanted {
            config: &config,
            mode,
            closed,
            creator,
            devices: Some(&devices),
            older: &[],
            node: &[],
        }
        .script()
    }

    #[test]
    fn an_open_pod_loses_forged_marks_and_nothing_else() {
        let text = script(false, CaptureMode::Iptables, Some(&broker()));
        assert!(text.contains("meta mark set 0"), "{text}");
        for refusal in ["reject", "egress", "goto judge"] {
            assert!(!text.contains(refusal), "{refusal}: {text}");
        }
    }

    #[test]
    fn what_comes_into_an_open_pod_is_known_when_it_is_closed() {
        let text = script(false, CaptureMode::Iptables, None);
        assert!(
            text.contains(&format!("ct mark set ct mark | {CAME_IN}")),
            "{text}"
        );
    }

    /// The rules of a chain.
    fn chain(text: &str, name: &str) -> Vec<String> {
        let head = format!("chain {name} {{");
        let chain = text.split(&head).nth(1).expect("there");
        let rules = chain.split("\n}").next().expect("closed");
        rules.lines().skip(2).map(str::to_owned).collect()
    }

    #[test]
    fn what_opens_nothing_is_let_go_first_where_nothing_is_decided_about_it_and_only_there() {
        let text = script(true, CaptureMode::Ebpf, Some(&broker()));
        for (name, costs) in [
            ("authenticate", "socket cgroupv2"),
            ("arriving", "fib"),
            ("entering", "@steered"),
        ] {
            let rules = chain(&text, name);
            let at = |what: &str| rules.iter().position(|rule| rule.contains(what));
            assert!(
                at(GOES_ON).is_some_and(|early| Some(early) < at(costs)),
                "{rules:?}"
            );
            // What comes before takes nothing from it.
            assert!(
                rules[..at(GOES_ON).unwrap()]
                    .iter()
                    .all(|rule| rule.ends_with("accept"))
            );
        }
        for name in ["leaving", "forwarded", "judge"] {
            let rules = chain(&text, name);
            assert!(!rules.contains(&GOES_ON.to_owned()), "{rules:?}");
        }
        let leaving = chain(&text, "leaving");
        let at = |what: &str| leaving.iter().position(|rule| rule.contains(what));
        assert!(at("@creators_2 ct mark set") < at("fib"), "{leaving:?}");
    }

    #[test]
    fn only_where_programs_decide_who_enters_does_the_guard_stand_in_for_them() {
        let entering = |closed, mode, creator: Option<&Creator>| {
            chain(&script(closed, mode, creator), "entering")
        };
        let known = Some(broker());
        let rules = entering(true, CaptureMode::Ebpf, known.as_ref());
        let at = |what: &str| rules.iter().position(|rule| rule.contains(what));
        assert!(
            at("@steered accept") < at("@creators_2 accept"),
            "{rules:?}"
        );
        assert!(at("tcp dport 15008") < at("reject"), "{rules:?}");
        assert_eq!(at("reject with tcp reset"), Some(rules.len() - 1));
        for (closed, mode, creator) in [
            (false, CaptureMode::Ebpf, known.as_ref()),
            (true, CaptureMode::Iptables, known.as_ref()),
            (true, CaptureMode::Ebpf, None),
        ] {
            let rules = entering(closed, mode, creator);
            assert!(rules.is_empty(), "{closed} {mode}: {rules:?}");
        }
    }

    #[test]
    fn a_mark_is_believed_only_without_a_cgroup_to_tell_sockets_by() {
        let believed = "meta mark & 0xffff == 0x539 ct mark set";
        let told = "meta mark & 0xffff == 0x539 socket cgroupv2 level 2 @creators_2 ct mark set";
        let with = script(true, CaptureMode::Ebpf, Some(&broker()));
        assert!(with.contains(told) && !with.contains(believed), "{with}");
        let without = script(true, CaptureMode::Ebpf, None);
        assert!(without.contains(believed), "{without}");
    }

    #[test]
    fn the_cgroups_of_earlier_brokers_stay() {
        let text = script(true, CaptureMode::Iptables, Some(&broker()));
        assert!(!text.contains("delete table inet"), "{text}");
        assert!(
            !text.contains("flush set inet millrace_guard creators"),
            "{text}"
        );
        assert!(text.contains("add element inet millrace_guard creators_2 { \"node/broker\" }"));
    }

    #[test]
    fn nat_rules_need_conntrack_on_loopback() {
        let count = |mode| script(true, mode, None).matches("notrack").count();
        assert_eq!(count(CaptureMode::Iptables), 0);
        assert_eq!(count(CaptureMode::Ebpf), 5);
    }

    #[test]
    fn dns_is_refused_before_what_is_excluded_by_address() {
        let config = IptablesConfig {
            outbound_cidrs_exclude: vec!["10.0.0.0/8".parse().expect("a range")],
            ..IptablesConfig::default()
        };
        let wanted = Wanted {
            config: &config,
            mode: CaptureMode::Ebpf,
            closed: true,
            creator: None,
            devices: None,
            older: &[],
            node: &[],
        };
        let rules = wanted.judge();
        let at = |what: &str| rules.iter().position(|rule| rule.contains(what));
        assert!(at("udp dport 53") < at("10.0.0.0/8"), "{rules:?}");
        assert!(at("tcp dport 53") < at("10.0.0.0/8"), "{rules:?}");
        assert_eq!(at("meta l4proto tcp reject"), Some(rules.len() - 1));
    }
}
