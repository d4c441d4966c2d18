//! An HTTP client that takes times: a connection a request, several at once.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use crate::namespace::Namespace;

const LIMIT: Duration = Duration::from_secs(5);
const LONGEST_US: u64 = 60_000_000;

/// What a run of requests came to.
#[derive(Debug)]
pub struct Load {
    /// Requests by the text of their page, which is the backend's name.
    pub answers: BTreeMap<String, u32>,
    /// Why requests failed.
    pub failures: Vec<String>,
    /// How many of those failed because nothing came for a while.
    pub unanswered: usize,
    /// From before the connection to the last byte of the page, microseconds, of requests that did not fail.
    pub latency_us: Histogram<u64>,
    /// The whole run.
    pub elapsed: Duration,
}

impl Load {
    fn new() -> Result<Self> {
        let latency_us = Histogram::new_with_bounds(1, LONGEST_US, 3)?;
        Ok(Self {
            answers: BTreeMap::new(),
            failures: Vec::new(),
            unanswered: 0,
            latency_us,
            elapsed: Duration::ZERO,
        })
    }

    fn count(&mut self, took: Duration, answer: Result<String>) {
        match answer {
            Ok(page) => {
                *self.answers.entry(page).or_default() += 1;
                self.latency_us.saturating_record(u64::try_from(took.as_micros()).unwrap_or(LONGEST_US));
            }
            Err(error) => {
                self.unanswered += usize::from(is_timeout(&error));
                self.failures.push(format!("{error:#}"));
            }
        }
    }

    fn merge(&mut self, other: Self) -> Result<()> {
        for (page, count) in other.answers {
            *self.answers.entry(page).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.unanswered += other.unanswered;
        Ok(self.latency_us.add(other.latency_us)?)
    }
}

/// Fetches `/` so many times from `server`, each time by a new connection, `at_once` of them at a time.
///
/// # Errors
/// When the namespace cannot be entered. A request that fails is counted in the result.
pub fn load(client: &Namespace, server: SocketAddr, requests: u32, at_once: u32) -> Result<Load> {
    let next = AtomicU32::new(0);
    load_while(client, server, at_once, || next.fetch_add(1, Ordering::Relaxed) < requests)
}

/// [`load`] for so long instead of so often.
///
/// # Errors
/// When the namespace cannot be entered. A request that fails is counted in the result.
pub fn load_for(client: &Namespace, server: SocketAddr, duration: Duration, at_once: u32) -> Result<Load> {
    let end = Instant::now() + duration;
    load_while(client, server, at_once, || Instant::now() < end)
}

fn load_while(
    client: &Namespace,
    server: SocketAddr,
    at_once: u32,
    goes_on: impl Fn() -> bool + Sync,
) -> Result<Load> {
    let started = Instant::now();
    let one = || -> Result<Load> {
        let mut load = Load::new()?;
        while goes_on() {
            let started = Instant::now();
            let answer = fetch(server);
            load.count(started.elapsed(), answer);
        }
        Ok(load)
    };
    // Threads that a thread of the namespace starts are in the namespace too.
    let parts = client.enter(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        })
    })?;
    let mut total = Load::new()?;
    for part in parts {
        let Ok(part) = part else { bail!("a client thread panicked") };
        total.merge(part?)?;
    }
    total.elapsed = started.elapsed();
    Ok(total)
}

fn is_timeout(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

fn fetch(server: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT).context("connecting")?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n").context("sending")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receiving")?;
    match answer.split_once("\r\n\r\n") {
        Some((head, page)) if head.starts_with("HTTP/1.1 200 ") => Ok(page.trim_end().to_owned()),
        _ => bail!("unexpected answer: {answer:?}"),
    }
}
