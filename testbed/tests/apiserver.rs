//! The double of the API server over the wire.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::apiserver::objects::{numbered, service};
use testbed::apiserver::{ApiServer, Cut, Fault, Options, Resource, Verb};

fn plain() -> ApiServer {
    ApiServer::start(Options { tls: false, ..Options::default() }).unwrap()
}

fn request(server: &ApiServer, method: &str, target: &str, body: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let length = body.len();
    write!(stream, "{method} {target} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    BufReader::new(stream)
}

/// Reads the head; the status code and the header fields.
fn head(reader: &mut BufReader<TcpStream>) -> (u16, String) {
    let (mut code, mut fields) = (String::new(), String::new());
    reader.read_line(&mut code).unwrap();
    while !fields.ends_with("\r\n\r\n") && fields != "\r\n" {
        assert_ne!(reader.read_line(&mut fields).unwrap(), 0);
    }
    (code[9..12].parse().unwrap(), fields.to_ascii_lowercase())
}

fn ask(server: &ApiServer, method: &str, target: &str, body: &str) -> (u16, Value) {
    let mut reader = request(server, method, target, body);
    let (code, _) = head(&mut reader);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn event(reader: &mut BufReader<TcpStream>) -> Value {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_default()
}

/// Type, name and version of an event.
fn told(event: &Value) -> (&str, &str, &str) {
    let word = |pointer| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    (word("/type"), word("/object/metadata/name"), word("/object/metadata/resourceVersion"))
}

fn named(name: &str, label: Option<&str>) -> Value {
    let mut object = service("a", name, [10, 96, 0, 1].into(), &[("", 80, "TCP")]);
    if let Some(label) = label {
        object["metadata"]["labels"][label] = json!("");
    }
    object
}

#[test]
fn lists_come_in_pages_of_items_without_kind() {
    let server = plain();
    for number in 0..5 {
        for object in numbered(number, 3) {
            server.cluster().put(object).unwrap();
        }
    }
    let (code, first) = ask(&server, "GET", "/api/v1/services?limit=2", "");
    assert_eq!(
        (code, first["kind"].as_str(), first["apiVersion"].as_str()),
        (200, Some("ServiceList"), Some("v1"))
    );
    assert_eq!(
        (&first["items"][0]["kind"], &first["metadata"]["remainingItemCount"]),
        (&Value::Null, &json!(3))
    );
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = ask(&server, "GET", &format!("/api/v1/services?limit=9&continue={token}"), "");
    assert_eq!(
        (second["items"].as_array().unwrap().len(), &second["metadata"]["continue"]),
        (3, &Value::Null)
    );
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    server.cluster().compact();
    let (code, status) = ask(&server, "GET", &format!("/api/v1/services?continue={token}"), "");
    assert_eq!((code, status["reason"].as_str()), (410, Some("Expired")));
    let (_, all) =
        ask(&server, "GET", "/apis/discovery.k8s.io/v1/endpointslices?resourceVersion=0&limit=1", "");
    assert_eq!(all["items"].as_array().unwrap().len(), 5, "from the cache come all");
}

#[test]
fn a_watch_tells_changes_of_what_is_selected() {
    let server = plain();
    let version = server.cluster().put(named("one", None)).unwrap();
    let target = format!("/api/v1/services?watch=true&labelSelector=%21x&resourceVersion={version}");
    let mut watch = request(&server, "GET", &target, "");
    assert_eq!(head(&mut watch).0, 200);
    server.cluster().put(named("two", Some("x"))).unwrap();
    server.cluster().put(named("three", None)).unwrap();
    assert_eq!(told(&event(&mut watch)), ("ADDED", "three", "1003"));
    server.cluster().put(named("one", Some("x"))).unwrap();
    assert_eq!(told(&event(&mut watch)), ("DELETED", "one", "1004"));
    server.cluster().put(named("one", None)).unwrap();
    assert_eq!(told(&event(&mut watch)), ("ADDED", "one", "1005"));
    server.cluster().delete(Resource::Services, "a", "one").unwrap();
    let last = event(&mut watch);
    assert_eq!(told(&last), ("DELETED", "one", "1006"));
    assert_eq!(last["object"]["kind"], "Service");
    server.faults().cut(Cut::Expired);
    let error = event(&mut watch);
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event(&mut watch), Value::Null);
}

#[test]
fn a_watch_begins_with_what_there_is_and_marks_its_end() {
    let server = plain();
    server.cluster().put(named("one", None)).unwrap();
    server.cluster().put(named("two", None)).unwrap();
    let target = "/api/v1/services?watch=true&sendInitialEvents=true&allowWatchBookmarks=true\
                  &resourceVersionMatch=NotOlderThan&resourceVersion=";
    let mut watch = request(&server, "GET", target, "");
    head(&mut watch);
    assert_eq!(told(&event(&mut watch)), ("ADDED", "one", "1001"));
    assert_eq!(told(&event(&mut watch)), ("ADDED", "two", "1002"));
    let mark = event(&mut watch);
    assert_eq!(told(&mark), ("BOOKMARK", "", "1002"));
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    server.cluster().put(named("one", None)).unwrap();
    assert_eq!(told(&event(&mut watch)), ("MODIFIED", "one", "1003"));
    let wrong = target.replace("NotOlderThan", "Exact");
    assert_eq!(ask(&server, "GET", &wrong, "").0, 422);
}

#[test]
fn bookmarks_and_the_end_come_in_their_time() {
    let beat = Duration::from_millis(50);
    let server = ApiServer::start(Options { tls: false, beat, ..Options::default() }).unwrap();
    let target = "/api/v1/nodes?watch=true&allowWatchBookmarks=true&timeoutSeconds=1&resourceVersion=1000";
    let mut watch = request(&server, "GET", target, "");
    head(&mut watch);
    server.cluster().put(named("one", None)).unwrap();
    let versions: Vec<_> = std::iter::from_fn(|| Some(event(&mut watch)).filter(|event| !event.is_null()))
        .map(|event| (event["type"].clone(), event["object"]["metadata"]["resourceVersion"].clone()))
        .collect();
    assert!(versions.len() > 5 && versions.iter().all(|(kind, _)| kind == "BOOKMARK"), "{versions:?}");
    assert_eq!(versions.last().unwrap().1, "1001", "though nothing happened to a node");
}

#[test]
fn versions_that_are_gone_or_to_come_are_refused() {
    let server = plain();
    let old = server.cluster().put(named("one", None)).unwrap();
    server.cluster().put(named("two", None)).unwrap();
    server.cluster().compact();
    let mut watch = request(&server, "GET", &format!("/api/v1/services?watch=1&resourceVersion={old}"), "");
    head(&mut watch);
    let error = event(&mut watch);
    assert_eq!(error["object"]["message"], "too old resource version: 1001 (1002)");
    let (code, status) = ask(&server, "GET", "/api/v1/services?watch=1&resourceVersion=5000", "");
    assert_eq!((code, &status["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
}

#[test]
fn faults_come_as_they_are_ordered() {
    let server = plain();
    server.cluster().put(named("one", None)).unwrap();
    let list = "/api/v1/services";
    for (fault, code, contains) in [
        (Fault::Status(500), 500, "etcdserver"),
        (Fault::Status(403), 403, "cannot list resource"),
        (Fault::TooMany(7), 429, "try again later"),
        (Fault::Page(502), 502, "<html>"),
        (Fault::Garbage, 200, "[{]}"),
        (Fault::WrongKind, 200, "PodList"),
    ] {
        server.faults().set_times(Resource::Services, Verb::List, fault, 1);
        let (got, body) = ask(&server, "GET", list, "");
        assert!(got == code && body.to_string().contains(contains), "{fault:?}: {got} {body}");
    }
    server.faults().set_times(None, None, Fault::TooMany(7), 1);
    assert!(head(&mut request(&server, "GET", list, "")).1.contains("retry-after: 7"));
    server.faults().set_times(None, None, Fault::Half, 1);
    let mut reader = request(&server, "GET", list, "");
    let (_, fields) = head(&mut reader);
    let promised = fields.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().to_owned();
    let mut body = Vec::new();
    // A reset or an end: the body is short either way.
    let _ = reader.read_to_end(&mut body);
    assert!(body.len() < promised.parse().unwrap());
    assert_eq!(ask(&server, "GET", "/apis/apps/v1/deployments", "").0, 404);
}

#[test]
fn a_stalled_watch_goes_on_later_and_a_broken_one_ends_in_the_middle() {
    let server = plain();
    let target = "/api/v1/services?watch=true&resourceVersion=1000";
    let mut watch = request(&server, "GET", target, "");
    head(&mut watch);
    server.faults().stall(true);
    server.cluster().put(named("one", None)).unwrap();
    watch.get_ref().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(watch.read_line(&mut String::new()).is_err(), "nothing comes");
    server.faults().stall(false);
    watch.get_ref().set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(told(&event(&mut watch)).1, "one");
    server.faults().cut(Cut::Middle);
    let mut rest = Vec::new();
    let _ = watch.read_to_end(&mut rest);
    assert!(rest.starts_with(b"{\"type\"") && !rest.ends_with(b"\n"), "{rest:?}");
}

#[test]
fn objects_are_written_over_http_and_survive_a_restart() {
    let server = plain();
    let path = "/api/v1/namespaces/a/services";
    let object = named("one", None).to_string();
    assert_eq!(ask(&server, "POST", path, &object).0, 201);
    assert_eq!(ask(&server, "POST", path, &object).0, 409);
    let event = json!({"metadata": {"generateName": "x."}, "reason": "Y"}).to_string();
    assert_eq!(ask(&server, "POST", "/apis/events.k8s.io/v1/namespaces/a/events", &event).0, 201);
    assert_eq!(server.cluster().objects(Resource::Events)[0]["reason"], "Y");
    let server = server.restart().unwrap();
    assert_eq!(ask(&server, "GET", &format!("{path}/one"), "").1["kind"], "Service");
    assert_eq!(ask(&server, "DELETE", &format!("{path}/one"), "").0, 200);
    assert_eq!(ask(&server, "GET", &format!("{path}/one"), "").0, 404);
    assert_eq!(server.requests().last().unwrap().status, 404);
}
