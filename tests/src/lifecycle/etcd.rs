//! etcd made to forget what was, so that a client which was away cannot go on where it was (410).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::netns::Namespace;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Forgets every revision but the last.
pub fn compact(cluster: &Cluster) -> Result<()> {
    let hub = Namespace::existing(&cluster.name().namespace("hub"), "hub");
    let status = post(&hub, "/v3/kv/range", r#"{"key": "AA=="}"#)?;
    let revision = status["header"]["revision"].as_str().context("etcd does not say its revision")?;
    post(&hub, "/v3/kv/compaction", &format!(r#"{{"revision": "{revision}", "physical": true}}"#))?;
    Ok(())
}

fn post(hub: &Namespace, path: &str, body: &str) -> Result<Value> {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 2379));
    let answer = hub.run(|| {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    let body = body.filter(|_| answer.contains(" 200 ")).with_context(|| format!("etcd says: {answer}"))?;
    serde_json::from_str(body).with_context(|| format!("etcd says: {answer}"))
}
