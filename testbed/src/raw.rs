//! Frames that no ordinary socket sends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::namespace::Namespace;

/// A packet socket: what is sent leaves by one interface as it is, and what comes and goes there is received.
#[derive(Debug)]
pub struct Raw(OwnedFd);

impl Raw {
    /// Opens it in `namespace` on `interface`.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.enter(|| {
            let addr = link_addr(interface)?;
            let all = SockProtocol::EthAll;
            let opened = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all)?;
            bind(opened.as_raw_fd(), &addr)?;
            Ok(Self(opened))
        })?
    }

    /// Sends a frame, from its Ethernet header on.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty())?;
        ensure!(sent == frame.len(), "{sent} of {} bytes were sent", frame.len());
        Ok(())
    }

    /// The next frame of the interface that is not this socket's own, from its Ethernet header on; `None` when there is none
    /// for so long. No time at all is for good.
    ///
    /// # Errors
    /// When the interface is gone or down.
    pub fn receive(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let limit = TimeVal::microseconds(limit.as_micros().try_into()?);
        setsockopt(&self.0, sockopt::ReceiveTimeout, &limit)?;
        let mut frame = vec![0; usize::from(u16::MAX)];
        match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The interface as packet sockets name it.
fn link_addr(interface: &str) -> Result<LinkAddr> {
    let link = |addr: &SockaddrStorage| addr.as_link_addr().copied();
    let mut all = nix::ifaddrs::getifaddrs()?.filter(|entry| entry.interface_name == interface);
    all.find_map(|entry| entry.address.as_ref().and_then(link))
        .with_context(|| format!("no interface {interface}"))
}
