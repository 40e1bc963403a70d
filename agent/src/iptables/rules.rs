//! Configuration → rule sets → `iptables-restore` scripts. Pure.
//!
//! Two forms: the seed-era one, which is R38's eight rules with both directions on one port, and
//! the modern one with an inbound port of its own, exclusions, DNS and the mark of the proxy's
//! sockets. Chains carry Istio's names, so that its tools and people's habits work on them.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use millrace_runtime::handoff::{Family, IptablesConfig};

const INBOUND: &str = "ISTIO_INBOUND";
const OUTPUT: &str = "ISTIO_OUTPUT";
const REDIRECT: &str = "ISTIO_REDIRECT";
const IN_REDIRECT: &str = "ISTIO_IN_REDIRECT";
const OUTPUT_DNS: &str = "ISTIO_OUTPUT_DNS";
/// Every chain that either form makes.
pub const CHAINS: [&str; 5] = [INBOUND, OUTPUT, REDIRECT, IN_REDIRECT, OUTPUT_DNS];
/// The chains that packets come through first, in the nat table.
pub(super) const CAPTURE_CHAINS: [&str; 3] = [INBOUND, OUTPUT, OUTPUT_DNS];
/// Every table that either form uses.
pub const TABLES: [&str; 2] = ["nat", "raw"];
/// Conntrack zones that keep the proxy's own DNS apart from the application's.
const ZONE_UPSTREAM: &str = "1";
const ZONE_CAPTURED: &str = "2";

/// The rules of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Which family.
    pub family: Family,
    /// Its tables, in the order in which they are written.
    pub tables: Vec<Table>,
}

/// The rules of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `nat` or `raw`.
    pub name: &'static str,
    /// Chains of our own, written anew each time.
    pub chains: Vec<&'static str>,
    /// Jumps from built-in chains, written once.
    pub jumps: Vec<Rule>,
    /// Rules of our own chains, in order.
    pub rules: Vec<Rule>,
}

/// One rule: its chain and its specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain that it is appended to.
    pub chain: &'static str,
    /// Matches and target.
    pub spec: String,
}

impl Rule {
    fn new(chain: &'static str, spec: impl Into<String>) -> Self {
        Self {
            chain,
            spec: spec.into(),
        }
    }
}

impl Ruleset {
    /// The restore script; jumps for which `present` says yes are left out, since `--noflush`
    /// leaves built-in chains as they are.
    pub fn script(&self, present: impl Fn(&Table, &Rule) -> bool) -> String {
        let mut script = String::new();
        for table in &self.tables {
            line(&mut script, format_args!("*{}", table.name));
            for chain in &table.chains {
                line(&mut script, format_args!(":{chain} - [0:0]"));
            }
            let jumps = table.jumps.iter().filter(|jump| !present(table, jump));
            for rule in jumps.chain(&table.rules) {
                line(&mut script, format_args!("-A {} {}", rule.chain, rule.spec));
            }
            line(&mut script, format_args!("COMMIT"));
        }
        script
    }
}

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    if writeln!(script, "{text}").is_err() {
        // fmt::Write for String never fails.
        script.push('\n');
    }
}

/// The rule sets of `config`: IPv4 and, where it is asked for, IPv6.
pub fn rulesets(config: &IptablesConfig) -> Vec<Ruleset> {
    rulesets_at(config, &[])
}

/// The rule sets of a pod whose listeners are reached at `addresses`, the first of each family;
/// where there is none, at the loopback address that `REDIRECT` chooses.
///
/// The eBPF programs send a pod's connections to loopback, from the pod's address. If the rules did
/// so too, connections of both ways could share a tuple while one follows the other, and
/// conntrack would give the younger another source port, under which nobody knows its destination.
pub fn rulesets_at(config: &IptablesConfig, addresses: &[IpAddr]) -> Vec<Ruleset> {
    let first = |v4: bool| addresses.iter().copied().find(|a| a.is_ipv4() == v4);
    let mut sets = vec![ruleset(config, Family::V4, first(true))];
    if config.ipv6 {
        sets.push(ruleset(config, Family::V6, first(false)));
    }
    sets
}

fn ruleset(config: &IptablesConfig, family: Family, at: Option<IpAddr>) -> Ruleset {
    let loopback = match family {
        Family::V4 => "127.0.0.1/32",
        Family::V6 => "::1/128",
    };
    let tables = if config.seed_era {
        vec![seed_era(config, loopback)]
    } else {
        let mut tables = vec![modern(config, family, loopback, at)];
        if config.redirect_dns {
            tables.push(zones(config, family));
        }
        tables
    };
    Ruleset { family, tables }
}

