//! `portcullis matrix` as people call it: what goes to which stream, and the exit code.

use serde_json::{Value, json};

use super::portcullis;

const SHOP: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec: {template: {metadata: {labels: {app: api}}, spec: {serviceAccountName: api}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - ports: [{port: 5432}]
    from: [{podSelector: {matchLabels: {app: api}}}]
";

fn folder(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.yaml"), text).unwrap();
    folder
}

#[test]
fn the_table_is_printed_and_what_was_assumed_is_said_beside_it() {
    let folder = folder(SHOP);
    let dir = folder.path().to_str().unwrap();
    let run = portcullis(&["matrix", "--manifests", dir, "--port", "tcp/5432", "--port", "TCP/80"]);
    let wanted = "\
TCP/80
                        1 2
1  shop/db              . .
2  shop/deployment/api  I .

TCP/5432
                        1 2
1  shop/db              . .
2  shop/deployment/api  . .

rows send, columns receive: . allowed; I denied by the receiver's ingress alone
";
    assert_eq!((run.code, run.out.as_str()), (0, wanted), "{}", run.err);
    assert!(run.err.contains("portcullis: note: no Namespace in the folder"), "{}", run.err);
    let run = portcullis(&["matrix", "--manifests", dir, "--by", "principal", "-o", "json"]);
    let json: Value = serde_json::from_str(&run.out).unwrap();
    let tables =
        json!({"TCP/5432": {"ingress": ["..", ".X"], "egress": ["..", ".."], "combined": ["..", ".X"]}});
    assert_eq!(json, json!({"principals": ["shop/api", "shop/default"], "tables": tables}));
}

#[test]
fn what_is_not_understood_is_named_and_the_rest_is_shown_with_exit_code_1() {
    let folder = folder(&SHOP.replace("port: 5432", "port: 5432, endPort: 1"));
    let dir = folder.path().to_str().unwrap();
    let run = portcullis(&["matrix", "--manifests", dir, "-o", "json"]);
    assert_eq!(run.code, 1);
    let json: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(json["pods"], json!(["shop/db", "shop/deployment/api"]));
    assert_eq!(json["tables"]["TCP/80"]["combined"], json!(["..", "X."]));
    let wanted = format!(
        "portcullis: {dir}/shop.yaml: document 3 (NetworkPolicy shop/db), line 16, field \
         `spec.ingress[0].ports[0].endPort`: the range from 5432 to 1 is empty: "
    );
    assert!(run.err.contains(&wanted), "{}", run.err);
}

#[test]
fn a_folder_with_nobody_in_it_is_not_in_order() {
    let folder = folder("");
    let run = portcullis(&["matrix", "--manifests", folder.path().to_str().unwrap(), "-o", "json"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("no pod and no workload to judge in the 1 files"), "{}", run.err);
    assert_eq!(serde_json::from_str::<Value>(&run.out).unwrap()["pods"], json!([]));
    let run = portcullis(&["matrix", "--manifests", "/no/such/folder"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("/no/such/folder: cannot be listed: "), "{}", run.err);
}
