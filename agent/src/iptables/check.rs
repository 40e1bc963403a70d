//! Whether the rules in a namespace are those of a configuration.
//!
//! Compares rule by rule with what `iptables-save` prints, blind to the order of matches and to
//! the few words that the tool adds or renames.

use super::rules::{Rule, Ruleset, Table};

/// A difference between what should be and what is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Rules that are missing or not at their place, as they should be.
    pub missing: Vec<String>,
}

/// Compares `ruleset` with the output of `iptables-save`.
///
/// # Errors
/// Names the rules that are missing or out of order.
pub fn intact(ruleset: &Ruleset, saved: &str) -> Result<(), Drift> {
    let mut missing = Vec::new();
    for table in &ruleset.tables {
        let found = saved_rules(saved, table.name);
        for jump in &table.jumps {
            if !found.contains(&normal(jump)) {
                missing.push(describe(table, jump));
            }
        }
        for chain in &table.chains {
            let wanted = table.rules.iter().filter(|rule| rule.chain == *chain);
            let mut present = found.iter().filter(|rule| rule.0 == *chain);
            for rule in wanted {
                if present.next() != Some(&normal(rule)) {
                    missing.push(describe(table, rule));
                }
            }
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Drift { missing })
    }
}

/// Whether a jump of `table` is already in `saved`.
pub(super) fn has(saved: &str, table: &Table, rule: &Rule) -> bool {
    saved_rules(saved, table.name).contains(&normal(rule))
}

/// The rules of one table of a save output that jump to, or live in, chains of ours.
pub fn rules_of<'a>(saved: &'a str, table: &str) -> impl Iterator<Item = &'a str> {
    let header = format!("*{table}");
    saved
        .lines()
        .skip_while(move |line| *line != header)
        .skip(1)
        .take_while(|line| !line.starts_with('*'))
        .filter(|line| line.starts_with("-A "))
}

type Normal = (String, Vec<String>);

fn saved_rules(saved: &str, table: &str) -> Vec<Normal> {
    rules_of(saved, table)
        .filter_map(|line| {
            let mut words = line.strip_prefix("-A ")?.splitn(2, ' ');
            let chain = words.next()?.to_owned();
            Some((chain, words_of(words.next().unwrap_or_default())))
        })
        .collect()
}

fn normal(rule: &Rule) -> Normal {
    (rule.chain.to_owned(), words_of(&rule.spec))
}

/// Options with their values, sorted; `-m tcp` and `-m udp` are implied by `-p`.
fn words_of(spec: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    for word in spec.split_whitespace() {
        if word.starts_with('-') || word == "!" {
            let negated = options.last().is_some_and(|last| last == "!");
            if negated {
                options.pop();
                options.push(format!("! {word}"));
            } else {
                let long = if word == "--to-port" {
                    "--to-ports"
                } else {
                    word
                };
                options.push(long.to_owned());
            }
        } else if let Some(last) = options.last_mut() {
            last.push(' ');
            last.push_str(word);
        }
    }
    options.retain(|option| option != "-m tcp" && option != "-m udp");
    options.sort();
    options
}

fn describe(table: &Table, rule: &Rule) -> String {
    format!("-t {} -A {} {}", table.name, rule.chain, rule.spec)
}
