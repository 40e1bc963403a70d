//! `analyze`: what is wrong with configuration before anybody runs it.
//!
//! Input: files and directories, and with `--kube` a cluster as pilot would read it; output: problems, the worst first.
//! The judge is [`Analysis`], which a running pilot shares. With a cluster and files, what is said of the cluster's own
//! objects is only what the files would change.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use millrace_controlplane::analysis::Analysis;
use millrace_controlplane::model::mesh::MeshConfig;
use millrace_controlplane::model::problem::{Problem, Reason, Severity};
use millrace_controlplane::registry::Registry as _;
use millrace_controlplane::registry::kubernetes::{Access, KubernetesRegistry};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::app::Output;
use crate::cli::{Analyze, Format, Threshold};

/// Problems above the threshold: istioctl's exit code for it.
const FOUND: u8 = 79;
/// Files that are not YAML: istioctl's exit code for it.
const UNREADABLE: u8 = 65;
/// Directories are followed this deep, links included, as pilot's file registry does.
const MAX_DEPTH: usize = 8;
/// How long a watch that broke may take until it stands again.
const SETTLING: Duration = Duration::from_secs(10);
/// Events of a registry that wait to be read.
const EVENTS: usize = 64;

/// Analyzes.
pub(crate) async fn run(options: &Analyze, format: Format) -> anyhow::Result<Output> {
    ensure!(
        options.kube || !options.paths.is_empty(),
        "name files or directories, or take a cluster with --kube"
    );
    let mut analysis = Analysis::new(MeshConfig {
        domain: options.domain.clone(),
        ..MeshConfig::default()
    });
    if options.kube {
        read_cluster(&mut analysis, options).await?;
    }
    let before = match options.paths[..] {
        [] => BTreeSet::new(),
        _ => analysis.problems(),
    };
    for path in &options.paths {
        read_path(&mut analysis, path)?;
    }
    let found: Vec<Problem> = analysis
        .problems()
        .into_iter()
        .filter(|problem| problem.file.is_some() || !before.contains(problem))
        .filter(|problem| is_wanted(problem, options))
        .collect();
    let code = exit_code(&found, options.failure_threshold);
    let shown: Vec<&Problem> = found
        .iter()
        .filter(|problem| options.output_threshold.reaches(problem.severity))
        .collect();
    let text = match format {
        Format::Json => Output::json(&serde_json::to_value(&shown)?, true)?.text,
        Format::Table => text_of(&shown),
    };
    Ok(Output { text, code })
}

/// Reads all that a cluster has, as pilot would, and stops watching then.
async fn read_cluster(analysis: &mut Analysis, options: &Analyze) -> anyhow::Result<()> {
    let access = Access {
        kubeconfig: options.kubeconfig.clone(),
        context: options.context.clone(),
    };
    let registry = KubernetesRegistry::new(access, &options.domain);
    let (sink, mut events) = mpsc::channel(EVENTS);
    let stop = CancellationToken::new();
    let running = Box::new(registry).run(sink, stop.clone());
    let reading = async {
        while !analysis.is_synced() {
            match events.recv().await {
                Some(event) => analysis.take(event),
                None => bail!("the cluster's registry has ended"),
            }
        }
        // As where a definition is new and its first watches are cut.
        let settling = async {
            while lacks_a_watch(analysis)
                && let Some(event) = events.recv().await
            {
                analysis.take(event);
            }
        };
        // What does not stand by then is told.
        drop(tokio::time::timeout(SETTLING, settling).await);
        Ok(())
    };
    // biased: an error of the registry says more than its silence.
    let read = tokio::select! {
        biased;
        ended = running => ended.context("reading the cluster"),
        read = reading => read,
        () = tokio::time::sleep(options.timeout) => Err(anyhow::anyhow!(
            "the cluster was not read within {:?}", options.timeout
        )),
    };
    stop.cancel();
    if read.is_err() {
        for problem in analysis.registry_problems() {
            eprintln!("millctl: {problem}");
        }
    }
    read
}

