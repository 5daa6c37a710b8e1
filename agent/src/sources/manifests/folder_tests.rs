use std::os::unix::fs::symlink;

use super::*;
use crate::sources::manifests::survey::survey;

/// A real folder, brought up to date by hand: what happens between two scans is one change.
struct Scanned {
    directory: tempfile::TempDir,
    folder: Folder,
    in_force: Objects,
    synced: bool,
}

impl Scanned {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let scanned = Self { directory, folder: Folder::default(), in_force: Objects::new(), synced: false };
        for (name, text) in files {
            scanned.write(name, text);
        }
        scanned
    }

    fn path(&self, name: &str) -> PathBuf {
        // Not by way of `m`, which may be gone.
        match name.strip_prefix("../") {
            Some(name) => self.directory.path().join(name),
            None => self.directory.path().join("m").join(name),
        }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// What changed, in short.
    fn scan(&mut self) -> Vec<String> {
        self.folder.update(&survey(&self.path("")), false);
        self.synced |= self.folder.is_complete();
        let resolved = self.folder.resolve();
        let events = difference(&self.in_force, &resolved.objects);
        self.in_force = resolved.objects;
        let show = |event| match event {
            SourceEvent::Apply(object) => format!("+{}", object.key()),
            SourceEvent::Delete { key, uid: None } => format!("-{key}"),
            SourceEvent::Delete { key, uid: Some(uid) } => format!("-{key} {uid}"),
            other => panic!("{other:?}"),
        };
        events.into_iter().map(show).collect()
    }

    fn status(&self, name: &str) -> FileStatus {
        let status = self.folder.status(&self.folder.resolve(), self.synced);
        status.get(&self.path(name)).cloned().unwrap_or_else(|| panic!("{name} is not in {status:?}"))
    }
}

fn namespace(name: &str, label: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{x: {label}}}}}\n---\n")
}

fn pod(name: &str, uid: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: {uid}}}\n---\n")
}

const BROKEN: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelectr: {}}\n";
const NONE: [&str; 0] = [];

#[test]
fn only_what_differs_is_told() {
    let mut scanned =
        Scanned::new(&[("a.yaml", &(namespace("a", "v") + &namespace("b", "v"))), ("c.yml", &pod("c", "u"))]);
    assert_eq!(scanned.scan(), ["+Pod default/c", "+Namespace a", "+Namespace b"]);
    assert_eq!(scanned.scan(), NONE);
    scanned.write("a.yaml", &(namespace("a", "w") + "# comment\n" + &namespace("b", "v")));
    assert_eq!(scanned.scan(), ["+Namespace a"]);
    assert_eq!(scanned.status("a.yaml"), FileStatus { objects: 2, ..FileStatus::default() });
    scanned.remove("c.yml");
    assert_eq!(scanned.scan(), ["-Pod default/c u"]);
    scanned.write("a.yaml", &namespace("b", "v"));
    assert_eq!(scanned.scan(), ["-Namespace a"]);
}

#[test]
fn a_pod_with_another_uid_is_another_pod() {
    let mut scanned = Scanned::new(&[("a.yaml", &pod("a", "first"))]);
    scanned.scan();
    scanned.write("a.yaml", &pod("a", "second"));
    assert_eq!(scanned.scan(), ["-Pod default/a first", "+Pod default/a"]);
    scanned.write("a.yaml", &pod("b", "second"));
    assert_eq!(scanned.scan(), ["-Pod default/a second", "+Pod default/b"]);
}

#[test]
fn a_renamed_file_and_a_moved_object_are_no_change() {
    let mut scanned =
        Scanned::new(&[("a.yaml", &(namespace("a", "v") + &namespace("b", "v"))), ("z.yaml", "")]);
    scanned.scan();
    scanned.rename("a.yaml", "n.yaml");
    assert_eq!(scanned.scan(), NONE);
    assert_eq!(scanned.status("n.yaml").objects, 2);
    scanned.write("n.yaml", &namespace("a", "v"));
    scanned.write("z.yaml", &namespace("b", "w"));
    assert_eq!(scanned.scan(), ["+Namespace b"]);
}

#[test]
fn the_last_good_state_of_a_file_stays_while_the_others_go_on() {
    let mut scanned = Scanned::new(&[("a.yaml", &namespace("a", "v")), ("b.yaml", &namespace("b", "v"))]);
    scanned.scan();
    scanned.write("a.yaml", &(namespace("new", "v") + BROKEN));
    scanned.write("b.yaml", &namespace("b", "w"));
    assert_eq!(scanned.scan(), ["+Namespace b"]);
    let status = scanned.status("a.yaml");
    assert_eq!((status.objects, status.stale), (1, true));
    let expected = format!(
        "{}: document 2 (NetworkPolicy p), line 8, field `spec.podSelectr`: unknown field; a policy is not used \
         without a part that is not understood: correct the name or remove the field; the last good state of this \
         file stays in force",
        scanned.path("a.yaml").display()
    );
    assert_eq!(status.error, Some(expected));
    assert_eq!(scanned.status("b.yaml"), FileStatus { objects: 1, ..FileStatus::default() });
    scanned.write("a.yaml", &namespace("a", "v"));
    assert_eq!(scanned.scan(), NONE);
    assert_eq!(scanned.status("a.yaml"), FileStatus { objects: 1, ..FileStatus::default() });
}

