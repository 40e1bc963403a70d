//! What `deny.toml` asks of the crates that Millrace is made of: their licences, which of them are banned,
//! and where they come from. Asks cargo alone; `cargo deny` reads the same file and knows advisories besides.

mod license;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use toml_edit::{DocumentMut, Item, Table};

use crate::{run, ui, workspace};

const RULES: &str = "deny.toml";

/// The default registry, by either of its protocols; crates without a source are the workspace's.
const REGISTRY: [&str; 2] = [
    "registry+https://github.com/rust-lang/crates.io-index",
    "sparse+https://index.crates.io/",
];

/// What is asked.
#[derive(Debug, Default)]
struct Rules {
    targets: Vec<String>,
    licenses: Vec<String>,
    /// Name and reason.
    banned: BTreeMap<String, String>,
}

/// A crate that something is built from.
#[derive(Clone, Debug, Default)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let path = workspace::root().join(RULES);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {RULES}"))?;
    let rules = Rules::read(&text).with_context(|| format!("reading {RULES}"))?;
    let packages = packages(&rules.targets)?;
    for line in duplicates(&packages) {
        ui::say(line);
    }
    let faults = faults(&rules, &packages);
    for fault in &faults {
        ui::say(fault);
    }
    ensure!(
        faults.is_empty(),
        "{} faults in {} dependencies",
        faults.len(),
        packages.len()
    );
    ui::say(format_args!("{} crates are as asked", packages.len()));
    Ok(())
}

impl Rules {
    fn read(text: &str) -> anyhow::Result<Self> {
        let document: DocumentMut = text.parse()?;
        let table = document.as_table();
        let section = |name: &str| {
            let section = table.get(name).and_then(Item::as_table);
            section.with_context(|| format!("no [{name}]"))
        };
        let mut banned = BTreeMap::new();
        let listed = section("bans")?.get("deny").and_then(Item::as_array);
        for ban in listed.context("no bans.deny")? {
            let field = |name: &str| Some(ban.as_inline_table()?.get(name)?.as_str()?.to_owned());
            let name = field("crate").context("a ban without a crate")?;
            banned.insert(name, field("reason").unwrap_or_default());
        }
        let rules = Self {
            targets: strings(section("graph")?, "targets")?,
            licenses: strings(section("licenses")?, "allow")?,
            banned,
        };
        for (section_name, key) in [("unknown-git", "deny"), ("unknown-registry", "deny")] {
            let set = section("sources")?.get(section_name).and_then(Item::as_str);
            ensure!(
                set == Some(key),
                "sources.{section_name} is {set:?}, and only {key:?} is checked"
            );
        }
        Ok(rules)
    }
}

fn strings(table: &Table, key: &str) -> anyhow::Result<Vec<String>> {
    let list = table.get(key).and_then(Item::as_array);
    let list = list.with_context(|| format!("no list {key}"))?;
    list.iter()
        .map(|item| Some(item.as_str()?.to_owned()))
        .collect::<Option<_>>()
        .with_context(|| format!("{key} holds something that is not text"))
}

/// The crates that are compiled for any of the targets, tests and build scripts included.
fn packages(targets: &[String]) -> anyhow::Result<Vec<Package>> {
    let mut cargo = run::cargo();
    cargo.args(["metadata", "--locked", "--format-version", "1"]);
    for target in targets {
        cargo.args(["--filter-platform", target]);
    }
    let metadata: Value = serde_json::from_str(&run::capture(&mut cargo)?)?;
    let used = used(targets)?;
    let packages: Vec<Package> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|package| {
            let text = |key: &str| package[key].as_str().map(str::to_owned);
            Package {
                name: text("name").unwrap_or_default(),
                version: text("version").unwrap_or_default(),
                license: text("license"),
                source: text("source"),
            }
        })
        .filter(|package| used.contains(&format!("{} v{}", package.name, package.version)))
        .collect();
    ensure!(
        packages.len() == used.len(),
        "cargo metadata names {} of {} crates that cargo tree names",
        packages.len(),
        used.len()
    );
    Ok(packages)
}

