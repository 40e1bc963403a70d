use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// Kinds that files may have and a cluster says otherwise: its slices say what Endpoints say, its pods what their
/// Deployments say.
const FILES_ONLY: [Kind; 2] = [Kind::Endpoints, Kind::Deployment];

#[test]
fn every_kind_is_watched_in_one_way() {
    for kind in Kind::ALL {
        let ways = [
            OWN_KINDS.contains(kind),
            CONFIG_KINDS.iter().any(|config| config.kind == *kind),
            FILES_ONLY.contains(kind),
        ];
        let count = ways.into_iter().filter(|way| *way).count();
        assert_eq!(count, 1, "{kind:?}");
    }
}

fn manifest(kind: &ConfigKind) -> Value {
    let file = format!("../deploy/crds/{}_{}.yaml", kind.group, kind.plural);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_kind_is_watched_in_the_versions_that_its_manifest_has() {
    for kind in CONFIG_KINDS {
        let manifest = manifest(kind);
        let versions: Vec<_> = manifest["spec"]["versions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|version| version["name"].as_str().unwrap())
            .collect();
        assert_eq!(versions, kind.versions, "{:?}", kind.kind);
        assert_eq!(
            manifest["spec"]["names"]["kind"],
            kind.kind.as_str(),
            "{:?}",
            kind.kind
        );
        let scope = manifest["spec"]["scope"].as_str().unwrap();
        assert_eq!(
            scope == "Cluster",
            kind.kind.is_cluster_scoped(),
            "{:?}",
            kind.kind
        );
    }
}

#[test]
fn every_version_that_is_watched_is_read() {
    for kind in CONFIG_KINDS {
        for version in kind.versions {
            let object = json!({
                "apiVersion": format!("{}/{version}", kind.group),
                "kind": kind.kind.as_str(),
                "metadata": {"name": "x", "namespace": "default"},
                "spec": {},
            });
            let contents = document::read_value(object, "cluster.local");
            let unread = contents
                .problems
                .iter()
                .find(|problem| ["apiVersion", "kind"].contains(&problem.field.as_str()));
            assert!(unread.is_none(), "{unread:?}");
            assert!(!contents.unidentified, "{:?} {version}", kind.kind);
        }
    }
}
