//! Text → [`PodSpec`]: YAML or JSON, one pod per document, several documents per file.
//!
//! Unknown fields are errors, so that a typing error does not become a pod without labels. Every
//! error names line and field.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use millrace_runtime::handoff::{PodPort, PodSpec, PodUid};
use serde::Deserialize;

/// Why a text describes no pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Line, from 1.
    pub line: Option<u64>,
    /// The field that the line belongs to.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(default)]
    uid: Option<PodUid>,
    name: String,
    #[serde(default = "default_name")]
    namespace: String,
    #[serde(default = "default_name", alias = "serviceAccount")]
    service_account: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default, alias = "namespaceLabels")]
    namespace_labels: BTreeMap<String, String>,
    #[serde(default, alias = "namespaceAnnotations")]
    namespace_annotations: BTreeMap<String, String>,
    #[serde(default)]
    ips: Vec<IpAddr>,
    #[serde(default)]
    node: String,
    netns: PathBuf,
    #[serde(default)]
    cgroup: Option<PathBuf>,
    #[serde(default)]
    ports: Vec<PodPort>,
}

fn default_name() -> String {
    "default".to_owned()
}

impl From<Description> for PodSpec {
    fn from(d: Description) -> Self {
        let uid = d
            .uid
            .unwrap_or_else(|| PodUid(format!("{}.{}", d.namespace, d.name)));
        Self {
            uid,
            name: d.name,
            namespace: d.namespace,
            service_account: d.service_account,
            labels: d.labels,
            annotations: d.annotations,
            namespace_labels: d.namespace_labels,
            namespace_annotations: d.namespace_annotations,
            ips: d.ips,
            node: d.node,
            netns: d.netns,
            cgroup: d.cgroup,
            ports: d.ports,
        }
    }
}

/// Reads every pod of `text`; all or none.
///
/// # Errors
/// Names the first line and field that are wrong.
pub fn pods(text: &str) -> Result<Vec<PodSpec>, Malformed> {
    let documents: Vec<Description> =
        serde_saphyr::from_multiple(text).map_err(|error| malformed(text, &error))?;
    documents
        .into_iter()
        .map(|document| {
            let pod = PodSpec::from(document);
            match pod.validate() {
                Ok(()) => Ok(pod),
                Err(invalid) => Err(Malformed {
                    line: line_of(text, &pod.name, invalid.field),
                    field: Some(invalid.field.to_owned()),
                    reason: format!("pod {}: {}", invalid.pod, invalid.reason),
                }),
            }
        })
        .collect()
}

fn malformed(text: &str, error: &serde_saphyr::Error) -> Malformed {
    let line = error.location().map(|location| location.line());
    let message = error.to_string();
    // The first line says what is wrong, the others draw a picture; the place is told apart.
    let reason = message.lines().next().unwrap_or_default();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason);
    let reason = match (reason.starts_with("line "), reason.split_once(": ")) {
        (true, Some((_, rest))) => rest,
        _ => reason,
    };
    let quoted = reason
        .split_once("field `")
        .and_then(|(_, rest)| rest.split_once('`'))
        .map(|(field, _)| field.to_owned());
    Malformed {
        line,
        field: quoted.or_else(|| line.and_then(|line| field_at(text, line))),
        reason: reason.to_owned(),
    }
}

/// The key that the value on `line` belongs to: on the line itself, or the nearest one above.
fn field_at(text: &str, line: u64) -> Option<String> {
    let line = usize::try_from(line).ok()?;
    let above: Vec<&str> = text.lines().take(line).collect();
    above.iter().rev().find_map(|line| key_of(line))
}

fn key_of(line: &str) -> Option<String> {
    let line = line.trim_start().trim_start_matches(['-', '{', ' ']);
    let (key, _) = line.split_once(':')?;
    let key = key.trim().trim_matches(['"', '\'']);
    let plain = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_alphanumeric() || "_-./".contains(c));
    plain.then(|| key.to_owned())
}

/// The line of `field` in the document that names the pod.
fn line_of(text: &str, pod: &str, field: &str) -> Option<u64> {
    let lines: Vec<&str> = text.lines().collect();
    let named = lines
        .iter()
        .position(|line| key_of(line).as_deref() == Some("name") && line.contains(pod))?;
    let is_end = |line: &str| line.starts_with("---");
    let first = lines[..named]
        .iter()
        .rposition(|line| is_end(line))
        .map_or(0, |at| at + 1);
    let count = lines[first..]
        .iter()
        .take_while(|line| !is_end(line))
        .count();
    let at = lines[first..first + count]
        .iter()
        .position(|line| key_of(line).as_deref() == Some(field))
        .map_or(named, |at| first + at);
    u64::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
uid: 1-2
name: reviews-v1
namespace: shop
serviceAccount: reviews
labels:
  app: reviews
  millrace.io/dataplane-mode: node
ips: [10.1.0.7, fd00::7]
netns: /run/netns/reviews
ports:
- {name: http, port: 9080}
";

    #[test]
    fn a_description_becomes_a_pod() {
        let pods = pods(GOOD).unwrap();
        assert_eq!(pods[0].qualified_name(), "shop/reviews-v1");
        assert_eq!(pods[0].service_account, "reviews");
        assert_eq!(pods[0].ports[0].port, 9080);
        let namespace = "namespaceLabels: {millrace.io/dataplane-mode: node}\n\
            namespace_annotations: {millrace.io/capture: iptables}\n";
        let pods = super::pods(&format!("{GOOD}{namespace}")).unwrap();
        assert_eq!(
            pods[0].namespace_labels["millrace.io/dataplane-mode"],
            "node"
        );
        assert_eq!(
            pods[0].namespace_annotations["millrace.io/capture"],
            "iptables"
        );
    }

    #[test]
    fn json_and_several_documents_are_read_and_a_uid_is_derived() {
        let json = r#"{"name": "a", "netns": "/run/netns/a"}"#;
        assert_eq!(pods(json).unwrap()[0].uid.0, "default.a");
        let two = "name: a\nnetns: /run/netns/a\n---\nname: b\nnetns: /run/netns/b\n";
        assert_eq!(pods(two).unwrap().len(), 2);
    }

    #[test]
    fn errors_name_line_and_field() {
        let cases = [
            (GOOD.replace("labels:", "lables:"), Some(5), "lables"),
            (GOOD.replace("10.1.0.7", "10.1.0.700"), Some(8), "ips"),
            (GOOD.replace("port: 9080", "port: 99999"), Some(11), "name"),
            (
                GOOD.replace("/run/netns/reviews", "netns"),
                Some(9),
                "netns",
            ),
            (
                GOOD.replace("ips: [10.1.0.7,", "ips: [127.0.0.1,"),
                Some(8),
                "ips",
            ),
            (GOOD.replace("netns:", "cgroup:"), Some(10), "netns"),
        ];
        for (text, line, field) in cases {
            let error = pods(&text).unwrap_err();
            assert_eq!(error.line, line, "{error:?}");
            assert_eq!(error.field.as_deref(), Some(field), "{error:?}");
            assert!(!error.reason.contains('\n'), "{error:?}");
        }
    }
}
