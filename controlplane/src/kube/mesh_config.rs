//! Istio's `MeshConfig`, as far as this release executes it.
//!
//! Input: the file's text; output: settings and problems. Read by [`crate::app`] at the start and
//! whenever the file changes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::crd::{OtherFields, Unexecuted};
use super::yaml::{self, Node};
use crate::model::mesh::{AccessLog, AccessLogFormat, MeshConfig, OutboundPolicy};
use crate::model::problem::{Finding, Problem, Reason, Severity};
use crate::model::validate::parse_duration;
use crate::registry::xds::ConfigSource;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Settings {
    root_namespace: Option<String>,
    outbound_traffic_policy: Option<Outbound>,
    access_log_file: Option<String>,
    access_log_format: Option<String>,
    access_log_encoding: Option<String>,
    enable_tracing: Option<bool>,
    default_config: Option<ProxyDefaults>,
    connect_timeout: Option<String>,
    protocol_detection_timeout: Option<String>,
    config_sources: Vec<Source>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    address: String,
    tls_settings: Option<Unexecuted>,
    subscribed_resources: Option<Unexecuted>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outbound {
    mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProxyDefaults {
    tracing: Option<Tracing>,
    #[serde(flatten)]
    rest: OtherFields,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tracing {
    sampling: Option<f64>,
}

/// Istio's default share of requests that become traces.
const DEFAULT_SAMPLING: f64 = 1.0;

/// Reads the file over the defaults of `domain`. Without settings the file is wrong as a whole, and the
/// last good one stays in force.
pub fn read(file: &str, text: &str, domain: &str) -> (Option<MeshConfig>, Vec<Problem>) {
    let mut reader = Reader {
        file,
        problems: Vec::new(),
    };
    let defaults = MeshConfig {
        domain: domain.to_owned(),
        ..MeshConfig::default()
    };
    let documents = yaml::documents(text);
    let Some(document) = documents.first() else {
        return (Some(defaults), Vec::new());
    };
    let node = match yaml::parse(*document) {
        Ok(node) => node,
        Err(error) => {
            let finding = Finding {
                reason: Reason::Unreadable,
                ..Finding::error("", error.to_string())
            };
            reader.problem(error.line, finding);
            return (None, reader.problems);
        }
    };
    let mesh = reader.settings(&node, defaults);
    let bad = reader
        .problems
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    (mesh.filter(|_| !bad), reader.problems)
}

struct Reader<'a> {
    file: &'a str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn problem(&mut self, line: u64, finding: Finding) {
        self.problems.push(Problem {
            severity: finding.severity,
            reason: finding.reason,
            file: Some(self.file.to_owned()),
            line: Some(line),
            object: None,
            field: finding.field,
            message: finding.message,
        });
    }

    fn error(&mut self, node: &Node, field: &str, message: String) {
        self.problem(node.line_of(field), Finding::error(field, message));
    }

    fn settings(&mut self, node: &Node, mut mesh: MeshConfig) -> Option<MeshConfig> {
        let decoded = match yaml::decode::<Settings>(node) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.problem(error.line, Finding::error(error.path, error.message));
                return None;
            }
        };
        for (path, line) in decoded.unknown {
            self.not_executed(line, path);
        }
        let file = decoded.value;
        let defaults = file.default_config.iter();
        for name in defaults.flat_map(|defaults| &defaults.rest.0) {
            let field = format!("defaultConfig.{name}");
            self.not_executed(node.line_of(&field), field);
        }
        if let Some(namespace) = file.root_namespace.clone() {
            mesh.root_namespace = namespace;
        }
        if let Some(outbound) = self.outbound(node, &file) {
            mesh.outbound = outbound;
        }
        if let Some(time) = self.duration(node, "connectTimeout", file.connect_timeout.as_deref()) {
            mesh.connect_timeout = time;
        }
        let detection = file.protocol_detection_timeout.as_deref();
        if let Some(time) = self.duration(node, "protocolDetectionTimeout", detection) {
            mesh.detection_timeout = time;
        }
        mesh.access_log = self.access_log(node, &file);
        mesh.tracing_percent = self.tracing(node, &file);
        mesh.config_sources = self.sources(node, &file);
        Some(mesh)
    }

    fn not_executed(&mut self, line: u64, field: String) {
        let message = "no part of this release executes it";
        self.problem(line, Finding::not_executed(field, message));
    }

    /// The policy that the file names.
    fn outbound(&mut self, node: &Node, file: &Settings) -> Option<OutboundPolicy> {
        let policy = file.outbound_traffic_policy.as_ref();
        match policy.and_then(|policy| policy.mode.as_deref())? {
            "ALLOW_ANY" => {}
            "REGISTRY_ONLY" => return Some(OutboundPolicy::RegistryOnly),
            other => {
                let message = format!("{other:?} is not ALLOW_ANY or REGISTRY_ONLY");
                self.error(node, "outboundTrafficPolicy.mode", message);
            }
        }
        None
    }

    fn duration(&mut self, node: &Node, field: &str, text: Option<&str>) -> Option<Duration> {
        let text = text?;
        let duration = parse_duration(text);
        if duration.is_none() {
            let message = format!("{text:?} is not a duration such as 5s");
            self.error(node, field, message);
        }
        duration
    }

    /// The servers of configuration, which are read from the next start on.
    fn sources(&mut self, node: &Node, file: &Settings) -> Vec<ConfigSource> {
        let mut sources = Vec::new();
        for (index, source) in file.config_sources.iter().enumerate() {
            let path = format!("configSources[{index}]");
            if source.tls_settings.is_some() {
                // In plain text it would be another server than the one that was meant.
                let message = "servers of configuration are asked in plain text only".to_owned();
                self.error(node, &format!("{path}.tlsSettings"), message);
            }
            if source.subscribed_resources.is_some() {
                let field = format!("{path}.subscribedResources");
                self.not_executed(node.line_of(&field), field);
            }
            match source.address.parse() {
                Ok(source) => sources.push(source),
                Err(error) => {
                    let field = format!("{path}.address");
                    self.error(node, &field, format!("{error}"));
                }
            }
        }
        sources
    }

    /// The share of requests that stock Envoys make traces of, in percent.
    fn tracing(&mut self, node: &Node, file: &Settings) -> Option<f64> {
        let tracing = file
            .default_config
            .as_ref()
            .and_then(|it| it.tracing.as_ref());
        let sampling = tracing.and_then(|tracing| tracing.sampling);
        if sampling.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            let message = "it is not between 0 and 100".to_owned();
            self.error(node, "defaultConfig.tracing.sampling", message);
        }
        if !file.enable_tracing.unwrap_or(sampling.is_some()) {
            return None;
        }
        let field = if file.enable_tracing.is_some() {
            "enableTracing"
        } else {
            "defaultConfig.tracing"
        };
        let message = "only stock Envoys make spans; Millrace's proxy forwards trace headers";
        self.problem(node.line_of(field), Finding::not_executed(field, message));
        Some(sampling.unwrap_or(DEFAULT_SAMPLING))
    }

    fn access_log(&mut self, node: &Node, file: &Settings) -> Option<AccessLog> {
        let path = file
            .access_log_file
            .clone()
            .filter(|path| !path.is_empty())?;
        let format = file
            .access_log_format
            .clone()
            .filter(|format| !format.is_empty());
        let format = match (
            file.access_log_encoding.as_deref().unwrap_or("TEXT"),
            format,
        ) {
            ("TEXT", None) => AccessLogFormat::DefaultText,
            // As Istio: a line that does not end, ends.
            ("TEXT", Some(format)) if format.ends_with('\n') => AccessLogFormat::Text(format),
            ("TEXT", Some(format)) => AccessLogFormat::Text(format + "\n"),
            ("JSON", None) => AccessLogFormat::DefaultJson,
            ("JSON", Some(format)) => {
                match serde_json::from_str::<BTreeMap<String, String>>(&format) {
                    Ok(fields) => AccessLogFormat::Json(fields.into_iter().collect()),
                    Err(error) => {
                        let message = format!("with JSON it is an object of texts: {error}");
                        self.error(node, "accessLogFormat", message);
                        return None;
                    }
                }
            }
            (other, _) => {
                self.error(
                    node,
                    "accessLogEncoding",
                    format!("{other:?} is not TEXT or JSON"),
                );
                return None;
            }
        };
        Some(AccessLog { path, format })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_that_operators_know_are_read() {
        let text = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\naccessLogFile: /dev/stdout\n\
                    accessLogEncoding: JSON\nconnectTimeout: 2s\ndefaultConfig:\n  tracing: {sampling: 5}\n  drainDuration: 1s\n\
                    trustDomain: x\n";
        let (mesh, problems) = read("mesh.yaml", text, "cluster.local");
        let mesh = mesh.unwrap();
        assert_eq!(mesh.outbound, OutboundPolicy::RegistryOnly);
        assert_eq!(mesh.connect_timeout.as_secs(), 2);
        assert_eq!(mesh.tracing_percent, Some(5.0));
        assert_eq!(
            mesh.access_log.unwrap().format,
            AccessLogFormat::DefaultJson
        );
        let fields: Vec<_> = problems
            .iter()
            .map(|problem| (problem.field.as_str(), problem.line.unwrap()))
            .collect();
        assert_eq!(
            fields,
            [
                ("trustDomain", 8),
                ("defaultConfig.drainDuration", 7),
                ("defaultConfig.tracing", 6)
            ]
        );
    }

    #[test]
    fn servers_of_configuration_are_read_and_what_cannot_be_is_named() {
        let text = "configSources:\n- address: xds://istiod:15010\n";
        let (mesh, problems) = read("mesh.yaml", text, "cluster.local");
        assert_eq!(problems, []);
        assert_eq!(
            mesh.unwrap().config_sources[0].to_string(),
            "xds://istiod:15010"
        );
        let text = "configSources:\n- address: k8s://\n- address: xds://a:1\n  \
                    tlsSettings: {mode: SIMPLE}\n";
        let (mesh, problems) = read("mesh.yaml", text, "cluster.local");
        assert_eq!(mesh, None);
        let fields = problems.iter().map(|it| (it.field.as_str(), it.line));
        let wanted = [
            ("configSources[0].address", Some(2)),
            ("configSources[1].tlsSettings", Some(4)),
        ];
        assert_eq!(fields.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn a_wrong_value_is_an_error_with_its_line() {
        let (mesh, problems) = read(
            "mesh.yaml",
            "\noutboundTrafficPolicy:\n  mode: OPEN\n",
            "cluster.local",
        );
        assert_eq!(mesh, None);
        assert_eq!(
            (problems[0].line, problems[0].severity),
            (Some(3), Severity::Error)
        );
    }
}
