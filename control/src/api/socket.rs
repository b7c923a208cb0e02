//! The control socket's file: made with its mode and group before anyone can see it, removed at the end.
//!
//! *Life-cycle*: [`ControlSocket::bind`] replaces what a dead instance left and refuses where a live one listens;
//! dropping it removes the file, unless another instance has replaced it meanwhile.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, chown};
use tokio::net::UnixListener;

/// Owner and group may use it, nobody else.
const MODE: u32 = 0o660;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another instance listens there.
    #[error("{path}: another sluiced listens there")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// What is there is not a socket.
    #[error("{path}: is there and not a socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The group is not known.
    #[error("control.group: there is no group {group} on this machine")]
    NoGroup {
        /// Its name.
        group: String,
    },
    /// The system refused.
    #[error("{path}: {what}: {error}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
}

/// The file of a listening socket.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    inode: u64,
}

impl ControlSocket {
    /// Makes the socket at `path` for `group`, and the folder that holds it.
    ///
    /// # Errors
    /// Where it is in use, or the system refuses.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<(UnixListener, Self), SocketError> {
        let refused = |what| move |error| SocketError::Refused { path: path.to_owned(), what, error };
        let gid = group.map(group_id).transpose()?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(refused("its folder cannot be made"))?;
        }
        refuse_if_live(path)?;
        // Under another name until mode and group are right, then over whatever a dead instance left.
        let mut hidden = path.as_os_str().to_owned();
        hidden.push(format!(".{}", std::process::id()));
        let hidden = PathBuf::from(hidden);
        let _ = std::fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden).map_err(refused("cannot listen"))?;
        let made = (|| {
            std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(MODE)).map_err(refused("its mode"))?;
            if let Some(gid) = gid {
                chown(&hidden, None, Some(gid)).map_err(|e| refused("its group")(e.into()))?;
            }
            let inode = std::fs::metadata(&hidden).map_err(refused("cannot be read"))?.ino();
            std::fs::rename(&hidden, path).map_err(refused("cannot be made"))?;
            Ok(Self { path: path.to_owned(), inode })
        })();
        if made.is_err() {
            let _ = std::fs::remove_file(&hidden);
        }
        Ok((listener, made?))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if std::fs::metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn group_id(name: &str) -> Result<Gid, SocketError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(SocketError::NoGroup { group: name.to_owned() }),
    }
}

fn refuse_if_live(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sluice-socket-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[tokio::test]
    async fn the_file_is_for_owner_and_group_and_goes_away() {
        let path = folder("mode").join("deep/sluice.sock");
        let (_listener, socket) = ControlSocket::bind(&path, None).expect("bind");
        let mode = std::fs::metadata(&path).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_instance_is_refused_and_a_dead_one_replaced() {
        let path = folder("live").join("sluice.sock");
        let (listener, first) = ControlSocket::bind(&path, None).expect("bind");
        assert!(matches!(ControlSocket::bind(&path, None), Err(SocketError::InUse { .. })));
        drop(listener); // as if killed: the file stays, nobody listens
        let (_second, kept) = ControlSocket::bind(&path, None).expect("a stale socket is replaced");
        drop(first);
        assert!(path.exists(), "the dead instance's guard leaves its successor's file alone");
        drop(kept);
    }

    #[tokio::test]
    async fn other_files_and_unknown_groups_are_refused() {
        let path = folder("file").join("sluice.sock");
        std::fs::create_dir_all(path.parent().expect("has one")).expect("folder");
        std::fs::write(&path, "precious").expect("file");
        assert!(matches!(ControlSocket::bind(&path, None), Err(SocketError::NotASocket { .. })));
        let other = path.with_file_name("other.sock");
        let no_group = ControlSocket::bind(&other, Some("no-such-group-here")).expect_err("no group");
        assert_eq!(no_group.to_string(), "control.group: there is no group no-such-group-here on this machine");
    }
}
