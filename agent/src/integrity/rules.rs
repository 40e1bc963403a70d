//! Which rules in a pod's namespace are somebody else's and would capture, drop or mark the pod's traffic.
//! Pure: what the tools list in, lines for people out.

use crate::broker::guard;
use crate::iptables::{CHAINS, Listing};

/// Most lines kept for one pod.
const MOST: usize = 20;
/// Longest line.
const LONGEST: usize = 200;
/// The priority of the chains that hold our nat rules (`NF_IP_PRI_NAT_DST`).
const OURS: i32 = -100;
/// Tables that iptables keeps through nft; they are read as iptables has them.
const OF_IPTABLES: [&str; 5] = ["nat", "raw", "mangle", "filter", "security"];
/// Targets of iptables that lead packets elsewhere, mark them, or keep them from conntrack and with it from nat.
const TARGETS: [&str; 7] = [
    "REDIRECT", "DNAT", "TPROXY", "NFQUEUE", "MARK", "NETMAP", "NOTRACK",
];
/// Options that make such a one of a target that has other uses too.
const OPTIONS: [(&str, &str); 2] = [("CT", "--notrack"), ("CONNMARK", "--restore-mark")];
/// The same in the words of nft.
const STATEMENTS: [&str; 7] = [
    "redirect", "dnat", "tproxy", "queue", "mark set", "fwd to", "notrack",
];
/// Ports on the way between application and proxy, which nobody else has business with.
const OWN_PORTS: [u16; 4] = [15001, 15006, 15009, 15053];
/// The built-in chains of iptables that lie on that way.
const STARTS: [&str; 3] = ["PREROUTING", "INPUT", "OUTPUT"];

/// Every rule of others that interferes; `nft` is the whole rule set, `saved` what the variants of
/// `iptables-save` print.
pub(super) fn foreign(nft: &str, saved: &[Listing]) -> Vec<String> {
    let mut found: Vec<String> = of_nft(nft, saved);
    for listing in saved {
        found.extend(of_iptables(listing));
    }
    found.truncate(MOST);
    for line in &mut found {
        if let Some((end, _)) = line.char_indices().nth(LONGEST) {
            line.truncate(end);
        }
    }
    found
}

fn of_nft(nft: &str, saved: &[Listing]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut table, mut chain, mut hook) = ("", "", String::new());
    for line in nft.lines().map(str::trim) {
        let name = |kind: &str| line.strip_prefix(kind)?.strip_suffix(" {");
        if let Some(named) = name("table ") {
            table = named;
        } else if let Some(named) = name("chain ") {
            chain = named;
            hook.clear();
        } else if line.starts_with("type ") {
            hook = base_chain(line);
        } else if !is_known(table, saved) && interferes(line) {
            found.push(format!("nft table {table}, chain {chain}{hook}: {line}"));
        }
    }
    found
}

/// `type nat hook output priority -200; policy accept;` → where it is, and when.
fn base_chain(line: &str) -> String {
    let words: Vec<&str> = line.split([' ', ';']).filter(|w| !w.is_empty()).collect();
    let after = |key: &str| words.iter().position(|word| *word == key).map(|at| at + 1);
    let (Some(hook), Some(priority)) = (after("hook"), after("priority")) else {
        return String::new();
    };
    let upto = after("policy").map_or(words.len(), |at| at - 1);
    let hook = words.get(hook).copied().unwrap_or_default();
    let priority = words.get(priority..upto).unwrap_or_default();
    let order = match number(priority) {
        Some(number) if number < OURS => ", before Millrace's nat rules",
        Some(number) if number > OURS => ", after Millrace's nat rules",
        Some(_) => ", beside Millrace's nat rules",
        None => "",
    };
    format!(" (hook {hook}, priority {}{order})", priority.join(" "))
}

/// A priority as nft prints it: a number, a name, or a name with an offset.
fn number(words: &[&str]) -> Option<i32> {
    let named = |word: &str| match word {
        "raw" => Some(-300),
        "mangle" => Some(-150),
        "dstnat" => Some(-100),
        "filter" => Some(0),
        "security" => Some(50),
        "srcnat" => Some(100),
        number => number.parse().ok(),
    };
    match words {
        [one] => named(one),
        [base, "+", by] => Some(named(base)? + by.parse::<i32>().ok()?),
        [base, "-", by] => Some(named(base)? - by.parse::<i32>().ok()?),
        _ => None,
    }
}

