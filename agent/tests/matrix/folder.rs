//! A folder of manifests, and what the matrix says of it.

use std::fmt::Write as _;

use portcullis::matrix::{self, Matrix, Options, Port, Tables};
use portcullis::sources::manifests;
use tempfile::TempDir;

/// A folder with files.
pub struct Folder(TempDir);

impl Folder {
    /// From names and contents.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        Self(folder)
    }

    pub fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    pub fn ask(&self, options: &Options) -> Asked {
        Asked {
            found: matrix::ask(&manifests::read(self.0.path()).unwrap(), options),
            folder: self.path().to_owned(),
        }
    }
}

/// An answer.
pub struct Asked {
    pub found: Matrix,
    folder: String,
}

impl Asked {
    /// Of one file, for one port.
    pub fn about(text: &str, port: &str) -> Self {
        let ports = vec![port.parse().unwrap()];
        Folder::new(&[("all.yaml", text)]).ask(&Options { ports, ..Options::default() })
    }

    pub fn tables(&self, port: &str) -> &Tables {
        let port: Port = port.parse().unwrap();
        &self.found.tables.iter().find(|(other, _)| *other == port).unwrap().1
    }

    /// The ports that were answered for.
    pub fn ports(&self) -> Vec<String> {
        self.found.tables.iter().map(|(port, _)| port.to_string()).collect()
    }

    /// What is not understood, without the name of the folder.
    pub fn problems(&self) -> Vec<String> {
        let short = |text: String| text.replace(&format!("{}/", self.folder), "");
        self.found.problems.iter().map(|problem| short(problem.to_string())).collect()
    }

    /// The table of the only port, as people see it.
    pub fn shown(&self) -> String {
        assert_eq!(self.found.tables.len(), 1);
        let mut text = String::new();
        for (name, row) in self.found.names.iter().zip(&self.found.tables[0].1.shown) {
            writeln!(text, "{row} {name}").unwrap();
        }
        text
    }

    /// The note that contains a text.
    pub fn note(&self, text: &str) -> &str {
        let mut notes = self.found.notes.iter().filter(|note| note.contains(text));
        let note = notes.next().unwrap_or_else(|| panic!("no note has {text:?}: {:#?}", self.found.notes));
        assert_eq!(notes.next(), None);
        note
    }
}
