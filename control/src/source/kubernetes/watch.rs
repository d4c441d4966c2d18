//! Watching one resource: all its objects once, then every change, whatever happens in between.
//!
//! ```text
//! read all -> follow -> follow -> ..
//!    ^           |  a watch ends, breaks or falls silent: another one goes on where it was
//!    '-----------'  the server has forgotten what came then (410): all are read again, and what is not among them ends
//! ```
//!
//! All are read by a watch that begins with them (`sendInitialEvents`), and where the server does not offer that, by a
//! list in pages. Nothing is ever taken back because the server cannot be asked.

use std::cell::Cell;
use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use kube::Resource as _;
use kube::api::{ListParams, WatchParams};
use tokio::time::sleep;

use super::client::{Connection, read};
use super::event::Update;
use super::lines::Lines;
use super::object::{self, Reduced};
use super::status::{Resource, Status};
use super::trouble::{Kind, Trouble};
use super::wire::{Event, read_event, read_page};

/// The first pause after a failure; each doubles, up to [`PAUSE_MAX`], and up to that much again comes by chance.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long a resource is left alone that the server does not have or does not show, where Weir does without.
const OPTIONAL_PAUSE: Duration = Duration::from_secs(60);
/// Objects of the first page. The next ones are as large as [`PAGE_BYTES`] allows.
const FIRST_PAGE: usize = 500;
const PAGES: std::ops::RangeInclusive<usize> = 50..=10_000;
/// What a page has in bytes, about.
const PAGE_BYTES: usize = 8 << 20;
/// What it has at most.
const PAGE_BYTES_MAX: usize = 512 << 20;
/// How often a list is begun again because the server has forgotten its version meanwhile.
const LISTS: u32 = 3;
/// A watch lasts so many seconds, half as long again by chance: as long as a proxy in between may be expected to allow.
const WATCH_S: u64 = 190;
/// How long a watch may be silent before all objects have been told that there are. The server itself waits 3 s for its
/// cache at most.
const INITIAL_SILENCE: Duration = Duration::from_secs(10);
/// A watch that has lasted so long is a good one, even if it said nothing.
const SETTLED: Duration = Duration::from_secs(1);
/// So many watches one behind the other that end before they say anything are a trouble: of a server that starts again,
/// one may.
const BRIEFS: u32 = 3;
/// After so many failures one behind the other all objects are read again.
const FAILURES: u32 = 3;

/// Which objects are watched.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    /// `labelSelector`.
    pub(super) labels: Option<String>,
    /// `fieldSelector`.
    pub(super) fields: Option<String>,
}

/// Watches one resource.
pub(super) struct Watcher<'a, T, S> {
    connection: &'a Connection,
    status: &'a Status,
    resource: Resource,
    selection: Selection,
    /// What takes what happens.
    sink: S,
    /// Whether the server says nothing of the end of the objects that there are.
    is_unmarked: Cell<bool>,
    of: std::marker::PhantomData<fn() -> T>,
}

/// A watch that goes on.
struct Stream {
    lines: Lines,
    opened: Instant,
    /// Whether anything came.
    said: bool,
}

/// How the objects that there are could not be had from a watch.
enum NoStream {
    /// The server does not do that.
    Refused(Trouble),
    /// It cannot be asked, for now.
    Failed(Trouble),
}

/// Why a watch is no more.
enum End {
    /// Its time was over, or what carries it broke, or it was silent.
    Over,
    /// It ended before it said anything.
    Brief(Trouble),
    /// The server no longer knows what came then.
    Forgotten,
    /// It went wrong.
    Failed(Trouble),
}

impl<'a, T: Reduced, S: Fn(Update<T>)> Watcher<'a, T, S> {
    pub(super) fn new(
        connection: &'a Connection,
        status: &'a Status,
        resource: Resource,
        selection: Selection,
        sink: S,
    ) -> Self {
        let of = std::marker::PhantomData;
        Self { connection, status, resource, selection, sink, is_unmarked: Cell::new(false), of }
    }