/// Our own tables, and those that `iptables-save` tells of; it says so of a table that it cannot read.
fn is_known(table: &str, saved: &[Listing]) -> bool {
    let (family, name) = table.split_once(' ').unwrap_or_default();
    let unreadable = format!("Table `{name}' is incompatible");
    let of_iptables = ["ip", "ip6"].contains(&family) && OF_IPTABLES.contains(&name);
    name == guard::TABLE || (of_iptables && !saved.iter().any(|l| l.saved.contains(&unreadable)))
}

fn interferes(rule: &str) -> bool {
    let word = |wanted: &&str| format!(" {rule} ").contains(&format!(" {wanted} "));
    let refuses = ["drop", "reject"].iter().any(word);
    STATEMENTS.iter().any(word) || (refuses && names_own_port(rule))
}

/// Whether a rule names one of our ports: alone, in a list, or in a range (`a-b`, in iptables `a:b`).
fn names_own_port(rule: &str) -> bool {
    let number = |text: &str| text.parse::<u16>().ok();
    let words = rule.split([' ', ',', '{', '}']);
    words.into_iter().any(|word| {
        let range = word.split_once(['-', ':']).unwrap_or((word, word));
        let (Some(first), Some(last)) = (number(range.0), number(range.1)) else {
            return false;
        };
        OWN_PORTS.iter().any(|port| (first..=last).contains(port))
    })
}

fn of_iptables(listing: &Listing) -> Vec<String> {
    let mut found = Vec::new();
    for table in OF_IPTABLES {
        let rules: Vec<Rule<'_>> = in_table(&listing.saved, table);
        for start in STARTS {
            let mut ours_seen = false;
            let mut walk = Walk {
                rules: &rules,
                table,
                listing,
                found: &mut found,
                visited: Vec::new(),
            };
            for rule in rules.iter().filter(|rule| rule.chain == start) {
                ours_seen |= CHAINS.contains(&rule.target);
                walk.visit(rule, start, ours_seen);
            }
        }
    }
    found
}

struct Rule<'a> {
    chain: &'a str,
    target: &'a str,
    text: &'a str,
}

fn in_table<'a>(saved: &'a str, table: &str) -> Vec<Rule<'a>> {
    let rules = crate::iptables::rules_of(saved, table);
    rules
        .filter_map(|text| {
            let mut words = text.split_whitespace().skip(1);
            let chain = words.next()?;
            let target = words.skip_while(|w| *w != "-j" && *w != "-g").nth(1);
            Some(Rule {
                chain,
                target: target.unwrap_or_default(),
                text,
            })
        })
        .collect()
}

/// Follows jumps from a built-in chain.
struct Walk<'a, 'f> {
    rules: &'a [Rule<'a>],
    table: &'a str,
    listing: &'a Listing,
    found: &'f mut Vec<String>,
    visited: Vec<&'a str>,
}

