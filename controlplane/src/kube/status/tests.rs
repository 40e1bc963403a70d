//! What the writer does with the answers of an API server, one after the other.

use std::collections::VecDeque;

use http::{Request, Response};
use kube::client::Body;
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::metrics::Metrics;
use parking_lot::Mutex;

use super::*;
use crate::index::ChangeSet;
use crate::model::names::ObjectName;

type Calls = Arc<Mutex<Vec<Value>>>;

/// A writer for an API server that gives these answers, with what it was asked.
fn writer(answers: &[u16]) -> (StatusWriter, Calls) {
    let calls = Calls::default();
    let asked = Arc::clone(&calls);
    let answers = Arc::new(Mutex::new(VecDeque::from(answers.to_vec())));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (asked, answers) = (Arc::clone(&asked), Arc::clone(&answers));
        async move {
            let body = request.into_body().collect_bytes().await?;
            let patch: Value = serde_json::from_slice(&body)?;
            let code = answers.lock().pop_front().expect("one call too many");
            let version = format!(
                "{}-written",
                patch["metadata"]["resourceVersion"].as_str().unwrap()
            );
            let body = match code {
                200 => json!({
                    "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                    "metadata": {"name": "a", "resourceVersion": version}, "status": patch["status"],
                }),
                _ => {
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code})
                }
            };
            asked.lock().push(patch);
            let response = Response::builder().status(code);
            Ok::<_, tower::BoxError>(response.body(Body::from(body.to_string().into_bytes()))?)
        }
    });
    let metrics = PilotMetrics::new(&Metrics::new(&BuildInfo::of("pilot")));
    let source = Arc::new(MeshSource::new(metrics.clone()));
    source.publish(Arc::default(), &ChangeSet::default());
    let (_, leads) = latest::channel(true);
    let client = Client::new(service, "default");
    let writer = StatusWriter::new(client, source, "cluster.local", metrics, leads);
    (writer, calls)
}

fn id(name: &str) -> ObjectId {
    ObjectId {
        kind: Kind::VirtualService,
        name: ObjectName::new("default", name),
    }
}

/// An object as a watch sees it.
fn seen(name: &str, version: &str, status: Value) -> Seen {
    let kind = kube::core::GroupVersionKind::gvk("networking.istio.io", "v1", "VirtualService");
    let known = Known {
        resource: Arc::new(ApiResource::from_gvk_with_plural(&kind, "virtualservices")),
        generation: 1,
        version: version.to_owned(),
        status,
        parents: Value::Null,
        listeners: Value::Null,
        object: None,
        problems: Vec::new(),
    };
    Seen::Object(id(name), Box::new(known))
}

#[tokio::test]
async fn a_status_is_written_once() {
    let (mut writer, calls) = writer(&[200]);
    assert!(writer.take(seen("a", "1", Value::Null)));
    assert_eq!(writer.write_all().await, Ok(()));
    assert_eq!(
        writer.write_all().await,
        Ok(()),
        "the watch has not said so yet"
    );
    let written = calls.lock()[0]["status"].clone();
    assert_eq!(written["observedGeneration"], 1);
    assert!(
        !writer.take(seen("a", "1-written", written)),
        "its own write"
    );
    assert_eq!(writer.write_all().await, Ok(()));
}

#[tokio::test]
async fn a_write_that_comes_too_late_is_made_on_the_newer_version() {
    let (mut writer, calls) = writer(&[409, 200]);
    writer.take(seen("a", "1", Value::Null));
    assert_eq!(writer.write_all().await, Ok(()));
    assert!(
        writer.take(seen("a", "2", Value::Null)),
        "nothing that is judged differs, and the status is still to be written"
    );
    assert_eq!(writer.write_all().await, Ok(()));
    let versions: Vec<Value> = calls
        .lock()
        .iter()
        .map(|call| call["metadata"]["resourceVersion"].clone())
        .collect();
    assert_eq!(versions, ["1", "2"]);
}

#[tokio::test]
async fn what_cannot_be_written_keeps_nothing_else_from_being() {
    let (mut writer, calls) = writer(&[404, 403, 200, 200]);
    for name in ["a", "b", "c"] {
        writer.take(seen(name, "1", Value::Null));
    }
    assert_eq!(writer.write_all().await, Err(()), "b is tried again");
    assert_eq!(writer.write_all().await, Ok(()), "a is gone, c is written");
    assert_eq!(calls.lock().len(), 4);
}

#[tokio::test]
async fn a_server_in_trouble_is_left_alone() {
    let (mut writer, calls) = writer(&[503, 200, 200, 200]);
    for name in ["a", "b", "c"] {
        writer.take(seen(name, "1", Value::Null));
    }
    assert_eq!(writer.write_all().await, Err(()));
    assert_eq!(calls.lock().len(), 1, "the others would fail too");
    assert_eq!(writer.write_all().await, Ok(()));
    assert_eq!(calls.lock().len(), 4);
}
