//! The files in `deploy/` are what the types and the kustomize base say, and name what is there.

use std::fs;

use portcullis_tests::deploy;

/// How a stale file is told.
const REMEDY: &str = "run `cargo xtask manifests`";

#[test]
fn the_definitions_are_those_of_the_types() {
    for (name, text) in deploy::definitions().unwrap() {
        let path = deploy::folder().join("crds").join(name);
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "{} is stale: {REMEDY}", path.display());
    }
}

#[test]
fn the_file_to_install_is_the_rendered_base() {
    let path = deploy::folder().join("portcullis.yaml");
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == deploy::install().unwrap(), "{} is stale: {REMEDY}", path.display());
}
