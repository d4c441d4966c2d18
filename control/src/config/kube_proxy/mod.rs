//! kube-proxy's configuration: a KubeProxyConfiguration v1alpha1 as it is, or the ConfigMap that it lies in.
//!
//! What Weir does with each field is described in `docs/kube-proxy-config.md`.

pub mod duration;
pub mod flags;

mod change;
mod config_map;
mod document;
mod effects;
mod listener;
mod meaning;
mod read;
mod settings;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

pub use change::{Change, change};
pub use document::{Document, Unwritable};
pub use effects::{Effect, Field as FieldEffect};
pub use flags::Flags;
pub use meaning::ProxyMode;
pub use settings::{NoNodeName, Timeout, settings};

use super::Section;
use super::fault::{Fault, Faults, Mark, Sink};
use super::reader::Field;
use super::tree::{self, Node, Value};
use document::Logging;
use duration::GoDuration;
use flags::Ports;
use meaning::{Findings, Meaning, understand};
use read::Given;

/// What kube-proxy would be told: a document without faults, with its defaults.
#[derive(Clone, Debug)]
pub struct KubeProxy {
    document: Document,
    given: Given,
    meaning: Meaning,
    origin: Origin,
    /// The name that `--hostname-override` has said.
    flag_hostname: bool,
    master: Option<String>,
    warnings: Faults,
}

/// Where a configuration is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// A file.
    File,
    /// kube-proxy's flags.
    Flags,
    /// Nobody has said anything: what Weir does by itself, which is what kube-proxy does in mode nftables.
    Nobody,
}

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Client {
    /// The kubeconfig; `None`: what a Pod finds in itself.
    pub kubeconfig: Option<PathBuf>,
    /// The server's address instead of the one that the kubeconfig has.
    pub master: Option<String>,
    /// Requests a second at most; `None`: no limit.
    pub qps: Option<f32>,
    /// Requests that may come at once before the limit counts.
    pub burst: u32,
}

/// Where health and metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `/healthz` and `/livez`; `None`: not at all.
    pub health: Option<SocketAddr>,
    /// `/metrics` and the others; `None`: not at all.
    pub metrics: Option<SocketAddr>,
    /// Whether Weir ends where an address cannot be had; else it tries again.
    pub hard_fail: bool,
}

/// The configuration in the file at `path`.
pub fn load(path: &Path, flags: &Flags) -> Result<KubeProxy, Faults> {
    let name = path.display().to_string();
    parse(&name, &super::read_file(path)?, flags)
}

/// The configuration in `text`. `file_name` is for messages alone.
pub fn parse(file_name: &str, text: &str, flags: &Flags) -> Result<KubeProxy, Faults> {
    let root = read_tree(file_name, text)?;
    match config_map::unpack(file_name, text, &root)? {
        None => from_tree(file_name, &root, flags),
        Some(inner) => {
            let read = read_tree(file_name, &inner.text)
                .and_then(|root| from_tree(file_name, &root, flags))
                .map_err(|faults| inner.place(faults))?;
            Ok(KubeProxy { warnings: inner.place(read.warnings), ..read })
        }
    }
}

fn read_tree<'t>(file_name: &str, text: &'t str) -> Result<Node<'t>, Faults> {
    tree::parse(text).map_err(|unreadable| {
        let sink = Sink::new(file_name);
        sink.add(unreadable.at, "", unreadable.reason);
        sink.into_faults()
    })
}

fn from_tree(file_name: &str, root: &Node<'_>, flags: &Flags) -> Result<KubeProxy, Faults> {
    let sink = Sink::lenient(file_name);
    let (document, given) = read::read(&Field::root(root, &sink));
    let (read, found) = KubeProxy::new(document, given, Origin::File, flags);
    for (path, reason) in found.faults {
        sink.add(Some(locate(root, &path)), path, reason);
    }
    for (path, reason) in found.warnings {
        sink.warn(Some(locate(root, &path)), path, reason);
    }
    if sink.count() > 0 {
        return Err(sink.into_faults());
    }
    Ok(KubeProxy { warnings: sink.into_warnings(), ..read })
}

