//! The connection to the kernel: a first dump, then notifications, and a new dump where they leave a doubt.
//!
//! Notifications and requests use a socket each, so that a flood of the former cannot cost an answer to the latter.

use std::future::ready;
use std::net::IpAddr;
use std::pin::pin;

use dataplane::snapshot::net::{Neighbour, Prefix4, Prefix6};
use futures_util::{Stream, StreamExt};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;

use super::NetlinkError;
use super::event::{self, Event, KernelRoute};
use super::mirror::{Doubts, Mirror, RouteTable};

/// Notifications waiting to be read at most; past that the socket's own buffer fills, and the kernel says so.
const QUEUE: usize = 4096;
/// Receive buffer of the notification socket in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// The mirror with its connection. Lives in one tokio runtime and the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Monitor {
    handle: Handle,
    events: mpsc::Receiver<Event>,
    mirror: Mirror,
}

impl Monitor {
    /// Subscribes to notifications and reads all tables once.
    pub async fn open() -> Result<Self, NetlinkError> {
        let (requests, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(requests);
        let events = subscribe()?;
        let mirror = dump(&handle).await?;
        let mut monitor = Self { handle, events, mirror };
        monitor.mirror.take_changes();
        Ok(monitor)
    }

    /// For requests of other kinds in the same namespace.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The mirror as it stands.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// The mirror, to take what changed or to tell it what is known otherwise.
    pub fn mirror_mut(&mut self) -> &mut Mirror {
        &mut self.mirror
    }

    /// Waits for a notification, then follows all that have arrived. What they leave in doubt is left to
    /// [`Monitor::settle`]. Nothing is lost where the future is dropped.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        let event = self.events.recv().await.ok_or(NetlinkError::Closed)?;
        self.mirror.apply(event);
        while let Ok(event) = self.events.try_recv() {
            self.mirror.apply(event);
        }
        Ok(())
    }

    /// Reads again what notifications have left in doubt. Until the new tables are complete the old ones stay; where
    /// reading fails the doubt stays too.
    pub async fn settle(&mut self) -> Result<(), NetlinkError> {
        let doubts = self.mirror.take_doubts();
        let result = self.resolve_doubts(doubts).await;
        if result.is_err() {
            self.mirror.doubt(doubts);
        }
        result
    }

    async fn resolve_doubts(&mut self, doubts: Doubts) -> Result<(), NetlinkError> {
        if doubts.all {
            self.mirror.replace_all(dump(&self.handle).await?);
            return Ok(());
        }
        if doubts.routes4 {
            self.mirror.replace_routes4(routes4(&self.handle).await?);
        }
        if doubts.routes6 {
            self.mirror.replace_routes6(routes6(&self.handle).await?);
        }
        Ok(())
    }

    /// Asks the kernel to resolve a neighbour, or to find out whether it still answers: what a packet sent to it
    /// would do (`NTF_USE`). Not for permanent entries: the kernel would take the permanence away.
    pub async fn ask(&self, place: Neighbour) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = match place.addr {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = place.link;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(place.addr)));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        let what = "the answer to a neighbour request";
        let fault = |source| NetlinkError::Dump { what, source };
        let mut answers = self.handle.clone().request(request).map_err(fault)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(fault(rtnetlink::Error::NetlinkError(error)));
            }
        }
        Ok(())
    }
}

/// Opens the notification socket and a task that reads from it.
fn subscribe() -> Result<mpsc::Receiver<Event>, NetlinkError> {
    let (mut connection, _, mut messages) =
        rtnetlink::new_multicast_connection(&GROUPS).map_err(NetlinkError::Open)?;
    // A smaller buffer only means more dumps.
    let socket = connection.socket_mut().socket_ref();
    if let Err(error) = setsockopt(socket, RcvBufForce, &RECEIVE_BUFFER) {
        tracing::debug!(%error, "the notification socket keeps its default buffer");
    }
    let (sender, events) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        // Without a budget of its own, so that a poll ends only when the socket is empty.
        let mut connection = pin!(tokio::task::unconstrained(connection));
        let mut lost = false;
        loop {
            let event = tokio::select! {
                biased;
                message = messages.next() => {
                    let Some((message, _)) = message else { return };
                    match event::read(message) {
                        Some(Event::Overrun) => {
                            lost = true;
                            None
                        }
                        event => event.filter(|_| !lost),
                    }
                }
                () = &mut connection => return,
                // The kernel reports a loss once and goes on losing until the socket is empty. Only a dump after
                // that misses nothing, and what was still in the socket is in it.
                () = ready(()), if lost => {
                    lost = false;
                    Some(Event::Overrun)
                }
            };
            if let Some(event) = event
                && sender.send(event).await.is_err()
            {
                return;
            }
        }
    });
    Ok(events)
}

async fn dump(handle: &Handle) -> Result<Mirror, NetlinkError> {
    let mut mirror = Mirror::default();
    let links = handle.link().get().execute();
    collect("links", links, |m| mirror_apply(event::link(&m).map(Event::Link), &mut mirror)).await?;
    let addresses = handle.address().get().execute();
    let address = |m| event::address(&m).map(|(link, addr, len)| Event::Address(link, addr, len));
    collect("addresses", addresses, |m| mirror_apply(address(m), &mut mirror)).await?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let neighbours = handle.neighbours().get().set_address_family(family).execute();
        let neighbour = |m| event::neighbour(&m).map(|(place, entry)| Event::Neighbour(place, entry));
        collect("neighbours", neighbours, |m| mirror_apply(neighbour(m), &mut mirror)).await?;
    }
    mirror.routes4 = routes4(handle).await?;
    mirror.routes6 = routes6(handle).await?;
    // What the links above have left in doubt was read after them.
    mirror.take_doubts();
    Ok(mirror)
}

fn mirror_apply(event: Option<Event>, mirror: &mut Mirror) {
    if let Some(event) = event {
        mirror.apply(event);
    }
}

async fn routes4(handle: &Handle) -> Result<RouteTable<Prefix4>, NetlinkError> {
    let mut table = RouteTable::default();
    collect("IPv4 routes", routes(handle, AddressFamily::Inet), |m| {
        if let Some(KernelRoute::V4(key, route)) = event::route(&m) {
            table.append(key, route);
        }
    })
    .await?;
    Ok(table)
}

async fn routes6(handle: &Handle) -> Result<RouteTable<Prefix6>, NetlinkError> {
    let mut table = RouteTable::default();
    collect("IPv6 routes", routes(handle, AddressFamily::Inet6), |m| {
        if let Some(KernelRoute::V6(key, route)) = event::route(&m) {
            table.append(key, route);
        }
    })
    .await?;
    Ok(table)
}

fn routes(
    handle: &Handle,
    family: AddressFamily,
) -> impl Stream<Item = Result<RouteMessage, rtnetlink::Error>> + use<> {
    let mut filter = RouteMessage::default();
    filter.header.address_family = family;
    handle.route().get(filter).execute()
}

/// Feeds every message of a dump to `take`.
async fn collect<M>(
    what: &'static str,
    messages: impl Stream<Item = Result<M, rtnetlink::Error>>,
    mut take: impl FnMut(M),
) -> Result<(), NetlinkError> {
    let mut messages = pin!(messages);
    while let Some(message) = messages.next().await {
        take(message.map_err(|source| NetlinkError::Dump { what, source })?);
    }
    Ok(())
}
