//! Requests to answers.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::fault::Fault;
use super::store::{Event, KINDS};
use super::{FAULTS, Server, Shared};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// How many objects a page has at most, whatever the client asks for: so that small worlds have pages too.
const PAGE: usize = 3;

fn whole(status: u16, kind: &str, text: impl Into<String>) -> Response<Body> {
    let body = Full::new(Bytes::from(text.into())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("Content-Type", kind).body(body).unwrap()
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": message})
}

fn failure(code: u16, reason: &str, message: &str) -> Response<Body> {
    whole(code, "application/json", status(code, reason, message).to_string())
}

/// A body from pieces; an error ends the connection.
fn streamed(pieces: BoxStream<'static, std::io::Result<Bytes>>) -> Response<Body> {
    let body = StreamBody::new(pieces.map(|piece| piece.map(Frame::data)));
    Response::builder().header("Content-Type", "application/json").body(body.boxed_unsync()).unwrap()
}

fn broken() -> std::io::Error {
    std::io::Error::other("cut")
}

/// What every request meets before it is looked at.
fn at_the_door(shared: &Shared) -> Option<Response<Body>> {
    if shared.away {
        return Some(streamed(stream::iter([Err(broken())]).boxed()));
    }
    if shared.lost {
        return Some(not_found());
    }
    let mut answer = whole(429, "text/plain", "Too many requests, please try again later.");
    answer.headers_mut().insert("Retry-After", shared.quiet?.into());
    Some(answer)
}

fn not_found() -> Response<Body> {
    whole(404, "text/plain", "404 page not found")
}

/// What a path is about.
enum Asked {
    /// A kind: its plural, name and version.
    Kind(&'static str, &'static str, &'static str),
    /// The resources of a group, by its version.
    Resources(&'static str),
    /// The namespace that every cluster has.
    Namespace,
}

fn asked(path: &str) -> Option<Asked> {
    if path == "/api/v1/namespaces/default" {
        return Some(Asked::Namespace);
    }
    KINDS.iter().find_map(|(prefix, plural, kind, version)| {
        if path == format!("{prefix}/{plural}") {
            Some(Asked::Kind(plural, kind, version))
        } else {
            (path == format!("/apis/{version}")).then_some(Asked::Resources(version))
        }
    })
}

/// The resources of a group; a group without any is not there.
fn resources(shared: &Shared, wanted: &str) -> Response<Body> {
    let of_group = KINDS.iter().filter(|(.., version)| *version == wanted);
    let is_there = |plural| shared.listed_all_the_same || !shared.store.missing.contains(plural);
    let there = of_group.filter(|(_, plural, ..)| is_there(plural));
    let list: Vec<Value> = there.map(|(_, plural, kind, _)| json!({"name": plural, "kind": kind})).collect();
    if list.is_empty() {
        return not_found();
    }
    let list =
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": wanted, "resources": list});
    whole(200, "application/json", list.to_string())
}

/// The answer where a fault makes one of its own.
fn faulty(fault: Fault, lists: bool, continues: bool) -> Option<Response<Body>> {
    Some(match fault {
        Fault::TooMany => {
            let mut answer = whole(429, "text/plain", "Too many requests, please try again later.");
            answer.headers_mut().insert("Retry-After", 0u64.into());
            answer
        }
        Fault::Broken => failure(500, "InternalError", "etcdserver: leader changed"),
        Fault::Away => whole(503, "text/html", "<html>no healthy upstream</html>"),
        Fault::NotFound => not_found(),
        Fault::Reset => streamed(stream::iter([Err(broken())]).boxed()),
        Fault::Garbage if lists => whole(200, "application/json", "<html>welcome to the café"),
        Fault::Gone if !lists || continues => {
            failure(410, "Expired", "the provided continue parameter is too old")
        }
        _ => return None,
    })
}

/// Answers a request.
pub fn answer(server: &Server, request: &Request<Incoming>) -> Response<Body> {
    let query: HashMap<&str, &str> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let watches = query.get("watch") == Some(&"true");
    let asked = asked(request.uri().path());
    let mut shared = server.lock();
    if let Some(answer) = at_the_door(&shared) {
        return answer;
    }
    let about = match &asked {
        Some(Asked::Kind(plural, ..)) => Some(*plural),
        Some(Asked::Namespace) => Some("namespaces"),
        _ => None,
    };
    if let Some(plural) = about {
        if shared.mute.contains(plural) {
            return streamed(stream::iter([Err(broken())]).boxed());
        }
        if shared.store.forbidden.contains(plural) {
            let message = format!("{plural} is forbidden: User \"u\" cannot list resource \"{plural}\"");
            return failure(403, "Forbidden", &message);
        }
    }
    let rate = shared.rate;
    let fails = shared.chance.below(100) < rate;
    let fault = fails.then(|| *shared.chance.pick(&FAULTS));
    let lists = !watches && matches!(asked, Some(Asked::Kind(..)));
    if let Some(fault) = fault
        && let Some(answer) = faulty(fault, lists, query.contains_key("continue"))
    {
        shared.meet(fault);
        return answer;
    }
    let (plural, kind, version) = match asked {
        Some(Asked::Kind(plural, kind, version)) if !shared.store.missing.contains(plural) => {
            (plural, kind, version)
        }
        Some(Asked::Resources(version)) => return resources(&shared, version),
        Some(Asked::Namespace) => {
            let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "default"}});
            return whole(200, "application/json", namespace.to_string());
        }
        _ => return not_found(),
    };
    if watches {
        shared.watched.insert(plural);
    }
    drop(shared);
    if watches {
        let since = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        return watch(server, plural, since, fault);
    }
    let limit = query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(PAGE).min(PAGE);
    let page = server.lock().store.page(plural, limit, query.get("continue").copied());
    let Some((mut items, next, at)) = page else {
        return failure(410, "Expired", "the provided continue parameter is too old");
    };
    for item in &mut items {
        let fields = item.as_object_mut().unwrap();
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    let mut list = json!({"kind": format!("{kind}List"), "apiVersion": version,
        "metadata": {"resourceVersion": at.to_string()}, "items": items});
    if let Some(next) = next {
        list["metadata"]["continue"] = next.into();
    }
    body_with(server, fault, list.to_string())
}

/// A body that is sent as the fault says.
fn body_with(server: &Server, fault: Option<Fault>, text: String) -> Response<Body> {
    let half = text.len() / 2;
    if let Some(fault @ (Fault::Cut | Fault::Short | Fault::Slow)) = fault {
        server.lock().meet(fault);
    }
    match fault {
        Some(Fault::Cut) => {
            let start = Bytes::copy_from_slice(&text.as_bytes()[..half]);
            streamed(stream::iter([Ok(start), Err(broken())]).boxed())
        }
        Some(Fault::Short) => {
            let start = Bytes::copy_from_slice(&text.as_bytes()[..half]);
            streamed(stream::iter([Ok(start)]).boxed())
        }
        Some(Fault::Slow) => {
            let pieces: Vec<_> =
                text.as_bytes().chunks(97).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let pieces = stream::iter(pieces).then(|piece| async {
                tokio::time::sleep(Duration::from_micros(200)).await;
                piece
            });
            streamed(pieces.boxed())
        }
        _ => whole(200, "application/json", text),
    }
}

/// A watch: what happened since a version, then what happens.
fn watch(server: &Server, plural: &'static str, since: u64, fault: Option<Fault>) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(16);
    let server = server.clone();
    tokio::spawn(async move {
        // The client went away.
        let _ = send_events(server, plural, since, fault, sender).await;
    });
    let pieces =
        stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|p| (p, receiver)) });
    streamed(pieces.boxed())
}

