//! The connection to the API server: where it is, who asks, and one request after the other.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::Kubeconfig;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tower::{BoxError, ServiceBuilder};

use super::bucket::Bucket;
use super::trouble::{Kind, Trouble};

/// Where a Pod finds what its service account may use.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long reading credentials may take, a plugin's work included.
const CREDENTIALS: Duration = Duration::from_secs(30);
/// How long an answer may take to begin: longer than the server's own limit, so that it can say so.
const ANSWER: Duration = Duration::from_secs(70);
/// How long an answer may pause once it has begun.
const PAUSE: Duration = Duration::from_secs(30);
/// See [`Server::silence`].
const SILENCE: Duration = Duration::from_secs(90);
/// A peer that does not answer is given up after 15 + 3 * 5 s, and one that takes nothing after 30 s.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Where the server cannot be reached, the files of a connection that is older than this are read again: another
/// authority may vouch for it.
const RENEW: Duration = Duration::from_secs(60);
/// Bytes of a refusal that are read.
const REFUSAL_MAX: usize = 64 << 10;
/// Seconds of `Retry-After` at most.
const RETRY_AFTER_MAX: u64 = 120;

/// Where the API server is, and how much it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// The kubeconfig; `None`: what a Pod finds in itself.
    pub kubeconfig: Option<PathBuf>,
    /// The server's URL instead of the one that the kubeconfig or the environment has.
    pub master: Option<String>,
    /// Requests a second at most; `None`: no limit.
    pub qps: Option<f32>,
    /// Requests that may come at once before the limit counts.
    pub burst: u32,
    /// A watch that is silent for longer is given up for another one. Servers send bookmarks each minute.
    pub silence: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self { kubeconfig: None, master: None, qps: Some(5.0), burst: 10, silence: SILENCE }
    }
}

