//! The admin socket against callers of all kinds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use control::admin::client::{ClientError, ask};
use control::admin::protocol::{Drops, REQUEST_LIMIT, Reply, Request};
use control::admin::server::{CONNECTIONS, Call, ListenError, Socket};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

const PATIENCE: Duration = Duration::from_millis(300);

/// A folder of its own for a test, removed at the end. The one for the socket is not there yet.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn run(&self) -> PathBuf {
        self.0.path().join("run")
    }

    fn socket(&self) -> PathBuf {
        self.run().join("weir.sock")
    }
}

/// A server in a thread of its own that answers every request with no drops.
struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(path: &Path) -> Self {
        let socket = Socket::open(path).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (sender, mut calls) = mpsc::channel::<Call>(1);
                tokio::spawn(async move {
                    while let Some(call) = calls.recv().await {
                        let _ = call.reply.send(Reply::Drops(Drops { drops: vec![], xdp: vec![] }));
                    }
                });
                tokio::select! {
                    result = socket.serve(sender, PATIENCE) => result.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Sends bytes and returns the first line of the answer, if there is one.
fn say(path: &Path, bytes: &[u8]) -> Option<String> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // The server may hang up in the middle of what it does not want.
    let _ = stream.write_all(bytes);
    let mut line = String::new();
    let count = BufReader::new(stream).read_line(&mut line).unwrap_or(0);
    (count > 0).then_some(line)
}

#[test]
fn the_socket_is_for_its_owner_alone_and_goes_with_its_server() {
    let folder = Folder::new();
    let path = folder.socket();
    let server = Server::start(&path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let reply = ask(&path, &Request::Drops { all: false }).unwrap();
    assert_eq!(reply, Reply::Drops(Drops { drops: vec![], xdp: vec![] }));
    assert!(matches!(Socket::open(&path), Err(ListenError::Running(at)) if at == path));
    drop(server);
    assert!(!path.exists());
    assert!(matches!(ask(&path, &Request::Status {}), Err(ClientError::NotRunning(at)) if at == path));
}

#[test]
fn the_socket_of_a_dead_process_is_replaced_and_nothing_else() {
    let folder = Folder::new();
    let path = folder.socket();
    fs::create_dir(folder.run()).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "nobody listens, but the file is there");
    assert!(matches!(ask(&path, &Request::Status {}), Err(ClientError::NotRunning(_))));
    let server = Server::start(&path);
    assert!(ask(&path, &Request::Status {}).is_ok());
    // Somebody else's by now: not for this server to remove.
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
    drop(other);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Socket::open(&path), Err(ListenError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn hostile_lines_are_refused_and_harm_nobody() {
    let folder = Folder::new();
    let path = folder.socket();
    let _server = Server::start(&path);
    let deep = [vec![b'['; 10_000], vec![b'\n']].concat();
    for (name, line) in [
        ("no JSON", &b"show me\n"[..]),
        ("an empty line", b"\n"),
        ("not UTF-8", b"{\"request\":\"\xff\xfe\"}\n"),
        ("an unknown request", b"{\"request\":\"shutdown\"}\n"),
        ("an unknown key", b"{\"request\":\"drops\",\"al\":true}\n"),
        ("a wrong type", b"{\"request\":\"flows\",\"limit\":-1}\n"),
        ("two values", b"{\"request\":\"drops\"}{\"request\":\"drops\"}\n"),
        ("deep nesting", &deep),
        ("a line without an end", &vec![b'x'; REQUEST_LIMIT + 1]),
    ] {
        let answer = say(&path, line).unwrap_or_else(|| panic!("{name}: no answer"));
        let reply: Reply = serde_json::from_str(&answer).unwrap();
        assert!(matches!(reply, Reply::Error { .. }), "{name}: {reply:?}");
    }
    assert!(ask(&path, &Request::Drops { all: true }).is_ok());
}

#[test]
fn several_requests_go_over_one_connection() {
    let folder = Folder::new();
    let path = folder.socket();
    let _server = Server::start(&path);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream
        .write_all(b"{\"request\":\"drops\"}\n{\"request\":\"nonsense\"}\n{\"request\":\"drops\"}\n")
        .unwrap();
    let kinds: Vec<_> =
        BufReader::new(stream).lines().take(3).map(|line| line.unwrap().contains("error")).collect();
    assert_eq!(kinds, [false, true, false]);
}

#[test]
fn slow_callers_and_crowds_are_shown_out() {
    let folder = Folder::new();
    let path = folder.socket();
    let _server = Server::start(&path);
    let start = Instant::now();
    let crowd: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"{\"request\":").unwrap();
            stream
        })
        .collect();
    // The crowd is in when one of its members too many is shown out at once.
    let mut one_more = UnixStream::connect(&path).unwrap();
    assert_eq!(one_more.read(&mut [0; 16]).unwrap(), 0);
    assert!(start.elapsed() < PATIENCE, "at once, not after its time");
    for mut stream in crowd {
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    }
    assert!(start.elapsed() >= PATIENCE);
    assert!(ask(&path, &Request::Drops { all: false }).is_ok(), "there is room again");
}