type Pieces = mpsc::Sender<std::io::Result<Bytes>>;

async fn send_events(
    server: Server,
    plural: &'static str,
    mut since: u64,
    fault: Option<Fault>,
    to: Pieces,
) -> Result<(), mpsc::error::SendError<std::io::Result<Bytes>>> {
    let line = |what: &str, object: &Value| format!("{}\n", json!({"type": what, "object": object}));
    let expired = || line("ERROR", &status(410, "Expired", "too old resource version"));
    let at_once = match fault {
        Some(Fault::GoneEvent) => Some(Some(expired())),
        Some(Fault::ErrorEvent) => {
            Some(Some(line("ERROR", &status(500, "InternalError", "etcd event received"))))
        }
        Some(Fault::Empty) => Some(None),
        Some(Fault::Garbage) => Some(Some("{\"type\": \"BORKED\"}\n".to_owned())),
        _ => None,
    };
    if let (Some(text), Some(fault)) = (at_once, fault) {
        server.lock().meet(fault);
        return match text {
            Some(text) => to.send(Ok(text.into())).await,
            None => Ok(()),
        };
    }
    if fault == Some(Fault::Again) {
        let mut shared = server.lock();
        let earlier = since.saturating_sub(10);
        let repeats =
            |event: &Event| event.plural == plural && event.version > earlier && event.version <= since;
        if shared.store.history.iter().any(repeats) {
            shared.meet(Fault::Again);
        }
        since = earlier;
    }
    let mut changed = server.changed.subscribe();
    let mut first = true;
    loop {
        changed.borrow_and_update();
        let (events, version, ends) = {
            let mut shared = server.lock();
            let ends = shared.away
                || shared.lost
                || shared.mute.contains(plural)
                || shared.store.missing.contains(plural)
                || shared.store.forbidden.contains(plural)
                // A watch ends now and then, as with every real server.
                || (!first && shared.rate > 0 && shared.chance.below(10) == 0);
            if since < shared.store.compacted {
                (None, 0, true)
            } else {
                let of_kind = |e: &&Event| e.version > since && e.plural == plural;
                let mut events: Vec<Event> = shared.store.history.iter().filter(of_kind).cloned().collect();
                // One event has no order: it waits for the next one, while things fail.
                if fault == Some(Fault::Shuffled) && events.len() == 1 && shared.rate > 0 && !ends {
                    (Some(Vec::new()), since, ends)
                } else {
                    shared.disturb(fault, &mut events);
                    (Some(events), shared.store.version, ends)
                }
            }
        };
        let Some(events) = events else { return to.send(Ok(expired().into())).await };
        for event in events {
            let text = line(event.what, &event.object);
            match fault {
                Some(Fault::Cut) => {
                    to.send(Ok(Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]))).await?;
                    return to.send(Err(broken())).await;
                }
                Some(Fault::Short) => {
                    return to.send(Ok(Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]))).await;
                }
                Some(Fault::Slow) => {
                    for piece in text.as_bytes().chunks(61) {
                        to.send(Ok(Bytes::copy_from_slice(piece))).await?;
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                }
                _ => to.send(Ok(text.into())).await?,
            }
        }
        if version > since {
            since = version;
            let bookmark = json!({"kind": "Bookmark", "apiVersion": "v1",
                "metadata": {"resourceVersion": version.to_string()}});
            to.send(Ok(line("BOOKMARK", &bookmark).into())).await?;
        }
        if ends {
            return Ok(());
        }
        first = false;
        if changed.changed().await.is_err() {
            return Ok(());
        }
    }
}
