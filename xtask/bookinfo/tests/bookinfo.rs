//! The four services in pods of their own, without a mesh: what each answers, and what they
//! forward to each other.

use std::process::Command;
use std::time::Duration;

use millrace_testkit::http::{Client, Request, Response, Server};
use millrace_testkit::{Cluster, Node, Pod, Process, require, until};
use serde_json::{Value, json};

const PORT: u16 = 9080;

fn start(node: &Node, name: &str, args: &[&str]) -> anyhow::Result<(Pod, Process)> {
    let pod = node.pod(name)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-bookinfo"));
    command.args(args);
    let process = pod.spawn("bookinfo", command)?;
    until(Duration::from_secs(10), || pod.connect(pod.at(PORT)))?;
    Ok((pod, process))
}

fn url(pod: &Pod) -> String {
    format!("http://{}", pod.at(PORT))
}

#[test]
fn the_page_shows_what_the_other_services_say() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let client = node.pod("client")?;
    let (details, _d) = start(&node, "details", &["details"])?;
    let (ratings, _ra) = start(&node, "ratings", &["ratings"])?;
    let version = ["reviews", "--version", "v3", "--ratings", &url(&ratings)];
    let (reviews, _re) = start(&node, "reviews-v3", &version)?;
    let (details_url, reviews_url, ratings_url) = (url(&details), url(&reviews), url(&ratings));
    let args = [
        "productpage",
        "--details",
        &details_url,
        "--reviews",
        &reviews_url,
    ];
    let (page, _p) = start(
        &node,
        "productpage",
        &[&args[..], &["--ratings", &ratings_url]].concat(),
    )?;

    let mut browser = Client::connect(&client, page.at(PORT))?;
    let mut get = |path: &str| browser.send(&Request::get("productpage:9080", path));
    assert_eq!(get("/health")?.text(), "Product page is healthy");
    assert!(get("/")?.text().contains("Simple Bookstore App"));
    let html = get("/productpage")?.text();
    for part in [
        "The Comedy of Errors",
        "PublisherA",
        "Reviewer1",
        "color=\"red\"",
        "<u>reviews-v3<",
    ] {
        assert!(html.contains(part), "no {part} in {html}");
    }
    assert_eq!(
        get("/api/v1/products")?.json()?[0]["title"],
        "The Comedy of Errors"
    );
    assert_eq!(get("/api/v1/products/0")?.json()?["ISBN-10"], "1234567890");
    assert_eq!(
        get("/api/v1/products/0/ratings")?.json()?["ratings"]["Reviewer2"],
        4
    );
    let reviews = get("/api/v1/products/0/reviews")?.json()?;
    assert_eq!(
        reviews["reviews"][0]["rating"],
        json!({ "stars": 5, "color": "red" })
    );
    assert_eq!(reviews["podname"], "reviews-v3");
    assert_eq!(get("/api/v1/products/x")?.status, 404);
    Ok(())
}

#[test]
fn versions_differ_in_their_stars_and_say_when_ratings_are_down() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let client = node.pod("client")?;
    let nobody = format!("http://{}", client.at(1));
    let expected = [
        ("v1", Value::Null),
        (
            "v2",
            json!({ "error": "Ratings service is currently unavailable" }),
        ),
    ];
    for (version, rating) in expected {
        let args = ["reviews", "--version", version, "--ratings", &nobody];
        let (pod, _process) = start(&node, version, &args)?;
        let reviews = client.get(pod.at(PORT), "reviews", "/reviews/0")?.json()?;
        assert_eq!(reviews["reviews"][0]["rating"], rating, "{version}");
        assert_eq!(
            client.get(pod.at(PORT), "reviews", "/reviews/x")?.status,
            400
        );
    }
    Ok(())
}

#[test]
fn trace_headers_are_forwarded_and_idle_connections_may_close() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let (client, stub) = (node.pod("client")?, node.pod("ratings")?);
    let ratings = Server::http(stub.listen(stub.at(PORT))?, |request, _| {
        let id = request.headers.first("x-request-id").unwrap_or("none");
        Response::new(
            200,
            json!({ "ratings": { "Reviewer1": id.len() } }).to_string(),
        )
    })?;
    let args = ["reviews", "--version", "v2", "--ratings", &url(&stub)];
    let (pod, _process) = start(&node, "reviews", &args)?;
    for _ in 0..2 {
        let mut connection = Client::connect(&client, pod.at(PORT))?;
        let request = Request::get("reviews", "/reviews/0").header("x-request-id", "abc");
        let reviews = connection.send(&request)?.json()?;
        assert_eq!(reviews["reviews"][0]["rating"]["stars"], 3, "{reviews}");
        ratings.close_connections();
    }
    assert_eq!(ratings.accepted(), 2);
    Ok(())
}

#[test]
fn ratings_can_be_changed() -> anyhow::Result<()> {
    require!(cluster);
    let cluster = Cluster::new()?;
    let node = cluster.node("n1")?;
    let client = node.pod("client")?;
    let (ratings, mut process) = start(&node, "ratings", &["ratings"])?;
    let mut connection = Client::connect(&client, ratings.at(PORT))?;
    let put = Request::new("PUT", "ratings", "/ratings/7").body(r#"{"Reviewer1":1}"#);
    assert_eq!(connection.send(&put)?.status, 200);
    let bad = Request::new("POST", "ratings", "/ratings/7").body("no json");
    assert_eq!(connection.send(&bad)?.status, 400);
    let stars = connection
        .send(&Request::get("ratings", "/ratings/7"))?
        .json()?;
    assert_eq!(stars, json!({ "id": 7, "ratings": { "Reviewer1": 1 } }));
    assert!(
        process.stop(Duration::from_secs(10))?.success(),
        "SIGTERM ends it well"
    );
    Ok(())
}
