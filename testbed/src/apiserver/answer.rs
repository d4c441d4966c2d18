//! Requests and their answers.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::fault::{Fault, Verb};
use super::listen::Peer;
use super::resource::{Resource, Target};
use super::selector::Selector;
use super::status::Failure;
use super::stream::{self, Ask, Start};
use super::{Request, Shared};

/// Watches without `timeoutSeconds` last so long.
const WATCH: Duration = Duration::from_secs(1800);

/// Parameters of a query.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(uri: &Uri) -> Result<Self, Failure> {
        axum::extract::Query::try_from_uri(uri)
            .map(|query| Self(query.0))
            .map_err(|error| Failure::bad_request(error.to_string()))
    }

    fn word(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    fn is_true(&self, key: &str) -> bool {
        matches!(self.word(key), "true" | "1")
    }

    /// A number; absent and empty are 0, as is a version that says any.
    fn number(&self, key: &str) -> Result<u64, Failure> {
        match self.word(key) {
            "" => Ok(0),
            word => {
                word.parse().map_err(|_| Failure::bad_request(format!("{key}: Invalid value: \"{word}\"")))
            }
        }
    }
}

/// Answers any request.
pub(super) async fn answer(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let user = shared.access.user(peer.certificate.as_deref(), headers.get(header::AUTHORIZATION));
    let response = match &user {
        None => Failure::unauthorized().into_response(),
        Some(user) => {
            let answered = route(&shared, user, &method, &uri, &headers, &body).await;
            answered.unwrap_or_else(IntoResponse::into_response)
        }
    };
    shared.note(Request {
        method: method.to_string(),
        uri: uri.to_string(),
        user,
        status: response.status().as_u16(),
    });
    response
}

async fn route(
    shared: &Shared,
    user: &str,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response, Failure> {
    match uri.path() {
        "/version" => return Ok(json(r#"{"major":"1","minor":"36","gitVersion":"v1.36.0"}"#.to_owned())),
        "/healthz" | "/livez" | "/readyz" => return Ok("ok".into_response()),
        _ => {}
    }
    let Some(target) = Target::of_path(uri.path()).filter(|target| shared.is_served(target.resource)) else {
        return Ok((StatusCode::NOT_FOUND, "404 page not found\n").into_response());
    };
    let query = Query::of(uri)?;
    let verb = match (method, &target.name) {
        (&Method::GET, Some(_)) => Verb::Get,
        (&Method::GET, None) if !query.is_true("watch") => Verb::List,
        (&Method::GET, None) if query.is_true("sendInitialEvents") => Verb::WatchList,
        (&Method::GET, None) => Verb::Watch,
        _ => Verb::Write,
    };
    if !accepts_json(headers) {
        return Ok((StatusCode::NOT_ACCEPTABLE, "only application/json is served\n").into_response());
    }
    let fault = shared.faults.meet(target.resource, verb);
    if let Some(fault) = fault
        && let Some(response) = instead(fault, user, verb, &target).await
    {
        return response;
    }
    let response = match verb {
        Verb::Get => get(shared, &target),
        Verb::List => list(shared, &target, &query, fault == Some(Fault::WrongKind)),
        Verb::Watch | Verb::WatchList => watch(shared, target, &query, fault),
        Verb::Write => write(shared, &target, method, headers, body),
    }?;
    match fault {
        Some(Fault::Half) => half(response).await,
        _ => Ok(response),
    }
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()) else {
        return true;
    };
    accept.split(',').any(|kind| {
        let mut words = kind.split(';').map(str::trim);
        // `as=Table` and its like are not served.
        matches!(words.next(), Some("application/json" | "*/*" | "application/*"))
            && !words.any(|word| word.starts_with("as="))
    })
}

/// What is answered where the request itself is not.
async fn instead(fault: Fault, user: &str, verb: Verb, target: &Target) -> Option<Result<Response, Failure>> {
    let verb = match verb {
        Verb::Get => "get",
        Verb::List => "list",
        Verb::Watch | Verb::WatchList => "watch",
        Verb::Write => "create",
    };
    let status = |code, retry| Some(Err(Failure::ordered(code, retry, user, verb, target.resource)));
    match fault {
        Fault::Status(code) => status(code, None),
        Fault::TooMany(seconds) => status(429, Some(seconds)),
        Fault::Page(code) => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
            let page = "<html>\n<head><title>Bad Gateway</title></head>\n<body>The server is being moved.</body>\n</html>\n";
            Some(Ok((code, [(header::CONTENT_TYPE, "text/html")], page).into_response()))
        }
        Fault::Garbage => Some(Ok(json("{\"kind\":\"ServiceList\",\"items\":[{]}\u{fffd}\n".to_owned()))),
        Fault::Late(time) => {
            tokio::time::sleep(time).await;
            None
        }
        Fault::WrongKind | Fault::Half | Fault::Ignored => None,
    }
}

fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The same answer with the same length in its head, whose body breaks off.
async fn half(response: Response) -> Result<Response, Failure> {
    let (mut parts, body) = response.into_parts();
    let whole = axum::body::to_bytes(body, usize::MAX).await;
    let whole = whole.map_err(|error| Failure::bad_request(error.to_string()))?;
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(whole.len()));
    let pieces = futures_util::stream::unfold(Some(whole.slice(..whole.len() / 2)), |first| async {
        let piece = match first {
            Some(first) => Ok(first),
            None => {
                tokio::time::sleep(stream::SENT).await;
                Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            }
        };
        Some((piece, None))
    });
    Ok(Response::from_parts(parts, Body::from_stream(pieces)))
}

