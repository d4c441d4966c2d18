//! Which queues workers poll in place of interrupts.
//!
//! While a socket prefers that (`SO_PREFER_BUSY_POLL`), the kernel wakes up the driver for nothing but a poll of the NAPI
//! instance that the queue had for receiving when the socket was bound (Linux 6.14 and newer). So that one must serve its
//! sending, too, or nothing would be sent; and when it is another one, the worker has to be told.

use dataplane::io::xsk::{BindMode, PortSocket};

use super::Napi;

/// Why the kernel polls a queue, not its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpolled {
    /// Frames are copied.
    #[error("frames are copied")]
    Copied,
    /// The driver or an older kernel does not say what serves it.
    #[error("the kernel does not tell what serves them both ways")]
    Untold,
    /// Two instances.
    #[error("sending and receiving have a NAPI instance each")]
    Apart,
    /// It is not the one that the socket was bound with.
    #[error("the NAPI instance that serves them is not the one that their sockets have")]
    Other,
}

/// The NAPI instance that serves a queue in both directions.
pub fn instance(napis: &[Napi], queue: u32) -> Result<u32, Unpolled> {
    let serves = |of: fn(&Napi) -> &[u32]| {
        napis.iter().find(|napi| of(napi).contains(&queue)).map(|napi| napi.id).ok_or(Unpolled::Untold)
    };
    let (receives, sends) = (serves(|napi| &napi.rx_queues)?, serves(|napi| &napi.tx_queues)?);
    if receives == sends { Ok(receives) } else { Err(Unpolled::Apart) }
}

/// What stands against a worker's polling of its queue, whose socket has the NAPI instance `bound`.
fn judge(mode: BindMode, napis: &[Napi], queue: u32, bound: Option<u32>) -> Result<(), Unpolled> {
    if mode != BindMode::ZeroCopy {
        return Err(Unpolled::Copied);
    }
    match instance(napis, queue)? {
        now if Some(now) == bound => Ok(()),
        _ => Err(Unpolled::Other),
    }
}

/// Has workers poll the queues of the interface `name` that they may, and no others, as its NAPI instances are now. Returns a
/// sentence where that is not what they did.
pub fn follow(name: &str, napis: &[Napi], sockets: &[PortSocket]) -> Option<String> {
    let (mut begun, mut ended, mut why) = (Vec::new(), Vec::new(), None);
    for socket in sockets {
        let mut may = judge(socket.mode, napis, socket.queue, socket.napi()).map_err(|why| why.to_string());
        if may.is_ok() == socket.is_polled() {
            continue;
        }
        if let Err(error) = socket.set_polled(may.is_ok()) {
            may = Err(format!("SO_PREFER_BUSY_POLL: {error}"));
        }
        match may {
            Ok(()) => begun.push(socket.queue.to_string()),
            Err(reason) => {
                ended.push(socket.queue.to_string());
                why.get_or_insert(reason);
            }
        }
    }
    let begun = (!begun.is_empty())
        .then(|| format!("{name}: workers poll queues {} in place of interrupts", begun.join(", ")));
    let ended = why.map(|why| format!("{name}: the kernel polls queues {}: {why}", ended.join(", ")));
    begun.into_iter().chain(ended).reduce(|begun, ended| format!("{begun}; {ended}"))
}

/// Why workers poll none of these queues of an interface; `None` where they poll some.
pub fn refusal(name: &str, napis: &[Napi], sockets: &[PortSocket]) -> Option<String> {
    if sockets.iter().any(PortSocket::is_polled) {
        return None;
    }
    let judge = |socket: &PortSocket| judge(socket.mode, napis, socket.queue, socket.napi()).err();
    let why = sockets.iter().find_map(judge)?;
    Some(format!("{name}: the kernel polls its queues, not the workers: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn napi(id: u32, rx_queues: &[u32], tx_queues: &[u32]) -> Napi {
        Napi { id, rx_queues: rx_queues.into(), tx_queues: tx_queues.into(), ..Napi::default() }
    }

    #[test]
    fn a_worker_polls_a_queue_that_one_instance_serves_both_ways_and_its_socket_knows() {
        use BindMode::{Copy, ZeroCopy};
        let paired = [napi(8193, &[0], &[0]), napi(8194, &[1], &[1])];
        let apart = [napi(8193, &[0], &[]), napi(8194, &[1], &[]), napi(8195, &[], &[0, 1])];
        let crossed = [napi(8193, &[0], &[1]), napi(8194, &[1], &[0])];
        for (mode, napis, queue, bound, want) in [
            (ZeroCopy, &paired[..], 1, Some(8194), Ok(())),
            (Copy, &paired[..], 1, Some(8194), Err(Unpolled::Copied)),
            (ZeroCopy, &paired[..], 2, Some(8195), Err(Unpolled::Untold)),
            (ZeroCopy, &[], 0, Some(8193), Err(Unpolled::Untold)),
            (ZeroCopy, &apart[..], 1, Some(8194), Err(Unpolled::Apart)),
            (ZeroCopy, &crossed[..], 0, Some(8193), Err(Unpolled::Apart)),
            (ZeroCopy, &apart[..2], 0, Some(8193), Err(Unpolled::Untold)),
            // Its queues were made anew, or the kernel did not say at binding.
            (ZeroCopy, &paired[..], 1, Some(8193), Err(Unpolled::Other)),
            (ZeroCopy, &paired[..], 1, None, Err(Unpolled::Other)),
        ] {
            assert_eq!(judge(mode, napis, queue, bound), want, "{mode:?} {napis:?} {queue} {bound:?}");
        }
    }
}
