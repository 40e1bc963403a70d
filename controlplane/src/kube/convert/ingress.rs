//! Ingresses of the mesh: gateways with routes of their own, for plain HTTP at port 80.

use std::sync::Arc;

use k8s_openapi::api::networking::v1 as k8s;

use crate::model::gateway::{
    CLASSES, Gateway, GatewayServer, INGRESS_LABEL, IngressPort, IngressRoute, path_of,
};
use crate::model::names::{Hostname, ObjectName};
use crate::model::place::Place;
use crate::model::problem::Finding;
use crate::model::validate::Validated;
use crate::model::{Kind, Object};

/// Where clients of Ingresses connect.
const PORT: u16 = 80;
/// Where the class was written before there was a field for it.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// An Ingress. Of the class of another controller nothing is said: that one answers for it.
pub fn ingress(object: k8s::Ingress, _domain: &str) -> Validated<Object> {
    let spec = object.spec.unwrap_or_default();
    let metadata = object.metadata;
    let annotations = metadata.annotations.unwrap_or_default();
    let class = spec.ingress_class_name.as_ref();
    let class = class.or_else(|| annotations.get(CLASS_ANNOTATION));
    if !class.is_some_and(|class| CLASSES.contains(&class.as_str())) {
        return Validated {
            object: None,
            findings: Vec::new(),
        };
    }
    let mut findings = Vec::new();
    judge(&spec, &mut findings);
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    let name = ObjectName::new(namespace, metadata.name.as_deref().unwrap_or_default());
    let created = metadata.creation_timestamp;
    let gateway = Gateway {
        kind: Kind::Ingress,
        created: created.map(|time| time.0.to_string()),
        selector: [(INGRESS_LABEL.0.to_owned(), INGRESS_LABEL.1.to_owned())].into(),
        at_home: false,
        servers: vec![GatewayServer {
            name: "http".to_owned(),
            port: PORT,
            hosts: Vec::new(),
            place: Place::new(Kind::Ingress, &name, "spec"),
        }],
        routes: routes(&name, &spec),
        name,
    };
    Validated::judged(Object::Gateway(Arc::new(gateway)), findings)
}

/// What it routes; what is wrong was told, and keeps the whole from being served.
fn routes(name: &ObjectName, spec: &k8s::IngressSpec) -> Vec<IngressRoute> {
    let route = |host: Option<&str>, condition, backend: &k8s::IngressBackend, field: String| {
        let host = host.filter(|host| !host.is_empty()).unwrap_or("*");
        let service = backend.service.as_ref()?;
        let port = service.port.clone().unwrap_or_default();
        let port = match (port.name.filter(|name| !name.is_empty()), port.number) {
            (Some(name), _) => IngressPort::Name(name),
            (None, number) => IngressPort::Number(super::port_number(number?)?),
        };
        Some(IngressRoute {
            host: Hostname::literal(host).ok()?,
            condition,
            service: ObjectName::new(&name.namespace, &service.name),
            port,
            place: Place::new(Kind::Ingress, name, field),
        })
    };
    let mut routes = Vec::new();
    for (index, rule) in spec.rules.iter().flatten().enumerate() {
        let paths = rule.http.iter().flat_map(|http| &http.paths);
        for (at, path) in paths.enumerate() {
            let condition = path_of(&path.path_type, path.path.as_deref().unwrap_or_default());
            let field = format!("spec.rules[{index}].http.paths[{at}]");
            routes.extend(route(rule.host.as_deref(), condition, &path.backend, field));
        }
    }
    if let Some(default) = &spec.default_backend {
        let everything = path_of("Prefix", "/");
        let field = "spec.defaultBackend".to_owned();
        routes.extend(route(None, everything, default, field));
    }
    routes
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
            judge_path(path, &field, findings);
            backend(&path.backend, &format!("{field}.backend"), findings);
        }
    }
    for (index, tls) in spec.tls.iter().flatten().enumerate() {
        let message =
            "gateways of this release let in plain HTTP alone: nobody serves them certificates";
        findings.push(Finding::not_executed(format!("spec.tls[{index}]"), message));
        for (at, name) in tls.hosts.iter().flatten().enumerate() {
            host(
                Some(name),
                &format!("spec.tls[{index}].hosts[{at}]"),
                findings,
            );
        }
    }
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

fn judge_path(path: &k8s::HTTPIngressPath, field: &str, findings: &mut Vec<Finding>) {
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
        let problems = contents.problems.iter();
        problems
            .map(|problem| format!("{}: {}", problem.field, problem.message))
            .collect()
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
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
                "spec.tls[0]: gateways of this release let in plain HTTP alone: nobody serves them certificates",
                "spec.tls[0].hosts[0]: \"10.0.0.1\" is an address, and a name is needed",
            ]
        );
        assert_eq!(
            findings("  ingressClassName: istio"),
            ["spec: rules or a defaultBackend are needed"]
        );
    }

    #[test]
    fn what_another_controller_answers_for_is_left_to_it() {
        assert_eq!(findings("  ingressClassName: nginx"), [""; 0]);
        assert_eq!(findings("  rules: []"), [""; 0]);
    }
}
