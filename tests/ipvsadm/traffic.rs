//! What passes between the commands of a recording: read from its description, and sent.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::network::{Network, patient};

/// How long an answer to a datagram may take.
const ANSWER: Duration = Duration::from_secs(2);
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The state of the clients.
pub(crate) struct Traffic {
    /// The last service that was added, over TCP and UDP.
    tcp: SocketAddr,
    udp: SocketAddr,
    held: Vec<TcpStream>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { tcp: UNKNOWN, udp: UNKNOWN, held: Vec::new() }
    }
}

impl Traffic {
    /// Notes which service a command adds.
    pub(crate) fn note(&mut self, command: &str) {
        let mut words = command.split_whitespace().skip(1);
        if words.next() != Some("-A") {
            return;
        }
        match (words.next(), words.next().and_then(|addr| addr.parse().ok())) {
            (Some("-t"), Some(addr)) => self.tcp = addr,
            (Some("-u"), Some(addr)) => self.udp = addr,
            _ => {}
        }
    }

    /// Has pass what a recording says has passed, with the same answers.
    pub(crate) fn pass(&mut self, network: &Network, what: &str) -> Result<()> {
        let words: Vec<&str> = what.split_whitespace().collect();
        if let ["sleep", seconds, "s"] = words[..] {
            std::thread::sleep(Duration::from_secs_f64(seconds.parse()?));
            return Ok(());
        }
        if let ["held", "connections", "closed", ..] = words[..] {
            let ends: Result<Vec<&str>> =
                std::mem::take(&mut self.held).into_iter().rev().map(close).collect();
            return same(what, ends?);
        }
        if let ["one", "IPv6", "connection:", server] = words[..] {
            let (stream, name) = self.get(network, "[fd00::1]:46000".parse()?)?;
            ensure!(name == server, "{name} answered");
            return close(stream).map(drop);
        }
        let count: u16 = words.first().context("no words")?.parse().context("no count")?;
        let from: IpAddr = after(&words, "from").parse()?;
        let port: u16 = after(&words, "ports").trim_end_matches(['.', ',']).parse()?;
        let sources = (0..count).map(|number| SocketAddr::new(from, port + number));
        match words.get(1..3) {
            Some(["TCP", "connections"]) => {
                let mut answers = Vec::new();
                for source in sources {
                    let (stream, name) = self.get(network, source)?;
                    answers.push(name);
                    if what.contains("held open") {
                        self.held.push(stream);
                    } else {
                        close(stream)?;
                    }
                }
                same(what, answers)
            }
            Some(["UDP", "datagrams"]) => {
                let length: usize = after(&words, "of").parse()?;
                let answers: Result<Vec<_>> =
                    sources.map(|source| self.datagram(network, source, length)).collect();
                same(what, answers?)
            }
            _ => bail!("unknown traffic"),
        }
    }

    /// A connection with one request, and who answered it.
    fn get(&self, network: &Network, source: SocketAddr) -> Result<(TcpStream, String)> {
        let target = self.tcp;
        let socket = network.client().enter(|| -> Result<Socket> {
            let socket = Socket::new(Domain::for_address(source), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
            socket
                .connect_timeout(&target.into(), ANSWER)
                .with_context(|| format!("{source} to {target}"))?;
            Ok(socket)
        })??;
        let mut stream = TcpStream::from(socket);
        patient(&stream)?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer)?;
        let text = String::from_utf8_lossy(&answer[..length]);
        let name = text.rsplit('\n').next().unwrap_or_default().to_owned();
        Ok((stream, name))
    }

    fn datagram(&self, network: &Network, source: SocketAddr, length: usize) -> Result<String> {
        let socket = network.client().enter(|| UdpSocket::bind(source))??;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.send_to(&vec![b'x'; length], self.udp)?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer).with_context(|| format!("{source} gets no answer"))?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }
}

/// Closes a connection in good order, and says how its other end did.
fn close(mut stream: TcpStream) -> Result<&'static str> {
    // Where it was reset this is the first to notice.
    let shut = stream.shutdown(Shutdown::Write);
    match shut.and_then(|()| stream.read(&mut [0; 16])) {
        Ok(0) => Ok("EOF"),
        Ok(_) => bail!("more data than one answer"),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::NotConnected) => {
            Ok("RESET")
        }
        Err(error) => Err(error).context("closing"),
    }
}

/// The word after `word`.
fn after<'a>(words: &[&'a str], word: &str) -> &'a str {
    let at = words.iter().position(|other| *other == word);
    at.and_then(|at| words.get(at + 1)).copied().unwrap_or_default()
}

/// Whether the answers are those of the list at the end of the description.
fn same<T: AsRef<str>>(what: &str, answers: Vec<T>) -> Result<()> {
    let recorded = what.rsplit_once('[').and_then(|(_, list)| list.split_once(']')).map(|(list, _)| list);
    let recorded: Vec<_> =
        recorded.context("no list")?.split(", ").map(|name| name.trim_matches('\'')).collect();
    let answers: Vec<_> = answers.iter().map(AsRef::as_ref).collect();
    ensure!(answers == recorded, "answers are {answers:?}");
    Ok(())
}
