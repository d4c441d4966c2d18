//! All that is watched, side by side.

use std::cell::Cell;
use std::convert::Infallible;

use super::client::Connection;
use super::event::{Event, Update};
use super::object::Node;
use super::settings::Settings;
use super::status::{Resource, Status};
use super::watch::{Selection, Watcher};

/// Services and EndpointSlices with this label are another proxy's.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Services and EndpointSlices with this label have no virtual address.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Watches Services, EndpointSlices, the own Node and the ServiceCIDRs, and hands over what happens, for ever. Only from
/// a runtime of one thread: reading is done there, and nothing else should have to wait for it.
pub async fn feed(
    connection: &Connection,
    settings: &Settings,
    status: &Status,
    sink: impl Fn(Event),
) -> Infallible {
    let ours = Selection { labels: Some(service_labels(settings)), fields: None };
    let theirs = Selection { labels: Some(slice_labels(settings)), fields: None };
    let own = Selection { labels: None, fields: Some(format!("metadata.name={}", settings.node)) };
    let services = Watcher::new(connection, status, Resource::Services, ours, |u| sink(Event::Service(u)));
    let slices =
        Watcher::new(connection, status, Resource::EndpointSlices, theirs, |u| sink(Event::Slice(u)));
    let told = OwnNode { sink: &sink, listed: Cell::new(false) };
    let node = Watcher::new(connection, status, Resource::Node, own, |update| told.take(update));
    let everything = Selection::default();
    let cidrs = Watcher::new(connection, status, Resource::ServiceCidrs, everything, |u| {
        sink(Event::Cidr(u));
    });
    // None of them ends.
    tokio::join!(services.run(), slices.run(), node.run(), cidrs.run()).0
}

fn service_labels(settings: &Settings) -> String {
    match &settings.service_proxy_name {
        None => format!("!{HEADLESS},!{PROXY_NAME}"),
        Some(name) => format!("!{HEADLESS},{PROXY_NAME}={name}"),
    }
}

/// With a name of its own, a proxy goes by the Services alone: slices that are made by hand have no such label.
fn slice_labels(settings: &Settings) -> String {
    match &settings.service_proxy_name {
        None => service_labels(settings),
        Some(_) => format!("!{HEADLESS}"),
    }
}

/// Makes one Node of a list of one or none.
struct OwnNode<'a, S> {
    sink: &'a S,
    /// Whether the list that is being read has it.
    listed: Cell<bool>,
}

impl<S: Fn(Event)> OwnNode<'_, S> {
    fn take(&self, update: Update<Node>) {
        match update {
            Update::Restarted => self.listed.set(false),
            Update::Applied(node) => {
                self.listed.set(true);
                (self.sink)(Event::Node(Some(node)));
            }
            Update::Deleted(_) => (self.sink)(Event::Node(None)),
            Update::Complete if !self.listed.get() => (self.sink)(Event::Node(None)),
            Update::Complete | Update::Undecodable(_) => {}
        }
    }
}
