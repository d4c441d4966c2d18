//! All objects, by a watch or by lists, and then every change.

use std::time::Duration;

use control::source::kubernetes::status::Resource;
use serde_json::json;
use testbed::apiserver::objects::{node, numbered, service, service_cidr};
use testbed::apiserver::{self, Cluster, Cut, Fault, Options, Verb};

use crate::world::{NODE, World, change, fed, kubernetes_settings, server, server_with};

fn asked(server: &apiserver::ApiServer, path: &str, word: &str) -> usize {
    server
        .requests()
        .iter()
        .filter(|request| request.uri.starts_with(path) && request.uri.contains(word))
        .count()
}

#[test]
fn everything_is_told_by_a_watch_that_begins_with_it() {
    let server = server(700);
    server.cluster().put(service_cidr("kubernetes", &["10.96.0.0/12"])).unwrap();
    let (world, _way) = fed(&server);
    world.until_synced();
    world.until_same(&server);
    assert_eq!(asked(&server, "/api/v1/services", "limit="), 0, "nothing is listed");
    assert_eq!(asked(&server, "/api/v1/services", "sendInitialEvents=true"), 1);
    change(&server, 3, 1);
    server.cluster().delete(apiserver::Resource::Services, "ns-4", "service-4").unwrap();
    numbered(1000, 1).into_iter().for_each(|object| _ = server.cluster().put(object).unwrap());
    world.until_same(&server);
    let model = world.model.lock().unwrap();
    assert_eq!(model.zone, Some(Some("zone-a".to_owned())));
    assert_eq!(model.cidrs.objects["/kubernetes"], "[10.96.0.0/12]");
    assert_eq!((model.services.lists, world.lists(Resource::Services)), (1, 1));
}

#[test]
fn a_server_that_does_not_begin_watches_with_all_is_listed_in_pages() {
    for fault in [Fault::Status(500), Fault::Status(422), Fault::Status(400), Fault::Page(502)] {
        let server = server(1200);
        server.faults().set(None, Verb::WatchList, fault);
        let (world, _way) = fed(&server);
        world.until_synced();
        world.until_same(&server);
        assert!(world.status.troubles().is_empty(), "{fault:?}");
        assert_eq!(asked(&server, "/api/v1/services", "limit=500"), 1, "{fault:?}");
        assert_eq!(
            asked(&server, "/api/v1/services", "continue="),
            1,
            "{fault:?}: the second page has the rest"
        );
        change(&server, 3, 1);
        world.until_same(&server);
    }
}

#[test]
fn a_server_that_does_not_say_where_the_beginning_ends_is_listed() {
    let server = server(5);
    server.faults().set(None, Verb::WatchList, Fault::Ignored);
    let (world, _way) = fed(&server);
    world.until_synced();
    world.until_same(&server);
    change(&server, 3, 1);
    world.until_same(&server);
    // It is not waited for again.
    server.cluster().compact();
    server.faults().cut(Cut::Expired);
    world.until("services are read again", |model, _| model.services.lists > 1);
    assert_eq!(asked(&server, "/api/v1/services", "sendInitialEvents=true"), 1);
}

#[test]
fn a_list_whose_version_is_forgotten_between_pages_is_begun_again() {
    let server = server(1200);
    server.faults().set(None, Verb::WatchList, Fault::Status(500));
    server.faults().set_times(
        apiserver::Resource::Services,
        Verb::List,
        Fault::Late(Duration::from_millis(400)),
        2,
    );
    let (world, _way) = fed(&server);
    world.until("slices are read", |model, _| model.slices.lists > 0);
    let first = || asked(&server, "/api/v1/services", "limit=500") > 0;
    world.until("the first page is there", |_, _| first());
    server.cluster().compact();
    world.until_same(&server);
    let refused = server.requests().iter().any(|r| r.status == 410 && r.uri.contains("continue="));
    assert!(refused, "the second page was refused");
    assert!(world.status.troubles().is_empty());
}

#[test]
fn watches_go_on_where_they_were() {
    let beat = Duration::from_millis(100);
    let server = server_with(Options { beat, ..Options::default() }, 20);
    let (world, _way) = fed(&server);
    world.until_synced();
    for (round, cut) in (1..).zip([Cut::End, Cut::Middle, Cut::End, Cut::Middle]) {
        server.faults().cut(cut);
        change(&server, 3, round);
        world.until_same(&server);
        assert_eq!(world.lists(Resource::Services), 1, "{cut:?}: nothing is read twice");
    }
    // Much has happened, none of it to Nodes: by bookmarks their watch is not behind.
    let version = server.cluster().version();
    let resumed = || asked(&server, "/api/v1/nodes", &format!("resourceVersion={version}")) > 0;
    for _ in 0..20 {
        std::thread::sleep(beat * 10);
        server.faults().cut(Cut::End);
        if resumed() {
            break;
        }
    }
    assert!(resumed(), "the Node is watched from its bookmark on");
    server.cluster().compact();
    server.cluster().put(node(NODE, &[[192, 168, 0, 3].into()], &[])).unwrap();
    server.faults().cut(Cut::End);
    change(&server, 3, 9);
    world.until_same(&server);
    assert_eq!(world.lists(Resource::Node), 1);
    assert!(world.status.troubles().is_empty());
}

