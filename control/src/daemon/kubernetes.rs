//! What Kubernetes asks for, put into force as a reload of the configuration is; what is refused keeps nothing else back.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::Control;
use crate::admin::protocol::{Kubernetes, KubernetesResource};
use crate::model::{Change, Conflict, Place, Service};
use crate::reconcile::{Gate, Refusal};
use crate::source::kubernetes::publish::{Outcome, Proposal, Surroundings};
use crate::source::kubernetes::settings::Settings;
use crate::source::kubernetes::store::Configured;
use crate::source::kubernetes::thread::Thread;

/// How often a change is tried in parts at most, once it was refused whole.
const TRIES: u32 = 256;

/// Kubernetes as a source of control's.
#[derive(Debug)]
pub struct Source {
    /// What watches.
    pub thread: Thread,
    /// How objects are understood.
    pub settings: Settings,
}

/// The next proposal; never one without a source.
pub(super) async fn next(proposals: Option<&mut mpsc::Receiver<Proposal>>) -> Proposal {
    if let Some(proposals) = proposals
        && let Some(proposal) = proposals.recv().await
    {
        return proposal;
    }
    std::future::pending().await
}

/// What became of a change so far.
#[derive(Debug, Default)]
struct Tried {
    tries: u32,
    refused: Vec<(Arc<str>, String)>,
    fault: Option<String>,
}

impl<G: Gate> Control<G> {
    /// Puts a proposal into force, all of it that can be.
    pub(super) async fn adopt_proposal(&mut self, proposal: Proposal) {
        let Proposal { change, reply } = proposal;
        let (removed, put) = (change.remove.len(), change.put.len());
        let mut tried = Tried::default();
        self.put_whole(change, &mut tried);
        self.complete().await;
        self.services_changed();
        let Tried { refused, fault, .. } = tried;
        if let Some(fault) = &fault {
            tracing::error!(fault, "what Kubernetes asks for is refused; what was before stays in force");
        }
        if let Some((name, reason)) = refused.first() {
            let others = refused.len() - 1;
            tracing::error!(service = %name, others, "{reason}; what was before stays in force, trying again");
        }
        let generation = self.reconciler.current().generation;
        tracing::debug!(generation, removed, put, refused = refused.len(), "in force for Kubernetes");
        // A source that is gone wants no reply.
        let _ = reply.send(Outcome { at: Instant::now(), refused, fault });
    }

    fn put_whole(&mut self, change: Change, tried: &mut Tried) {
        let Err(refusal) = self.reconciler.change(change.clone(), &mut self.gate) else { return };
        let Change { remove, put, common } = change;
        if !(remove.is_empty() && common.is_none()) {
            let rest = Change { remove, put: Vec::new(), common };
            if let Err(refusal) = self.reconciler.change(rest, &mut self.gate) {
                tried.fault = Some(refusal.to_string());
            }
        }
        self.put_parts(put, &refusal, tried);
    }

    /// Puts services that were refused together, for `refusal`: without those that it names, or in halves.
    fn put_parts(&mut self, mut put: Vec<Service>, refusal: &Refusal, tried: &mut Tried) {
        if put.is_empty() {
            return;
        }
        let named = blamed(refusal);
        if put.len() == 1 || tried.tries >= TRIES {
            tried.refused.extend(put.into_iter().map(|service| (service.name, refusal.to_string())));
            return;
        }
        if named.is_empty() {
            let second = put.split_off(put.len() / 2);
            self.put_again(put, tried);
            self.put_again(second, tried);
            return;
        }
        let mut place = 0;
        put.retain(|service| {
            let reason = named.iter().find(|(at, _)| *at == place).map(|(_, reason)| reason.clone());
            place += 1;
            let is_kept = reason.is_none();
            tried.refused.extend(reason.map(|reason| (Arc::clone(&service.name), reason)));
            is_kept
        });
        self.put_again(put, tried);
    }

    fn put_again(&mut self, put: Vec<Service>, tried: &mut Tried) {
        tried.tries += 1;
        let change = Change { put: put.clone(), ..Change::default() };
        if let Err(refusal) = self.reconciler.change(change, &mut self.gate) {
            self.put_parts(put, &refusal, tried);
        }
    }

    /// Tells the source what it is to know of the host and the configuration.
    pub(super) fn tell_surroundings(&self) {
        let Some(source) = &self.kubernetes else { return };
        let surroundings = Surroundings {
            addresses: self.host.addresses(),
            configured: Configured::of(self.reconciler.desired(), &source.settings),
        };
        source.thread.surroundings.send_if_modified(|known| {
            let is_new = *known != surroundings;
            *known = surroundings;
            is_new
        });
    }

    /// How the source does.
    pub(super) fn kubernetes_status(&self) -> Option<Kubernetes> {
        let Source { thread, settings } = self.kubernetes.as_ref()?;
        let resources = thread.status.watched().into_iter().map(|(resource, watched)| KubernetesResource {
            name: resource.name().into(),
            synced: watched.synced,
            lists: watched.lists,
            trouble: watched.trouble.as_ref().map(|(trouble, _)| trouble.message.clone()),
            trouble_s: watched.trouble.map(|(_, since)| since.elapsed().as_secs()),
        });
        Some(Kubernetes {
            server: thread.status.server(),
            node: settings.node.to_string(),
            synced: thread.status.is_synced(),
            resources: resources.collect(),
        })
    }
}

/// The places in the change of services that are at fault, and why.
fn blamed(refusal: &Refusal) -> Vec<(usize, String)> {
    let Refusal::Conflicts(conflicts) = refusal else { return Vec::new() };
    let place = |place| match place {
        Place::Service(service)
        | Place::ServiceName(service)
        | Place::Vip(service, _)
        | Place::Port(service)
        | Place::Mark(service)
        | Place::NodePort(service)
        | Place::Persistence(service)
        | Place::OnePacket(service)
        | Place::Option(service, _)
        | Place::PoolOf(service)
        | Place::Backend(service, _)
        | Place::BackendAddress(service, _)
        | Place::BackendPort(service, _)
        | Place::Tunnel(service, _)
        | Place::LowerThreshold(service, _) => Some(service),
        Place::PoolName(_)
        | Place::PoolPorts(_)
        | Place::PoolRange(..)
        | Place::NodeAddress(_)
        | Place::Rule(_) => None,
    };
    let named = |conflict: &Conflict| Some((place(conflict.at)?, conflict.to_string()));
    conflicts.iter().filter_map(named).collect()
}
