//! The socket `monitor.sock` in the run directory: for root alone, there while the agent runs.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Where it is.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("monitor.sock")
}

/// Every file that an agent may leave: the socket, and an unfinished one of an agent that was killed.
pub fn files(run_dir: &Path) -> [PathBuf; 2] {
    [path(run_dir), run_dir.join("monitor.sock.new")]
}

/// A bound socket; its file goes with this.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // What cannot be removed is replaced by the next agent, and nobody can connect to it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Binds the socket in the place of one that a killed agent left.
///
/// # Errors
/// What the system says; a path of more than 107 bytes is too long for a socket.
pub fn bind(run_dir: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let [path, new] = files(run_dir);
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&new)?)?;
    // Nobody can connect before it listens, and nobody finds it before it has its name.
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    fs::rename(&new, &path)?;
    Ok((UnixListener::from(std::os::fd::OwnedFd::from(socket)), SocketFile { path }))
}

/// Connects to the agent; `None` if there is none, or only the socket of one that was killed.
///
/// # Errors
/// What the system says otherwise.
pub async fn connect(run_dir: &Path) -> io::Result<Option<tokio::net::UnixStream>> {
    // A reset: it ends just now.
    let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
    match tokio::net::UnixStream::connect(path(run_dir)).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if nobody.contains(&error.kind()) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_its_owner_replaces_a_dead_one_and_goes_with_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        assert!(connect(folder.path()).await.unwrap().is_none(), "no socket");
        let (dead, file) = bind(folder.path()).unwrap();
        // As a kill leaves it.
        drop(dead);
        std::mem::forget(file);
        assert!(connect(folder.path()).await.unwrap().is_none(), "nobody listens");
        let (listener, file) = bind(folder.path()).unwrap();
        assert_eq!(fs::metadata(path(folder.path())).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(connect(folder.path()).await.unwrap().is_some());
        drop((listener, file));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