#[test]
fn what_the_server_has_forgotten_is_read_again_and_nothing_is_missed_meanwhile() {
    let server = server(50);
    let (world, _way) = fed(&server);
    world.until_synced();
    world.until_same(&server);
    for lists in 1..4 {
        if lists == 2 {
            server.faults().set(None, Verb::WatchList, Fault::Status(500));
        }
        server.faults().set(apiserver::Resource::Services, None, Fault::Status(503));
        server.faults().cut(Cut::End);
        world.until_trouble(Resource::Services, "server");
        let gone = format!("service-{lists}");
        server.cluster().delete(apiserver::Resource::Services, &format!("ns-{lists}"), &gone).unwrap();
        change(&server, 10, lists);
        server.cluster().compact();
        server.faults().clear();
        world.until_same(&server);
        world.until_fine();
    }
    let model = world.model.lock().unwrap();
    assert_eq!(model.services.least, Some(47), "never fewer than there are");
    assert!(world.lists(Resource::Services) >= 4);
}

#[test]
fn an_expired_watch_is_read_anew() {
    let server = server(10);
    let (world, _way) = fed(&server);
    world.until_synced();
    server.faults().cut(Cut::Expired);
    world.until("all is read again", |_, status| {
        status.watched().iter().all(|(_, watched)| watched.lists == 2)
    });
    change(&server, 3, 1);
    world.until_same(&server);
}

#[test]
fn a_watch_that_falls_silent_is_given_up() {
    let server = server(10);
    let way = crate::world::Way::new(&server.kubeconfig(crate::world::TOKEN));
    let mut to = way.server();
    to.silence = Duration::from_secs(2);
    let world = World::start(to);
    world.until_synced();
    let before = asked(&server, "/api/v1/services", "watch=true");
    server.faults().stall(true);
    change(&server, 3, 1);
    world.until("another watch is asked for", |_, _| {
        asked(&server, "/api/v1/services", "watch=true") > before
    });
    server.faults().stall(false);
    world.until_same(&server);
    assert_eq!(world.lists(Resource::Services), 1);
}

#[test]
fn a_server_that_starts_again_is_followed_on() {
    let mut server = server(30);
    let (world, _way) = fed(&server);
    world.until_synced();
    for round in 1..4 {
        server = server.restart().unwrap();
        change(&server, 3, round);
        world.until_same(&server);
        world.until_fine();
    }
    assert_eq!(world.lists(Resource::Services), 1, "the versions go on");
}

#[test]
fn another_cluster_behind_the_same_address_is_read_anew() {
    let server = server(30);
    let (world, _way) = fed(&server);
    world.until_synced();
    // As after a backup was restored: versions that were seen are still to come.
    let older = Cluster::at(10);
    numbered(5, 3).into_iter().for_each(|object| _ = older.put(object).unwrap());
    let server = server.restart_over(older.into()).unwrap();
    world.until_same(&server);
    world.until_fine();
    assert_eq!(world.model.lock().unwrap().services.objects.len(), 1);
}

#[test]
fn only_what_is_ours_is_told() {
    let object = |name: &str, label: Option<(&str, &str)>| {
        let mut object = service("a", name, [10, 96, 1, 1].into(), &[("", 80, "TCP")]);
        if let Some((key, value)) = label {
            object["metadata"]["labels"][key] = json!(value);
        }
        object
    };
    let (proxy, headless) = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless");
    for (ours, want) in [(None, "a/plain"), (Some("weir"), "a/weir")] {
        let server = server(0);
        for object in [
            object("plain", None),
            object("weir", Some((proxy, "weir"))),
            object("other", Some((proxy, "other"))),
            object("headless", Some((headless, ""))),
        ] {
            server.cluster().put(object).unwrap();
        }
        server.cluster().put(node("node-8", &[[192, 168, 0, 9].into()], &[])).unwrap();
        let way = crate::world::Way::new(&server.kubeconfig(crate::world::TOKEN));
        let settings = control::source::kubernetes::settings::Settings {
            service_proxy_name: ours.map(Into::into),
            ..kubernetes_settings()
        };
        let world = World::start_with(way.server(), settings);
        world.until_synced();
        let told: Vec<_> = world.model.lock().unwrap().services.objects.keys().cloned().collect();
        assert_eq!(told, [want]);
        // A label that comes or goes takes the Service away or brings it.
        server.cluster().put(object("plain", Some((proxy, "weir")))).unwrap();
        server.cluster().put(object("weir", None)).unwrap();
        let other = if ours.is_some() { "a/plain" } else { "a/weir" };
        world.until("it changed sides", |model, _| {
            model.services.objects.keys().map(String::as_str).eq([other])
        });
        server.cluster().delete(apiserver::Resource::Nodes, "", NODE).unwrap();
        world.until("the Node is gone", |model, _| model.zone == Some(None));
    }
}
