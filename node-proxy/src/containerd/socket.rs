//! Sockets in the file system, for root alone.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A socket that goes with its listener.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    /// Listens at a path with mode 0600, and makes its directory. What a daemon that is gone left there is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when somebody answers there, or what is there is no socket; what the system says.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
        }
        let there = tokio::fs::symlink_metadata(path).await.ok();
        if there.is_some_and(|there| !std::os::unix::fs::FileTypeExt::is_socket(&there.file_type())) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "what is there is no socket"));
        }
        // Nobody finds it before its mode is right.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let hidden = path.with_file_name(name);
        match tokio::fs::remove_file(&hidden).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&hidden)?;
        tokio::fs::set_permissions(&hidden, Permissions::from_mode(0o600)).await?;
        let inode = inode(&hidden)?;
        tokio::fs::rename(&hidden, path).await?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another daemon may have put its own there.
        if inode(&self.path).is_ok_and(|there| there == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let there = std::fs::symlink_metadata(path)?;
    Ok((there.dev(), there.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_its_owner_replaces_what_nobody_answers_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/one.sock");
        let first = Socket::bind(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Socket::bind(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // As after a crash: the file is there, and nobody listens.
        let left = dir.path().join("left.sock");
        drop(UnixListener::bind(&left).unwrap());
        assert!(left.exists(), "a listener leaves its file");
        let second = Socket::bind(&left).await.unwrap();
        UnixStream::connect(&left).await.unwrap();
        drop(second);
        assert!(!left.exists());
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 0, "nothing is left");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(Socket::bind(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
