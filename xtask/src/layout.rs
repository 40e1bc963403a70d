//! `cargo xtask layout`: what no compiler checks. File sizes and names, the direction of dependencies
//! between crates, and who may name which foreign types.

mod architecture;
mod functions;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::run;
use crate::ui;
use crate::workspace;

/// Lines that are neither blank nor comment.
const MAX_CODE_LINES: usize = 600;

/// Names that say nothing about what a module does.
const EMPTY_NAMES: [&str; 5] = ["mod.rs", "utils.rs", "common.rs", "helpers.rs", "misc.rs"];

/// Who may depend on whom, among the workspace's crates.
struct Edges {
    from: &'static str,
    to: &'static [&'static str],
    /// For tests only; the testkit is everybody's.
    dev: &'static [&'static str],
}

const EDGES: [Edges; 17] = [
    Edges {
        from: "millrace-ebpf-abi",
        to: &[],
        dev: &[],
    },
    Edges {
        from: "millrace-ebpf",
        to: &["millrace-ebpf-abi"],
        dev: &[],
    },
    Edges {
        from: "millrace-runtime",
        to: &[],
        dev: &[],
    },
    Edges {
        from: "millrace-xds",
        to: &[],
        dev: &[],
    },
    Edges {
        from: "millrace-agent",
        to: &["millrace-ebpf-abi", "millrace-runtime"],
        dev: &[],
    },
    Edges {
        from: "millrace-proxy",
        to: &["millrace-runtime", "millrace-xds"],
        dev: &[],
    },
    Edges {
        from: "millrace-controlplane",
        to: &["millrace-runtime", "millrace-xds"],
        dev: &["millrace-proxy"],
    },
    Edges {
        from: "millctl",
        to: &[
            "millrace-controlplane",
            "millrace-proxy",
            "millrace-runtime",
        ],
        dev: &[],
    },
    Edges {
        from: "millrace-agent-fuzz",
        to: &["millrace-agent"],
        dev: &[],
    },
    Edges {
        from: "millrace-proxy-fuzz",
        to: &[
            "millrace-proxy",
            "millrace-runtime",
            "millrace-testkit",
            "millrace-xds",
        ],
        dev: &[],
    },
    Edges {
        from: "millrace-controlplane-fuzz",
        to: &["millrace-controlplane"],
        dev: &[],
    },
    Edges {
        from: "millrace-xds-fuzz",
        to: &["millrace-xds"],
        dev: &[],
    },
    Edges {
        from: "millrace-testkit",
        to: &[],
        dev: &[],
    },
    Edges {
        from: "millrace-bookinfo",
        to: &[],
        dev: &[],
    },
    Edges {
        from: "millrace-nodes",
        to: &["millrace-xds"],
        dev: &[],
    },
    Edges {
        from: "millrace-xtask",
        to: &["millrace-testkit"],
        dev: &[],
    },
    Edges {
        from: "millrace-e2e",
        to: &["millrace-testkit"],
        dev: &[
            "millrace-agent",
            "millrace-controlplane",
            "millrace-proxy",
            "millrace-runtime",
        ],
    },
];

/// A path that only some places may name; tests may too.
struct Reserved {
    name: &'static str,
    places: &'static [&'static str],
}

/// Where the two ways of capturing are told apart: where one is chosen, where rules are written, and where a way's own
/// means are looked at.
const MODES: &[&str] = &[
    "agent/src/broker",
    "agent/src/integrity",
    "agent/src/redirect.rs",
    "proxy/src/acceleration",
];

const RESERVED: [Reserved; 5] = [
    Reserved {
        name: "CaptureMode::Ebpf",
        places: MODES,
    },
    Reserved {
        name: "CaptureMode::Iptables",
        places: MODES,
    },
    Reserved {
        name: "envoy_types",
        places: &["controlplane/xds/"],
    },
    Reserved {
        name: "millrace_xds::proto",
        places: &[
            "controlplane/src/ca",
            "controlplane/src/serve",
            "controlplane/src/translate",
            "controlplane/xds/",
            "proxy/src/xds",
        ],
    },
    Reserved {
        name: "k8s_openapi",
        places: &[
            "agent/src/pods",
            "controlplane/src/kube",
            "controlplane/src/registry/kubernetes",
            "controlplane/src/webhook",
            "xtask/testkit/",
        ],
    },
];

pub(crate) fn run() -> anyhow::Result<()> {
    let mut faults = dependency_faults()?;
    let sources = sources()?;
    let root = workspace::root();
    faults.extend(architecture::architecture_names_exist(&root, &sources)?);
    for file in sources {
        let path = root.join(&file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        faults.extend(file_faults(&file, &text));
    }
    if faults.is_empty() {
        return Ok(());
    }
    for fault in &faults {
        ui::say(fault);
    }
    bail!("{} faults in the layout", faults.len())
}

/// Every Rust source that git knows or would add.
fn sources() -> anyhow::Result<Vec<PathBuf>> {
    let args = [
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        "*.rs",
    ];
    let listed = run::capture(run::foreign("git").args(args));
    let files: Vec<PathBuf> = match listed {
        Ok(listed) => listed.lines().map(PathBuf::from).collect(),
        // A source archive has no repository.
        Err(_) => walk(&workspace::root())?,
    };
    Ok(files
        .into_iter()
        .filter(|file| workspace::root().join(file).is_file())
        .collect())
}

fn walk(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            let hidden = |path: &Path| {
                path.file_name()
                    .is_some_and(|name| name == "target" || name.to_string_lossy().starts_with('.'))
            };
            if path.is_dir() && !hidden(&path) {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root).unwrap_or(&path).to_path_buf());
            }
        }
    }
    Ok(found)
}

