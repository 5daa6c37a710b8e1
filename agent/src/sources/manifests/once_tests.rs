use super::*;

fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Reading) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let reading = read(folder.path()).unwrap();
    (folder, reading)
}

fn keys(reading: &Reading) -> Vec<String> {
    reading.objects.iter().map(|object| object.key().to_string()).collect()
}

/// The problems, with the names of files alone.
fn problems(folder: &tempfile::TempDir, reading: &Reading) -> Vec<String> {
    let below = format!("{}/", folder.path().display());
    reading.problems.iter().map(|problem| problem.to_string().replace(&below, "")).collect()
}

#[test]
fn one_object_that_cannot_be_read_takes_no_other_along() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
status: {podIP: 1.2.3}
---
apiVersion: v1
kind: Pod
metadata: [
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop}
";
    let json =
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"ops\"}}\n{\"kind\": }";
    let (folder, reading) = folder(&[("a.yaml", text), ("b.json", json), ("c.txt", "no manifest")]);
    assert_eq!(keys(&reading), ["Pod shop/b", "Namespace ops", "Namespace shop"]);
    let found = problems(&folder, &reading);
    assert_eq!(found.len(), 3, "{found:#?}");
    for (found, start) in found.iter().zip([
        "a.yaml: document 3, line ",
        "a.yaml: document 2 (Pod shop/a), line 8, field `status.podIP`: `1.2.3` is not an IP address",
        "b.json: document 2, line 2: not valid JSON",
    ]) {
        assert!(found.starts_with(start), "{found} does not start with {start}");
    }
    assert_eq!(reading.files, 2);
}

#[test]
fn of_two_definitions_the_first_by_path_counts_and_the_other_is_named_with_both_places() {
    let pod = |uid: &str, app: &str| {
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {app}, namespace: shop, uid: {uid}}}}}\n")
    };
    let again = format!("---\n---\n{}", pod("u2", "a"));
    let (folder, reading) =
        folder(&[("a.yaml", &pod("u1", "a")), ("b.yaml", &again), ("c.yaml", &pod("u1", "c"))]);
    assert_eq!(keys(&reading), ["Pod shop/a"]);
    let Object::Pod(kept) = &reading.objects[0] else { panic!() };
    assert_eq!(kept.uid, "u1");
    assert_eq!(
        problems(&folder, &reading),
        [
            "b.yaml: document 2 (Pod shop/a), line 3, field `metadata.name`: Pod shop/a is also defined in a.yaml, document \
             1; that definition is used, remove one of the two",
            "c.yaml: document 1 (Pod shop/c), line 1, field `metadata.uid`: Pod shop/c is also defined in a.yaml, document 1 \
             as Pod shop/a with the same uid; that definition is used, remove one of the two",
        ]
    );
}

#[test]
fn a_workload_counts_unless_its_pods_are_there_or_what_made_it() {
    let owned = |kind: &str, name: &str, owner: &str| {
        let version = if kind == "Pod" { "v1" } else { "apps/v1" };
        format!(
            "---\n{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}, namespace: shop{owner}}}, spec: {{template: \
             {{metadata: {{labels: {{app: x}}}}, spec: {{containers: [{{name: c, ports: [{{containerPort: 80}}]}}]}}}}}}}}\n"
        )
    };
    let by = |kind: &str, name: &str| format!(", ownerReferences: [{{kind: {kind}, name: {name}}}]");
    let text = owned("Deployment", "web", "")
        + &owned("ReplicaSet", "web-1", &by("Deployment", "web"))
        + &owned("Pod", "web-1-x", &by("ReplicaSet", "web-1"))
        + &owned("Deployment", "api", "")
        + &owned("ReplicaSet", "api-1", &by("Deployment", "api"))
        + &owned("DaemonSet", "log", "");
    let (_folder, reading) = folder(&[("all.yaml", &text)]);
    assert_eq!(keys(&reading), ["Pod shop/daemonset/log", "Pod shop/deployment/api", "Pod shop/web-1-x"]);
    assert_eq!(reading.container_ports, [(protocol::TCP, 80)].into());
    assert!(is_workload("daemonset/log") && !is_workload("web-1-x"));
    let bad = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {}}\n---\n{apiVersion: batch/v1, kind: \
               CronJob, metadata: {name: c}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {a: 1}}}}}}}\n";
    let (folder, reading) = self::folder(&[("bad.yaml", bad)]);
    let found = problems(&folder, &reading);
    assert!(
        found[0]
            .starts_with("bad.yaml: document 1 (Deployment d), line 1, field `spec.template`: is missing"),
        "{found:?}"
    );
    assert!(
        found[1].contains("(CronJob c), line 3, field `spec.jobTemplate.spec.template.metadata.labels.a`"),
        "{found:?}"
    );
}

#[test]
fn a_folder_that_is_not_there_is_a_problem() {
    let reading = read(Path::new("/no/such/folder")).unwrap();
    assert_eq!(reading.problems.len(), 1);
    let text = reading.problems[0].to_string();
    assert!(text.starts_with("/no/such/folder: cannot be listed: "), "{text}");
}
