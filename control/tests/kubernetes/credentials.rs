//! Who asks, and how that changes.

use std::fs;

use control::source::kubernetes::client::Server;
use control::source::kubernetes::status::Resource;
use serde_json::json;
use testbed::apiserver::Cut;

use crate::world::{TOKEN, Way, World, change, fed, server};

#[test]
fn a_token_that_rotates_is_read_again_when_the_old_one_is_refused() {
    let server = server(5);
    let way = Way::new("");
    let file = way.directory.path().join("token");
    fs::write(&file, TOKEN).unwrap();
    fs::write(&way.path, server.access().kubeconfig(&server.url(), &json!({"tokenFile": file}))).unwrap();
    let world = World::start(way.server());
    world.until_synced();
    server.access().withdraw_token(TOKEN);
    change(&server, 3, 1);
    world.until_same(&server);
    server.faults().cut(Cut::End);
    world.until_trouble(Resource::Services, "unauthorized");
    assert_eq!(world.model.lock().unwrap().services.objects.len(), 5);
    server.access().allow_token("another", "system:kube-proxy");
    fs::write(&file, "another\n").unwrap();
    change(&server, 3, 2);
    world.until_same(&server);
    world.until_fine();
}

#[test]
fn a_client_certificate_says_who_asks_and_is_read_again_when_it_is_refused() {
    let server = server(5);
    let way = Way::new("");
    let path = |name: &str| way.directory.path().join(name);
    let write = |user: &str| {
        let identity = server.access().issue(user).unwrap();
        fs::write(path("client.crt"), identity.certificate).unwrap();
        fs::write(path("client.key"), identity.key).unwrap();
    };
    write("system:node:one");
    let user = json!({"client-certificate": path("client.crt"), "client-key": path("client.key")});
    fs::write(&way.path, server.access().kubeconfig(&server.url(), &user)).unwrap();
    let world = World::start(way.server());
    world.until_synced();
    world.until_same(&server);
    server.access().withdraw_certificates();
    server.faults().cut(Cut::End);
    world.until_trouble(Resource::Services, "unauthorized");
    write("system:node:two");
    change(&server, 3, 1);
    world.until_same(&server);
    world.until_fine();
    let users: Vec<_> = server.requests().into_iter().filter_map(|request| request.user).collect();
    assert_eq!(users.first().map(String::as_str), Some("system:node:one"));
    assert_eq!(users.last().map(String::as_str), Some("system:node:two"));
}

#[test]
fn a_plugin_says_who_asks() {
    let server = server(5);
    let way = Way::new("");
    let plugin = way.directory.path().join("plugin.sh");
    let said = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": TOKEN, "expirationTimestamp": "2099-01-01T00:00:00Z"},
    });
    fs::write(&plugin, format!("echo '{said}'")).unwrap();
    let exec = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": [plugin],
        "interactiveMode": "Never",
    }});
    fs::write(&way.path, server.access().kubeconfig(&server.url(), &exec)).unwrap();
    let world = World::start(way.server());
    world.until_synced();
    world.until_same(&server);
}

#[test]
fn a_server_that_another_authority_vouches_for_is_not_talked_to() {
    let (mine, other) = (server(1), server(1));
    let way = Way::new(&mine.access().kubeconfig(&other.url(), &json!({"token": TOKEN})));
    let world = World::start(way.server());
    world.until_trouble(Resource::Services, "unreachable");
    let told = world.status.troubles();
    assert!(told[0].contains("invalid peer certificate"), "{told:?}");
    assert!(other.requests().is_empty(), "no token was sent");
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_told_of_and_read_again() {
    let server = server(5);
    let good = server.kubeconfig(TOKEN);
    let proxied = good.replace("\"server\"", "\"proxy-url\":\"http://10.0.0.1:3128\",\"server\"");
    let way = Way::new("{");
    let world = World::start(way.server());
    for (text, want) in [
        ("{", "failed to parse kubeconfig"),
        ("{apiVersion: v1, kind: Config, current-context: x}", "x"),
        (&proxied, "proxy-url is not supported"),
    ] {
        fs::write(&way.path, text).unwrap();
        world.until(want, |_, status| status.troubles().iter().any(|told| told.contains(want)));
        world.until_trouble(Resource::Services, "credentials");
    }
    fs::remove_file(&way.path).unwrap();
    world.until("no file", |_, status| status.troubles().iter().any(|told| told.contains("No such file")));
    fs::write(&way.path, good).unwrap();
    world.until_same(&server);
    world.until_fine();
}

#[test]
fn the_command_line_names_another_server() {
    let server = server(5);
    let nowhere = server.access().kubeconfig("https://192.0.2.1:6443", &json!({"token": TOKEN}));
    let way = Way::new(&nowhere);
    let world = World::start(Server { master: Some(server.url()), ..way.server() });
    world.until_synced();
    world.until_same(&server);
}

#[test]
fn few_requests_are_made_where_few_are_allowed() {
    let server = server(5);
    let way = Way::new(&server.kubeconfig(TOKEN));
    let begun = std::time::Instant::now();
    let world = World::start(Server { qps: Some(1.0), burst: 1, ..way.server() });
    world.until_synced();
    assert!(begun.elapsed() >= std::time::Duration::from_secs(3), "four requests, one a second");
    drop(fed(&server));
}
