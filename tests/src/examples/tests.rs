use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use super::*;

#[test]
fn every_example_holds_by_the_compiler() {
    let mut lines = 0;
    for example in load_all().unwrap() {
        let judge = Judge::new(&example, &example.policies).unwrap();
        let wrong: Vec<String> =
            example.table.expect.iter().flat_map(|line| judge.wrong(line).unwrap()).collect();
        assert_eq!(wrong, Vec::<String>::new(), "{}", example.name);
        lines += example.table.expect.len();
    }
    assert!(lines > 50, "{lines} lines");
}

#[test]
fn no_policy_of_an_example_is_idle() {
    for example in load_all().unwrap() {
        for left_out in &example.policies {
            let others: Vec<_> =
                example.policies.iter().filter(|p| p.file != left_out.file).cloned().collect();
            let judge = Judge::new(&example, &others).unwrap();
            let wrong = example.table.expect.iter().flat_map(|line| judge.wrong(line).unwrap());
            assert_ne!(wrong.count(), 0, "without {} of {} everything holds", left_out.file, example.name);
        }
    }
}

#[test]
fn without_any_policy_everything_is_allowed() {
    for example in load_all().unwrap() {
        let judge = Judge::new(&example, &[]).unwrap();
        for line in &example.table.expect {
            let allowed = Line { verdict: Expect::Allow, ..line.clone() };
            assert_eq!(judge.wrong(&allowed).unwrap(), Vec::<String>::new(), "{}", example.name);
        }
    }
}

#[test]
fn an_example_has_a_readme_and_applies_all_of_its_files() {
    let examples = load_all().unwrap();
    let names: BTreeSet<&str> = examples.iter().map(|example| example.name.as_str()).collect();
    let index = fs::read_to_string(folder().join("README.md")).unwrap();
    for example in &examples {
        let readme = fs::read_to_string(example.folder.join("README.md")).unwrap();
        assert!(
            readme.contains(&format!("kubectl apply -k deploy/examples/{}", example.name)),
            "{}",
            example.name
        );
        assert!(index.contains(&format!("({})", example.name)), "{} is not in the list", example.name);
        let kustomization = Manifest::read(&example.folder, "kustomization.yaml".to_owned()).unwrap();
        let files =
            [&example.apps].into_iter().chain(&example.policies).map(|manifest| manifest.file.as_str());
        let wanted = json!(files.collect::<Vec<_>>());
        assert_eq!(kustomization.objects[0]["resources"], wanted, "{}", example.name);
    }
    let wanted = [
        "a-to-b-not-c",
        "cluster-guardrails",
        "database-api-only",
        "default-deny",
        "dns-allowed",
        "egress-named-networks",
        "from-outside",
        "namespace-isolation",
        "sensitive-namespace",
    ];
    assert_eq!(names, BTreeSet::from(wanted));
}

#[test]
fn examples_share_no_namespace_so_they_can_be_applied_together() {
    let mut seen = BTreeSet::new();
    for example in load_all().unwrap() {
        for object in example.apps.objects.iter().filter(|object| text(object, "/kind") == "Namespace") {
            let name = text(object, "/metadata/name").to_owned();
            assert!(name.starts_with("example-"), "{name}");
            assert!(seen.insert(name.clone()), "{name} is in two examples");
        }
    }
}

#[test]
fn a_line_about_nobody_is_refused() {
    let mut example = load_all().unwrap().remove(0);
    let mut line = example.table.expect[0].clone();
    line.to = End::Host("nobody".to_owned());
    example.table.expect.push(line);
    let error = example.check_names().unwrap_err().to_string();
    assert!(error.starts_with("`nobody` is nobody"), "{error}");
}
