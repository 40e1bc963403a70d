//! Goldens of the rule generator: `testdata/iptables/<case>.in.yaml` → `<case>.golden`.
//!
//! An input is either the arguments of `millrace-agent init` or a configuration as the broker
//! gets it. `MILLRACE_BLESS=1` rewrites the goldens.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use millrace_agent::cli::{Cli, Command};
use millrace_agent::iptables::rulesets;
use millrace_runtime::handoff::{Family, IptablesConfig};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    args: Option<Vec<String>>,
    config: Option<IptablesConfig>,
    #[serde(default)]
    ipv6: bool,
}

impl Case {
    fn config(self) -> IptablesConfig {
        if let Some(config) = self.config {
            return config;
        }
        let program = ["millrace-agent".to_owned(), "init".to_owned()];
        let args = program.into_iter().chain(self.args.unwrap_or_default());
        let Command::Init(init) = Cli::try_parse_from(args).expect("arguments").command else {
            unreachable!("the arguments begin with init");
        };
        init.config(self.ipv6).expect("flags")
    }
}

fn render(config: &IptablesConfig) -> String {
    let scripts = rulesets(config).into_iter().map(|set| {
        let tool = match set.family {
            Family::V4 => "iptables-restore",
            Family::V6 => "ip6tables-restore",
        };
        format!("# {tool} --noflush\n{}", set.script(|_, _| false))
    });
    scripts.collect::<Vec<_>>().join("\n")
}

fn inputs() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/iptables");
    let mut inputs: Vec<PathBuf> = fs::read_dir(dir)
        .expect("testdata")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.to_string_lossy().ends_with(".in.yaml"))
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn rules_are_as_the_goldens_have_them() {
    let bless = std::env::var_os("MILLRACE_BLESS").is_some_and(|value| value == "1");
    let inputs = inputs();
    assert!(inputs.len() >= 10, "{inputs:?}");
    for input in inputs {
        let text = fs::read_to_string(&input).expect("input");
        let case: Case = serde_saphyr::from_str(&text).expect("case");
        let rendered = render(&case.config());
        let golden = PathBuf::from(input.to_string_lossy().replace(".in.yaml", ".golden"));
        if bless {
            fs::write(&golden, &rendered).expect("blessed");
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert!(
            expected == rendered,
            "{} differs; rendered:\n{rendered}",
            golden.display()
        );
    }
}

#[test]
fn tproxy_is_refused_by_name() {
    let error = Cli::try_parse_from(["millrace-agent", "init", "-m", "TPROXY"]).unwrap_err();
    assert!(error.to_string().contains("TPROXY"), "{error}");
}
