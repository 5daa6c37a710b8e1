//! Who may talk to the API server: tokens, and the files that clients read.
//!
//! The tokens are random for each cluster and readable by root only: the port on the loopback address is open to
//! everybody on the machine.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::names::{CONTROL_PLANE, node};

/// The port of the API server in the hub.
pub const API_PORT: u16 = 6443;

/// A client of the API server.
#[derive(Debug)]
struct User {
    /// Name of its file.
    file: String,
    name: String,
    group: Option<&'static str>,
}

fn users(nodes: usize) -> Vec<User> {
    let component = |file: &str| User { file: file.to_owned(), name: format!("system:{file}"), group: None };
    let mut users = vec![
        User { file: "admin".to_owned(), name: "admin".to_owned(), group: Some("system:masters") },
        component("kube-controller-manager"),
        component("kube-scheduler"),
        component("kube-proxy"),
    ];
    users.extend((0..nodes).map(node).map(|node| User {
        name: format!("system:node:{node}"),
        file: node,
        group: Some("system:nodes"),
    }));
    users
}

/// Where the file of a client is.
pub fn path(state: &Path, client: &str) -> PathBuf {
    state.join(format!("{client}.kubeconfig"))
}

/// The API server's table of tokens.
pub fn tokens(state: &Path) -> PathBuf {
    state.join("tokens.csv")
}

/// Writes the tokens and every client's file. `port` is where the machine reaches the API server on loopback.
pub fn create(state: &Path, nodes: usize, port: u16) -> Result<()> {
    let mut table = String::new();
    for User { file, name, group } in users(nodes) {
        let token = token()?;
        let _ = writeln!(
            table,
            "{token},{name},{name}{}",
            group.map_or(String::new(), |group| format!(",{group}"))
        );
        let server = if file == "admin" {
            format!("https://127.0.0.1:{port}")
        } else {
            format!("https://{}:{API_PORT}", CONTROL_PLANE.0)
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": {
                "server": server,
                "certificate-authority": state.join("certificates/apiserver.crt"),
                // One of the names in the certificate that the API server makes for itself.
                "tls-server-name": "kubernetes",
            }}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "context",
        });
        write_secret(&path(state, &file), &serde_json::to_string_pretty(&config)?)?;
    }
    write_secret(&tokens(state), &table)
}

/// A token that nobody guesses.
fn token() -> Result<String> {
    let mut bytes = [0; 16];
    let mut source = fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    source.read_exact(&mut bytes).context("reading /dev/urandom")?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Writes a file that only its owner reads.
pub fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TempDir;

    #[test]
    fn every_client_has_a_token_of_its_own_that_the_server_knows() {
        let folder = TempDir::new().unwrap();
        create(folder.path(), 2, 40000).unwrap();
        let table = fs::read_to_string(tokens(folder.path())).unwrap();
        assert_eq!(table.lines().count(), 6);
        for (client, user, server) in [
            ("admin", "admin,admin,system:masters", "https://127.0.0.1:40000"),
            ("node1", "system:node:node1,system:node:node1,system:nodes", "https://172.30.0.1:6443"),
        ] {
            let text = fs::read_to_string(path(folder.path(), client)).unwrap();
            let config: serde_json::Value = serde_json::from_str(&text).unwrap();
            let token = config["users"][0]["user"]["token"].as_str().unwrap();
            assert!(table.lines().any(|line| line == format!("{token},{user}")), "{table}");
            assert_eq!(config["clusters"][0]["cluster"]["server"], server);
        }
    }
}