    /// Watches for ever.
    pub(super) async fn run(self) -> Infallible {
        let mut pauses = Pauses::default();
        loop {
            match self.read_all().await {
                Ok((version, stream)) => {
                    self.status.set_server(self.connection.url());
                    self.status.synced(self.resource);
                    self.status.fine(self.resource);
                    pauses = Pauses::default();
                    self.follow(version, stream).await;
                }
                Err(trouble) => self.pause(&trouble, &mut pauses).await,
            }
        }
    }

    async fn pause(&self, trouble: &Trouble, pauses: &mut Pauses) {
        self.status.set_server(self.connection.url());
        self.status.trouble(self.resource, trouble);
        let mut pause = pauses.next();
        if self.resource.is_optional() && matches!(trouble.kind, Kind::Missing | Kind::Forbidden) {
            pause += OPTIONAL_PAUSE;
        }
        // All who were told the same time shall not come at once.
        sleep(trouble.retry_after.map_or(pause, |told| told + pause.min(told / 2))).await;
    }

    /// Reads all objects that there are. Returns their version, and the watch that told them if one did.
    async fn read_all(&self) -> Result<(String, Option<Stream>), Trouble> {
        if !self.is_unmarked.get() {
            match self.read_stream().await {
                Ok((version, stream)) => return Ok((version, Some(stream))),
                Err(NoStream::Failed(trouble)) => return Err(trouble),
                Err(NoStream::Refused(trouble)) => {
                    tracing::debug!(resource = %self.resource, %trouble, "no watch with all objects, listing them");
                }
            }
        }
        let mut lists = 1;
        loop {
            match self.read_pages(lists == LISTS).await {
                Err(trouble) if trouble.kind == Kind::Gone && lists < LISTS => lists += 1,
                read => return read.map(|version| (version, None)),
            }
        }
    }

    async fn read_stream(&self) -> Result<(String, Stream), NoStream> {
        let opened = self.open("", true).await;
        let mut stream = opened.map_err(|trouble| match trouble.kind {
            Kind::Credentials | Kind::Unreachable | Kind::Timeout => NoStream::Failed(trouble),
            Kind::Unauthorized | Kind::Throttled => NoStream::Failed(trouble),
            _ => NoStream::Refused(trouble),
        })?;
        (self.sink)(Update::Restarted);
        loop {
            let line = match stream.lines.next(INITIAL_SILENCE).await {
                Ok(Some(line)) => line,
                Ok(None) => {
                    return Err(NoStream::Refused(Trouble::malformed("it ended before all were told")));
                }
                Err(trouble) if trouble.kind == Kind::Timeout => {
                    self.is_unmarked.set(true);
                    return Err(NoStream::Refused(trouble));
                }
                Err(trouble) => return Err(NoStream::Refused(trouble)),
            };
            match read_event::<T>(line).map_err(NoStream::Refused)? {
                Event::Update(update, _) => (self.sink)(update),
                Event::Bookmark { is_initial_end: false, .. } => {}
                Event::Bookmark { version, .. } => {
                    (self.sink)(Update::Complete);
                    return Ok((version, stream));
                }
                Event::Failed(trouble) => return Err(NoStream::Refused(trouble)),
            }
        }
    }

