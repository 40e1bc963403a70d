//! Ingresses: read and judged, so that mistakes are told; no proxy runs as a gateway in this release.

use k8s_openapi::api::networking::v1 as k8s;

use crate::model::Object;
use crate::model::names::Hostname;
use crate::model::problem::Finding;
use crate::model::validate::Validated;

/// The class of Ingresses that are the mesh's; all others are somebody else's.
const CLASS: &str = "istio";
/// Where the class was written before there was a field for it.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// An Ingress. Of the class of another controller nothing is said: that one answers for it.
pub fn ingress(object: k8s::Ingress, _domain: &str) -> Validated<Object> {
    let spec = object.spec.unwrap_or_default();
    let annotations = object.metadata.annotations.unwrap_or_default();
    let class = spec.ingress_class_name.as_ref();
    let class = class.or_else(|| annotations.get(CLASS_ANNOTATION));
    let mut findings = Vec::new();
    if class.is_some_and(|class| class == CLASS) {
        judge(&spec, &mut findings);
    }
    Validated {
        object: None,
        findings,
    }
}

fn judge(spec: &k8s::IngressSpec, findings: &mut Vec<Finding>) {
    let rules = spec.rules.as_deref().unwrap_or_default();
    match &spec.default_backend {
        Some(default) => backend(default, "spec.defaultBackend", findings),
        None if rules.is_empty() => {
            findings.push(Finding::error(
                "spec",
                "rules or a defaultBackend are needed",
            ));
        }
        None => {}
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        host(rule.host.as_deref(), &format!("{field}.host"), findings);
        let paths = rule.http.iter().flat_map(|http| &http.paths);
        for (at, path) in paths.enumerate() {
            let field = format!("{field}.http.paths[{at}]");
            path_of(path, &field, findings);
            backend(&path.backend, &format!("{field}.backend"), findings);
        }
    }
    for (index, tls) in spec.tls.iter().flatten().enumerate() {
        for (at, name) in tls.hosts.iter().flatten().enumerate() {
            host(
                Some(name),
                &format!("spec.tls[{index}].hosts[{at}]"),
                findings,
            );
        }
    }
    let message = "no gateway runs in this release, so it has no effect";
    findings.push(Finding::not_executed("kind", message));
}

fn host(host: Option<&str>, field: &str, findings: &mut Vec<Finding>) {
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return;
    };
    if host.parse::<std::net::IpAddr>().is_ok() {
        let message = format!("{host:?} is an address, and a name is needed");
        findings.push(Finding::error(field, message));
    } else if let Err(error) = Hostname::literal(host) {
        findings.push(Finding::error(field, error.to_string()));
    }
}

fn path_of(path: &k8s::HTTPIngressPath, field: &str, findings: &mut Vec<Finding>) {
    match path.path_type.as_str() {
        "Exact" | "Prefix" => {
            let text = path.path.as_deref().unwrap_or_default();
            if !text.starts_with('/') {
                let message = format!("{text:?} does not begin with a slash");
                findings.push(Finding::error(format!("{field}.path"), message));
            }
        }
        "ImplementationSpecific" => {}
        other => {
            let message = format!("{other:?} is not Exact, Prefix or ImplementationSpecific");
            findings.push(Finding::error(format!("{field}.pathType"), message));
        }
    }
}

fn backend(backend: &k8s::IngressBackend, field: &str, findings: &mut Vec<Finding>) {
    let Some(service) = &backend.service else {
        if backend.resource.is_none() {
            findings.push(Finding::error(field, "a service or a resource is needed"));
        }
        return;
    };
    if service.name.is_empty() {
        let message = "a name is needed";
        findings.push(Finding::error(format!("{field}.service.name"), message));
    }
    let port = service.port.clone().unwrap_or_default();
    let field = format!("{field}.service.port");
    match (port.name.filter(|name| !name.is_empty()), port.number) {
        (Some(_), None) => {}
        (None, Some(number)) => {
            if super::port_number(number).is_none() {
                findings.push(Finding::error(
                    format!("{field}.number"),
                    format!("{number} is not a port"),
                ));
            }
        }
        (None, None) => findings.push(Finding::error(field, "a name or a number is needed")),
        (Some(_), Some(_)) => {
            findings.push(Finding::error(
                field,
                "a name and a number exclude each other",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kube::document;

    fn findings(spec: &str) -> Vec<String> {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: edge}}\nspec:\n{spec}\n"
        );
        let contents = document::read("a.yaml", &text, "cluster.local");
        assert_eq!(contents.objects, []);
        let problems = contents.problems.iter();
        problems
            .map(|problem| format!("{}: {}", problem.field, problem.message))
            .collect()
    }

    const NO_EFFECT: &str = "kind: no gateway runs in this release, so it has no effect";

    #[test]
    fn what_is_wrong_is_named_and_that_nothing_executes_it() {
        let wrong = "
  ingressClassName: istio
  defaultBackend: {service: {name: web}}
  tls: [{hosts: [10.0.0.1], secretName: web}]
  rules:
  - host: a..example.com
    http:
      paths:
      - {path: web, pathType: Prefix, backend: {service: {name: web, port: {number: 70000}}}}
      - {path: /, pathType: Regex, backend: {service: {name: '', port: {name: http, number: 80}}}}
      - {pathType: ImplementationSpecific, backend: {}}";
        assert_eq!(
            findings(wrong),
            [
                "spec.defaultBackend.service.port: a name or a number is needed",
                "spec.rules[0].host: \"a..example.com\" is not a host name: a label is empty or longer than 63 characters",
                "spec.rules[0].http.paths[0].path: \"web\" does not begin with a slash",
                "spec.rules[0].http.paths[0].backend.service.port.number: 70000 is not a port",
                "spec.rules[0].http.paths[1].pathType: \"Regex\" is not Exact, Prefix or ImplementationSpecific",
                "spec.rules[0].http.paths[1].backend.service.name: a name is needed",
                "spec.rules[0].http.paths[1].backend.service.port: a name and a number exclude each other",
                "spec.rules[0].http.paths[2].backend: a service or a resource is needed",
                "spec.tls[0].hosts[0]: \"10.0.0.1\" is an address, and a name is needed",
                NO_EFFECT,
            ]
        );
        assert_eq!(
            findings("  ingressClassName: istio"),
            ["spec: rules or a defaultBackend are needed", NO_EFFECT]
        );
    }

    #[test]
    fn what_another_controller_answers_for_is_left_to_it() {
        assert_eq!(findings("  ingressClassName: nginx"), [""; 0]);
        assert_eq!(findings("  rules: []"), [""; 0]);
    }
}
