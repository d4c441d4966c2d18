//! UDP servers that send back what they get.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// How soon a server sees that it is to end.
const BEAT: Duration = Duration::from_millis(100);

/// A server, running until this goes out of scope.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts one in `namespace` at this address and port, which its answers come from.
    ///
    /// # Errors
    /// When they are not to be had.
    pub fn start(namespace: &Namespace, addr: IpAddr, port: u16) -> Result<Self> {
        let socket = socket(namespace, SocketAddr::new(addr, port))?;
        socket.set_read_timeout(Some(BEAT))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut datagram = vec![0; usize::from(u16::MAX)];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut datagram) {
                    // Who asked does so again if this is lost.
                    let _ = socket.send_to(datagram.get(..len).unwrap_or_default(), from);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has no way to fail.
            let _ = thread.join();
        }
    }
}

/// A UDP socket in `namespace`.
///
/// # Errors
/// When the address is not to be had.
pub fn socket(namespace: &Namespace, addr: SocketAddr) -> Result<UdpSocket> {
    namespace.enter(|| UdpSocket::bind(addr))?.with_context(|| format!("UDP {addr}"))
}
