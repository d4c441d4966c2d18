//! Reading the configuration again: off the control thread, one reading at a time.

use std::path::{Path, PathBuf};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::admin::protocol::Reply;
use crate::config::{self, Config, Faults};

/// Who waits for a reload; nobody for a signal.
pub(super) type Waiting = Vec<oneshot::Sender<Reply>>;

/// The reading that is going on, and who asked for one since it began: the file may have changed in between.
#[derive(Debug)]
pub(super) struct Reloads {
    path: PathBuf,
    reading: Option<JoinHandle<Result<Config, Faults>>>,
    waiting: Waiting,
    next: Option<Waiting>,
}

impl Reloads {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into(), reading: None, waiting: Vec::new(), next: None }
    }

    /// Asks for a reading that begins now or later.
    pub(super) fn request(&mut self, reply: Option<oneshot::Sender<Reply>>) {
        self.next.get_or_insert_default().extend(reply);
        self.begin();
    }

    fn begin(&mut self) {
        if self.reading.is_none()
            && let Some(waiting) = self.next.take()
        {
            self.waiting = waiting;
            let path = self.path.clone();
            self.reading = Some(tokio::task::spawn_blocking(move || config::load(&path)));
        }
    }

    /// Waits for the end of a reading: what was read, and who waits for it. For ever, where there is none. Nothing is
    /// lost where the future is dropped.
    pub(super) async fn read(&mut self) -> (Result<Config, Faults>, Waiting) {
        let Some(reading) = &mut self.reading else { return std::future::pending().await };
        let result = match reading.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.reading = None;
        let waiting = std::mem::take(&mut self.waiting);
        self.begin();
        (result, waiting)
    }
}
