//! Notices become Events of an API server.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use control::metrics::kubernetes::{EventFate, Kubernetes};
use control::source::kubernetes::client::Server;
use control::source::kubernetes::emit;
use control::source::kubernetes::notice::{Notice, Outbox, Reason, Reference};
use testbed::apiserver::{ApiServer, Options};

#[test]
fn notices_arrive_as_events_and_a_repeated_one_once() {
    let server = ApiServer::start(Options { tls: false, ..Options::default() }).unwrap();
    server.access().allow_token("token", "weir");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), server.kubeconfig("token")).unwrap();
    let client = Server { kubeconfig: Some(file.path().into()), ..Server::default() };
    let counted = Kubernetes::default();
    let (outbox, notices) = Outbox::new(counted.clone());
    let web = Reference::service("shop".into(), "web".into(), Some("3f".into()));
    for message in ["no such scheduler", "no such scheduler", "no such mode"] {
        outbox.tell(Notice::warning(web.clone(), Reason::BAD_ANNOTATION, message));
    }
    outbox.tell(Notice::normal(Reference::node("node-1".into()), Reason::STARTING, "weir has started"));
    drop(outbox);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sending = async {
        tokio::time::timeout(Duration::from_secs(10), emit::send(client, notices, "node-1", &counted)).await
    };
    let is_done = runtime.block_on(sending).is_ok();
    assert!(is_done, "the server does not take them: {:?}", server.requests());
    let posts: Vec<_> = server.requests().into_iter().filter(|request| request.method == "POST").collect();
    let paths: Vec<_> = posts.iter().map(|request| (&*request.uri, request.status)).collect();
    let events = |namespace: &str| format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let (shop, default) = (events("shop"), events("default"));
    assert_eq!(paths, [(&*shop, 201), (&*shop, 201), (&*default, 201)]);
    let fates = [EventFate::Sent, EventFate::Repeated, EventFate::Failed, EventFate::Lost];
    assert_eq!(fates.map(|fate| counted.events(fate)), [3, 1, 0, 0]);
}
