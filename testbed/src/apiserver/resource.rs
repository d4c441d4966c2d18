//! The resources that the double serves, and where.

/// A resource of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Resource {
    Services,
    EndpointSlices,
    Nodes,
    ServiceCidrs,
    /// Events of `v1`.
    CoreEvents,
    /// Events of `events.k8s.io/v1`.
    Events,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 6] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Nodes,
        Self::ServiceCidrs,
        Self::CoreEvents,
        Self::Events,
    ];

    /// Its API group; empty for the core's.
    pub fn group(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes | Self::CoreEvents => "",
            Self::EndpointSlices => "discovery.k8s.io",
            Self::ServiceCidrs => "networking.k8s.io",
            Self::Events => "events.k8s.io",
        }
    }

    /// Its name in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
            Self::ServiceCidrs => "servicecidrs",
            Self::CoreEvents | Self::Events => "events",
        }
    }

    /// The kind of its objects.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
            Self::CoreEvents | Self::Events => "Event",
        }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Nodes | Self::ServiceCidrs)
    }

    /// The resource of an object's `apiVersion` and `kind`.
    pub fn of_object(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.kind() == kind && resource.api_version() == api_version)
    }

    /// What an object of it has besides metadata where nothing is set, as bookmarks do: an encoder that knows the type
    /// writes these.
    pub(super) fn blank(self) -> &'static str {
        match self {
            Self::Services => r#""spec":{},"status":{"loadBalancer":{}}"#,
            Self::EndpointSlices => r#""addressType":"","endpoints":null,"ports":null"#,
            Self::Nodes => {
                r#""spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{}}"#
            }
            Self::ServiceCidrs => r#""spec":{},"status":{}"#,
            Self::CoreEvents | Self::Events => r#""eventTime":null"#,
        }
    }
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: Resource,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

impl Target {
    /// Reads `/api/v1/..` and `/apis/GROUP/v1/..`; `None` for what is not served.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        let mut words = path.split('/').skip(1);
        let group = match words.next()? {
            "api" => "",
            "apis" => words.next()?,
            _ => return None,
        };
        if words.next()? != "v1" {
            return None;
        }
        let mut rest: Vec<&str> = words.collect();
        let mut namespace = None;
        if let ["namespaces", given, ..] = rest.as_slice() {
            namespace = Some((*given).to_owned());
            rest.drain(..2);
        }
        let (plural, name) = match rest.as_slice() {
            [plural] => (*plural, None),
            [plural, name] => (*plural, Some((*name).to_owned())),
            _ => return None,
        };
        let is_it = |resource: &Resource| resource.group() == group && resource.plural() == plural;
        let resource = Resource::ALL.into_iter().find(is_it)?;
        let is_placed = resource.is_namespaced() || namespace.is_none();
        is_placed.then_some(Self { resource, namespace, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_collection_or_an_object() {
        let target = |resource, namespace: Option<&str>, name: Option<&str>| {
            Some(Target { resource, namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) })
        };
        for (path, want) in [
            ("/api/v1/services", target(Resource::Services, None, None)),
            ("/api/v1/namespaces/a/services", target(Resource::Services, Some("a"), None)),
            ("/api/v1/namespaces/a/services/b", target(Resource::Services, Some("a"), Some("b"))),
            ("/api/v1/nodes/n", target(Resource::Nodes, None, Some("n"))),
            ("/apis/discovery.k8s.io/v1/endpointslices", target(Resource::EndpointSlices, None, None)),
            ("/apis/events.k8s.io/v1/namespaces/a/events", target(Resource::Events, Some("a"), None)),
            ("/api/v1/namespaces/a/events", target(Resource::CoreEvents, Some("a"), None)),
            ("/api/v1/namespaces/a/nodes", None),
            ("/api/v2/services", None),
            ("/apis/apps/v1/deployments", None),
            ("/", None),
        ] {
            assert_eq!(Target::of_path(path), want, "{path}");
        }
    }
}