#[test]
fn a_broken_file_keeps_its_last_good_state_when_it_is_renamed_but_not_when_it_is_removed() {
    let mut scanned = Scanned::new(&[("a.yaml", &namespace("a", "v"))]);
    scanned.scan();
    scanned.write("a.yaml", BROKEN);
    assert_eq!(scanned.scan(), NONE);
    scanned.rename("a.yaml", "b.yaml");
    assert_eq!(scanned.scan(), NONE);
    assert!(scanned.status("b.yaml").stale);
    scanned.remove("b.yaml");
    scanned.write("c.yaml", "kind: [");
    assert_eq!(scanned.scan(), ["-Namespace a"]);
    let status = scanned.status("c.yaml");
    assert_eq!((status.objects, status.stale), (0, false));
    assert!(status.error.unwrap().ends_with("; nothing of this file is in force"));
}

#[test]
fn a_folder_is_complete_when_every_file_has_been_understood_once() {
    let mut scanned = Scanned::new(&[("a.yaml", BROKEN), ("b.yaml", &namespace("b", "v"))]);
    scanned.scan();
    assert!(!scanned.folder.is_complete());
    let error = scanned.status("a.yaml").error.unwrap();
    assert!(
        error.contains("nothing is enforced from this folder until the file has been understood once"),
        "{error}"
    );
    scanned.write("a.yaml", "# later\n");
    scanned.scan();
    assert!(scanned.folder.is_complete());
    scanned.write("a.yaml", BROKEN);
    scanned.scan();
    assert!(scanned.folder.is_complete(), "it has been understood once");
}

#[test]
fn of_two_definitions_the_first_file_by_path_wins_whoever_came_first() {
    for first in ["a.yaml", "b.yaml"] {
        let second = if first == "a.yaml" { "b.yaml" } else { "a.yaml" };
        let text = |name| namespace("x", name) + &namespace(name, "v");
        let mut scanned = Scanned::new(&[(first, &text(&first[..1]))]);
        scanned.scan();
        scanned.write(second, &text(&second[..1]));
        scanned.scan();
        let Object::Namespace(winner) =
            scanned.in_force.values().find(|o| o.key().name == "x").unwrap().as_ref()
        else {
            panic!()
        };
        assert_eq!(winner.labels["x"], "a", "{first} came first");
        assert_eq!(scanned.status("a.yaml"), FileStatus { objects: 2, ..FileStatus::default() });
        let expected = FileStatus {
            objects: 1,
            error: Some(format!(
                "{}: Namespace x is also defined in {}; that definition is used, remove one of the two",
                scanned.path("b.yaml").display(),
                scanned.path("a.yaml").display()
            )),
            ..FileStatus::default()
        };
        assert_eq!(scanned.status("b.yaml"), expected);
        assert_eq!(scanned.scan(), NONE, "no turns are taken");
        scanned.remove("a.yaml");
        assert_eq!(scanned.scan(), ["-Namespace a", "+Namespace x"]);
        assert_eq!(scanned.status("b.yaml").error, None);
    }
}

#[test]
fn two_pods_with_one_uid_are_two_definitions_of_a_pod() {
    let mut scanned = Scanned::new(&[("a.yaml", &pod("a", "u")), ("b.yaml", &pod("b", "u"))]);
    assert_eq!(scanned.scan(), ["+Pod default/a"]);
    let error = scanned.status("b.yaml").error.unwrap();
    let expected =
        format!("also defined in {} as Pod default/a with the same uid", scanned.path("a.yaml").display());
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_file_that_is_emptied_keeps_its_objects_until_it_is_removed() {
    let mut scanned = Scanned::new(&[("a.yaml", &namespace("a", "v")), ("new.yaml", "")]);
    scanned.scan();
    assert_eq!(scanned.status("new.yaml"), FileStatus::default(), "nothing has been there");
    scanned.write("a.yaml", "\n");
    assert_eq!(scanned.scan(), NONE);
    assert!(scanned.status("a.yaml").error.unwrap().contains("is empty; remove the file"));
    scanned.write("a.yaml", "# nothing on purpose\n");
    assert_eq!(scanned.scan(), ["-Namespace a"]);
}

#[test]
fn what_cannot_be_read_keeps_its_last_state() {
    let mut scanned = Scanned::new(&[("a.yaml", &namespace("a", "v")), ("sub/b.yaml", &namespace("b", "v"))]);
    scanned.write("../target", &namespace("c", "v"));
    symlink("../target", scanned.path("c.yaml")).unwrap();
    scanned.scan();
    assert_eq!((scanned.in_force.len(), scanned.folder.must_retry()), (3, false));

    scanned.rename("../target", "../away");
    assert_eq!(scanned.scan(), NONE);
    assert!(scanned.status("c.yaml").error.unwrap().contains("a link that leads nowhere"));
    assert!(scanned.folder.must_retry());

    scanned.write("a.yaml", "kind: \u{0}");
    fs::write(scanned.path("sub/b.yaml"), b"a: \xff").unwrap();
    assert_eq!(scanned.scan(), NONE);
    assert!(scanned.status("sub/b.yaml").error.unwrap().contains("not UTF-8 from byte 3 on"));

    scanned.rename("", "../elsewhere");
    assert_eq!(scanned.scan(), NONE);
    assert!(!scanned.folder.is_complete());
    assert!(scanned.status("a.yaml").error.unwrap().contains("cannot be listed"));
    scanned.rename("../elsewhere", "");
    scanned.rename("../away", "../target");
    scanned.remove("sub/b.yaml");
    scanned.write("a.yaml", &namespace("a", "v"));
    assert_eq!(scanned.scan(), ["-Namespace b"]);
    assert_eq!((scanned.status("a.yaml").error, scanned.status("c.yaml").error), (None, None));
}

#[test]
fn what_is_ignored_is_listed() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: shop}\n";
    let mut scanned = Scanned::new(&[("a.yaml", text)]);
    assert_eq!(scanned.scan(), NONE);
    let expected = FileStatus { ignored: vec!["apps/v1 Deployment shop/d".into()], ..FileStatus::default() };
    assert_eq!(scanned.status("a.yaml"), expected);
}
