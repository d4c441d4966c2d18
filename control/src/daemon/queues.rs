//! Looks, while Weir runs, whether the interfaces still have the queues that were there at start and spread frames over
//! them as before, and whether frames arrive on queues that no worker serves. All may be changed under it (`ethtool -L`,
//! `ethtool -X`), and nothing else would tell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::io::xsk::PortSocket;
use dataplane::snapshot::net::Port;
use tokio::sync::oneshot;

use crate::nic::judge::counted;
use crate::nic::{self, Rss, polling, receives};

/// How often the interfaces are asked.
const LOOK: Duration = Duration::from_secs(5);
/// Stray frames are told of so often at most.
const INTERVAL: Duration = Duration::from_secs(60);

/// An interface with its RX queues, and how it spreads frames over them, where its driver tells.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: Arc<str>,
    ifindex: u32,
    queues: Option<u32>,
    rss: Option<Rss>,
    /// The sockets of those queues that workers poll where they can.
    polled: Vec<PortSocket>,
    /// What is new of that.
    polling: Option<String>,
}

/// What was last seen, and what was last told.
#[derive(Debug)]
pub(super) struct Queues {
    workers: u32,
    seen: Vec<Seen>,
    /// The next answer: the kernel may take its time over a driver.
    asked: Option<oneshot::Receiver<Vec<Seen>>>,
    looked_at: Instant,
    strays: u64,
    told_at: Option<Instant>,
}

impl Queues {
    /// As the served `ports` are now.
    pub(super) fn new(ports: &[Port], workers: u32) -> Self {
        let named = |port: &Port| {
            let (name, ifindex) = (Arc::clone(&port.name), port.ifindex);
            Seen { name, ifindex, ..Seen::default() }
        };
        let named = ports.iter().map(named).collect();
        let (seen, looked_at) = (look(named), Instant::now());
        Self { workers, seen, asked: None, looked_at, strays: 0, told_at: None }
    }

    /// How each interface spreads frames, as it said last.
    pub(super) fn rss(&self) -> Vec<Option<Rss>> {
        self.seen.iter().map(|seen| seen.rss.clone()).collect()
    }

    /// Has workers poll their queues where they can, from now on. Returns what that comes to, a sentence an interface.
    pub(super) fn poll_by_workers<'a>(
        &mut self,
        sockets: impl Iterator<Item = &'a PortSocket> + Clone,
    ) -> Vec<String> {
        let begin = |seen: &mut Seen| {
            seen.polled = sockets.clone().filter(|socket| socket.interface == seen.name).cloned().collect();
            let napis = nic::napis(seen.ifindex);
            let begun = polling::follow(&seen.name, &napis, &seen.polled);
            begun.or_else(|| polling::refusal(&seen.name, &napis, &seen.polled))
        };
        self.seen.iter_mut().filter_map(begin).collect()
    }

    /// What has changed, one sentence each; `None` where there is no answer. Asks beside the calling thread, in a
    /// tokio runtime; the answer is in a later call's result. `asks` is called when it asks.
    pub(super) fn news(&mut self, now: Instant, asks: impl FnOnce()) -> Option<Vec<String>> {
        if let Some(asked) = &mut self.asked {
            let seen = asked.try_recv().ok()?;
            self.asked = None;
            let before = std::mem::replace(&mut self.seen, seen);
            let pairs = || before.iter().zip(&self.seen);
            let changed = pairs().filter_map(|(before, after)| changed(before, after, self.workers));
            // What cannot be had is tried each time, and told once.
            let polling = pairs().filter(|(before, after)| before.polling != after.polling);
            return Some(changed.chain(polling.filter_map(|(_, after)| after.polling.clone())).collect());
        }
        if now.saturating_duration_since(self.looked_at) >= LOOK {
            self.looked_at = now;
            asks();
            let (sender, receiver) = oneshot::channel();
            let seen = self.seen.clone();
            tokio::task::spawn_blocking(move || {
                // Where Weir has ended meanwhile nobody waits for it.
                let _ = sender.send(look(seen));
            });
            self.asked = Some(receiver);
        }
        None
    }

    /// What is to be said of frames for Weir that came on queues without a worker, of which there were so many.
    pub(super) fn strays(&mut self, count: u64, now: Instant) -> Option<String> {
        let news = count.saturating_sub(self.strays);
        if news == 0 || self.told_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            return None;
        }
        (self.strays, self.told_at) = (count, Some(now));
        Some(format!(
            "{news} frames for Weir came on queues that no worker serves, and went to the kernel: give the interfaces as many \
             queues as there are workers, or have their tables use those alone (ethtool -X INTERFACE equal {})",
            self.workers
        ))
    }
}

fn look(mut ports: Vec<Seen>) -> Vec<Seen> {
    for port in &mut ports {
        (port.queues, port.rss) = receives(port.ifindex);
        if !port.polled.is_empty() {
            port.polling = polling::follow(&port.name, &nic::napis(port.ifindex), &port.polled);
        }
    }
    ports
}

/// The sentence on an interface whose queues are others than before.
fn changed(before: &Seen, after: &Seen, workers: u32) -> Option<String> {
    let (name, was, is) = (&after.name, before.queues?, after.queues?);
    if was == is {
        return None;
    }
    let begin = format!("{name} has {is} RX queues now and had {was}, for {}", counted(workers));
    Some(match is.cmp(&workers) {
        std::cmp::Ordering::Less => {
            format!("{begin}: those from {is} on get no more frames of it until it has them again")
        }
        std::cmp::Ordering::Equal => begin,
        std::cmp::Ordering::Greater => format!(
            "{begin}: what arrives on queues {workers} and up passes Weir by (ethtool -L {name}, or ethtool -X {name} \
             equal {workers})"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_number_of_queues_is_told_with_what_it_means() {
        let seen = |queues| Seen { name: "eth1".into(), ifindex: 3, queues, ..Seen::default() };
        for (before, after, want) in [
            (Some(2), Some(2), None),
            (None, Some(2), None),
            (Some(2), None, None),
            (
                Some(2),
                Some(4),
                Some("eth1 has 4 RX queues now and had 2, for 2 workers: what arrives on queues 2 and up"),
            ),
            (
                Some(2),
                Some(1),
                Some("eth1 has 1 RX queues now and had 2, for 2 workers: those from 1 on get no more"),
            ),
            (Some(4), Some(2), Some("eth1 has 2 RX queues now and had 4, for 2 workers")),
        ] {
            let told = changed(&seen(before), &seen(after), 2);
            match want {
                None => assert_eq!(told, None, "{before:?} {after:?}"),
                Some(want) => assert!(told.as_ref().is_some_and(|told| told.starts_with(want)), "{told:?}"),
            }
        }
    }

    #[test]
    fn stray_frames_are_told_of_once_a_minute_with_all_since() {
        let mut queues = Queues::new(&[], 2);
        let start = Instant::now();
        let mut told = |count, second| queues.strays(count, start + Duration::from_secs(second));
        assert_eq!(told(0, 0), None);
        assert!(told(3, 1).is_some_and(|told| told.starts_with("3 frames")));
        assert_eq!(told(5, 30), None);
        assert!(told(7, 61).is_some_and(|told| told.starts_with("4 frames")));
        assert_eq!(told(7, 200), None);
    }
}
