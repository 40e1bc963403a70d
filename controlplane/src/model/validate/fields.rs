//! Readers of single fields, shared by all kinds. Each records a finding and yields a harmless value,
//! so that one object's problems are all reported at once.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::kube::crd;
use crate::model::names::Hostname;
use crate::model::problem::{Finding, Reason};
use crate::model::route::{
    Destination, ExportTo, HeaderChanges, HeaderOperations, Retries, Rewrite, StringMatch,
    SubsetRef, ValueMatch,
};

const EXECUTED_BY_OTHERS: &str =
    "stock Envoys and gRPC's own clients execute it, Millrace's proxy does not";

/// Collects the findings of one object.
pub(super) struct Judge<'a> {
    pub(super) namespace: &'a str,
    pub(super) domain: &'a str,
    pub(super) findings: Vec<Finding>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(namespace: &'a str, domain: &'a str) -> Self {
        Self {
            namespace,
            domain,
            findings: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::error(field, message));
    }

    /// Reports a value that is served and surely not meant.
    pub(super) fn warn_invalid(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings
            .push(Finding::warning(Reason::Invalid, field, message));
    }

    /// A port number; 1 and a finding where it is none.
    pub(super) fn port(&mut self, number: u32, field: &str) -> u16 {
        match u16::try_from(number) {
            Ok(port) if port != 0 => port,
            _ => {
                let message = format!("{number} is not a port, which is 1 to 65535");
                self.error(field, message);
                1
            }
        }
    }

    /// Reports a field that is set and that nothing executes.
    pub(super) fn not_executed<T>(&mut self, present: Option<&T>, field: String) {
        if present.is_some() {
            self.findings.push(Finding::not_executed(
                field,
                "no proxy of this release executes it",
            ));
        }
    }

    /// Reports a field that gRPC's own clients and stock Envoys execute, and Millrace's proxy does not.
    pub(super) fn executed_by_others(&mut self, field: impl Into<String>) {
        self.findings
            .push(Finding::not_executed(field, EXECUTED_BY_OTHERS));
    }

    /// Reports a field that stock Envoys alone execute.
    pub(super) fn executed_by_envoy<T>(&mut self, present: Option<&T>, field: String) {
        if present.is_some() {
            let message = "stock Envoys execute it, and nothing else does";
            self.findings.push(Finding::not_executed(field, message));
        }
    }

    pub(super) fn host(&mut self, host: &str, field: &str) -> Hostname {
        match Hostname::resolve(host, self.namespace, self.domain) {
            Ok(host) => host,
            Err(error) => {
                self.error(field, error.to_string());
                Hostname::service("invalid", self.namespace, self.domain)
            }
        }
    }

    pub(super) fn duration(&mut self, text: Option<&str>, field: &str) -> Option<Duration> {
        let text = text?;
        if let Some(duration) = parse_duration(text) {
            Some(duration)
        } else {
            self.error(
                field,
                format!("{text:?} is not a duration such as 5s, 1m30s or 250ms"),
            );
            None
        }
    }

    pub(super) fn export_to(&mut self, export_to: &[String]) -> ExportTo {
        for (index, name) in export_to.iter().enumerate() {
            let field = format!("spec.exportTo[{index}]");
            let is_name = |name: &str| {
                let fits =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                (1..=63).contains(&name.len()) && name.bytes().all(fits)
            };
            if ![".", "*", "~"].contains(&name.as_str()) && !is_name(name) {
                let message = format!("{name:?} is not a namespace, \".\", \"*\" or \"~\"");
                self.error(field, message);
            } else if export_to.len() > 1 && ["*", "~"].contains(&name.as_str()) {
                let message = format!("{name:?} stands alone: it already says it all");
                self.error(field, message);
            }
        }
        ExportTo::of(export_to, self.namespace)
    }

    pub(super) fn string_match(
        &mut self,
        value: &crd::StringMatch,
        field: &str,
    ) -> Option<StringMatch> {
        let forms = [&value.exact, &value.prefix, &value.regex];
        if forms.into_iter().flatten().count() > 1 {
            self.error(field, "only one of exact, prefix and regex may be set");
            return None;
        }
        if let Some(exact) = &value.exact {
            return Some(StringMatch::Exact(exact.clone()));
        }
        if let Some(prefix) = &value.prefix {
            return Some(StringMatch::Prefix(prefix.clone()));
        }
        let regex = value.regex.as_ref()?;
        self.regex(regex, &format!("{field}.regex"));
        Some(StringMatch::Regex(regex.clone()))
    }

    pub(super) fn required_match(
        &mut self,
        value: Option<&crd::StringMatch>,
        field: &str,
    ) -> Option<StringMatch> {
        let value = value?;
        let found = self.string_match(value, field);
        if value.exact.is_none() && value.prefix.is_none() && value.regex.is_none() {
            self.error(field, "one of exact, prefix and regex must be set");
        }
        found
    }

    pub(super) fn regex(&mut self, pattern: &str, field: &str) {
        if let Err(error) = regex::Regex::new(pattern) {
            let detail = error.to_string();
            let last = detail.lines().last().unwrap_or_default().trim();
            self.error(
                field,
                format!("{pattern:?} is not a regular expression: {last}"),
            );
        }
    }

    pub(super) fn value_matches(
        &mut self,
        values: &BTreeMap<String, crd::StringMatch>,
        field: &str,
    ) -> Vec<(String, ValueMatch)> {
        let mut result = Vec::new();
        for (name, value) in values {
            if name.is_empty() {
                self.error(field, "a name is empty");
            }
            let found = self.string_match(value, &format!("{field}.{name}"));
            result.push((
                name.clone(),
                found.map_or(ValueMatch::Present, ValueMatch::Value),
            ));
        }
        result
    }

    pub(super) fn header_matches(
        &mut self,
        values: &BTreeMap<String, crd::StringMatch>,
        field: &str,
    ) -> Vec<(String, ValueMatch)> {
        for name in values.keys() {
            self.header_name(name.trim_start_matches(':'), &format!("{field}.{name}"));
        }
        let mut matches = self.value_matches(values, field);
        for (name, _) in &mut matches {
            name.make_ascii_lowercase();
        }
        matches
    }

    pub(super) fn header_name(&mut self, name: &str, field: &str) {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            self.error(field, format!("{name:?} is not a header name"));
        }
    }

    pub(super) fn headers(
        &mut self,
        headers: Option<&crd::Headers>,
        field: &str,
    ) -> HeaderOperations {
        let Some(headers) = headers else {
            return HeaderOperations::default();
        };
        HeaderOperations {
            request: self.header_changes(&headers.request, &format!("{field}.request")),
            response: self.header_changes(&headers.response, &format!("{field}.response")),
        }
    }

    fn header_changes(&mut self, changes: &crd::HeaderOperations, field: &str) -> HeaderChanges {
        let pairs = |judge: &mut Self, map: &BTreeMap<String, String>, field: String| {
            let mut result = Vec::new();
            for (name, value) in map {
                judge.header_name(name.trim_start_matches(':'), &format!("{field}.{name}"));
                if value
                    .bytes()
                    .any(|byte| byte == b'\n' || byte == b'\r' || byte == 0)
                {
                    judge.error(
                        format!("{field}.{name}"),
                        "the value has a line break or a zero byte",
                    );
                }
                result.push((name.clone(), value.clone()));
            }
            result
        };
        let set = pairs(self, &changes.set, format!("{field}.set"));
        let add = pairs(self, &changes.add, format!("{field}.add"));
        for (index, name) in changes.remove.iter().enumerate() {
            let field = format!("{field}.remove[{index}]");
            self.header_name(name, &field);
            if name.eq_ignore_ascii_case("host") {
                self.error(field, "the host header cannot be removed");
            }
        }
        HeaderChanges {
            set,
            add,
            remove: changes.remove.clone(),
        }
    }

    /// Changes of headers in the Gateway API's form.
    pub(super) fn modifier(&mut self, changes: &crd::HeaderModifier, field: &str) -> HeaderChanges {
        let pairs = |headers: &[crd::HeaderValue]| {
            let pairs = headers.iter();
            pairs
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect()
        };
        let changes = crd::HeaderOperations {
            set: pairs(&changes.set),
            add: pairs(&changes.add),
            remove: changes.remove.clone(),
        };
        self.header_changes(&changes, field)
    }

    pub(super) fn destination(
        &mut self,
        destination: &crd::Destination,
        weight: u32,
        headers: HeaderOperations,
        field: &str,
    ) -> Destination {
        let subset = match destination.subset.as_deref() {
            None | Some("") => SubsetRef::All,
            Some(name) => {
                self.subset_name(name, &format!("{field}.subset"));
                SubsetRef::Named(name.to_owned())
            }
        };
        let port = destination.port.as_ref().map(|port| port.number);
        if port == Some(0) {
            self.error(
                format!("{field}.port.number"),
                "a port is between 1 and 65535",
            );
        }
        let host = self.host(&destination.host, &format!("{field}.host"));
        if host.is_wildcard() {
            self.error(
                format!("{field}.host"),
                "a destination cannot be a wildcard",
            );
        }
        Destination {
            host,
            subset,
            port,
            weight,
            headers,
            reference: None,
        }
    }

    /// What every redirect may answer with and lead to; `code_field` is what its status is called.
    pub(super) fn redirect(
        &mut self,
        code: u16,
        scheme: Option<&str>,
        code_field: &str,
        field: &str,
    ) {
        if ![301, 302, 303, 307, 308].contains(&code) {
            self.error(
                format!("{field}.{code_field}"),
                format!("{code} is not one of 301, 302, 303, 307 and 308"),
            );
        }
        if let Some(scheme) = scheme.filter(|scheme| !["http", "https"].contains(scheme)) {
            self.error(
                format!("{field}.scheme"),
                format!("{scheme:?} is not http or https"),
            );
        }
    }

    pub(super) fn subset_name(&mut self, name: &str, field: &str) {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=,/".contains(&byte);
        if name.is_empty() || !name.bytes().all(fits) {
            self.error(field, format!("{name:?} is not a subset name"));
        }
    }

    /// Weights of the destinations of one route, which must be parts of 100.
    fn parts(&mut self, weights: &[Option<i64>], field: &str) -> Vec<u32> {
        let mut result = Vec::new();
        for (index, weight) in weights.iter().enumerate() {
            let weight = weight.unwrap_or(0);
            result.push(u32::try_from(weight).unwrap_or_else(|_| {
                self.error(
                    format!("{field}[{index}].weight"),
                    format!("{weight} is not a weight"),
                );
                0
            }));
        }
        if let [only] = &mut result[..] {
            // One destination without a weight gets everything.
            if weights[0].unwrap_or(0) == 0 {
                *only = 100;
            }
        }
        result
    }

    /// Weights that each count as a part of their sum, as Istio has it since 1.15.
    pub(super) fn weights(&mut self, weights: &[Option<i64>], field: &str) -> Vec<u32> {
        let result = self.parts(weights, field);
        match total(&result) {
            100 => {}
            _ if result.is_empty() => {}
            0 => self.error(field, "the weights add up to 0: nothing could be reached"),
            sum if sum > u64::from(u32::MAX) => {
                self.error(
                    field,
                    format!("the weights add up to {sum}, which is too much"),
                );
            }
            sum => {
                let message =
                    format!("the weights add up to {sum}, not to 100: each is a part of {sum}");
                self.findings
                    .push(Finding::warning(Reason::Unclear, field, message));
            }
        }
        result
    }

    /// Weights that must add up to 100, as they had to in the seeds' time.
    pub(super) fn percentages(&mut self, weights: &[Option<i64>], field: &str) -> Vec<u32> {
        let result = self.parts(weights, field);
        let sum = total(&result);
        if !result.is_empty() && sum != 100 {
            self.error(field, format!("the weights add up to {sum}, not to 100"));
        }
        result
    }

    pub(super) fn rewrite(&mut self, rewrite: &crd::Rewrite, field: &str) -> Rewrite {
        if rewrite.uri.is_some() && rewrite.uri_regex_rewrite.is_some() {
            self.error(field, "only one of uri and uriRegexRewrite may be set");
        }
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            self.regex(&regex.pattern, &format!("{field}.uriRegexRewrite.match"));
        }
        Rewrite {
            uri: rewrite.uri.clone(),
            uri_regex: rewrite
                .uri_regex_rewrite
                .as_ref()
                .map(|regex| (regex.pattern.clone(), regex.rewrite.clone())),
            authority: rewrite.authority.clone(),
        }
    }

    pub(super) fn retries(&mut self, retries: &crd::Retries, field: &str) -> Retries {
        self.not_executed(retries.backoff.as_ref(), format!("{field}.backoff"));
        let remote = retries.retry_remote_localities.filter(|remote| *remote);
        self.not_executed(remote.as_ref(), format!("{field}.retryRemoteLocalities"));
        let per_try_timeout = self.duration(
            retries.per_try_timeout.as_deref(),
            &format!("{field}.perTryTimeout"),
        );
        let (retry_on, status_codes) =
            self.retry_on(retries.retry_on.as_deref(), &format!("{field}.retryOn"));
        Retries {
            attempts: retries.attempts,
            per_try_timeout,
            retry_on,
            status_codes,
        }
    }

    fn retry_on(&mut self, text: Option<&str>, field: &str) -> (String, Vec<u32>) {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return (DEFAULT_RETRY_ON.to_owned(), Vec::new());
        };
        let (mut words, mut codes) = (Vec::new(), Vec::new());
        for word in text
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            match word.parse::<u32>() {
                Ok(code) if (100..600).contains(&code) => codes.push(code),
                Ok(code) => self.error(field, format!("{code} is not a status code")),
                Err(_) if RETRY_CONDITIONS.contains(&word) => words.push(word),
                Err(_) => self.error(
                    field,
                    format!("{word:?} is not a retry condition that this release executes"),
                ),
            }
        }
        if !codes.is_empty() && !words.contains(&"retriable-status-codes") {
            words.push("retriable-status-codes");
        }
        (words.join(","), codes)
    }
}

/// What Istio retries where nothing is said.
pub const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

const RETRY_CONDITIONS: [&str; 13] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

fn total(weights: &[u32]) -> u64 {
    weights.iter().copied().map(u64::from).sum()
}

/// Reads a duration of Go's form: `300ms`, `1.5h`, `2h45m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let value: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
        rest = next;
    }
    // Protobuf's durations end at ten thousand years.
    (!text.is_empty() && total.as_secs() <= 315_576_000_000).then_some(total)
}
