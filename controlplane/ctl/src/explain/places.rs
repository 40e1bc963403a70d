//! The objects that a decision names, and what pilot says of where they stand.

use std::collections::BTreeMap;

use serde_json::Value;

/// What pilot says of objects, by `<object>#<field>`.
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<String, Value>);

impl Places {
    /// Reads pilot's answer.
    pub(super) fn new(document: &Value) -> Self {
        let places = document["places"].as_array().into_iter().flatten();
        let keyed =
            places.filter_map(|place| Some((place["of"].as_str()?.to_owned(), place.clone())));
        Self(keyed.collect())
    }

    /// As pilot told them.
    pub(super) fn json(&self) -> Value {
        self.0.values().cloned().collect()
    }

    /// The object as people write it, with its field, and the file and line or version.
    pub(super) fn describe(&self, of: &str) -> (String, String) {
        let (config, field) = of.split_once('#').unwrap_or((of, ""));
        let told = self.0.get(of);
        let object = told.and_then(|place| place["object"].as_str());
        let mut object = object.map_or_else(|| object_of(config), str::to_owned);
        if !field.is_empty() {
            object = format!("{object} {field}");
        }
        let place = told.map(stands_at).unwrap_or_default();
        (object, place)
    }

    /// What is wrong with it.
    pub(super) fn problems(&self, of: &str) -> Vec<String> {
        let told = self
            .0
            .get(of)
            .and_then(|place| place["problems"].as_array());
        let text = |problem: &Value| {
            let part = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
            match part("field") {
                field if field.is_empty() => part("message"),
                field => format!("{field}: {}", part("message")),
            }
        };
        told.into_iter().flatten().map(text).collect()
    }
}

fn stands_at(place: &Value) -> String {
    match (&place["file"], &place["line"], &place["resource_version"]) {
        (Value::String(file), Value::Number(line), _) => format!("{file}:{line}"),
        (_, _, Value::String(version)) => format!("resourceVersion {version}"),
        _ => String::new(),
    }
}

/// `VirtualService default/reviews` of the path by which resources name it.
fn object_of(config: &str) -> String {
    let parts: Vec<&str> = config.rsplit('/').take(3).collect();
    let [name, kind, namespace] = parts[..] else {
        return config.to_owned();
    };
    let words = kind.split('-').map(|word| match word {
        "http" | "grpc" | "tcp" | "tls" => word.to_uppercase(),
        _ => {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_uppercase() + rest
        }
    });
    format!("{} {namespace}/{name}", words.collect::<String>())
}

/// `<object>#<field>` of an origin; none where there is none.
pub(super) fn origin(origin: &Value) -> Option<String> {
    let config = origin["config"].as_str()?;
    Some(match origin["field"].as_str() {
        Some(field) => format!("{config}#{field}"),
        None => config.to_owned(),
    })
}

/// The object behind a cluster's service.
pub(super) fn service(service: &Value) -> Option<String> {
    if let Some(object) = service["object"].as_str() {
        return Some(object.to_owned());
    }
    let (namespace, name) = (service["namespace"].as_str()?, service["name"].as_str()?);
    Some(format!("/api/v1/namespaces/{namespace}/service/{name}"))
}

/// The object behind a virtual host, which is called by host and port.
pub(super) fn virtual_host(host: &Value) -> Option<String> {
    origin(&host["origin"]).or_else(|| {
        let (name, rest) = host["name"].as_str()?.split_once('.')?;
        let (namespace, _) = rest.split_once(".svc.")?;
        Some(format!("/api/v1/namespaces/{namespace}/service/{name}"))
    })
}

/// All objects that a decision names, each once.
pub(super) fn of(decision: &Value) -> Vec<String> {
    let chain = origin(&decision["filter_chain"]["origin"]);
    let host = virtual_host(&decision["virtual_host"]);
    let route = origin(&decision["route"]["origin"]);
    let mut all: Vec<String> = [chain, host, route].into_iter().flatten().collect();
    if decision["answer"]["outcome"] == "no_route" {
        let passed = decision["virtual_host"]["passed_over"].as_array();
        let passed = passed.into_iter().flatten();
        all.extend(passed.filter_map(|route| origin(&route["origin"])));
    }
    for cluster in decision["clusters"].as_array().into_iter().flatten() {
        all.extend(service(&cluster["service"]));
        all.extend(origin(&cluster["origin"]));
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|of| seen.insert(of.clone()));
    all
}
