//! The source as its consumer sees it: a real folder, real events, batches over the channel.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::model::World;

/// Far beyond what any change takes; reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(60);

struct Running {
    directory: tempfile::TempDir,
    source: ManifestsSource,
    batches: mpsc::Receiver<Batch>,
    world: World,
    synced: usize,
}

impl Running {
    /// Starts on the folder `m` after `prepare` has filled it.
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("m");
        fs::create_dir(&root).unwrap();
        prepare(&root);
        let (sender, batches) = mpsc::channel(16);
        let source = ManifestsSource::start(&root, sender).unwrap();
        Self { directory, source, batches, world: World::default(), synced: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        // Not by way of `m`, which may be gone.
        match name.strip_prefix("../") {
            Some(name) => self.directory.path().join(name),
            None => self.directory.path().join("m").join(name),
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Receives a batch and applies it.
    async fn batch(&mut self) -> Vec<SourceEvent> {
        let batch = tokio::time::timeout(DEADLINE, self.batches.recv()).await.unwrap().unwrap();
        for event in &batch.events {
            match event {
                SourceEvent::Apply(object) => self.world.apply(object.clone()),
                SourceEvent::Delete { key, uid } => self.world.delete(key, uid.as_deref()),
                SourceEvent::Synced => self.synced += 1,
                SourceEvent::Problems(_) => {}
            }
        }
        batch.events
    }

    /// Receives batches until the namespaces are these. None of them may lack one of `always`.
    async fn until_namespaces(&mut self, expected: &[&str], always: &[&str]) {
        while self.world.namespaces.keys().collect::<Vec<_>>() != expected {
            self.batch().await;
            for name in always {
                assert!(
                    self.world.namespaces.contains_key(*name),
                    "{name} is gone from {:?}",
                    self.world.namespaces
                );
            }
        }
    }

    async fn until_problem(&mut self, part: &str) {
        loop {
            let events = self.batch().await;
            let found = |event: &SourceEvent| match event {
                SourceEvent::Problems(problems) => problems.iter().any(|p| p.message.contains(part)),
                _ => false,
            };
            if events.iter().any(found) {
                return;
            }
        }
    }

    fn status(&self) -> ManifestStatus {
        self.source.status().borrow().clone()
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n")
}

fn namespaces(names: &[&str]) -> String {
    names.iter().map(|name| namespace(name)).collect()
}

#[tokio::test]
async fn the_first_batch_is_the_whole_folder_and_ends_with_synced() {
    let pods = "\
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop}
status: {podIP: 10.0.0.1, phase: Running, startTime: '1970-01-01T00:00:01Z'}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: shop}
status: {podIP: 10.0.0.1, phase: Running, startTime: '1970-01-01T00:00:02Z'}
";
    let json =
        r#"{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "db", "namespace": "shop"}}"#;
    let mut running = Running::start(|root| {
        fs::write(root.join("pods.yaml"), pods).unwrap();
        fs::write(root.join("sa.json"), json).unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/ns.yml"), namespace("shop")).unwrap();
    });
    let events = running.batch().await;
    assert_eq!(events.len(), 5);
    assert_eq!(events.last(), Some(&SourceEvent::Synced));
    let claims: Vec<_> =
        running.world.pods.values().map(|p| (p.uid.as_str(), p.addresses.len(), p.sandbox_started)).collect();
    assert_eq!(claims, [("shop/new", 1, 2), ("shop/old", 1, 1)], "who owns the address is not decided here");
    let status = running.status();
    assert!(status.synced && status.last_success.is_some());
    let objects: Vec<_> = status.files.iter().map(|(path, file)| (path.clone(), file.objects)).collect();
    let expected = [("pods.yaml", 2), ("sa.json", 1), ("sub/ns.yml", 1)];
    assert_eq!(objects, expected.map(|(name, objects)| (running.path(name), objects)));
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<ManifestStatus>(&json).unwrap(), status);
}

#[tokio::test]
async fn an_empty_folder_is_synced() {
    let mut running = Running::start(|_| {});
    assert_eq!(running.batch().await, [SourceEvent::Synced]);
}

#[tokio::test]
async fn every_way_to_change_a_file_is_noticed() {
    let mut running = Running::start(|root| fs::write(root.join("a.yaml"), namespace("a")).unwrap());
    running.until_namespaces(&["a"], &[]).await;

    running.write("a.yaml", &namespaces(&["a", "b"]));
    running.until_namespaces(&["a", "b"], &["a"]).await;

    running.write(".a.yaml.tmp", &namespaces(&["a", "c"]));
    fs::rename(running.path(".a.yaml.tmp"), running.path("a.yaml")).unwrap();
    running.until_namespaces(&["a", "c"], &["a"]).await;

    fs::create_dir_all(running.path("new/deep")).unwrap();
    running.write("new/deep/d.yaml", &namespace("d"));
    running.until_namespaces(&["a", "c", "d"], &["a", "c"]).await;
    running.write("new/deep/d.yaml", &namespace("e"));
    running.until_namespaces(&["a", "c", "e"], &["a", "c"]).await;

    fs::remove_dir_all(running.path("new")).unwrap();
    running.until_namespaces(&["a", "c"], &["a", "c"]).await;
    fs::remove_file(running.path("a.yaml")).unwrap();
    running.until_namespaces(&[], &[]).await;
    assert_eq!(running.synced, 1, "synced is said once");
}

#[tokio::test]
async fn a_renamed_file_loses_nothing() {
    let mut running = Running::start(|root| fs::write(root.join("a.yaml"), namespace("a")).unwrap());
    running.until_namespaces(&["a"], &[]).await;
    fs::rename(running.path("a.yaml"), running.path("z.yaml")).unwrap();
    running.write("mark.yaml", &namespace("mark"));
    running.until_namespaces(&["a", "mark"], &["a"]).await;
    let mut status = running.source.status();
    let renamed = |status: &ManifestStatus| {
        status.files.keys().eq(&[running.path("mark.yaml"), running.path("z.yaml")])
    };
    tokio::time::timeout(DEADLINE, status.wait_for(renamed)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_mistake_keeps_the_last_good_state_and_is_reported_until_it_is_corrected() {
    let mut running = Running::start(|root| {
        fs::write(root.join("a.yaml"), namespace("a")).unwrap();
        fs::write(root.join("b.yaml"), namespace("b")).unwrap();
    });
    running.until_namespaces(&["a", "b"], &[]).await;
    let before = running.status().last_success.unwrap();

    running.write("a.yaml", &(namespace("new") + "apiVersion: v1\nkind: Node\nmetadata: {name: [n]}\n"));
    running.until_problem("document 2 (Node), line 7, field `metadata.name`: invalid type").await;
    let status = running.status();
    let file = &status.files[&running.path("a.yaml")];
    assert_eq!((file.objects, file.stale, status.synced, status.last_success), (1, true, true, Some(before)));

    running.write("b.yaml", &namespaces(&["b", "c"]));
    running.until_namespaces(&["a", "b", "c"], &["a", "b"]).await;

    running.write("a.yaml", &namespace("a2"));
    while !running.batch().await.contains(&SourceEvent::Problems(Vec::new())) {}
    assert_eq!(running.world.namespaces.keys().collect::<Vec<_>>(), ["a2", "b", "c"]);
    assert!(running.status().last_success.unwrap() > before);
}

#[tokio::test]
async fn nothing_is_synced_before_every_file_has_been_understood() {
    for remove in [false, true] {
        let mut running = Running::start(|root| {
            fs::write(root.join("a.yaml"), namespace("a")).unwrap();
            fs::write(root.join("b.yaml"), "kind: Nope\n").unwrap();
        });
        running
            .until_problem("nothing is enforced from this folder until the file has been understood once")
            .await;
        assert_eq!((running.synced, running.status().synced), (0, false));
        if remove {
            fs::remove_file(running.path("b.yaml")).unwrap();
        } else {
            running.write("b.yaml", &namespace("b"));
        }
        while running.synced == 0 {
            running.batch().await;
        }
        assert_eq!(running.world.namespaces.len(), if remove { 1 } else { 2 });
        assert!(running.status().synced);
    }
}

/// A volume as the kubelet makes it: the files are links through `..data`, which is swapped by a rename.
#[tokio::test]
async fn a_config_map_volume_changes_as_a_whole() {
    let version = |root: &Path, name: &str, a: &[&str], b: &[&str]| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("a.yaml"), namespaces(a)).unwrap();
        fs::write(root.join(name).join("b.yaml"), namespaces(b)).unwrap();
    };
    let mut running = Running::start(|root| {
        version(root, "..v1", &["stays", "moves"], &["gone"]);
        symlink("..v1", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        symlink("..data/b.yaml", root.join("b.yaml")).unwrap();
    });
    running.until_namespaces(&["gone", "moves", "stays"], &[]).await;
    assert_eq!(running.status().files.len(), 2);

    version(&running.path(""), "..v2", &["stays"], &["moves", "new"]);
    symlink("..v2", running.path("..data_tmp")).unwrap();
    fs::rename(running.path("..data_tmp"), running.path("..data")).unwrap();
    fs::remove_dir_all(running.path("..v1")).unwrap();
    let events = running.batch().await;
    assert_eq!(events.len(), 2, "the volume is one change: {events:?}");
    assert_eq!(running.world.namespaces.keys().collect::<Vec<_>>(), ["moves", "new", "stays"]);

    fs::write(running.path("..v2/a.yaml"), namespace("in-place")).unwrap();
    running.until_namespaces(&["in-place", "moves", "new"], &["moves", "new"]).await;
}

#[tokio::test]
async fn a_linked_file_and_a_linked_folder_are_watched_where_they_are() {
    let mut running = Running::start(|root| {
        let base = root.parent().unwrap();
        fs::create_dir_all(base.join("v1")).unwrap();
        fs::create_dir_all(base.join("v2")).unwrap();
        fs::write(base.join("v1/x.yaml"), namespace("v1")).unwrap();
        fs::write(base.join("v2/x.yaml"), namespace("v2")).unwrap();
        fs::write(base.join("file"), namespace("file")).unwrap();
        symlink("../file", root.join("link.yaml")).unwrap();
        symlink("../v1", root.join("folder")).unwrap();
    });
    running.until_namespaces(&["file", "v1"], &[]).await;
    fs::write(running.path("../file"), namespace("other")).unwrap();
    running.until_namespaces(&["other", "v1"], &["v1"]).await;
    fs::write(running.path("../v1/y.yaml"), namespace("y")).unwrap();
    running.until_namespaces(&["other", "v1", "y"], &["other", "v1"]).await;
    symlink("../v2", running.path("tmp")).unwrap();
    fs::rename(running.path("tmp"), running.path("folder")).unwrap();
    running.until_namespaces(&["other", "v2"], &["other"]).await;
}

#[tokio::test]
async fn a_folder_that_vanishes_keeps_its_state_and_is_taken_up_when_it_is_back() {
    let mut running = Running::start(|root| fs::write(root.join("a.yaml"), namespace("a")).unwrap());
    running.until_namespaces(&["a"], &[]).await;
    fs::rename(running.path(""), running.path("../away")).unwrap();
    running.until_problem("cannot be listed").await;
    assert_eq!(running.world.namespaces.len(), 1);
    let status = running.status();
    assert!(status.error.is_some() && status.synced && status.files[&running.path("a.yaml")].stale);

    fs::create_dir(running.path("../next")).unwrap();
    fs::write(running.path("../next/b.yaml"), namespace("b")).unwrap();
    fs::rename(running.path("../next"), running.path("")).unwrap();
    running.until_namespaces(&["b"], &[]).await;
    while running.status().error.is_some() {
        running.batch().await;
    }
    running.write("b.yaml", &namespace("c"));
    running.until_namespaces(&["c"], &[]).await;
}

#[tokio::test]
async fn a_folder_that_is_not_there_yet_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("not/yet");
    let (sender, batches) = mpsc::channel(16);
    let source = ManifestsSource::start(&root, sender).unwrap();
    let mut running = Running { directory, source, batches, world: World::default(), synced: 0 };
    running.until_problem("cannot be listed").await;
    assert_eq!(running.synced, 0);
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("a.yaml"), namespace("a")).unwrap();
    running.until_namespaces(&["a"], &[]).await;
    while running.synced == 0 {
        running.batch().await;
    }
}

#[tokio::test]
async fn a_dropped_source_ends() {
    let mut running = Running::start(|_| {});
    running.batch().await;
    drop(running.source);
    assert!(tokio::time::timeout(DEADLINE, running.batches.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_document_that_is_nested_too_deep_is_a_mistake_and_no_end() {
    let deep = format!("a: {}{}\n", "[".repeat(99), "]".repeat(99));
    let deeper = format!("a: {}{}\n", "[".repeat(5000), "]".repeat(5000));
    let mut running = Running::start(|root| {
        fs::write(root.join("a.yaml"), deep).unwrap();
        fs::write(root.join("b.yaml"), deeper.clone()).unwrap();
        fs::write(root.join("c.json"), deeper.replace("a: ", "")).unwrap();
        fs::write(root.join("d.yaml"), namespace("d")).unwrap();
    });
    running.until_namespaces(&["d"], &[]).await;
    let status = running.status();
    let wrong: Vec<_> = status.files.values().map(|file| file.error.is_some()).collect();
    assert_eq!(wrong, [true, true, true, false], "{status:#?}");
}
