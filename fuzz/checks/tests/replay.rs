//! Everything that the fuzzers kept, and everything that they ever found, once more: without a fuzzer.

#![allow(clippy::expect_used, reason = "tests: a failure is a panic")]

use std::path::{Path, PathBuf};

use portcullis_checks::targets;

/// Files of a folder beside this package, but for what explains them.
fn files(of: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_none_or(|extension| extension != "md"));
    files.sort();
    files
}

#[test]
fn what_the_fuzzers_kept_and_found_goes_through() {
    for target in targets::NAMES {
        let corpus = files(&format!("corpus/{target}"));
        assert!(corpus.len() > 50, "{} files in the corpus of {target}", corpus.len());
        let crashes = files(&format!("crashes/{target}"));
        for file in corpus.iter().chain(&crashes) {
            let input = std::fs::read(file).expect("a file");
            let outcome = std::panic::catch_unwind(|| targets::named(target)(&input));
            assert!(outcome.is_ok(), "{}", file.display());
        }
    }
}
