//! Which routes are out of reach, and which only look like it.

use crate::kube::document;

/// The places of routes out of reach, of a `VirtualService` with these conditions, one list for each route.
fn unreached(member: &str, routes: &[&str]) -> Vec<String> {
    let routes = routes.iter().map(|conditions| {
        format!("  - match: [{conditions}]\n    route: [{{destination: {{host: a, port: {{number: 1}}}}}}]\n")
    });
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec:\n  hosts: [a]\n  {member}:\n{}",
        routes.collect::<String>()
    );
    let contents = document::read("a.yaml", &yaml, "cluster.local");
    let unreached = contents
        .problems
        .iter()
        .filter(|problem| problem.reason == crate::model::problem::Reason::Unreachable);
    unreached
        .map(|problem| format!("{} {}", problem.field, &problem.message[19..26]))
        .collect()
}

#[test]
fn http_routes_behind_one_that_takes_all_of_theirs() {
    let reached: [&[&str]; 10] = [
        &["{uri: {exact: /a}}", "{uri: {prefix: /}}"],
        &["{uri: {prefix: /a}}", "{uri: {exact: /b}}", ""],
        &[
            "{uri: {prefix: /a}, method: {exact: GET}}",
            "{uri: {prefix: /a}}",
        ],
        &["{uri: {regex: /a.*}}", "{uri: {prefix: /a}}"],
        &[
            "{headers: {x: {exact: '1'}}}",
            "{headers: {x: {exact: '2'}}}",
        ],
        &["{headers: {x: {exact: '1'}}}", "{headers: {x: {}}}"],
        &[
            "{uri: {prefix: /a}}",
            "{uri: {prefix: /A}, ignoreUriCase: true}",
        ],
        &["{withoutHeaders: {x: {}}}", ""],
        &["{port: 80}", "{port: 81}", "{port: 82}"],
        &["{gateways: [edge]}", "{uri: {prefix: /a}}"],
    ];
    for routes in reached {
        assert_eq!(
            unreached("http", routes),
            Vec::<String>::new(),
            "{routes:?}"
        );
    }
    let not: [&[&str]; 9] = [
        &["", "{uri: {exact: /a}}"],
        &["{uri: {prefix: /}}", "{method: {exact: GET}}"],
        &["{uri: {prefix: /a}}", "{uri: {prefix: /ab}}"],
        &[
            "{uri: {prefix: /A}, ignoreUriCase: true}",
            "{uri: {exact: /ab}}",
        ],
        &[
            "{uri: {exact: /a}}, {uri: {exact: /b}}",
            "{uri: {exact: /b}}",
        ],
        &[
            "{headers: {x: {}}}",
            "{headers: {x: {exact: '1'}, y: {exact: '2'}}}",
        ],
        &[
            "{withoutHeaders: {x: {}}}",
            "{withoutHeaders: {x: {}}, port: 1}",
        ],
        &[
            "{queryParams: {x: {prefix: a}}}",
            "{queryParams: {x: {exact: ab}}}",
        ],
        &[
            "{sourceNamespace: prod}",
            "{sourceNamespace: prod, port: 80}",
        ],
    ];
    for routes in not {
        assert_eq!(
            unreached("http", routes),
            ["spec.http[1] route 0"],
            "{routes:?}"
        );
    }
}

#[test]
fn a_route_that_was_left_out_keeps_its_place() {
    let routes = ["{gateways: [edge]}", "", "{port: 80}"];
    assert_eq!(unreached("http", &routes), ["spec.http[2] route 1"]);
}

#[test]
fn connections_behind_a_route_that_takes_all_of_theirs() {
    assert_eq!(
        unreached("tcp", &["{port: 1}", "{port: 2}", ""]),
        Vec::<String>::new()
    );
    assert_eq!(
        unreached("tcp", &["", "{port: 2}"]),
        ["spec.tcp[1] route 0"]
    );
    let tls = [
        "{sniHosts: ['*.a.com']}",
        "{sniHosts: [b.com]}",
        "{sniHosts: [x.a.com]}",
    ];
    assert_eq!(unreached("tls", &tls), ["spec.tls[2] route 0"]);
    let narrower = ["{sniHosts: [x.a.com]}", "{sniHosts: ['*.a.com']}"];
    assert_eq!(unreached("tls", &narrower), Vec::<String>::new());
}

#[test]
fn what_a_delegate_may_leave_is_reached() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  \
                http:\n  - delegate: {name: b}\n  - route: [{destination: {host: a}}]\n";
    assert_eq!(document::read("a.yaml", yaml, "cluster.local").problems, []);
}
