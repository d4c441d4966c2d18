//! The thread that Kubernetes's objects are read in, so that reading them keeps nobody waiting.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use jiff::Timestamp;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};

use super::client::{Connection, Server};
use super::emit;
use super::feed::feed;
use super::notice::Notice;
use super::publish::{Ears, Proposal, Publisher, Surroundings};
use super::settings::Settings;
use super::status::Status;
use super::store::Store;

/// What it works with.
#[derive(Debug)]
pub struct Parts {
    /// Where the API server is.
    pub server: Server,
    /// How objects are understood.
    pub settings: Settings,
    /// How watching goes.
    pub status: Arc<Status>,
    /// Where what comes of changes is told.
    pub ears: Ears,
    /// What is to be told in the cluster.
    pub notices: mpsc::Receiver<Notice>,
}

/// The running thread. It ends when this is dropped; what is in force stays.
#[derive(Debug)]
pub struct Thread {
    proposals: mpsc::Receiver<Proposal>,
    /// What it is to know of the host and the configuration.
    pub surroundings: watch::Sender<Surroundings>,
    /// How watching goes.
    pub status: Arc<Status>,
    // `Option` only for their end.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts it, in the calling thread's network namespace. Proposals come as soon as enough was read.
    ///
    /// # Errors
    /// Without an event loop or a thread.
    pub fn start(parts: Parts, surroundings: Surroundings) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        let (proposer, proposals) = mpsc::channel(1);
        let (sender, receiver) = watch::channel(surroundings);
        let (stop, stopped) = oneshot::channel();
        let status = Arc::clone(&parts.status);
        let thread = std::thread::Builder::new().name("kubernetes".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = work(parts, proposer, receiver) => {}
                    _ = stopped => {}
                }
            });
            // A plugin that never ends is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { proposals, surroundings: sender, status, stop: Some(stop), thread: Some(thread) })
    }
}

impl Thread {
    /// The changes that it proposes, one at a time. For the one who puts them into force; nobody else gets any.
    pub fn take_proposals(&mut self) -> mpsc::Receiver<Proposal> {
        let (_, none) = mpsc::channel(1);
        std::mem::replace(&mut self.proposals, none)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say in the end, and a panic of its own was printed.
            let _ = thread.join();
        }
    }
}

async fn work(parts: Parts, proposer: mpsc::Sender<Proposal>, surroundings: watch::Receiver<Surroundings>) {
    let Parts { server, settings, status, ears, notices } = parts;
    let configured = surroundings.borrow().configured.clone();
    let store = RefCell::new(Store::new(settings.clone(), configured, Timestamp::now()));
    let publisher = Publisher::new(&store, &status, &ears, proposer, surroundings);
    let connection = Connection::new(server.clone());
    tokio::join!(
        feed(&connection, &settings, &status, |event| publisher.take(event)),
        publisher.run(),
        emit::send(server, notices, &settings.node, &ears.counted),
    );
}