fn get(shared: &Shared, target: &Target) -> Result<Response, Failure> {
    let name = target.name.as_deref().unwrap_or_default();
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let found = shared.cluster.found(target.resource, namespace, name);
    let object = found.ok_or_else(|| Failure::not_found(target.resource, name))?;
    Ok(json(object.whole(target.resource)))
}

fn list(shared: &Shared, target: &Target, query: &Query, wrong_kind: bool) -> Result<Response, Failure> {
    if !query.word("sendInitialEvents").is_empty() {
        return Err(Failure::invalid_option("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    let selector = Selector::parse(query.word("labelSelector"), query.word("fieldSelector"))?;
    let token = Some(query.word("continue")).filter(|token| !token.is_empty());
    let asked = query.number("resourceVersion")?;
    let current = shared.cluster.version();
    if token.is_some() && asked > 0 {
        return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
    }
    if asked > current {
        return Err(Failure::too_large_version(asked, current));
    }
    // From the server's cache come all at once, whatever the limit.
    let from_cache = !query.word("resourceVersion").is_empty() && asked == 0;
    let limit = if from_cache { 0 } else { query.number("limit")? };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let page = shared.cluster.page(target.resource, target.namespace.as_deref(), &selector, limit, token)?;
    let kind = if wrong_kind { "Pod" } else { target.resource.kind() };
    let mut text = format!(
        r#"{{"kind":"{kind}List","apiVersion":"{}","metadata":{{"resourceVersion":"{}""#,
        target.resource.api_version(),
        page.version
    );
    if let Some(next) = &page.next {
        text += &format!(r#","continue":"{next}""#);
    }
    if let Some(remaining) = page.remaining {
        text += &format!(r#","remainingItemCount":{remaining}"#);
    }
    text += r#"},"items":["#;
    for (number, object) in page.items.iter().enumerate() {
        if number > 0 {
            text.push(',');
        }
        text += object.item();
    }
    text += "]}\n";
    Ok(json(text))
}

fn watch(shared: &Shared, target: Target, query: &Query, fault: Option<Fault>) -> Result<Response, Failure> {
    let selector = Selector::parse(query.word("labelSelector"), query.word("fieldSelector"))?;
    let version = query.number("resourceVersion")?;
    let ignores = fault == Some(Fault::Ignored);
    let initial = query.is_true("sendInitialEvents") && !ignores;
    let matching = query.word("resourceVersionMatch");
    if initial && matching != "NotOlderThan" {
        let message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(Failure::invalid_option("resourceVersionMatch", message));
    }
    if !initial && !ignores && !matching.is_empty() {
        let message = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        return Err(Failure::invalid_option("resourceVersionMatch", message));
    }
    let current = shared.cluster.version();
    if version > current {
        return Err(Failure::too_large_version(version, current));
    }
    let bookmarks = query.is_true("allowWatchBookmarks");
    let start = match version {
        _ if initial => Start::Now { marked: bookmarks },
        0 => Start::Now { marked: false },
        version => Start::After(version),
    };
    let timeout = match query.number("timeoutSeconds")? {
        0 => WATCH,
        seconds => Duration::from_secs(seconds),
    };
    let ask = Ask {
        resource: target.resource,
        namespace: target.namespace,
        selector,
        start,
        bookmarks,
        timeout: timeout.min(shared.longest_watch()),
        beat: shared.beat,
        wrong_kind: fault == Some(Fault::WrongKind),
    };
    let body = stream::watch(ask, Arc::clone(&shared.cluster), &shared.faults);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn write(
    shared: &Shared,
    target: &Target,
    method: &Method,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response, Failure> {
    let (resource, cluster) = (target.resource, &shared.cluster);
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let name = target.name.as_deref();
    let read = || -> Result<Value, Failure> {
        serde_json::from_slice(body).map_err(|error| Failure::bad_request(error.to_string()))
    };
    let put = |object| {
        let placed = place(object, resource, namespace, name);
        cluster.put_as(resource, placed).map_err(|error| Failure::bad_request(format!("{error:#}")))
    };
    let (code, object) = match (method, name) {
        (&Method::POST, None) => {
            let mut object = read()?;
            generate_name(&mut object, cluster.version());
            let given = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            if cluster.found(resource, namespace, given).is_some() {
                return Err(Failure::exists(resource, given));
            }
            (StatusCode::CREATED, put(object)?)
        }
        (&Method::PUT, Some(_)) => (StatusCode::OK, put(read()?)?),
        (&Method::PATCH, Some(name)) => {
            let kind =
                headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            if !matches!(kind, "application/merge-patch+json" | "application/strategic-merge-patch+json") {
                return Ok(StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response());
            }
            let mut object = cluster
                .object(resource, namespace, name)
                .ok_or_else(|| Failure::not_found(resource, name))?;
            merge(&mut object, read()?);
            (StatusCode::OK, put(object)?)
        }
        (&Method::DELETE, Some(name)) => {
            let found = cluster.found(resource, namespace, name);
            let object = found.ok_or_else(|| Failure::not_found(resource, name))?;
            cluster.delete(resource, namespace, name);
            (StatusCode::OK, object)
        }
        _ => return Err(Failure::method_not_allowed()),
    };
    Ok((code, json(object.whole(resource))).into_response())
}

/// The object where its path says that it is.
fn place(mut object: Value, resource: Resource, namespace: &str, name: Option<&str>) -> Value {
    if let Some(object) = object.as_object_mut() {
        let metadata = object.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(metadata) = metadata.as_object_mut() {
            if resource.is_namespaced() {
                metadata.insert("namespace".into(), namespace.into());
            }
            if let Some(name) = name {
                metadata.insert("name".into(), name.into());
            }
        }
    }
    object
}

fn generate_name(object: &mut Value, number: u64) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if metadata.contains_key("name") {
        return;
    }
    if let Some(begin) = metadata.get("generateName").and_then(Value::as_str).map(str::to_owned) {
        metadata.insert("name".into(), format!("{begin}{number:05x}").into());
    }
}

/// JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(&key);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}
