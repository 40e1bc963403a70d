//! Kernel modules: finds those that are wanted in a kernel's package, uncompressed, in an order in which each comes
//! after what it depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::run;
use crate::workspace::find_program;

/// What test hosts, the iptables path and the guards of closed pods use; what a kernel has built in has no file.
const WANTED: [&str; 29] = [
    "bridge",
    "dummy",
    "ip6table_nat",
    "iptable_nat",
    "ip6table_raw",
    "iptable_raw",
    "nf_conntrack",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib_inet",
    "nft_masq",
    "nft_redir",
    "nft_reject_inet",
    "nft_socket",
    "tls",
    "veth",
    "xt_CT",
    "xt_REDIRECT",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_owner",
    "xt_recent",
    "xt_tcpudp",
];

/// A module's file name and content.
pub(super) type Module = (String, Vec<u8>);

/// The wanted modules below `dir` and all that they depend on.
pub(super) fn wanted(dir: &Path) -> anyhow::Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(&dir.join("kernel"), &mut files)?;
    let mut order = Order {
        files,
        seen: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in WANTED {
        order.add(name)?;
    }
    Ok(order.modules)
}

/// Every module below `dir` by its name.
fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry.context("reading a directory of modules")?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = name.split_once(".ko")
        {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// Modules call each other with underscores, whatever their files are called.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

struct Order {
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order {
    fn add(&mut self, name: &str) -> anyhow::Result<()> {
        let name = canonical(name);
        let Some(path) = self.files.get(&name).cloned() else {
            return Ok(());
        };
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let content = content(&path)?;
        for other in dependencies(&content) {
            self.add(&other)?;
        }
        self.modules.push((format!("{name}.ko"), content));
        Ok(())
    }
}

fn content(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("reading {}", path.display()));
    }
    let program = find_program("xz").context("no xz")?;
    let output = run::quiet(run::foreign(program).arg("-dc").arg(path))?;
    let success = output.status.success();
    ensure!(success, "{} cannot be uncompressed", path.display());
    Ok(output.stdout)
}

/// What the module says in its section `.modinfo`, of strings that end with a zero byte.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0);
    let value = String::from_utf8_lossy(&value[..end.unwrap_or_default()]);
    value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=stp,llc\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["stp", "llc"]);
        assert!(dependencies(b"\0depends=\0name=llc\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