/// Why there is nothing to connect with.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The kubeconfig.
    #[error("kubeconfig {0}: {1}")]
    Kubeconfig(PathBuf, #[source] kube::config::KubeconfigError),
    /// It names a proxy.
    #[error("kubeconfig {0}: proxy-url is not supported")]
    Proxy(PathBuf),
    /// The environment of a Pod.
    #[error("no kubeconfig is given and {0} is not set: this is no Pod")]
    NoPod(&'static str),
    /// A URL.
    #[error("\"{0}\" is no URL of a server: {1}")]
    Url(String, #[source] http::uri::InvalidUri),
    /// What is in files, or what a plugin said.
    #[error("credentials: {0}")]
    Kube(#[source] Box<kube::Error>),
}

/// A connection, as good as it is: made when it is first needed, and made anew from its files where the server no longer
/// knows who asks.
pub struct Connection {
    server: Server,
    bucket: RefCell<Bucket>,
    /// With when it was made.
    client: Mutex<Option<(kube::Client, Instant)>>,
    url: RefCell<String>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Connection {
    /// One that is not made yet.
    pub fn new(server: Server) -> Self {
        let bucket = Bucket::new(server.qps, server.burst, Instant::now());
        Self {
            url: RefCell::new(server.master.clone().unwrap_or_default()),
            server,
            bucket: RefCell::new(bucket),
            client: Mutex::new(None),
        }
    }

    /// The server's URL, as far as it is known.
    pub(super) fn url(&self) -> String {
        self.url.borrow().clone()
    }

    /// How long a watch may be silent.
    pub(super) fn silence(&self) -> Duration {
        self.server.silence
    }

    /// What requests are sent by, and since when it is.
    pub(super) async fn client(&self) -> Result<(kube::Client, Instant), Trouble> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let server = self.server.clone();
        // Files and plugins take their time, and a plugin may never end.
        let making = tokio::task::spawn_blocking(move || make(&server));
        let made = match timeout(CREDENTIALS, making).await {
            Err(_) => Err(Trouble::new(Kind::Credentials, "credentials: a plugin has not ended in time")),
            Ok(Err(broken)) => Err(Trouble::caused(Kind::Credentials, &broken)),
            Ok(Ok(made)) => made.map_err(|error| Trouble::caused(Kind::Credentials, &error)),
        };
        let (url, made) = made?;
        self.url.replace(url);
        Ok(client.insert((made, Instant::now())).clone())
    }

    /// Sends a request and waits until its answer begins. An answer other than 2xx is a trouble.
    pub(super) async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, Trouble> {
        let wait = self.bucket.borrow_mut().take(Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let (client, made) = self.client().await?;
        let mut request = request.map(Body::from);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let sent = match timeout(ANSWER, client.send(request)).await {
            Err(_) => Err(Trouble::new(Kind::Timeout, format!("no answer in {} s", ANSWER.as_secs()))),
            Ok(Err(error)) => Err(Trouble::caused(Kind::Unreachable, &error)),
            Ok(Ok(response)) => read_refusal(response).await,
        };
        if let Err(trouble) = &sent {
            self.doubt(trouble.kind, made).await;
        }
        sent
    }

    /// Has tokens, certificates and authorities read again where they may be why a client of then has trouble.
    async fn doubt(&self, kind: Kind, made: Instant) {
        let is_doubtful = match kind {
            Kind::Unauthorized => true,
            Kind::Unreachable | Kind::Timeout => made.elapsed() > RENEW,
            _ => false,
        };
        let mut client = self.client.lock().await;
        if is_doubtful && client.as_ref().is_some_and(|(_, current)| *current == made) {
            *client = None;
        }
    }
}

async fn read_refusal(response: Response<Body>) -> Result<Response<Body>, Trouble> {
    let code = response.status();
    if code.is_success() {
        return Ok(response);
    }
    let seconds =
        response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let text = read(response, REFUSAL_MAX).await.unwrap_or_default();
    let trouble = Trouble::answered(code.as_u16(), &text);
    let retry_after = seconds.map(|seconds: u64| Duration::from_secs(seconds.min(RETRY_AFTER_MAX)));
    Err(Trouble { retry_after, ..trouble })
}

/// All of an answer, `max` bytes at most.
pub(super) async fn read(response: Response<Body>, max: usize) -> Result<Vec<u8>, Trouble> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(piece) = next_piece(&mut body, PAUSE).await? {
        if bytes.len() + piece.len() > max {
            return Err(Trouble::malformed(format_args!("an answer of more than {max} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// The next bytes of an answer, `None` at its end.
pub(super) async fn next_piece(body: &mut Body, pause: Duration) -> Result<Option<Bytes>, Trouble> {
    loop {
        match timeout(pause, body.frame()).await {
            Err(_) => {
                let message = format!("an answer stopped for {} s", pause.as_secs());
                return Err(Trouble::new(Kind::Timeout, message));
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Trouble::caused(Kind::Unreachable, &error)),
            Ok(Some(Ok(frame))) => {
                // Trailers say nothing here.
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
        }
    }
}

/// The client and the URL that it asks.
fn make(server: &Server) -> Result<(String, kube::Client), CredentialsError> {
    let mut config = match &server.kubeconfig {
        Some(path) => from_kubeconfig(path)?,
        None => {
            in_pod(Path::new(SERVICE_ACCOUNT), server.master.as_deref(), |name| std::env::var(name).ok())?
        }
    };
    if let Some(master) = &server.master {
        config.cluster_url = parse_url(master)?;
    }
    let version = concat!("weir/", env!("CARGO_PKG_VERSION"));
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(version)));
    let url = config.cluster_url.to_string();
    let client = connect(config).map_err(|error| CredentialsError::Kube(Box::new(error)))?;
    Ok((url, client))
}

fn parse_url(text: &str) -> Result<http::Uri, CredentialsError> {
    // `--master` may leave the scheme out.
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    url.parse().map_err(|error| CredentialsError::Url(text.to_owned(), error))
}

fn from_kubeconfig(path: &Path) -> Result<kube::Config, CredentialsError> {
    let refused = |error| CredentialsError::Kubeconfig(path.to_owned(), error);
    let config = kube::Config::try_from(Kubeconfig::read_from(path).map_err(refused)?).map_err(refused)?;
    if config.proxy_url.is_some() {
        return Err(CredentialsError::Proxy(path.to_owned()));
    }
    Ok(config)
}

/// What a Pod finds in `directory` and in its environment.
fn in_pod(
    directory: &Path,
    master: Option<&str>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<kube::Config, CredentialsError> {
    const HOST: &str = "KUBERNETES_SERVICE_HOST";
    const PORT: &str = "KUBERNETES_SERVICE_PORT";
    let url = match master {
        Some(master) => master.to_owned(),
        None => {
            let word = |name| environment(name).filter(|value| !value.is_empty());
            let host = word(HOST).ok_or(CredentialsError::NoPod(HOST))?;
            let port = word(PORT).ok_or(CredentialsError::NoPod(PORT))?;
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            format!("https://{host}:{port}")
        }
    };
    let mut config = kube::Config::new(parse_url(&url)?);
    // Without an account only a server that asks for none can be used.
    let path = |name| Some(directory.join(name)).filter(|path| path.exists());
    config.root_cert_file = path("ca.crt");
    // The file counts, which is read again; what is set here keeps the system's authorities out.
    config.root_cert = config.root_cert_file.as_ref().map(|_| Vec::new());
    if config.cluster_url.scheme_str() == Some("https") {
        // Nobody else gets to see it.
        config.auth_info.token_file = path("token").map(|path| path.display().to_string());
    }
    Ok(config)
}

/// As kube's own client, but with keepalive and without its retries and log lines: both are the watcher's. The file of a
/// token is read for every request, of which there are few.
fn connect(mut config: kube::Config) -> kube::Result<kube::Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let file = config.auth_info.token_file.take();
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_request(move |mut request: Request<Body>| {
            // A file that is gone leaves what else there is, as in Kubernetes's own client.
            if let Some(token) = file.as_deref().and_then(read_token) {
                request.headers_mut().insert(header::AUTHORIZATION, token);
            }
            request
        })
        .map_err(BoxError::from)
        .service(client);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

fn read_token(path: &str) -> Option<HeaderValue> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut token = HeaderValue::try_from(format!("Bearer {}", text.trim())).ok()?;
    token.set_sensitive(true);
    Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_finds_the_server_and_its_account() {
        let directory = tempfile::tempdir().unwrap();
        let environment = |host: &'static str, port: &'static str| {
            move |name: &str| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some(port.to_owned()),
                _ => None,
            }
        };
        let url = |master, host, port| {
            let config = in_pod(directory.path(), master, environment(host, port));
            config.map(|config| config.cluster_url.to_string()).map_err(|error| error.to_string())
        };
        for (master, host, port, want) in [
            (None, "10.96.0.1", "443", Ok("https://10.96.0.1:443/")),
            (None, "fd00::1", "6443", Ok("https://[fd00::1]:6443/")),
            (None, "", "443", Err("KUBERNETES_SERVICE_HOST is not set")),
            (None, "10.96.0.1", "", Err("KUBERNETES_SERVICE_PORT is not set")),
            (None, "a b", "443", Err("\"https://a b:443\" is no URL")),
            (Some("https://192.0.2.1:6443"), "", "", Ok("https://192.0.2.1:6443/")),
            (Some("192.0.2.1:8080"), "", "", Ok("http://192.0.2.1:8080/")),
        ] {
            match (url(master, host, port), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{got:?} instead of {want:?}"),
            }
        }
        let account = || in_pod(directory.path(), None, environment("10.96.0.1", "443")).unwrap();
        assert_eq!((account().auth_info.token_file, account().root_cert_file), (None, None));
        for name in ["token", "ca.crt"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let path = directory.path().join("token").display().to_string();
        assert_eq!(account().auth_info.token_file, Some(path));
        assert_eq!(account().root_cert_file, Some(directory.path().join("ca.crt")));
        let plain = in_pod(directory.path(), Some("http://192.0.2.1"), |_| None).unwrap();
        assert_eq!(plain.auth_info.token_file, None, "a token is for TLS alone");
    }
}
