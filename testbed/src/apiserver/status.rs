//! `Status` objects: what the API answers where it does not answer with what was asked for.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::resource::Resource;

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    /// A token by which an expired list can be gone on with.
    go_on: Option<String>,
    retry_after_s: Option<u32>,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, go_on: None, retry_after_s: None }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub(super) fn forbidden(user: &str, verb: &str, resource: Resource) -> Self {
        let (plural, group) = (resource.plural(), resource.group());
        let name = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let message = format!(
            "{name} is forbidden: User \"{user}\" cannot {verb} resource \"{plural}\" in API group \"{group}\" at \
             the cluster scope"
        );
        let mut details = json!({"kind": plural});
        if let Some(details) = details.as_object_mut().filter(|_| !group.is_empty()) {
            details.insert("group".into(), group.into());
        }
        Self { details: Some(details), ..Self::new(StatusCode::FORBIDDEN, "Forbidden", message) }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let plural = resource.plural();
        Self {
            details: Some(json!({"name": name, "kind": plural})),
            ..Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{plural} \"{name}\" not found"))
        }
    }

    pub(super) fn exists(resource: Resource, name: &str) -> Self {
        let plural = resource.plural();
        Self {
            details: Some(json!({"name": name, "kind": plural})),
            ..Self::new(StatusCode::CONFLICT, "AlreadyExists", format!("{plural} \"{name}\" already exists"))
        }
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// A version that the history no longer has.
    pub(super) fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(StatusCode::GONE, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// A list whose version the history no longer has; `token` goes on with it at another version.
    pub(super) fn expired_list(token: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start \
                       a new list without the continue parameter, or use the continue token in this response to \
                       retrieve the remainder of the results. Continuing with the provided token results in an \
                       inconsistent list - objects that were created, modified, or deleted between the time the \
                       first chunk was returned and now may show up in the list.";
        Self { go_on: Some(token), ..Self::new(StatusCode::GONE, "Expired", message) }
    }

    /// A version that is not there yet.
    pub(super) fn too_large_version(asked: u64, current: u64) -> Self {
        let details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        });
        Self {
            details: Some(details),
            retry_after_s: Some(1),
            ..Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "Timeout",
                format!("Timeout: Too large resource version: {asked}, current: {current}"),
            )
        }
    }

    /// What a parameter may not be.
    pub(super) fn invalid_option(field: &str, message: &str) -> Self {
        let forbidden = format!("Forbidden: {message}");
        let details = json!({
            "group": "meta.k8s.io",
            "kind": "ListOptions",
            "causes": [{"reason": "FieldValueForbidden", "message": forbidden, "field": field}],
        });
        Self {
            details: Some(details),
            ..Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {forbidden}"),
            )
        }
    }

    /// What a server says that is asked to by a test, with this code.
    pub(super) fn ordered(
        code: u16,
        retry_after_s: Option<u32>,
        user: &str,
        verb: &str,
        of: Resource,
    ) -> Self {
        let failure = match code {
            401 => Self::unauthorized(),
            403 => Self::forbidden(user, verb, of),
            410 => Self::expired(1, 2),
            429 => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                "Too many requests, please try again later.",
            ),
            503 => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            422 => Self::invalid_option(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ),
            code => Self::new(
                StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                "InternalError",
                "Internal error occurred: etcdserver: request timed out",
            ),
        };
        Self { retry_after_s, ..failure }
    }

    /// The object.
    pub(super) fn status(&self) -> Value {
        let mut metadata = json!({});
        if let (Some(token), Some(metadata)) = (&self.go_on, metadata.as_object_mut()) {
            metadata.insert("continue".into(), token.as_str().into());
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if let (Some(details), Some(status)) = (&self.details, status.as_object_mut()) {
            status.insert("details".into(), details.clone());
        }
        status
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        // The limiter of requests stands before what writes objects.
        let (kind, body) = if self.code == StatusCode::TOO_MANY_REQUESTS {
            ("text/plain; charset=utf-8", format!("{}\n", self.message))
        } else {
            ("application/json", self.status().to_string())
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