fn lacks_a_watch(analysis: &Analysis) -> bool {
    let mut problems = analysis.registry_problems().iter();
    problems.any(|problem| problem.reason == Reason::Unreadable && problem.object.is_none())
}

/// Reads a file, all files of a directory, or standard input.
fn read_path(analysis: &mut Analysis, path: &Path) -> anyhow::Result<()> {
    if path == Path::new("-") {
        let text = io::read_to_string(io::stdin()).context("reading standard input")?;
        analysis.read("-", &text);
        return Ok(());
    }
    for file in files(path, 0)? {
        let name = file.display().to_string();
        match std::fs::read_to_string(&file) {
            Ok(text) => analysis.read(&name, &text),
            Err(error) => analysis.unreadable(&name, &error),
        }
    }
    Ok(())
}

/// A file itself; of a directory what pilot would read of it.
fn files(path: &Path, depth: usize) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", path.display());
    let metadata = std::fs::metadata(path).with_context(reading)?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|extension| extension.to_str());
        let read = extension.is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension));
        if !hidden && (read || (depth < MAX_DEPTH && path.is_dir())) {
            found.extend(files(&path, depth + 1)?);
        }
    }
    found.sort();
    Ok(found)
}

fn is_wanted(problem: &Problem, options: &Analyze) -> bool {
    let object = problem.object.as_deref().unwrap_or_default();
    let (_, name) = object.split_once(' ').unwrap_or_default();
    let (namespace, _) = name.split_once('/').unwrap_or_default();
    let here = options
        .namespace
        .as_ref()
        .is_none_or(|wanted| object.is_empty() || wanted == namespace);
    let suppressed = options.suppress.iter().any(|rule| {
        let (reason, pattern) = rule.split_once('=').unwrap_or((rule, "*"));
        matches(reason, problem.reason.as_str()) && matches(pattern, object)
    });
    here && !suppressed
}

/// Whether a text is what a pattern says, in which each * stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.any(|at| matches(rest, &text[at..]))
        }),
    }
}

fn exit_code(found: &[Problem], threshold: Threshold) -> u8 {
    let unreadable =
        |problem: &&Problem| problem.reason == Reason::Unreadable && problem.file.is_some();
    let mut judged = found.iter().filter(|problem| !unreadable(problem));
    if judged.any(|problem| threshold.reaches(problem.severity)) {
        FOUND
    } else if found.iter().any(|problem| unreadable(&problem)) {
        UNREADABLE
    } else {
        0
    }
}

impl Threshold {
    /// Whether something so bad counts.
    fn reaches(self, severity: Severity) -> bool {
        match self {
            Self::Error => severity == Severity::Error,
            Self::Warning => severity <= Severity::Warning,
            Self::Info => true,
        }
    }
}

fn text_of(problems: &[&Problem]) -> String {
    let line = |problem: &&Problem| {
        let severity = match problem.severity {
            Severity::Error => "Error",
            Severity::Warning => "Warning",
            Severity::Info => "Info",
        };
        format!("{severity} [{}] {problem}\n", problem.reason.as_str())
    };
    let text: String = problems.iter().map(line).collect();
    let count = |severity| {
        let all = problems.iter();
        all.filter(|problem| problem.severity == severity).count()
    };
    let summary = match problems {
        [] => "nothing is wrong".to_owned(),
        _ => format!(
            "errors: {}, warnings: {}, infos: {}",
            count(Severity::Error),
            count(Severity::Warning),
            count(Severity::Info)
        ),
    };
    text + &summary + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, is) in [
            ("*", "", true),
            ("unclear", "unclear", true),
            ("unclear", "unclea", false),
            ("Service default/*", "Service default/web", true),
            ("Service */web", "Service default/web", true),
            ("*/web", "Service default/web2", false),
            ("a*b*c", "a--b-bc", true),
        ] {
            assert_eq!(matches(pattern, text), is, "{pattern} {text}");
        }
    }
}
