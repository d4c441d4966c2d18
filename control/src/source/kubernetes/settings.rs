//! How Kubernetes's objects are to be understood: from a KubeProxyConfiguration, its flags, and the `kubernetes` section
//! of the configuration file.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dataplane::snapshot::Mode;
use ipnet::IpNet;

use crate::model::{Scheduling, WhenEmpty};

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The own Node's name: lower case, trimmed.
    pub node: Arc<str>,
    /// Addresses that stand for those of the Node object (`bindAddress`, `--node-address`); none: the Node says.
    pub node_addresses: Vec<IpAddr>,
    /// Which mode of kube-proxy is followed where its modes differ.
    pub profile: Profile,
    /// How services without an annotation of their own choose (`ipvs.scheduler`).
    pub scheduling: Scheduling,
    /// How backends of services without an annotation get their packets; `nat` is translated from the SNAT pool where
    /// kube-proxy masquerades.
    pub mode: Mode,
    /// The pool that masqueraded flows take their sources from.
    pub snat_pool: Option<Arc<str>>,
    /// All traffic to cluster addresses is masqueraded (`masqueradeAll`).
    pub masquerade_all: bool,
    /// What tells pods' addresses from others (`detectLocalMode`).
    pub local: DetectLocal,
    /// The node's addresses on which node ports are reached (`nodePortAddresses`).
    pub node_port_addresses: NodePortAddresses,
    /// Only Services with this value of the label `service.kubernetes.io/service-proxy-name`; `None`: only those
    /// without the label.
    pub service_proxy_name: Option<Arc<str>>,
    /// Which Services of type LoadBalancer are served as such, by their class.
    pub load_balancer_class: LoadBalancerClass,
    /// Which `externalIPs` count.
    pub external_ips: ExternalIps,
    /// Virtual addresses that are not Weir's (`ipvs.excludeCIDRs`).
    pub exclude: Vec<IpNet>,
    /// Services that are not Weir's, as `namespace/name`.
    pub skip: HashSet<Arc<str>>,
    /// Whether traffic to an address of a ServiceCIDR that no Service has is dropped.
    pub drop_unallocated: bool,
    /// What a client of a Service without endpoints is told.
    pub when_empty: WhenEmpty,
    /// Whether Weir answers ARP, neighbour discovery and echo for load balancers' and external addresses.
    pub announce: bool,
    /// Seconds after which the remaining flows of a removed or drained endpoint are ended; `None`: never.
    pub drain_s: Option<u32>,
    /// What feature gates change.
    pub gates: Gates,
    /// How long changes are gathered at least before they are published (`minSyncPeriod`).
    pub min_sync_period: Duration,
    /// Half of how long a change may wait until `/healthz` fails (`syncPeriod`).
    pub sync_period: Duration,
}

/// See [`Settings::profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Profile {
    /// `mode: ipvs`, `iptables` and none.
    Ipvs,
    /// `mode: nftables`.
    #[default]
    Nftables,
}

/// See [`Settings::local`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum DetectLocal {
    /// Nothing does.
    #[default]
    Unknown,
    /// `clusterCIDR`.
    ClusterCidr(Vec<IpNet>),
    /// `spec.podCIDRs` of the own Node.
    NodeCidr,
}

/// See [`Settings::node_port_addresses`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum NodePortAddresses {
    /// All of the node's addresses but loopback ones.
    All,
    /// Those that the Node object has as `InternalIP`.
    #[default]
    Primary,
    /// Those in these networks, and the primary ones where `primary` is set.
    Networks {
        /// The networks.
        networks: Vec<IpNet>,
        /// Whether the primary ones count besides.
        primary: bool,
    },
}

/// See [`Settings::load_balancer_class`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum LoadBalancerClass {
    /// All, whatever class they have: as kube-proxy.
    #[default]
    Any,
    /// Those of one of these classes; the empty name stands for Services without a class.
    Of(HashSet<Arc<str>>),
}

/// See [`Settings::external_ips`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ExternalIps {
    /// None: whoever may create a Service could take any address (CVE-2020-8554).
    #[default]
    Deny,
    /// Those in these networks.
    Allow(Vec<IpNet>),
}

/// See [`Settings::gates`]. All are on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    /// `PreferSameTrafficDistribution`: hints for nodes count.
    pub node_hints: bool,
    /// `TopologyAwareHints` and `ServiceTrafficDistribution`: hints for zones count.
    pub zone_hints: bool,
    /// `LoadBalancerIPMode`: addresses of mode `Proxy` are left out.
    pub load_balancer_ip_mode: bool,
    /// `KubeProxyDrainingTerminatingNodes`: `/healthz` fails on a node that goes away.
    pub draining_nodes: bool,
    /// `AllowServiceExternalIPs`: off, no `externalIPs` count.
    pub external_ips: bool,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            node_hints: true,
            zone_hints: true,
            load_balancer_ip_mode: true,
            draining_nodes: true,
            external_ips: true,
        }
    }
}
