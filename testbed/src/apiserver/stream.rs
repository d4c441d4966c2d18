//! Watches: events as lines of JSON, for as long as the client stays and its time lasts.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::cluster::{Change, Cluster, Object};
use super::fault::{Cut, Faults};
use super::resource::Resource;
use super::selector::Selector;
use super::status::Failure;

/// Bytes that are sent at once. An event may begin in one piece and end in another.
const PIECE: usize = 64 << 10;
/// Pieces that wait for the client.
const PIECES: usize = 4;
/// What was written is on its way after so long, and stays so when the connection breaks.
pub(super) const SENT: Duration = Duration::from_millis(20);
/// A last bookmark comes so long before the end.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// After this version.
    After(u64),
    /// With an event for every object that there is, and with a mark behind them if one is wanted.
    Now {
        /// Whether their end is marked.
        marked: bool,
    },
}

/// What a watch is asked for.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) resource: Resource,
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
    pub(super) start: Start,
    pub(super) bookmarks: bool,
    pub(super) timeout: Duration,
    /// How often bookmarks come.
    pub(super) beat: Duration,
    /// Whether events are of another kind than asked for.
    pub(super) wrong_kind: bool,
}

/// Begins a watch; the body goes on until it ends.
pub(super) fn watch(ask: Ask, cluster: Arc<Cluster>, faults: &Faults) -> Body {
    let (sender, receiver) = mpsc::channel(PIECES);
    let watch = Watch {
        lines: Lines { sender, piece: Vec::new() },
        cuts: faults.cuts(),
        stalls: faults.stalls(),
        cluster,
        ask,
    };
    tokio::spawn(async move {
        // Whoever has hung up gets no more.
        let _ = watch.run().await;
    });
    Body::from_stream(futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

struct HungUp;

struct Lines {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Lines {
    async fn push(&mut self, line: &str) -> Result<(), HungUp> {
        self.piece.extend_from_slice(line.as_bytes());
        self.piece.push(b'\n');
        while self.piece.len() >= PIECE {
            let rest = self.piece.split_off(PIECE);
            let full = std::mem::replace(&mut self.piece, rest);
            self.sender.send(Ok(full.into())).await.map_err(|_| HungUp)?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), HungUp> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.piece);
        self.sender.send(Ok(piece.into())).await.map_err(|_| HungUp)
    }

    async fn break_off(&mut self) {
        tokio::time::sleep(SENT).await;
        let broken = io::Error::from(io::ErrorKind::ConnectionReset);
        // Whoever has hung up need not be told.
        let _ = self.sender.send(Err(broken)).await;
    }
}

struct Watch {
    lines: Lines,
    cuts: tokio::sync::watch::Receiver<(u64, Cut)>,
    stalls: tokio::sync::watch::Receiver<bool>,
    cluster: Arc<Cluster>,
    ask: Ask,
}

impl Watch {
    async fn run(mut self) -> Result<(), HungUp> {
        let mut versions = self.cluster.versions();
        let end = Instant::now() + self.ask.timeout;
        let mut beat = interval_at(Instant::now() + self.ask.beat, self.ask.beat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = std::pin::pin!(sleep_until(end.checked_sub(LAST_BOOKMARK).unwrap_or(end)));
        let mut is_last_sent = false;
        let mut seen = match self.ask.start {
            Start::After(version) => version,
            Start::Now { marked } => self.begin(marked).await?,
        };
        loop {
            tokio::select! {
                done = self.stalls.wait_for(|stalled| !stalled) => drop(done),
                () = self.lines.sender.closed() => return Err(HungUp),
            }
            match self.cluster.changes(self.ask.resource, seen) {
                Ok((upto, changes)) => {
                    for change in &changes {
                        self.tell(change).await?;
                    }
                    seen = upto;
                }
                Err(expired) => return self.end_with(&expired).await,
            }
            self.lines.flush().await?;
            tokio::select! {
                changed = versions.changed() => changed.map_err(|_| HungUp)?,
                changed = self.stalls.changed() => changed.map_err(|_| HungUp)?,
                changed = self.cuts.changed() => {
                    changed.map_err(|_| HungUp)?;
                    if self.cut(seen).await? {
                        return Ok(());
                    }
                }
                _ = beat.tick(), if self.ask.bookmarks => self.bookmark(seen, false).await?,
                () = &mut last, if self.ask.bookmarks && !is_last_sent => {
                    is_last_sent = true;
                    self.bookmark(seen, false).await?;
                }
                () = sleep_until(end) => return self.lines.flush().await,
                () = self.lines.sender.closed() => return Err(HungUp),
            }
        }
    }

    /// Tells of all objects. Returns the version that they are of.
    async fn begin(&mut self, marked: bool) -> Result<u64, HungUp> {
        let (version, objects) = self.cluster.all(self.ask.resource);
        for object in objects {
            if self.is_selected(&object) {
                self.event("ADDED", &object).await?;
            }
        }
        if marked {
            self.bookmark(version, true).await?;
        }
        Ok(version)
    }

    fn is_selected(&self, object: &Object) -> bool {
        object.is_selected(self.ask.namespace.as_deref(), &self.ask.selector)
    }

    async fn tell(&mut self, change: &Change) -> Result<(), HungUp> {
        let was = change.old.as_ref().is_some_and(|old| self.is_selected(old));
        let is = !change.is_deleted && self.is_selected(&change.new);
        match (was, is) {
            (false, false) => Ok(()),
            (false, true) => self.event("ADDED", &change.new).await,
            (true, true) => self.event("MODIFIED", &change.new).await,
            (true, false) => self.event("DELETED", &change.new).await,
        }
    }

    async fn event(&mut self, kind: &str, object: &Object) -> Result<(), HungUp> {
        let of = if self.ask.wrong_kind { Resource::CoreEvents } else { self.ask.resource };
        let line = format!(r#"{{"type":"{kind}","object":{}}}"#, object.whole(of));
        self.lines.push(&line).await
    }

    async fn bookmark(&mut self, version: u64, is_initial_end: bool) -> Result<(), HungUp> {
        let resource = self.ask.resource;
        let mark = if is_initial_end { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
        let line = format!(
            r#"{{"type":"BOOKMARK","object":{{"kind":"{}","apiVersion":"{}","metadata":{{"resourceVersion":"{version}","creationTimestamp":null{mark}}},{}}}}}"#,
            resource.kind(),
            resource.api_version(),
            resource.blank(),
        );
        self.lines.push(&line).await?;
        self.lines.flush().await
    }

    async fn end_with(&mut self, failure: &Failure) -> Result<(), HungUp> {
        let line = json!({"type": "ERROR", "object": failure.status()}).to_string();
        self.lines.push(&line).await?;
        self.lines.flush().await
    }

    /// Returns whether the watch is over.
    async fn cut(&mut self, seen: u64) -> Result<bool, HungUp> {
        let (_, cut) = *self.cuts.borrow_and_update();
        match cut {
            Cut::End => {}
            Cut::Middle => {
                let piece = br#"{"type":"MODIFIED","object":{"kind":"Service","metada"#;
                self.lines.piece.extend_from_slice(piece);
                self.lines.flush().await?;
                self.lines.break_off().await;
            }
            Cut::Garbage => {
                self.lines.push("<html><body>502 Bad Gateway</body></html>").await?;
                self.lines.flush().await?;
                return Ok(false);
            }
            Cut::Expired => self.end_with(&Failure::expired(seen, seen + 1)).await?,
        }
        Ok(true)
    }
}