/// Where a path such as `ipvs.excludeCIDRs[1]` leads to, or as far as it leads.
fn locate(root: &Node<'_>, path: &str) -> Mark {
    let mut node = root;
    for step in path.split(['.', '[']) {
        let next = match (&node.value, step.strip_suffix(']')) {
            (Value::Map(entries), None) => {
                entries.iter().rfind(|entry| entry.key == step).map(|entry| &entry.value)
            }
            (Value::List(nodes), Some(index)) => index.parse().ok().and_then(|index: usize| nodes.get(index)),
            _ => None,
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    node.at
}

impl KubeProxy {
    /// What kube-proxy's flags say without a file. Where none says what becomes of packets, Weir does what kube-proxy
    /// does in mode nftables, which is the bar where its modes differ.
    pub fn without_file(flags: &Flags) -> Result<Self, Faults> {
        let mut document = flags.document.clone();
        let origin = if flags.say_something() { Origin::Flags } else { Origin::Nobody };
        if origin == Origin::Nobody {
            document.mode = ProxyMode::Nftables.name().to_owned();
        }
        let (read, found) = Self::new(document, flags.given.clone(), origin, flags);
        let sink = Sink::new("command line");
        for (path, reason) in found.faults {
            sink.add(None, path, reason);
        }
        if sink.count() > 0 {
            return Err(flags::by_flags(sink.into_faults()));
        }
        for (path, reason) in found.warnings {
            sink.warn(None, path, reason);
        }
        Ok(Self { warnings: flags::by_flags(sink.into_warnings()), ..read })
    }

    fn new(mut document: Document, mut given: Given, origin: Origin, flags: &Flags) -> (Self, Findings) {
        let ports = if origin == Origin::File {
            flags.apply(&mut document, &mut given);
            Ports::default()
        } else {
            flags.ports
        };
        let said = document.clone();
        document.set_defaults(ports);
        effects::retain_said(&mut given, &said, &document);
        let mut found = Findings::default();
        let mut meaning = understand(&document, &mut found);
        // The second that kube-proxy waits by default spares it work that Weir does not have; to its documentation, 0 means
        // at once.
        if said.min_sync_period(meaning.mode).is_zero() {
            meaning.min_sync_period = GoDuration::ZERO;
        }
        let read = Self {
            document,
            given,
            meaning,
            origin,
            flag_hostname: !flags.document.hostname_override.is_empty(),
            master: flags.master.clone(),
            warnings: Sink::new("").into_warnings(),
        };
        found.warnings.extend(effects::warnings(&read));
        (read, found)
    }

    /// What every field does, beside this section of Weir's own configuration.
    pub fn effects(&self, section: &Section) -> Vec<FieldEffect> {
        effects::tell(self, section)
    }

    /// The document with its defaults: what kube-proxy would write, and show at `/configz`.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// What has no effect, or perhaps not the one that is meant.
    pub fn warnings(&self) -> &Faults {
        &self.warnings
    }

    /// [`Self::warnings`] without those about fields that do not count beside this section of Weir's own configuration.
    pub fn warnings_beside(&self, section: &Section) -> impl Iterator<Item = &Fault> {
        let fields = self.effects(section);
        self.warnings.iter().filter(move |warning| {
            let of_field = |field: &FieldEffect| warning.path.split('[').next() == Some(field.field.as_str());
            !fields.iter().any(|field| field.overruled && of_field(field))
        })
    }

    /// The mode that kube-proxy would run in.
    pub fn mode(&self) -> ProxyMode {
        self.meaning.mode
    }

    /// How the API server is reached, where the configuration file does not say.
    pub fn client(&self) -> Client {
        let client = &self.document.client_connection;
        Client {
            kubeconfig: (!client.kubeconfig.is_empty()).then(|| client.kubeconfig.clone().into()),
            master: self.master.clone(),
            qps: (client.qps > 0.0).then_some(client.qps),
            burst: u32::try_from(client.burst).unwrap_or(0),
        }
    }

    /// Where health and metrics are served.
    pub fn listen(&self) -> Listen {
        Listen {
            health: self.meaning.health,
            metrics: self.meaning.metrics,
            hard_fail: self.document.bind_address_hard_fail,
        }
    }

    /// Address that stands for the Node's own of its family (`bindAddress`).
    pub fn node_address(&self) -> Option<IpAddr> {
        self.meaning.node_address
    }

    /// How much is logged and in which form.
    pub fn logging(&self) -> &Logging {
        &self.document.logging
    }

    /// Whether profiles may be taken over HTTP.
    pub fn profiling(&self) -> bool {
        self.document.enable_profiling
    }

    /// How likely the kernel is to end the process when memory is short: -1000 to 1000.
    pub fn oom_score_adj(&self) -> Option<i32> {
        self.document.oom_score_adj.filter(|_| self.origin != Origin::Nobody)
    }
}