fn file_faults(file: &Path, text: &str) -> Vec<String> {
    let shown = file.display();
    let mut faults = Vec::new();
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let is_test = name == "tests.rs" || file.components().any(|part| part.as_os_str() == "tests");
    // Cargo would take `tests/support.rs` for a test of its own; `tests/support/mod.rs` is its way out.
    let shared_by_tests = is_test && name == "mod.rs";
    if EMPTY_NAMES.contains(&name) && !shared_by_tests {
        faults.push(format!(
            "{shown}: a file is named after what it does, not {name}"
        ));
    }
    let first = text
        .lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
    if !is_test && !first.is_some_and(|line| line.starts_with("//!")) {
        faults.push(format!(
            "{shown}: a module begins with `//!`: its job, and who calls it"
        ));
    }
    let code: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .collect();
    if code.len() > MAX_CODE_LINES {
        faults.push(format!(
            "{shown}: {} code lines, {MAX_CODE_LINES} at most",
            code.len()
        ));
    }
    if !is_test {
        let long = functions::too_long(text).into_iter();
        faults.extend(long.map(|fault| format!("{shown}:{fault}")));
    }
    let place = file.to_string_lossy();
    for reserved in &RESERVED {
        let allowed = is_test
            || place.starts_with("xtask/src/layout")
            || reserved
                .places
                .iter()
                .any(|allowed| place.starts_with(allowed));
        let named =
            |line: &str| !line.trim_start().starts_with("//") && line.contains(reserved.name);
        if !allowed && functions::outside_tests(text).any(named) {
            let places = reserved.places.join(", ");
            faults.push(format!(
                "{shown}: `{}` is named only in {places}",
                reserved.name
            ));
        }
    }
    faults
}

fn dependency_faults() -> anyhow::Result<Vec<String>> {
    let args = ["metadata", "--no-deps", "--format-version", "1"];
    let metadata = run::capture(run::cargo().args(args))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(edges) = EDGES.iter().find(|edges| edges.from == name) else {
            faults.push(format!(
                "{name}: xtask/src/layout.rs does not say what it may depend on"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let dev = dependency["kind"] == "dev";
            let ours = EDGES.iter().any(|edges| edges.from == to);
            if ours && !edges.allow(to, dev) {
                let kind = if dev { "dev-dependency" } else { "dependency" };
                faults.push(format!("{name}: {to} is no allowed {kind}"));
            }
        }
    }
    Ok(faults)
}

impl Edges {
    fn allow(&self, to: &str, dev: bool) -> bool {
        self.to.contains(&to) || (dev && (to == "millrace-testkit" || self.dev.contains(&to)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_a_fault_and_its_comments_are_not_counted() {
        let code = "let x = 1;\n".repeat(MAX_CODE_LINES);
        let text = format!("//! Job.\n{}{code}", "// why\n\n".repeat(500));
        assert_eq!(
            file_faults(Path::new("a/src/b.rs"), &text),
            Vec::<String>::new()
        );
        assert_eq!(
            file_faults(Path::new("a/src/b.rs"), &format!("{text}x();\n")).len(),
            1
        );
    }

    #[test]
    fn reserved_names_stay_in_their_places() {
        let text = "//! Job.\nuse millrace_xds::proto::Cluster;\n";
        assert_eq!(
            file_faults(Path::new("proxy/src/xds/convert.rs"), text).len(),
            0
        );
        assert_eq!(file_faults(Path::new("proxy/src/route.rs"), text).len(), 1);
        assert_eq!(
            file_faults(Path::new("proxy/src/route/tests.rs"), text).len(),
            0
        );
        let told_apart = "//! Job.\nlet rules = mode == CaptureMode::Iptables;\n";
        let faults = |path: &str, text: &str| file_faults(Path::new(path), text).len();
        assert_eq!(faults("agent/src/redirect.rs", told_apart), 0);
        assert_eq!(faults("agent/src/reconcile.rs", told_apart), 1);
        let tested = told_apart.replace('\n', "\n#[cfg(test)]\nmod tests {\n");
        assert_eq!(faults("agent/src/reconcile.rs", &tested), 0);
    }

    #[test]
    fn a_module_needs_a_header_and_a_telling_name() {
        assert_eq!(file_faults(Path::new("a/src/b.rs"), "fn a() {}\n").len(), 1);
        assert_eq!(
            file_faults(Path::new("a/src/utils.rs"), "//! Job.\n").len(),
            1
        );
        assert_eq!(
            file_faults(Path::new("a/src/lib.rs"), "#![no_std]\n//! Job.\n").len(),
            0
        );
    }
}
