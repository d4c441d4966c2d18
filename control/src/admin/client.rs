//! The asking end: blocking, for a command-line tool.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{REPLY_LIMIT, Reply, Request};

/// How long a request may take.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("weir does not run here: nobody listens on {0} (`--socket` names another)")]
    NotRunning(PathBuf),
    /// The socket is somebody else's.
    #[error("no permission for {0}: the socket is for the user that weir runs as, most often root")]
    Forbidden(PathBuf),
    /// The exchange broke off.
    #[error("{path}: {source}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// The reply is not one of this version.
    #[error("{path}: the reply cannot be read, is it another version of weir? {source}")]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Sends one request to the weir that listens on `socket` and waits for its reply.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, ClientError> {
    let path = || socket.to_path_buf();
    let stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(path()),
        io::ErrorKind::PermissionDenied => ClientError::Forbidden(path()),
        _ => ClientError::Broken { path: path(), source },
    })?;
    let line = exchange(stream, request).map_err(|source| ClientError::Broken { path: path(), source })?;
    serde_json::from_str(&line).map_err(|source| ClientError::Garbled { path: path(), source })
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<String> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream.take(REPLY_LIMIT)).read_line(&mut reply)?;
    if reply.ends_with('\n') { Ok(reply) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