/// R38 with the two rules of its note.
fn seed_era(config: &IptablesConfig, loopback: &str) -> Table {
    let mut rules = vec![
        Rule::new(
            REDIRECT,
            format!("-p tcp -j REDIRECT --to-port {}", config.proxy_port),
        ),
        Rule::new(INBOUND, format!("-p tcp -j {REDIRECT}")),
        Rule::new(OUTPUT, format!("-o lo ! -d {loopback} -j {REDIRECT}")),
    ];
    for uid in &config.proxy_uids {
        rules.push(Rule::new(
            OUTPUT,
            format!("-m owner --uid-owner {uid} -j RETURN"),
        ));
    }
    rules.push(Rule::new(OUTPUT, format!("-d {loopback} -j RETURN")));
    rules.push(Rule::new(OUTPUT, format!("-j {REDIRECT}")));
    Table {
        name: "nat",
        chains: vec![REDIRECT, INBOUND, OUTPUT],
        jumps: vec![
            Rule::new("PREROUTING", format!("-p tcp -j {INBOUND}")),
            Rule::new("OUTPUT", format!("-p tcp -j {OUTPUT}")),
        ],
        rules,
    }
}

/// The target that sends a connection of the pod to a listener.
fn to_listener(at: Option<IpAddr>, port: u16) -> String {
    match at {
        Some(address) => format!(
            "DNAT --to-destination {}",
            std::net::SocketAddr::new(address, port)
        ),
        None => format!("REDIRECT --to-ports {port}"),
    }
}

fn modern(config: &IptablesConfig, family: Family, loopback: &str, at: Option<IpAddr>) -> Table {
    let mut table = Table {
        name: "nat",
        chains: vec![INBOUND, REDIRECT, IN_REDIRECT, OUTPUT],
        jumps: vec![
            Rule::new("PREROUTING", format!("-p tcp -j {INBOUND}")),
            Rule::new("OUTPUT", format!("-p tcp -j {OUTPUT}")),
        ],
        rules: vec![
            Rule::new(
                REDIRECT,
                format!("-p tcp -j {}", to_listener(at, config.proxy_port)),
            ),
            Rule::new(
                IN_REDIRECT,
                format!(
                    "-p tcp -j REDIRECT --to-ports {}",
                    config.inbound_capture_port
                ),
            ),
        ],
    };
    table.rules.extend(inbound(config, family));
    table.rules.extend(own_traffic(config, family, loopback));
    table.rules.extend(outbound(config, family, loopback, at));
    if config.redirect_dns {
        table.chains.push(OUTPUT_DNS);
        table.jumps.push(Rule::new(
            "OUTPUT",
            format!("-p udp -m udp --dport 53 -j {OUTPUT_DNS}"),
        ));
        table.rules.extend(datagram_dns(config, family));
    }
    table
}

/// The first packet that conntrack sees of a connection older than these rules opens nothing, and
/// often comes from the peer: redirected, it would reset a connection of a pod that runs already.
const NOT_OPENING: &str = "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN";

fn inbound(config: &IptablesConfig, family: Family) -> Vec<Rule> {
    // A delivery has passed the proxy already; loopback shows it to PREROUTING as well.
    let bit = config.delivery_bit;
    let mut specs = vec![
        NOT_OPENING.to_owned(),
        format!("-m mark --mark {bit:#x}/{bit:#x} -j RETURN"),
    ];
    for source in &config.host_probe_sources {
        if let Some(source) = host(*source, family) {
            specs.push(format!("-s {source} -p tcp -j RETURN"));
        }
    }
    for port in &config.inbound_ports_exclude {
        specs.push(format!("-p tcp -m tcp --dport {port} -j RETURN"));
    }
    match &config.inbound_ports_include {
        None => specs.push(format!("-p tcp -j {IN_REDIRECT}")),
        Some(ports) => specs.extend(
            ports
                .iter()
                .map(|port| format!("-p tcp -m tcp --dport {port} -j {IN_REDIRECT}")),
        ),
    }
    in_chain(INBOUND, specs)
}

/// The loop guards: what a proxy sends is never captured, except that a sidecar's call to its own
/// pod passes its inbound side.
fn own_traffic(config: &IptablesConfig, family: Family, loopback: &str) -> Vec<Rule> {
    let passthrough = match family {
        Family::V4 => "127.0.0.6/32",
        Family::V6 => "::6/128",
    };
    let mark = config.proxy_mark;
    let not_dns = if config.redirect_dns {
        "-p tcp -m tcp ! --dport 53"
    } else {
        "-p tcp"
    };
    let mut specs = vec![
        NOT_OPENING.to_owned(),
        format!("-s {passthrough} -o lo -j RETURN"),
        format!("-m mark --mark {mark:#x}/0xffff -j RETURN"),
    ];
    for owner in owners(config) {
        specs.push(format!(
            "! -d {loopback} -o lo {not_dns} -m owner {owner} -j {IN_REDIRECT}"
        ));
        specs.push(format!("-o lo {not_dns} -m owner ! {owner} -j RETURN"));
        specs.push(format!("-m owner {owner} -j RETURN"));
    }
    if owners(config).next().is_none() {
        // What a pod sends to its own address is an application's, whoever runs it.
        specs.push(format!("-o lo {not_dns} -j RETURN"));
    }
    in_chain(OUTPUT, specs)
}

