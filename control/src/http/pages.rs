//! The pages of the health and of the metrics listener.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::http::header::{ACCEPT, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::sync::Semaphore;

use super::health::{self, Page};
use crate::metrics::{Format, Metrics, Requests};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// `/healthz` and `/livez`, by any method. Their answers are counted in `requests`.
pub fn health(state: &Arc<health::State>, requests: &Requests) -> Router {
    let page = |page: Page| {
        let (state, requests) = (Arc::clone(state), requests.clone());
        any(async move || {
            let health = state.health(page, Instant::now(), SystemTime::now());
            let (code, label) = match health.healthy {
                true => (StatusCode::OK, "200"),
                false => (StatusCode::SERVICE_UNAVAILABLE, "503"),
            };
            requests.count(page, label);
            (code, as_is(JSON, serde_json::to_string(&health).unwrap_or_default()))
        })
    };
    Router::new().route("/healthz", page(Page::Health)).route("/livez", page(Page::Life))
}

/// What only a service proxy of Kubernetes has to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// The mode whose behaviour is followed, by kube-proxy's name for it.
    pub mode: Arc<str>,
    /// The KubeProxyConfiguration in force.
    pub configuration: serde_json::Value,
}

/// `/metrics` and `/healthz`; `/proxyMode` and `/configz` with a `proxy`.
pub fn metrics(metrics: Arc<Metrics>, proxy: Option<Proxy>) -> Router {
    // One scrape at a time: each takes memory and a core for a moment.
    let turn = Arc::new(Semaphore::new(1));
    let scrape = async move |headers: HeaderMap| expose(metrics, turn, &headers).await;
    let pages = Router::new()
        .route("/metrics", any(scrape))
        .route("/healthz", any(async || as_is(TEXT, "ok".to_owned())));
    let Some(Proxy { mode, configuration }) = proxy else { return pages };
    let configuration = serde_json::json!({ "kubeproxy.config.k8s.io": configuration }).to_string();
    pages
        .route("/proxyMode", any(async move || as_is(TEXT, mode.to_string())))
        .route("/configz", any(async move || as_is(JSON, configuration)))
}

/// An answer that no browser takes for anything else.
fn as_is(media: &'static str, body: String) -> impl IntoResponse {
    ([(CONTENT_TYPE, media), (X_CONTENT_TYPE_OPTIONS, "nosniff")], body)
}

async fn expose(metrics: Arc<Metrics>, turn: Arc<Semaphore>, headers: &HeaderMap) -> Response {
    let accept: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    let Ok(_turn) = turn.acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    // Beside this thread, that health is told in the meantime.
    match tokio::task::spawn_blocking(move || metrics.text(format)).await {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
