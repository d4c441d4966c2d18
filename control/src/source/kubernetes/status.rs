//! How watching goes, for people and for health checks.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::trouble::{Kind, Trouble};
use crate::metrics::kubernetes::Kubernetes;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Resource {
    Services,
    EndpointSlices,
    Node,
    ServiceCidrs,
}

impl Resource {
    /// Everything that is watched.
    pub const ALL: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Node, Self::ServiceCidrs];

    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Node => "node",
            Self::ServiceCidrs => "servicecidrs",
        }
    }

    /// Whether Weir does without it where it is not to be had: older servers have no ServiceCIDRs.
    pub(super) fn is_optional(self) -> bool {
        self == Self::ServiceCidrs
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How watching one resource goes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Watched {
    /// Whether all its objects were read once.
    pub synced: bool,
    /// How often all its objects were read.
    pub lists: u64,
    /// What is wrong, and since when.
    pub trouble: Option<(Trouble, Instant)>,
}

/// How watching goes. What is in force stays so whatever it says.
#[derive(Debug, Default)]
pub struct Status {
    state: Mutex<State>,
    counted: Kubernetes,
}

#[derive(Debug, Default)]
struct State {
    server: String,
    watched: [Watched; Resource::ALL.len()],
}

impl State {
    fn of(&mut self, resource: Resource) -> Option<&mut Watched> {
        self.watched.get_mut(resource as usize)
    }

    fn has_trouble(&self, kind: Kind) -> bool {
        self.watched.iter().any(|watched| watched.trouble.as_ref().is_some_and(|(it, _)| it.kind == kind))
    }
}

impl Status {
    /// One that counts on `counted`, too.
    pub fn new(counted: Kubernetes) -> Self {
        Self { state: Mutex::default(), counted }
    }

    /// Whether everything was read once of a resource.
    pub(super) fn is_read(&self, resource: Resource) -> bool {
        self.state().watched.get(resource as usize).is_some_and(|watched| watched.synced)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's URL, empty until it is known.
    pub fn server(&self) -> String {
        self.state().server.clone()
    }

    /// How each resource does.
    pub fn watched(&self) -> Vec<(Resource, Watched)> {
        Resource::ALL.into_iter().zip(self.state().watched.clone()).collect()
    }

    /// Whether Services and EndpointSlices were read, so that they can be in force.
    pub fn is_synced(&self) -> bool {
        self.is_read(Resource::Services) && self.is_read(Resource::EndpointSlices)
    }

    /// What is wrong, one line each; empty where nothing is.
    pub fn troubles(&self) -> Vec<String> {
        let state = self.state();
        let with_trouble = Resource::ALL.into_iter().zip(&state.watched);
        let line = |(resource, watched): (Resource, &Watched)| {
            let (trouble, since) = watched.trouble.as_ref()?;
            let is_told = !resource.is_optional() || trouble.kind.is_of_server();
            is_told.then(|| format!("{resource}: {trouble} (for {} s)", since.elapsed().as_secs()))
        };
        with_trouble.filter_map(line).collect()
    }

    pub(super) fn set_server(&self, url: String) {
        self.state().server = url;
    }

    /// All objects of a resource were read.
    pub(super) fn synced(&self, resource: Resource) {
        let mut state = self.state();
        if let Some(watched) = state.of(resource) {
            if watched.synced {
                self.counted.relisted(resource.name());
            }
            watched.synced = true;
            watched.lists += 1;
        }
        self.counted.connected(resource.name(), true);
    }

    /// Something is wrong. Said once, and again when it is something else; what all resources meet is said of the first.
    pub(super) fn trouble(&self, resource: Resource, trouble: &Trouble) {
        self.counted.error(resource.name(), trouble.kind.name());
        self.counted.connected(resource.name(), false);
        let mut state = self.state();
        let kind = trouble.kind;
        let is_said = kind.is_of_server() && state.has_trouble(kind);
        let server = state.server.clone();
        let Some(watched) = state.of(resource) else { return };
        let (before, since) = match watched.trouble.take() {
            Some((before, since)) => (Some(before.kind), since),
            None => (None, Instant::now()),
        };
        watched.trouble = Some((trouble.clone(), since));
        let synced = watched.synced;
        drop(state);
        if before == Some(kind) || is_said {
            tracing::debug!(%resource, %trouble, "still");
        } else if resource.is_optional() && !kind.is_of_server() {
            tracing::info!(%resource, %trouble, "not watched; Weir does without");
        } else {
            let stays = if synced { "what was read stays in force" } else { "nothing was read yet" };
            let kind = kind.name();
            tracing::warn!(%resource, server, kind, "{trouble}; {stays}, trying again");
        }
    }

    /// Nothing is wrong with a resource.
    pub(super) fn fine(&self, resource: Resource) {
        let mut state = self.state();
        let Some((trouble, since)) = state.of(resource).and_then(|watched| watched.trouble.take()) else {
            return;
        };
        self.counted.connected(resource.name(), true);
        let is_first = trouble.kind.is_of_server() && state.has_trouble(trouble.kind);
        drop(state);
        if !is_first {
            tracing::info!(%resource, after_s = since.elapsed().as_secs(), "watched again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_until_it_is_not() {
        let status = Status::default();
        assert!(!status.is_synced());
        status.synced(Resource::Services);
        assert!(!status.is_synced());
        status.synced(Resource::EndpointSlices);
        assert!(status.is_synced());
        status.trouble(Resource::Services, &Trouble::answered(403, b"no"));
        status.trouble(Resource::ServiceCidrs, &Trouble::answered(404, b"404 page not found"));
        status.trouble(Resource::Services, &Trouble::answered(403, b"still no"));
        assert_eq!(status.troubles(), ["services: HTTP 403: still no (for 0 s)"]);
        assert!(status.is_synced(), "what was read stays");
        status.fine(Resource::Services);
        assert!(status.troubles().is_empty());
        status.trouble(Resource::ServiceCidrs, &Trouble::answered(500, b""));
        assert_eq!(status.troubles().len(), 1);
    }
}