impl<'a> Walk<'a, '_> {
    fn visit(&mut self, rule: &Rule<'a>, start: &str, ours_seen: bool) {
        if CHAINS.contains(&rule.chain) || CHAINS.contains(&rule.target) {
            return;
        }
        let refuses = ["DROP", "REJECT"].contains(&rule.target);
        let option = |(target, option): &(&str, &str)| {
            rule.target == *target && rule.text.split_whitespace().any(|word| word == *option)
        };
        let leads = TARGETS.contains(&rule.target) || OPTIONS.iter().any(option);
        if leads || (refuses && names_own_port(rule.text)) {
            let order = if ours_seen { "after" } else { "before" };
            self.found.push(format!(
                "{} -t {} {} (from {start}, {order} Millrace's)",
                self.listing.tool, self.table, rule.text
            ));
        } else if !self.visited.contains(&rule.target) {
            self.visited.push(rule.target);
            let rules = self.rules;
            for next in rules.iter().filter(|next| next.chain == rule.target) {
                self.visit(next, start, ours_seen);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULESET: &str = "table inet millrace_guard {\n\tchain output {\n\t\ttype filter hook output priority 10; policy accept;\n\t\ttcp dport 80 reject with tcp reset\n\t}\n}\n\
table ip nat {\n\tchain OUTPUT {\n\t\ttype nat hook output priority dstnat; policy accept;\n\t\tip protocol tcp redirect to :15001\n\t}\n}\n\
table inet lb {\n\tchain early {\n\t\ttype nat hook output priority dstnat - 10; policy accept;\n\t\tip daddr 10.96.0.10 dnat ip to 10.0.0.5\n\t\ttcp dport 22 accept\n\t}\n\tchain fw {\n\t\ttype filter hook output priority filter; policy accept;\n\t\ttcp dport 15001 drop\n\t\ttcp dport 25 drop\n\t}\n}\n";

    #[test]
    fn rules_of_others_are_named_with_their_place() {
        assert_eq!(
            foreign(RULESET, &[]),
            [
                "nft table inet lb, chain early (hook output, priority dstnat - 10, before Millrace's nat rules): ip daddr 10.96.0.10 dnat ip to 10.0.0.5",
                "nft table inet lb, chain fw (hook output, priority filter, after Millrace's nat rules): tcp dport 15001 drop",
            ]
        );
    }

    #[test]
    fn jumps_of_iptables_are_followed_from_the_built_in_chains() {
        let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:LB - [0:0]\n:UNUSED - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
            -A OUTPUT -p tcp -j LB\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n-A OUTPUT -p udp -j REDIRECT --to-ports 5353\n\
            -A LB -d 10.96.0.10/32 -p tcp -j DNAT --to-destination 10.0.0.5:80\n-A LB -j RETURN\n\
            -A UNUSED -j REDIRECT --to-ports 1\n-A ISTIO_OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
        let listing = Listing {
            tool: "iptables-nft".to_owned(),
            saved: saved.to_owned(),
        };
        assert_eq!(
            foreign("", &[listing]),
            [
                "iptables-nft -t nat -A LB -d 10.96.0.10/32 -p tcp -j DNAT --to-destination 10.0.0.5:80 (from OUTPUT, before Millrace's)",
                "iptables-nft -t nat -A OUTPUT -p udp -j REDIRECT --to-ports 5353 (from OUTPUT, after Millrace's)",
            ]
        );
    }

    #[test]
    fn a_rule_that_keeps_packets_from_nat_or_drops_our_ports_among_others_is_named() {
        for rule in [
            "tcp dport 80 notrack",
            "tcp dport { 80, 15001 } drop",
            "tcp dport 15000-15100 reject with tcp reset",
            "meta mark set ct mark",
        ] {
            assert!(interferes(rule), "{rule}");
        }
        for rule in [
            "tcp dport { 80, 443 } drop",
            "tcp dport 1-1024 drop",
            "tcp dport 15010-15052 drop",
            "ip6 daddr 2001:db8::15001 drop",
            "tcp dport 15001 accept",
        ] {
            assert!(!interferes(rule), "{rule}");
        }
        let saved = "*raw\n-A OUTPUT -p tcp -j CT --notrack\n-A PREROUTING -j CT --zone 1\nCOMMIT\n\
            *mangle\n-A OUTPUT -j CONNMARK --restore-mark\n-A OUTPUT -j CONNMARK --save-mark\nCOMMIT\n\
            *filter\n-A INPUT -p tcp -m multiport --dports 80,15006 -j DROP\n-A INPUT -p tcp --dport 25 -j DROP\n\
            -A OUTPUT -p tcp --dport 15000:15010 -j REJECT\nCOMMIT\n";
        let listing = Listing {
            tool: "iptables-legacy".to_owned(),
            saved: saved.to_owned(),
        };
        let found = foreign("", &[listing]);
        let named = ["--notrack", "--restore-mark", "80,15006", "15000:15010"];
        assert_eq!(found.len(), named.len(), "{found:?}");
        for (line, word) in found.iter().zip(named) {
            assert!(line.contains(word), "{line}");
        }
    }
}
