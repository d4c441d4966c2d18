//! SCTP associations, where this kernel has the protocol.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// IP protocol number of SCTP.
const SCTP: i32 = 132;
/// How soon a server sees that it is to end.
const BEAT: Duration = Duration::from_millis(100);
/// How long either side waits for the other: SCTP sends what was lost again after 3, 6 and 12 s. Data that overtakes the COOKIE
/// ACK before it counts as lost to Linux, and may where a network card has several queues for sending.
const PATIENCE: Duration = Duration::from_secs(25);

/// A server that greets each client with its name and then sends back what it gets, until this goes out of scope.
#[derive(Debug)]
pub struct Greeter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    /// Starts one in `namespace` at this address alone: an endpoint with several tells its peer of all of them.
    ///
    /// # Errors
    /// When this kernel has no SCTP, or the address is not to be had.
    pub fn start(namespace: &Namespace, addr: IpAddr, port: u16, name: String) -> Result<Self> {
        let listener = namespace.enter(|| bound(SocketAddr::new(addr, port)))??;
        listener.listen(16)?;
        listener.set_read_timeout(Some(BEAT))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((peer, _)) = listener.accept() {
                    // Who asked sees it if this fails.
                    let _ = greet(peer, &name);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has no way to fail.
            let _ = thread.join();
        }
    }
}

/// Opens an association from `from`, sends `bytes` bytes and has them sent back; the server's name.
///
/// # Errors
/// When there is no association within 25 s, or something else comes back.
pub fn ask(client: &Namespace, from: IpAddr, to: SocketAddr, bytes: usize) -> Result<String> {
    let mut socket = client.enter(|| bound(SocketAddr::new(from, 0)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&to.into(), PATIENCE).context("SCTP association")?;
    let mut name = [0; 64];
    let len = socket.read(&mut name).context("the server's name")?;
    let sent: Vec<u8> = (0..=250).cycle().take(bytes).collect();
    socket.write_all(&sent)?;
    let mut got = vec![0; bytes];
    socket.read_exact(&mut got).context("what is sent back")?;
    anyhow::ensure!(got == sent, "other bytes come back");
    Ok(String::from_utf8_lossy(name.get(..len).unwrap_or_default()).into_owned())
}

fn greet(mut peer: Socket, name: &str) -> std::io::Result<()> {
    // It has the listener's, by which a client that pauses would be given up.
    peer.set_read_timeout(Some(PATIENCE))?;
    peer.write_all(name.as_bytes())?;
    let mut message = vec![0; 65_536];
    loop {
        match peer.read(&mut message)? {
            0 => return Ok(()),
            len => peer.write_all(message.get(..len).unwrap_or_default())?,
        }
    }
}

fn bound(addr: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::from(SCTP)))
        .context("this kernel has no SCTP")?;
    socket.bind(&addr.into())?;
    Ok(socket)
}
