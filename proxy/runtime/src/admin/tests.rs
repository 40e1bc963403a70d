//! The admin server over real sockets.

use bytes::Bytes;
use http::{Method, StatusCode};

use super::client::{Answer, Target, call};
use super::*;

fn routes() -> Routes {
    Routes::new()
        .get("/status", "state", |_| async {
            Reply::json(200, &serde_json::json!({"ok": true}))
        })
        .route(
            Method::PUT,
            "/pods/{uid}/capture",
            "switch",
            |request| async move {
                let text = format!(
                    "{} {} {}",
                    request.param("uid"),
                    request.query("force").unwrap_or("-"),
                    String::from_utf8_lossy(&request.body)
                );
                Reply::text(200, text)
            },
        )
}

async fn ask(target: &Target, method: Method, path: &str, body: &str) -> Answer {
    let body = Bytes::copy_from_slice(body.as_bytes());
    call(target, method, path, body, Duration::from_secs(5))
        .await
        .unwrap()
}

#[tokio::test]
async fn routes_match_by_method_pattern_and_query() {
    let server = Server::bind_tcp("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let target = Target::Tcp(server.local_addr().unwrap());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(routes(), stop.clone()));

    let answer = ask(&target, Method::GET, "/status", "").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.text().contains("\"ok\": true"));

    let answer = ask(
        &target,
        Method::PUT,
        "/pods/a%2Fb/capture?force=a+b%21",
        "ebpf",
    )
    .await;
    assert_eq!(answer.text(), "a/b a b! ebpf");

    let answer = ask(&target, Method::POST, "/status", "").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    let answer = ask(&target, Method::GET, "/nothing", "").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.text().contains("/pods/{uid}/capture"));

    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_unix_socket_serves_and_bounds_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let server = Server::bind_unix(&path, 0o600).unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(routes(), stop.clone()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let target = Target::Unix(path);
    let long = "x".repeat(MAX_BODY + 1);
    let answer = ask(&target, Method::PUT, "/pods/u/capture", &long).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);

    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_call_to_nobody_names_the_target() {
    let target = Target::Unix("/nonexistent/agent.sock".into());
    let error = call(
        &target,
        Method::GET,
        "/",
        Bytes::new(),
        Duration::from_secs(1),
    )
    .await
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "unix:/nonexistent/agent.sock cannot be reached"
    );
}
