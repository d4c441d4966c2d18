//! Kubernetes's objects from files instead of a cluster: for commands that need none.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use control::config::kube_proxy::{self, Flags, KubeProxy};
use control::config::{Config, Section};
use control::model::Draft;
use control::source::kubernetes::manifest::Manifests;
use control::source::kubernetes::offline::{self, Offline};
use control::source::kubernetes::settings::Settings;

use super::EXIT_USAGE;

#[derive(Debug, clap::Args)]
pub(crate) struct Cluster {
    /// Files of Kubernetes objects, YAML or JSON: Services, EndpointSlices, Nodes, ServiceCIDRs, lists of them.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "node")]
    objects: Vec<PathBuf>,
    /// Name of the Node that Weir is imagined on.
    #[arg(long, value_name = "NAME", requires = "objects")]
    node: Option<String>,
    /// KubeProxyConfiguration, or the ConfigMap that it lies in. Without: as kube-proxy in mode nftables.
    #[arg(long, value_name = "FILE", requires = "objects")]
    kube_proxy_config: Option<PathBuf>,
    /// Address of the node, instead of those that the Node object has of the family.
    #[arg(long, value_name = "IP", requires = "objects")]
    node_address: Vec<IpAddr>,
}

/// Tells every fault of objects in files: fields that are left out, annotations that cannot be read, addresses that
/// several Services ask for, objects without others that they belong to. Returns whether there is none.
pub(crate) fn check(files: &[PathBuf]) -> anyhow::Result<bool> {
    let mut manifests = Manifests::default();
    files.iter().for_each(|path| manifests.read(path));
    let mut faults: Vec<String> = manifests.unreadable.iter().map(ToString::to_string).collect();
    faults.extend(manifests.faults());
    faults.extend(manifests.doubles());
    let others = manifests.others;
    // Which node that is matters to none of the faults.
    let cluster = Cluster {
        objects: Vec::new(),
        node: Some("any".into()),
        kube_proxy_config: None,
        node_address: Vec::new(),
    };
    let settings =
        cluster.settings(None).map_err(|_| anyhow::anyhow!("there are no settings to check by"))?;
    let objects = manifests.objects.into_iter().map(|(_, object)| object);
    match offline::desired(objects, settings, Draft::default(), &[]) {
        Ok(offline) => {
            faults.extend(
                offline.notices.iter().map(|notice| format!("{}: {}", notice.object, notice.message)),
            );
            let totals = offline.store.totals();
            super::print(format_args!(
                "{} Services, {} EndpointSlices with {} endpoints, {others} objects that Weir does not read\n",
                totals.services, totals.slices, totals.endpoints
            ))?;
        }
        Err(conflicts) => faults.extend(conflicts.iter().map(ToString::to_string)),
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    Ok(faults.is_empty())
}

impl Cluster {
    /// Whether there are objects.
    pub(crate) fn is_given(&self) -> bool {
        !self.objects.is_empty()
    }

    /// What the objects come to, beside a configuration, for a packet between two addresses. What is wrong is told here;
    /// the error is the exit status that stands for it.
    pub(crate) fn desired(
        &self,
        config: Option<&Config>,
        from: IpAddr,
        to: IpAddr,
    ) -> Result<Offline, ExitCode> {
        let settings = self.settings(config.map(|config| &config.kubernetes))?;
        let mut manifests = Manifests::default();
        self.objects.iter().for_each(|path| manifests.read(path));
        // As in a cluster, one bad object is no reason to leave out the others.
        for unreadable in &manifests.unreadable {
            eprintln!("{}{unreadable}", if unreadable.is_text { "" } else { "warning: " });
        }
        if manifests.unreadable.iter().any(|unreadable| unreadable.is_text) {
            return Err(ExitCode::from(EXIT_USAGE));
        }
        for warning in manifests.faults().chain(manifests.doubles()) {
            eprintln!("warning: {warning}");
        }
        let draft = config.map_or_else(Draft::default, |config| config.desired.draft().clone());
        let objects = manifests.objects.into_iter().map(|(_, object)| object);
        let offline = offline::desired(objects, settings, draft, &[from, to]).map_err(|conflicts| {
            conflicts.iter().for_each(|conflict| eprintln!("{conflict}"));
            ExitCode::from(EXIT_USAGE)
        })?;
        for notice in &offline.notices {
            eprintln!("warning: {}: {}", notice.object, notice.message);
        }
        Ok(offline)
    }

    fn settings(&self, section: Option<&Section>) -> Result<Settings, ExitCode> {
        let node = self.node.as_deref().unwrap_or_default().trim();
        let proxy = Flags::parse(&[("hostname-override", node.into())], None).and_then(|flags| {
            match &self.kube_proxy_config {
                Some(path) => kube_proxy::load(path, &flags),
                None => KubeProxy::without_file(&flags),
            }
        });
        let refuse = |message: String| {
            eprintln!("{message}");
            ExitCode::from(EXIT_USAGE)
        };
        let proxy = proxy.map_err(|faults| refuse(faults.to_string()))?;
        // Without a file there is nobody whom they would help.
        for warning in proxy.warnings().iter().filter(|_| self.kube_proxy_config.is_some()) {
            eprintln!("warning: {warning}");
        }
        let section = section.cloned().unwrap_or_default();
        let mut settings =
            kube_proxy::settings(&proxy, &section, "").map_err(|error| refuse(error.to_string()))?;
        // As the objects have it: they may be examples, of names that no API server takes.
        settings.node = node.into();
        if !self.node_address.is_empty() {
            settings.node_addresses.clone_from(&self.node_address);
        }
        Ok(settings)
    }
}