    /// Lists all objects, in pages unless they are to come at once. Returns their version.
    async fn read_pages(&self, at_once: bool) -> Result<String, Trouble> {
        (self.sink)(Update::Restarted);
        let mut limit = FIRST_PAGE;
        let mut params = ListParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            ..ListParams::default()
        };
        loop {
            params.limit = if at_once { None } else { u32::try_from(limit).ok() };
            let request = self.api().list(&params);
            let request = request.map_err(|error| Trouble::caused(Kind::Other, &error))?;
            let text = read(self.connection.send(request).await?, PAGE_BYTES_MAX).await?;
            let page = read_page::<T>(&text)?;
            let each = text.len() / page.updates.len().max(1);
            limit = (PAGE_BYTES / each.max(1)).clamp(*PAGES.start(), *PAGES.end());
            page.updates.into_iter().for_each(&self.sink);
            match page.next {
                Some(_) if page.next == params.continue_token => {
                    return Err(Trouble::malformed("a list that goes on where it was"));
                }
                Some(next) => params.continue_token = Some(next),
                None => {
                    (self.sink)(Update::Complete);
                    return Ok(page.version);
                }
            }
        }
    }

    /// Follows the changes after `version`, until all objects have to be read again.
    async fn follow(&self, mut version: String, mut stream: Option<Stream>) {
        let mut pauses = Pauses::default();
        let (mut failures, mut briefs) = (0, 0);
        loop {
            let before = version.clone();
            let end = match stream.take() {
                Some(stream) => self.take_in(stream, &mut version).await,
                None => match self.open(&version, false).await {
                    Ok(stream) => self.take_in(stream, &mut version).await,
                    Err(trouble) if trouble.kind == Kind::Gone => End::Forgotten,
                    Err(trouble) => End::Failed(trouble),
                },
            };
            if version != before {
                pauses = Pauses::default();
                failures = 0;
            }
            briefs = if matches!(end, End::Brief(_)) { briefs + 1 } else { 0 };
            match end {
                End::Over => {}
                End::Brief(_) if briefs < BRIEFS => sleep(pauses.next()).await,
                End::Brief(trouble) => self.pause(&trouble, &mut pauses).await,
                End::Forgotten => return,
                End::Failed(trouble) => {
                    // What the server says no to, or what cannot be read, may be different at another version.
                    failures += u32::from(!trouble.kind.is_of_server() || trouble.kind == Kind::Server);
                    self.pause(&trouble, &mut pauses).await;
                    if failures >= FAILURES && trouble.kind != Kind::Forbidden {
                        return;
                    }
                }
            }
        }
    }

    /// Takes in what a watch tells, until it is no more. `version` follows.
    async fn take_in(&self, mut stream: Stream, version: &mut String) -> End {
        loop {
            let left = SETTLED.saturating_sub(stream.opened.elapsed());
            let is_settled = left.is_zero();
            let pause = if is_settled { self.connection.silence() } else { left };
            let line = match stream.lines.next(pause).await {
                Ok(Some(line)) => line,
                Err(trouble) if trouble.kind == Kind::Timeout && !is_settled => {
                    self.status.fine(self.resource);
                    continue;
                }
                Ok(None) | Err(_) if stream.said || is_settled => return End::Over,
                Ok(None) => {
                    return End::Brief(Trouble::new(Kind::Other, "watches end as soon as they begin"));
                }
                Err(trouble) => return End::Brief(trouble),
            };
            match read_event::<T>(line) {
                Ok(Event::Update(update, at)) => {
                    (self.sink)(update);
                    at.into_iter().for_each(|at| *version = at);
                }
                Ok(Event::Bookmark { version: at, .. }) => *version = at,
                Ok(Event::Failed(trouble)) if trouble.kind == Kind::Gone => return End::Forgotten,
                Ok(Event::Failed(trouble)) | Err(trouble) => return End::Failed(trouble),
            }
            if !stream.said {
                stream.said = true;
                self.status.fine(self.resource);
            }
        }
    }

    async fn open(&self, version: &str, initial: bool) -> Result<Stream, Trouble> {
        let chance = RandomState::new().build_hasher().finish() % (WATCH_S / 2);
        let params = WatchParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            timeout: u32::try_from(WATCH_S + chance).ok(),
            bookmarks: true,
            send_initial_events: initial,
        };
        let request = self.api().watch(&params, version);
        let request = request.map_err(|error| Trouble::caused(Kind::Other, &error))?;
        let response = self.connection.send(request).await?;
        Ok(Stream { lines: Lines::new(response.into_body()), opened: Instant::now(), said: false })
    }

    fn api(&self) -> kube::core::Request {
        kube::core::Request::new(object::Watched::<T>::url_path(&(), None))
    }
}

/// The pauses between attempts.
struct Pauses(ExponentialBackoff);

impl Default for Pauses {
    fn default() -> Self {
        let pauses = ExponentialBuilder::default().with_min_delay(PAUSE_MIN).with_max_delay(PAUSE_MAX);
        Self(pauses.with_factor(2.0).with_jitter().without_max_times().build())
    }
}

impl Pauses {
    fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(PAUSE_MAX)
    }
}
