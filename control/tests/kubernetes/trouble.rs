//! A server that refuses, breaks off, lies or is not there.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use control::source::kubernetes::status::Resource;
use testbed::apiserver::{self, ApiServer, Cut, Fault, Options, Verb};

use crate::world::{TOKEN, Way, World, change, fed, server, server_with};

#[test]
fn whatever_a_server_answers_what_was_read_stays_and_it_recovers() {
    let server = server(20);
    let (world, _way) = fed(&server);
    world.until_synced();
    for (round, (fault, kind)) in (1..).zip([
        (Fault::Status(500), "server"),
        (Fault::Status(503), "server"),
        (Fault::Page(502), "server"),
        (Fault::Page(200), "malformed"),
        (Fault::Garbage, "malformed"),
        (Fault::WrongKind, "malformed"),
        (Fault::Status(404), "missing"),
        (Fault::Status(400), "other"),
        (Fault::TooMany(1), "throttled"),
    ]) {
        // Watches that end as soon as they begin, again and again, would be a trouble of their own.
        std::thread::sleep(Duration::from_millis(1100));
        server.faults().set(apiserver::Resource::Services, None, fault);
        server.faults().cut(Cut::End);
        // The watch that is cut may still tell the first of these.
        world.until(&format!("{fault:?}: services have trouble: {kind}"), |_, status| {
            change(&server, 3, round);
            let trouble = status.watched()[Resource::Services as usize].1.trouble.clone();
            trouble.is_some_and(|(trouble, _)| trouble.kind.name() == kind)
        });
        {
            let model = world.model.lock().unwrap();
            assert_eq!(model.services.objects.len(), 20, "{fault:?}");
            assert!(world.status.is_synced());
            let others = world.status.watched().split_off(1);
            assert!(others.iter().all(|(_, watched)| watched.trouble.is_none()), "{fault:?}: {others:?}");
        }
        server.faults().clear();
        world.until_same(&server);
        world.until_fine();
    }
    assert_eq!(world.model.lock().unwrap().services.least, Some(20));
}

#[test]
fn a_watch_gone_wrong_in_the_middle_goes_on() {
    let server = server(20);
    let (world, _way) = fed(&server);
    world.until_synced();
    for round in 1..4 {
        server.faults().cut(Cut::Garbage);
        change(&server, 3, round);
        world.until_same(&server);
        world.until_fine();
    }
    assert_eq!(world.lists(Resource::Services), 1);
}

#[test]
fn lists_that_break_off_or_come_late_or_are_lies_are_asked_for_again() {
    for fault in [
        Fault::Half,
        Fault::Garbage,
        Fault::WrongKind,
        Fault::Page(200),
        Fault::Status(500),
        Fault::Late(Duration::from_millis(700)),
    ] {
        let server = server(20);
        server.faults().set(None, Verb::WatchList, Fault::Status(422));
        server.faults().set_times(apiserver::Resource::EndpointSlices, Verb::List, fault, 2);
        let (world, _way) = fed(&server);
        world.until_same(&server);
        world.until_synced();
        world.until_fine();
    }
}

#[test]
fn a_403_on_one_resource_is_only_that_one_s() {
    let server = server(20);
    server.faults().set(apiserver::Resource::EndpointSlices, None, Fault::Status(403));
    let (world, _way) = fed(&server);
    world.until_trouble(Resource::EndpointSlices, "forbidden");
    world.until("services are read", |model, _| model.services.objects.len() == 20);
    assert!(!world.status.is_synced());
    let told = world.status.troubles();
    let text = "cannot list resource \"endpointslices\" in API group \"discovery.k8s.io\"";
    assert!(told.len() == 1 && told[0].contains(text), "{told:?}");
    change(&server, 3, 1);
    world.until("services are followed", |model, _| {
        model.services.objects["ns-3/service-3"].contains("10.97.0.1")
    });
    server.faults().clear();
    world.until_same(&server);
    world.until_fine();
}

#[test]
fn service_cidrs_that_are_not_to_be_had_are_done_without() {
    for fault in [None, Some(Fault::Status(403))] {
        let missing = fault.is_none().then_some(apiserver::Resource::ServiceCidrs).into_iter().collect();
        let server = server_with(Options { missing, ..Options::default() }, 5);
        if let Some(fault) = fault {
            server.faults().set(apiserver::Resource::ServiceCidrs, None, fault);
        }
        let (world, _way) = fed(&server);
        world.until_same(&server);
        world.until("it was asked for", |_, status| status.watched()[3].1.trouble.is_some());
        assert!(world.status.troubles().is_empty() && world.status.is_synced());
    }
}

#[test]
fn a_server_that_wants_to_be_left_alone_is() {
    let server = server(5);
    server.faults().set_times(apiserver::Resource::Services, None, Fault::TooMany(3), 1);
    let begun = Instant::now();
    let (world, _way) = fed(&server);
    world.until_trouble(Resource::Services, "throttled");
    world.until_same(&server);
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = place.local_addr().unwrap();
    drop(place);
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}], \
         clusters: [{{name: a, cluster: {{server: 'http://{addr}'}}}}], users: [{{name: a, user: {{}}}}]}}"
    );
    let way = Way::new(&text);
    let world = World::start(way.server());
    world.until_trouble(Resource::Services, "unreachable");
    let told = world.status.troubles();
    assert!(told[0].contains("Connection refused"), "{told:?}");
    assert_eq!(world.status.server(), format!("http://{addr}/"));
    let options = Options { tls: false, ..Options::default() };
    let listener = TcpListener::bind(addr).unwrap();
    let open = ApiServer::start(options.clone()).unwrap();
    let server = ApiServer::start_at(
        listener,
        options,
        open.cluster().clone(),
        open.access().clone(),
        Default::default(),
    );
    let server = server.unwrap();
    testbed::apiserver::objects::numbered(1, 1).into_iter().for_each(|object| {
        server.cluster().put(object).unwrap();
    });
    world.until_same(&server);
    world.until_fine();
}

#[test]
fn a_peer_that_is_no_api_server_is_told_of() {
    // It takes connections and says nothing that could be understood.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::Write as _;
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").unwrap();
        }
    });
    let server = server(0);
    let way = Way::new(
        &server.access().kubeconfig(&format!("https://{addr}"), &serde_json::json!({"token": TOKEN})),
    );
    let world = World::start(way.server());
    world.until_trouble(Resource::Node, "unreachable");
    let told = world.status.troubles();
    assert!(told[0].to_lowercase().contains("corrupt") || told[0].contains("invalid"), "{told:?}");
}
