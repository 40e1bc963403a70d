use millrace_xds::RawResource;

use super::*;
use crate::index::Index;
use crate::kube::document;
use crate::model::mesh::MeshConfig;

const ROUTES: &str = "networking.istio.io/v1alpha3/VirtualService";
const ENTRIES: &str = "networking.istio.io/v1/ServiceEntry";

struct Mesh {
    index: Index,
    objects: Objects,
    services: Services,
}

impl Mesh {
    fn new() -> Self {
        Self {
            index: Index::new(MeshConfig::default()),
            objects: Objects::default(),
            services: Services::default(),
        }
    }

    /// Whether the objects to be sent differ.
    fn apply(&mut self, yaml: &str) -> bool {
        let contents = document::read("a.yaml", yaml, "cluster.local");
        assert_eq!(contents.problems, []);
        let mut news = false;
        for sourced in contents.objects {
            let id = sourced.object.id();
            news |= self.objects.set(&id, sourced.origin.as_deref());
            self.index.apply(sourced.object);
        }
        news
    }

    fn get(&self, url: &str) -> Vec<Arc<EncodedResource>> {
        let snapshot = self.index.snapshot();
        resources(
            &TypeUrl::from(url),
            &self.objects,
            &snapshot,
            &self.services,
        )
    }

    fn objects(&self, url: &str) -> Vec<mcp::Object> {
        let all = self.get(url);
        all.iter()
            .map(|it| mcp::unpack(&it.to_any()).unwrap())
            .collect()
    }
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: cart}\nspec:\n  clusterIP: 10.0.0.9\n  \
                       selector: {app: cart}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n---\n\
                       apiVersion: v1\nkind: Pod\nmetadata: {name: cart-1, labels: {app: cart, version: v1}}\n\
                       spec: {serviceAccountName: carter, containers: [{name: c}]}\n\
                       status: {phase: Running, podIP: 10.1.0.1}\n";

fn routes(host: &str, label: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: r\n  labels: {{l: {label}}}\n  \
         resourceVersion: \"9\"\nspec:\n  hosts: [cart]\n  http: [{{route: [{{destination: {{host: {host}}}}}]}}]\n"
    )
}

#[test]
fn objects_go_out_as_they_were_said_in_every_version_of_their_kind() {
    let mut mesh = Mesh::new();
    assert!(mesh.apply(&routes("cart", "one")));
    assert!(!mesh.apply(&routes("cart", "one")), "the same is no news");
    let sent = mesh.objects(ROUTES);
    assert_eq!(sent.len(), 1);
    assert_eq!(
        (sent[0].namespace.as_str(), sent[0].name.as_str()),
        ("default", "r")
    );
    assert_eq!(sent[0].labels["l"], "one");
    assert_eq!(
        sent[0].spec["http"][0]["route"][0]["destination"]["host"],
        "cart"
    );
    assert!(mesh.apply(&routes("cart", "two")), "labels are news");
    assert_ne!(mesh.objects(ROUTES)[0].version, sent[0].version);
    assert_eq!(mesh.objects("networking.istio.io/v7/VirtualService"), []);
    assert_eq!(mesh.objects("security.istio.io/v1/AuthorizationPolicy"), []);
}

#[test]
fn services_go_out_as_the_entries_that_say_the_same() {
    let mut mesh = Mesh::new();
    mesh.apply(SERVICE);
    let first = mesh.get(ENTRIES);
    let sent = mcp::unpack(&first[0].to_any()).unwrap();
    assert_eq!(sent.name, "synthetic-cart");
    let spec = serde_json::json!({
        "hosts": ["cart.default.svc.cluster.local"],
        "addresses": ["10.0.0.9"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "endpoints": [{
            "address": "10.1.0.1",
            "ports": {"http": 8080},
            "labels": {"app": "cart", "version": "v1"},
            "serviceAccount": "carter",
        }],
    });
    assert_eq!(sent.spec, spec);
    let again = mesh.get(ENTRIES);
    assert!(Arc::ptr_eq(&first[0], &again[0]), "it is encoded once");
    mesh.apply(&SERVICE.replace("10.1.0.1", "10.1.0.2"));
    let moved = mcp::unpack(&mesh.get(ENTRIES)[0].to_any()).unwrap();
    assert_eq!(moved.spec["endpoints"][0]["address"], "10.1.0.2");
}

#[test]
fn what_an_object_states_is_not_sent_twice() {
    let mut mesh = Mesh::new();
    mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: out}\nspec:\n  hosts: [out.example]\n  \
         ports: [{number: 80, name: http, protocol: HTTP}]\n  resolution: DNS\n",
    );
    let names: Vec<_> = mesh
        .objects(ENTRIES)
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(names, ["out"]);
}

#[test]
fn a_receiver_reads_the_name_that_it_was_sent_under() {
    let mut mesh = Mesh::new();
    mesh.apply(SERVICE);
    let sent = &mesh.get(ENTRIES)[0];
    let raw = RawResource {
        name: sent.name().to_owned(),
        version: String::new(),
        body: sent.to_any(),
    };
    assert_eq!(
        mcp::name_of(&raw.body).as_deref(),
        Some("default/synthetic-cart")
    );
    assert_eq!(sent.name(), "default/synthetic-cart");
}
