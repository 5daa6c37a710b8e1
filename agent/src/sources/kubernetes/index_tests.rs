use super::*;
use crate::model::{Namespace, Pod};

fn id(name: &str, uid: &str) -> Id {
    Id { namespace: "shop".to_owned(), name: name.to_owned(), uid: uid.to_owned(), version: None }
}

fn pod(name: &str, uid: &str, node: &str) -> Object {
    Object::Pod(Pod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        node: node.to_owned(),
        ..Pod::default()
    })
}

/// What the consumer is told, in short: `+a` for an apply, `-a/1` for a delete of the UID 1.
fn told(act: impl FnOnce(&mut Vec<SourceEvent>)) -> Vec<String> {
    let mut events = Vec::new();
    act(&mut events);
    let show = |event: &SourceEvent| match event {
        SourceEvent::Apply(object) => format!("+{}", object.key().name),
        SourceEvent::Delete { key, uid } => format!("-{}/{}", key.name, uid.as_deref().unwrap_or("-")),
        other => panic!("{other:?}"),
    };
    events.iter().map(show).collect()
}

#[test]
fn only_a_change_of_what_is_kept_is_told() {
    let mut index = Index::new(ObjectKind::Pod);
    assert_eq!(told(|e| index.see(&id("a", "1"), Some(pod("a", "1", "")), e)), ["+a"]);
    assert_eq!(told(|e| index.see(&id("a", "1"), Some(pod("a", "1", "")), e)), [""; 0]);
    assert_eq!(told(|e| index.see(&id("a", "1"), Some(pod("a", "1", "n")), e)), ["+a"]);
    assert_eq!(told(|e| index.remove(&id("a", "1"), e)), ["-a/1"]);
    assert_eq!(told(|e| index.remove(&id("a", "1"), e)), [""; 0]);
    assert_eq!(index.len(), 0);
}

#[test]
fn a_new_list_tells_what_is_new_and_what_is_gone() {
    let mut index = Index::new(ObjectKind::Pod);
    index.begin();
    for name in ["a", "b", "c"] {
        told(|e| index.see(&id(name, name), Some(pod(name, name, "")), e));
    }
    assert_eq!(told(|e| index.sweep(e)), [""; 0]);
    // A list that ends early is no reason to forget anything.
    index.begin();
    index.begin();
    assert_eq!(told(|e| index.see(&id("a", "a"), Some(pod("a", "a", "")), e)), [""; 0]);
    assert_eq!(told(|e| index.see(&id("b", "b"), Some(pod("b", "b", "n")), e)), ["+b"]);
    assert_eq!(told(|e| index.see(&id("d", "d"), Some(pod("d", "d", "")), e)), ["+d"]);
    assert_eq!(told(|e| index.sweep(e)), ["-c/c"]);
    assert_eq!(index.len(), 3);
    let mut all = told(|e| index.clear(e));
    all.sort();
    assert_eq!(all, ["-a/a", "-b/b", "-d/d"]);
    assert_eq!(index.len(), 0);
}

#[test]
fn a_pod_that_took_the_name_of_another_ends_it_and_its_late_end_changes_nothing() {
    let mut index = Index::new(ObjectKind::Pod);
    told(|e| index.see(&id("a", "1"), Some(pod("a", "1", "")), e));
    assert_eq!(told(|e| index.see(&id("a", "2"), Some(pod("a", "2", "")), e)), ["-a/1", "+a"]);
    assert_eq!(told(|e| index.remove(&id("a", "1"), e)), [""; 0]);
    assert_eq!(told(|e| index.remove(&id("a", "2"), e)), ["-a/2"]);
}

#[test]
fn what_cannot_be_understood_leaves_what_was_understood_before_but_not_of_another_object() {
    let mut index = Index::new(ObjectKind::Pod);
    assert_eq!(told(|e| index.see(&id("x", "1"), None, e)), [""; 0]);
    assert_eq!((index.len(), index.contains("shop", "x")), (0, true));
    assert_eq!(told(|e| index.remove(&id("x", "1"), e)), [""; 0]);
    told(|e| index.see(&id("a", "1"), Some(pod("a", "1", "")), e));
    assert_eq!(told(|e| index.see(&id("a", "1"), None, e)), [""; 0]);
    assert_eq!(index.len(), 1);
    assert_eq!(told(|e| index.see(&id("a", "2"), None, e)), ["-a/1"]);
    assert_eq!(index.len(), 0);

    let mut index = Index::new(ObjectKind::Namespace);
    let id = |uid: &str| Id {
        namespace: String::new(),
        name: "shop".to_owned(),
        uid: uid.to_owned(),
        version: None,
    };
    let shop = || Some(Object::Namespace(Namespace { name: "shop".to_owned(), ..Namespace::default() }));
    told(|e| index.see(&id("1"), shop(), e));
    assert_eq!(told(|e| index.see(&id("2"), shop(), e)), ["+shop"], "a replacement is one change");
    assert_eq!(told(|e| index.see(&id("3"), None, e)), ["-shop/-"]);
}

#[test]
fn what_is_older_than_what_is_known_is_no_news_unless_a_list_says_it() {
    let at = |uid: &str, version| Id { version: Some(version), ..id("a", uid) };
    let mut index = Index::new(ObjectKind::Pod);
    index.begin();
    assert_eq!(told(|e| index.see(&at("old", 10), Some(pod("a", "old", "")), e)), ["+a"]);
    told(|e| index.sweep(e));
    assert_eq!(told(|e| index.see(&at("new", 20), Some(pod("a", "new", "")), e)), ["-a/old", "+a"]);
    // A watch that begins again may repeat what it said.
    assert_eq!(told(|e| index.see(&at("old", 11), Some(pod("a", "old", "n")), e)), [""; 0]);
    assert_eq!(told(|e| index.remove(&at("old", 12), e)), [""; 0]);
    assert_eq!(told(|e| index.see(&at("new", 20), Some(pod("a", "new", "")), e)), [""; 0]);
    // A server that was restored from a backup.
    index.begin();
    assert_eq!(told(|e| index.see(&at("old", 9), Some(pod("a", "old", "")), e)), ["-a/new", "+a"]);
    told(|e| index.sweep(e));
    assert_eq!(told(|e| index.see(&at("old", 10), Some(pod("a", "old", "n")), e)), ["+a"]);
    // A version that is no number says nothing.
    assert_eq!(told(|e| index.see(&id("a", "old"), Some(pod("a", "old", "m")), e)), ["+a"]);
    assert_eq!(told(|e| index.see(&at("old", 1), Some(pod("a", "old", "n")), e)), ["+a"]);
}