fn outbound(
    config: &IptablesConfig,
    family: Family,
    loopback: &str,
    at: Option<IpAddr>,
) -> Vec<Rule> {
    let mut specs = Vec::new();
    for port in &config.outbound_ports_exclude {
        specs.push(format!("-p tcp -m tcp --dport {port} -j RETURN"));
    }
    if config.redirect_dns {
        for server in dns_servers(config, family, "-d") {
            specs.push(format!(
                "{server}-p tcp -m tcp --dport 53 -j {}",
                to_listener(at, config.dns_port)
            ));
        }
    }
    specs.push(format!("-d {loopback} -j RETURN"));
    for cidr in of_family(&config.outbound_cidrs_exclude, family) {
        specs.push(format!("-d {cidr} -j RETURN"));
    }
    for port in &config.outbound_ports_include {
        specs.push(format!("-p tcp -m tcp --dport {port} -j {REDIRECT}"));
    }
    match &config.outbound_cidrs_include {
        None => specs.push(format!("-j {REDIRECT}")),
        Some(cidrs) => {
            for cidr in of_family(cidrs, family) {
                specs.push(format!("-d {cidr} -j {REDIRECT}"));
            }
        }
    }
    in_chain(OUTPUT, specs)
}

fn datagram_dns(config: &IptablesConfig, family: Family) -> Vec<Rule> {
    let mut specs: Vec<String> = proxy_matches(config)
        .map(|proxy| format!("{proxy} -j RETURN"))
        .collect();
    for server in dns_servers(config, family, "-d") {
        specs.push(format!(
            "{server}-p udp -m udp --dport 53 -j REDIRECT --to-ports {}",
            config.dns_port
        ));
    }
    in_chain(OUTPUT_DNS, specs)
}

/// Conntrack zones: the proxy asks the same resolvers from the same pod, and without zones its
/// question could share a port with an application's redirected one.
fn zones(config: &IptablesConfig, family: Family) -> Table {
    let dns_port = config.dns_port;
    let mut specs: Vec<String> = proxy_matches(config)
        .flat_map(|proxy| {
            [
                format!("-p udp -m udp --dport 53 {proxy} -j CT --zone {ZONE_UPSTREAM}"),
                format!("-p udp -m udp --sport {dns_port} {proxy} -j CT --zone {ZONE_CAPTURED}"),
            ]
        })
        .collect();
    // The proxy's questions have their zone now; CT does not end the chain, and the last zone
    // would win.
    specs.extend(proxy_matches(config).map(|proxy| format!("{proxy} -j RETURN")));
    for server in dns_servers(config, family, "-d") {
        specs.push(format!(
            "{server}-p udp -m udp --dport 53 -j CT --zone {ZONE_CAPTURED}"
        ));
    }
    let mut rules = in_chain(OUTPUT_DNS, specs);
    let answers = dns_servers(config, family, "-s")
        .into_iter()
        .map(|server| format!("{server}-p udp -m udp --sport 53 -j CT --zone {ZONE_UPSTREAM}"))
        .collect();
    rules.extend(in_chain(INBOUND, answers));
    Table {
        name: "raw",
        chains: vec![OUTPUT_DNS, INBOUND],
        jumps: vec![
            Rule::new("PREROUTING", format!("-p udp -j {INBOUND}")),
            Rule::new("OUTPUT", format!("-p udp -j {OUTPUT_DNS}")),
        ],
        rules,
    }
}

fn in_chain(chain: &'static str, specs: Vec<String>) -> Vec<Rule> {
    specs
        .into_iter()
        .map(|spec| Rule::new(chain, spec))
        .collect()
}

fn owners(config: &IptablesConfig) -> impl Iterator<Item = String> + '_ {
    let uids = config.proxy_uids.iter();
    let gids = config.proxy_gids.iter();
    uids.map(|uid| format!("--uid-owner {uid}"))
        .chain(gids.map(|gid| format!("--gid-owner {gid}")))
}

/// Every match by which a packet is known to be of the proxy.
fn proxy_matches(config: &IptablesConfig) -> impl Iterator<Item = String> + '_ {
    let mark = format!("-m mark --mark {:#x}/0xffff", config.proxy_mark);
    std::iter::once(mark).chain(owners(config).map(|owner| format!("-m owner {owner}")))
}

/// Address matches of the captured resolvers, each followed by a space; one empty match when all
/// of them are captured.
fn dns_servers(config: &IptablesConfig, family: Family, side: &str) -> Vec<String> {
    if config.dns_servers.is_empty() {
        return vec![String::new()];
    }
    config
        .dns_servers
        .iter()
        .filter_map(|server| host(*server, family))
        .map(|server| format!("{side} {server} "))
        .collect()
}

fn host(address: IpAddr, family: Family) -> Option<String> {
    match (address, family) {
        (IpAddr::V4(v4), Family::V4) => Some(format!("{v4}/32")),
        (IpAddr::V6(v6), Family::V6) => Some(format!("{v6}/128")),
        _ => None,
    }
}

fn of_family(cidrs: &[IpNet], family: Family) -> impl Iterator<Item = IpNet> + '_ {
    cidrs
        .iter()
        .map(IpNet::trunc)
        .filter(move |cidr| matches!(cidr, IpNet::V4(_)) == (family == Family::V4))
}
