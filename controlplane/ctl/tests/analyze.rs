//! `millctl analyze` as a person or a pipeline runs it: texts and exit codes, over files and over a real API server.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary has no callers"
)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use serde_json::Value;

const DEFINITIONS: &str = include_str!("../../testdata/kubernetes/definitions.yaml");

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{port: 9080, name: http}]}
";

fn virtual_service(subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec:\n  hosts: [reviews]\n  \
         http: [{{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]\n"
    )
}

fn destination_rule(subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\n\
         spec: {{host: reviews, subsets: [{{name: {subset}, labels: {{version: v1}}}}]}}\n"
    )
}

fn analyze(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millctl"))
        .arg("analyze")
        .args(arguments)
        .current_dir(directory)
        .env_remove("MILLRACE_DOMAIN")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    format!("{}{errors}", String::from_utf8_lossy(&output.stdout))
}

#[test]
fn exit_codes_are_those_of_istioctl() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path();
    std::fs::create_dir(path.join("mesh")).unwrap();
    let write =
        |name: &str, text: &str| std::fs::write(path.join("mesh").join(name), text).unwrap();
    write("service.yaml", SERVICE);
    write("rule.yaml", &virtual_service("v1"));
    write("README.md", "not: [yaml");
    let run = |arguments: &[&str]| {
        let output = analyze(path, arguments);
        (output.status.code().unwrap(), text(&output))
    };

    let warned = "Warning [unknown_reference] mesh/rule.yaml:6: VirtualService default/reviews: \
                  spec.http[0].route[0].destination.subset: no DestinationRule gives \
                  reviews.default.svc.cluster.local a subset \"v1\": requests get 503 (NC)\n\
                  errors: 0, warnings: 1, infos: 0\n";
    assert_eq!(run(&["mesh"]), (0, warned.to_owned()));
    let strict = run(&["mesh", "--failure-threshold", "warning"]);
    assert_eq!(strict, (79, warned.to_owned()));
    let suppressed = [
        "mesh",
        "-S",
        "unknown_*=* default/reviews",
        "--failure-threshold",
        "info",
    ];
    assert_eq!(run(&suppressed), (0, "nothing is wrong\n".to_owned()));
    let elsewhere = run(&["mesh", "-n", "other", "--failure-threshold", "info"]);
    assert_eq!(elsewhere.0, 0, "{}", elsewhere.1);

    write("rule.yaml", "a: [\n");
    let (code, said) = run(&["mesh"]);
    assert_eq!(code, 65, "{said}");
    assert!(
        said.starts_with("Error [unreadable] mesh/rule.yaml:"),
        "{said}"
    );
    write("rule.yaml", &virtual_service("5"));
    let (code, said) = run(&["mesh", "--output", "json"]);
    let problems: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(code, 79, "{said}");
    for (field, value) in [
        ("severity", "error"),
        ("reason", "invalid"),
        ("file", "mesh/rule.yaml"),
        ("object", "VirtualService default/reviews"),
        ("field", "spec.http[0].route[0].destination.subset"),
    ] {
        assert_eq!(problems[0][field], value, "{said}");
    }
    assert_eq!(problems[0]["line"], 6, "{said}");
    assert_eq!(run(&["missing.yaml"]).0, 1);
    assert_eq!(run(&[]).0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_judged_as_if_they_were_applied_to_the_cluster() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    apply(&client, "default", DEFINITIONS).await?;
    apply(&client, "default", SERVICE).await?;
    let files = tempfile::tempdir()?;
    let (path, config) = (files.path(), server.kubeconfig());
    let config = config.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let cluster = [
            "--kube",
            "--kubeconfig",
            config,
            "--failure-threshold",
            "warning",
        ];
        let output = analyze(path, &[&cluster, arguments].concat());
        (output.status.code(), text(&output))
    };
    assert_eq!(run(&[]), (Some(0), "nothing is wrong\n".to_owned()));

    // The service is the cluster's, the rules are files'.
    std::fs::write(path.join("rule.yaml"), virtual_service("v1"))?;
    let (code, said) = run(&["rule.yaml"]);
    assert_eq!(code, Some(79));
    assert!(
        said.starts_with("Warning [unknown_reference] rule.yaml:6: "),
        "{said}"
    );
    std::fs::write(path.join("subsets.yaml"), destination_rule("v1"))?;
    assert_eq!(run(&["rule.yaml", "subsets.yaml"]).0, Some(0));

    // The rules are the cluster's, and a file takes away what one of them needs.
    let definitions = virtual_service("v1") + "---\n" + &destination_rule("v1");
    let patience = std::time::Duration::from_mins(1);
    let applied = async {
        while apply(&client, "default", &definitions).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(patience, applied).await?;
    assert_eq!(run(&[]), (Some(0), "nothing is wrong\n".to_owned()));
    std::fs::write(path.join("subsets.yaml"), destination_rule("v2"))?;
    let (code, said) = run(&["subsets.yaml"]);
    assert_eq!(code, Some(79));
    assert!(
        said.starts_with("Warning [unknown_reference] VirtualService default/reviews: "),
        "{said}"
    );
    // What was wrong before is not the file's fault.
    apply(&client, "default", &destination_rule("v3")).await?;
    assert_eq!(run(&[]).0, Some(79));
    assert_eq!(run(&["rule.yaml", "subsets.yaml"]).0, Some(79));
    std::fs::write(
        path.join("other.yaml"),
        destination_rule("v4").replace("reviews", "kubernetes"),
    )?;
    let (_, said) = run(&["other.yaml"]);
    assert!(!said.contains("VirtualService"), "{said}");
    Ok(())
}
