//! What is to be told in the cluster: Kubernetes Events, before anybody sends them.

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::metrics::kubernetes::{EventFate, Kubernetes};

/// Notices that wait to be sent at most.
const WAITING_MAX: usize = 1024;

/// The object that a notice is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// What it is.
    pub kind: Kind,
    /// Its namespace; `None` for a Node.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Arc<str>,
    /// Its UID, where that is known: `kubectl describe` finds Events by it.
    pub uid: Option<Arc<str>>,
}

/// What kind of object a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A Service.
    Service,
    /// An EndpointSlice.
    EndpointSlice,
    /// A Node.
    Node,
}

impl Kind {
    /// The kind as objects have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
        }
    }

    /// Its group and version.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
        }
    }
}

impl Reference {
    /// The own Node. Its UID is its name, as kubelet and kube-proxy have it.
    pub fn node(name: Arc<str>) -> Self {
        Self { kind: Kind::Node, namespace: None, uid: Some(Arc::clone(&name)), name }
    }

    /// A Service.
    pub fn service(namespace: Arc<str>, name: Arc<str>, uid: Option<Arc<str>>) -> Self {
        Self { kind: Kind::Service, namespace: Some(namespace), name, uid }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match &self.namespace {
            Some(namespace) => write!(f, " {namespace}/{}", self.name),
            None => write!(f, " {}", self.name),
        }
    }
}

/// Whether a notice is of something wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// It is not.
    Normal,
    /// It is.
    Warning,
}

impl Severity {
    /// The `type` of an Event.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One of the reasons and the action that it comes from, as Events have both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reason {
    /// Why, in one word.
    pub name: &'static str,
    /// What was being done.
    pub action: &'static str,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $word:literal in $action:literal,)*) => {
        impl Reason {
            $($(#[$doc])* pub const $name: Self = Self { name: $word, action: $action };)*

            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

reasons! {
    /// Weir has started. As kube-proxy has it.
    STARTING: "Starting" in "StartKubeProxy",
    /// `/healthz` cannot be served. As kube-proxy has it.
    HEALTH_SERVER: "FailedToStartProxierHealthcheck" in "StartKubeProxy",
    /// `/metrics` cannot be served. As kube-proxy has it.
    METRICS_SERVER: "FailedToStartMetricServer" in "StartKubeProxy",
    /// A Service's health check cannot be served. As kube-proxy has it.
    SERVICE_HEALTH_SERVER: "FailedToStartServiceHealthcheck" in "Listen",
    /// An address is of a family that its object does not have. As kube-proxy has it.
    WRONG_FAMILY: "KubeProxyIncorrectIPVersion" in "GatherEndpoints",
    /// An annotation of Weir's has a value that it cannot have.
    BAD_ANNOTATION: "BadAnnotation" in "ReadService",
    /// A virtual address is another service's already.
    ADDRESS_CONFLICT: "AddressConflict" in "ReadService",
    /// What the object asks for does not fit Weir's tables.
    REFUSED: "Refused" in "PublishService",
}

/// Something to be told of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    /// The object.
    pub object: Reference,
    /// Whether it is something wrong.
    pub severity: Severity,
    /// Why.
    pub reason: Reason,
    /// A sentence for people.
    pub message: String,
}

impl Notice {
    /// A notice of what is as it should be.
    pub fn normal(object: Reference, reason: Reason, message: impl Into<String>) -> Self {
        Self { object, severity: Severity::Normal, reason, message: message.into() }
    }

    /// A notice of something wrong.
    pub fn warning(object: Reference, reason: Reason, message: impl Into<String>) -> Self {
        Self { object, severity: Severity::Warning, reason, message: message.into() }
    }
}

/// Where notices go. Never waits; what does not fit is counted and lost.
#[derive(Clone, Debug)]
pub struct Outbox {
    sender: Option<mpsc::Sender<Notice>>,
    counted: Kubernetes,
}

impl Outbox {
    /// The way in, and the end that somebody takes them from. What is lost is counted there.
    pub fn new(counted: Kubernetes) -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self { sender: Some(sender), counted }, receiver)
    }

    /// Where there is no cluster to tell anything.
    pub fn nowhere() -> Self {
        Self { sender: None, counted: Kubernetes::default() }
    }

    /// Puts a notice in.
    pub fn tell(&self, notice: Notice) {
        if let Some(sender) = &self.sender
            && sender.try_send(notice).is_err()
        {
            self.counted.event(EventFate::Lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_and_actions_are_words_that_events_may_have() {
        for reason in Reason::ALL {
            for word in [reason.name, reason.action] {
                assert!((1..=128).contains(&word.len()), "{word}");
                assert!(word.chars().all(|c| c.is_ascii_alphanumeric()), "{word}");
            }
        }
    }

    #[test]
    fn a_full_outbox_counts_what_it_loses_and_does_not_wait() {
        let counted = Kubernetes::default();
        let (outbox, mut receiver) = Outbox::new(counted.clone());
        let notice = Notice::warning(Reference::node("n".into()), Reason::HEALTH_SERVER, "why");
        for _ in 0..WAITING_MAX + 3 {
            outbox.tell(notice.clone());
        }
        assert_eq!(counted.events(EventFate::Lost), 3);
        assert_eq!(receiver.try_recv().unwrap(), notice);
        outbox.tell(notice.clone());
        assert_eq!(counted.events(EventFate::Lost), 3);
        let nowhere = Outbox::nowhere();
        nowhere.tell(notice);
    }

    #[test]
    fn references_read_as_people_name_objects() {
        assert_eq!(Reference::node("n1".into()).to_string(), "Node n1");
        let service = Reference::service("shop".into(), "web".into(), None);
        assert_eq!(service.to_string(), "Service shop/web");
    }
}
