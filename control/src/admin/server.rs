//! The listening end. It reads requests, hands them to whoever answers, and bounds what a caller can cost: the
//! length of a line, the number of connections, the time that one may take.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::protocol::{REQUEST_LIMIT, Reply, Request};

/// Connections at a time at most.
pub const CONNECTIONS: usize = 16;
/// How long a caller may take to send a line, or to read a piece of the reply.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a reply that are written in one piece.
const PIECE: usize = 64 << 10;

/// A request that waits for its reply.
#[derive(Debug)]
pub struct Call {
    /// What is asked for.
    pub request: Request,
    /// Where the reply goes. The caller may be gone; then it goes nowhere.
    pub reply: oneshot::Sender<Reply>,
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers on it.
    #[error("another weir is running: it listens on {0} (`admin.socket` names the path)")]
    Running(PathBuf),
    /// There is something that is not a socket.
    #[error("{0} exists and is no socket: remove it, or choose another `admin.socket`")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that a successor's is not removed in place of it.
    file: (u64, u64),
}

impl Socket {
    /// Opens the socket at `path`, for its owner alone. The file of a process that is gone is replaced; the folder
    /// that holds it is made where there is none.
    pub fn open(path: &Path) -> Result<Self, ListenError> {
        clear(path)?;
        Self::bind(path).map_err(|source| ListenError::Refused { path: path.into(), source })
    }

    fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path.as_os_str().as_bytes())?)?;
        // Until it listens nobody can connect, so the mode is never too wide.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&socket, Backlog::new(16)?)?;
        let file = fs::symlink_metadata(path)?;
        Ok(Self { listener: socket.into(), path: path.into(), file: (file.dev(), file.ino()) })
    }

    /// Listens in the current runtime until `calls` has no receiver any more or the future is dropped. A caller gets
    /// `patience` for a line, and for taking in a piece of a reply.
    pub async fn serve(self, calls: mpsc::Sender<Call>, patience: Duration) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        while !calls.is_closed() {
            match listener.accept().await {
                Ok((stream, _)) => match Arc::clone(&slots).try_acquire_owned() {
                    Ok(slot) => drop(tokio::spawn(converse(stream, calls.clone(), patience, slot))),
                    Err(_) => drop(stream),
                },
                // Out of descriptors, most likely: they come back when connections end.
                Err(error) => {
                    tracing::warn!(%error, "admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_own = |file: fs::Metadata| (file.dev(), file.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_own) {
            // Where it cannot be removed the next start does.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes way for a new socket file; whether one of a process that is gone was there.
pub(crate) fn clear(path: &Path) -> Result<bool, ListenError> {
    let refused = |source| ListenError::Refused { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(refused(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(ListenError::NotASocket(path.into())),
        Ok(_) => {}
    }
    match BlockingStream::connect(path) {
        Ok(_) => Err(ListenError::Running(path.into())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(refused).map(|()| true)
        }
        Err(error) => Err(refused(error)),
    }
}

/// Serves one connection: request lines in, reply lines out, until the caller has enough or oversteps.
async fn converse(
    stream: UnixStream,
    calls: mpsc::Sender<Call>,
    patience: Duration,
    _slot: OwnedSemaphorePermit,
) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = REQUEST_LIMIT as u64;
        let read = timeout(patience, (&mut lines).take(limit).read_until(b'\n', &mut line)).await;
        let (reply, go_on) = match (read, line.last()) {
            (Ok(Ok(_)), Some(b'\n')) => (answer(&line, &calls).await, true),
            (Ok(Ok(count)), _) if count >= REQUEST_LIMIT => {
                (refusal(format!("a request has at most {REQUEST_LIMIT} bytes")), false)
            }
            _ => return,
        };
        if send(&mut write, &reply, patience).await.is_err() || !go_on {
            return;
        }
    }
}

async fn answer(line: &[u8], calls: &mpsc::Sender<Call>) -> Reply {
    let request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return refusal(format!("not a request: {error}")),
    };
    let (reply, answer) = oneshot::channel();
    let stopping = || refusal("weir is stopping".into());
    match calls.send(Call { request, reply }).await {
        Ok(()) => answer.await.unwrap_or_else(|_| stopping()),
        Err(_) => stopping(),
    }
}

fn refusal(message: String) -> Reply {
    Reply::Error { message }
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), reply: &Reply, patience: Duration) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    for piece in line.chunks(PIECE) {
        timeout(patience, write.write_all(piece)).await??;
    }
    Ok(())
}
