//! The NetworkPolicy API reference, sentence by sentence, and the tests that hold each.
//!
//! The sentences come with the types that policies are read as, so a newer version of those with a new sentence fails here
//! until somebody has said which test holds it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::schemars::{JsonSchema, SchemaGenerator};
use serde::Deserialize;

const TABLE: &str = include_str!("../../tests/data/networkpolicy-specification.yaml");

/// A sentence and what holds it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sentence {
    text: String,
    /// `file::function`.
    #[serde(default)]
    tests: Vec<String>,
    /// Why no test is needed.
    none: Option<String>,
}

fn table() -> BTreeMap<String, Vec<Sentence>> {
    serde_saphyr::from_str(TABLE).unwrap()
}

/// The descriptions of a type and of its fields, by `Type.field`.
fn describe<T: JsonSchema>(into: &mut BTreeMap<String, String>) {
    let schema = T::json_schema(&mut SchemaGenerator::default()).to_value();
    let name = T::schema_name().rsplit('.').next().unwrap().to_owned();
    let description =
        |value: &serde_json::Value| value["description"].as_str().unwrap_or_default().to_owned();
    for (field, value) in schema["properties"].as_object().unwrap() {
        if !matches!(field.as_str(), "apiVersion" | "kind") {
            into.insert(format!("{name}.{field}"), description(value));
        }
    }
    into.insert(name, description(&schema));
}

fn reference() -> BTreeMap<String, String> {
    let mut descriptions = BTreeMap::new();
    describe::<networking::NetworkPolicy>(&mut descriptions);
    describe::<networking::NetworkPolicySpec>(&mut descriptions);
    describe::<networking::NetworkPolicyIngressRule>(&mut descriptions);
    describe::<networking::NetworkPolicyEgressRule>(&mut descriptions);
    describe::<networking::NetworkPolicyPeer>(&mut descriptions);
    describe::<networking::NetworkPolicyPort>(&mut descriptions);
    describe::<networking::IPBlock>(&mut descriptions);
    describe::<meta::LabelSelector>(&mut descriptions);
    describe::<meta::LabelSelectorRequirement>(&mut descriptions);
    descriptions
}

#[test]
fn every_sentence_of_the_reference_is_in_the_table_and_no_other() {
    let (reference, table) = (reference(), table());
    assert_eq!(reference.keys().collect::<Vec<_>>(), table.keys().collect::<Vec<_>>(), "the fields");
    for (field, description) in reference {
        let sentences: Vec<&str> = table[&field].iter().map(|sentence| sentence.text.as_str()).collect();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&sentences.join(" ")), words(&description), "the sentences of {field}");
    }
}

#[test]
fn every_sentence_that_states_behaviour_is_held_by_tests_that_exist() {
    let known = tests_by_file();
    let mut named = BTreeSet::new();
    for (field, sentences) in table() {
        for Sentence { text, tests, none } in sentences {
            assert_eq!(tests.is_empty(), none.is_some(), "{field}: {text:?} has tests, or a reason why not");
            for test in tests {
                let (file, function) = test.split_once("::").unwrap();
                let found =
                    known.iter().any(|(stem, functions)| stem == file && functions.contains(function));
                assert!(found, "{field}: {text:?} is held by {test}, and there is no such test");
                named.insert(test);
            }
        }
    }
    println!("{} tests hold the reference", named.len());
    assert!(named.len() > 15, "{named:?}");
}

/// The functions of every source file that are tests, with the name of the file.
fn tests_by_file() -> Vec<(String, BTreeSet<String>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> =
        ["agent/src", "agent/tests", "tests/tests"].map(|f| root.join(f)).to_vec();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.file_stem().unwrap().to_str().unwrap().to_owned(), tests_of(&text)));
            }
        }
    }
    files
}

/// Functions directly below an attribute that makes them tests.
fn tests_of(text: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        let name =
            line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ").and_then(|l| l.split_once('('));
        match name {
            Some((name, _)) if is_test => drop(tests.insert(name.to_owned())),
            _ => {}
        }
        is_test = line == "#[test]" || line.starts_with("#[tokio::test") || is_test && line.starts_with('#');
    }
    tests
}

#[test]
fn only_a_function_with_the_attribute_counts_as_a_test() {
    let text = "#[test]\nfn a() {}\nfn b() {}\n#[test]\n#[expect(x)]\nfn c() {}\n// #[test]\nfn d() {}\n#[tokio::test]\nasync fn e() {}\n";
    assert_eq!(tests_of(text), ["a", "c", "e"].map(str::to_owned).into());
}
