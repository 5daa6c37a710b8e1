//! A GET request over HTTP/1.0 from inside a network namespace: enough for metrics and health.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Namespace;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status: 200.
    pub status: u16,
    /// What follows the headers.
    pub body: String,
}

/// Asks a server that is reached from the namespace.
pub fn get(from: &Namespace, at: SocketAddr, path: &str) -> Result<Answer> {
    let answer = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.with_context(|| format!("asking {at} from {} for {path}", from.label()))?;
    parse(&String::from_utf8_lossy(&answer)).with_context(|| format!("{at} does not speak HTTP"))
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        let answer = parse("HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nnot\r\n\r\nyet").unwrap();
        assert_eq!(answer, Answer { status: 503, body: "not\r\n\r\nyet".to_owned() });
        assert_eq!(parse("SSH-2.0-x\r\n\r\n"), None);
    }
}