/// Names and versions as `a v1.0.0`. Not from `cargo metadata`, which counts optional crates as used that no
/// feature asks for.
fn used(targets: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let mut used = BTreeSet::new();
    for target in targets {
        let args = ["tree", "--locked", "--workspace", "--prefix", "none"];
        let mut cargo = run::cargo();
        cargo
            .args(args)
            .args(["--format", "{p}", "--target", target]);
        for line in run::capture(&mut cargo)?.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(version)) = (words.next(), words.next()) {
                used.insert(format!("{name} {version}"));
            }
        }
    }
    ensure!(!used.is_empty(), "cargo tree names no crates");
    Ok(used)
}

fn faults(rules: &Rules, packages: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    for package in packages {
        let mut fault = |what: String| {
            faults.push(format!("{} {}: {what}", package.name, package.version));
        };
        if let Some(reason) = rules.banned.get(&package.name) {
            fault(format!("is banned: {reason}"));
        }
        match &package.license {
            None => fault("says no licence".to_owned()),
            Some(license) => match license::allowed(license, &rules.licenses) {
                Ok(true) => {}
                Ok(false) => fault(format!("its licence {license} is not allowed")),
                Err(error) => fault(format!("its licence {license:?} cannot be read: {error}")),
            },
        }
        if let Some(source) = &package.source
            && !REGISTRY.contains(&source.as_str())
        {
            fault(format!(
                "comes from {source}, not from the default registry"
            ));
        }
    }
    faults
}

/// Crates that are there in several versions: more to compile, and more to keep up to date.
fn duplicates(packages: &[Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let known = versions.entry(&package.name).or_default();
        known.insert(&package.version);
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| {
            let versions: Vec<&str> = versions.into_iter().collect();
            format!("warning: {name} is there as {}", versions.join(", "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        [graph]
        targets = ["x"]
        [licenses]
        allow = ["MIT"]
        [bans]
        deny = [{ crate = "bad", reason = "why" }]
        [sources]
        unknown-git = "deny"
        unknown-registry = "deny"
    "#;

    fn package(name: &str, license: Option<&str>, source: Option<&str>) -> Package {
        Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        let rules = Rules::read(RULES).unwrap();
        let packages = [
            package("own", Some("MIT"), None),
            package("good", Some("MIT OR GPL-3.0"), Some(REGISTRY[0])),
            package("bad", Some("MIT"), Some(REGISTRY[0])),
            package("free", Some("GPL-3.0"), Some(REGISTRY[0])),
            package("silent", None, Some(REGISTRY[1])),
            package("odd", Some("MIT OR"), Some(REGISTRY[1])),
            package("far", Some("MIT"), Some("git+https://example.com/far")),
        ];
        let faults = faults(&rules, &packages);
        let expected = [
            "bad 1.0.0: is banned: why",
            "free 1.0.0: its licence GPL-3.0 is not allowed",
            "silent 1.0.0: says no licence",
            "odd 1.0.0: its licence \"MIT OR\" cannot be read",
            "far 1.0.0: comes from git+https://example.com/far",
        ];
        assert_eq!(faults.len(), expected.len(), "{faults:?}");
        for (fault, expected) in faults.iter().zip(expected) {
            assert!(fault.starts_with(expected), "{fault}");
        }
    }

    #[test]
    fn rules_that_nobody_checks_are_refused() {
        let lax = RULES.replace("unknown-git = \"deny\"", "unknown-git = \"warn\"");
        assert!(Rules::read(&lax).is_err());
        assert!(Rules::read("[graph]\n").is_err());
    }

    #[test]
    fn versions_of_one_crate_are_told_together() {
        let mut second = package("a", None, None);
        second.version = "2.0.0".to_owned();
        let found = duplicates(&[package("a", None, None), second, package("b", None, None)]);
        assert_eq!(found, ["warning: a is there as 1.0.0, 2.0.0"]);
    }
}
