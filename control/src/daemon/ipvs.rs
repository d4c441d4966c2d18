//! Changes by `ipvsadm`, put into force as a reload of the configuration is.

use super::Control;
use crate::ipvs::command::{COMMANDS_MAX, Command, Refusal};
use crate::ipvs::{Room, Table, list};
use crate::model::{DesiredState, Draft, Origin};
use crate::reconcile::{self, Gate};

impl<G: Gate> Control<G> {
    /// Carries commands out, in their order and with one publication, and says of each why it was refused.
    pub(super) async fn change(&mut self, commands: &[Command]) -> Vec<Option<Refusal>> {
        if commands.len() > COMMANDS_MAX {
            let message = format!("more than {COMMANDS_MAX} commands in one request");
            return vec![Some(Refusal::Weir(message)); commands.len()];
        }
        match self.put(commands).await {
            Ok(results) => results,
            Err(refusal) if commands.len() == 1 => vec![Some(refusal)],
            // One of them asks for what does not go with the rest: each by itself finds it.
            Err(_) => {
                let mut results = Vec::with_capacity(commands.len());
                for command in commands {
                    let result = self.put(std::slice::from_ref(command)).await;
                    results.extend(result.unwrap_or_else(|refusal| vec![Some(refusal)]));
                }
                results
            }
        }
    }

    /// The same, refused whole where Weir cannot have what comes of it.
    async fn put(&mut self, commands: &[Command]) -> Result<Vec<Option<Refusal>>, Refusal> {
        let own = self.host.monitor.mirror().addresses.iter().map(|(_, addr, _)| *addr).collect();
        let (services, servers) = self.reconciler.state().capacity();
        let room = Room { services, servers };
        let desired = self.reconciler.desired();
        let configured = desired.draft();
        let mut table = Table::new(seen(desired), own, room);
        let results = commands.iter().map(|command| table.run(command).err()).collect();
        let is_changed = table.is_changed();
        let (mut draft, zeroed) = table.finish();
        draft.services.retain(|service| service.origin == Origin::Configuration);
        draft.node_addresses.clone_from(&configured.node_addresses);
        if is_changed && draft != configured {
            let desired = DesiredState::new(draft).map_err(|conflicts| {
                let told: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
                Refusal::Weir(told.join("; "))
            })?;
            self.reconciler.configure(&desired, &mut self.gate).map_err(|refusal| match refusal {
                reconcile::Refusal::Compile(_) => {
                    tracing::warn!(%refusal, "ipvsadm: refused");
                    Refusal::NoMemory
                }
                reconcile::Refusal::Conflicts(_) | reconcile::Refusal::Kernel(_) => {
                    Refusal::Weir(refusal.to_string())
                }
            })?;
            self.complete().await;
            self.services_changed();
            self.tell_surroundings();
        }
        let current = self.reconciler.current();
        for key in zeroed {
            match key.map(|key| list::find(&current.services, key)) {
                None => self.reconciler.zero(None),
                Some(None) => {}
                Some(service) => self.reconciler.zero(service),
            }
        }
        Ok(results)
    }
}

/// What commands are carried out on: other sources' services are seen, and not theirs to change.
fn seen(desired: &DesiredState) -> Draft {
    let services = desired.services().cloned().collect();
    Draft { services, node_addresses: desired.node_addresses().to_vec(), ..desired.configured().clone() }
}
