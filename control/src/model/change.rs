//! Changes of a desired state: what a source hands on, so that the rest need not be looked at.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Conflict, DesiredState, Service, Unicast};

/// What changes in a desired state. Removals come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Names of services that go. One that is not there is no fault.
    pub remove: Vec<Arc<str>>,
    /// Services that are new, or take the place of those with their names. Each name once.
    pub put: Vec<Service>,
    /// What services share, where it changes.
    pub common: Option<Common>,
}

/// What a source says besides services. It is beside what the configuration says of the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// The node's own addresses, on which node ports are reached.
    pub node_addresses: Vec<Unicast>,
    /// Where local clients are: see [`super::Draft::local`].
    pub local: Vec<IpNet>,
    /// Networks of virtual addresses: see [`super::Draft::virtual_networks`].
    pub virtual_networks: Vec<IpNet>,
}

impl Change {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.put.is_empty() && self.common.is_none()
    }
}

impl DesiredState {
    /// Carries a change out, or says all that stands against it and leaves everything as it was. The services of a
    /// [`super::Place`] are then those of [`Change::put`].
    pub fn change(&mut self, change: Change) -> Result<(), Vec<Conflict>> {
        let Change { remove, put, common } = change;
        let mut draft = self.draft().clone();
        let gone: HashSet<&str> = remove.iter().map(|name| &**name).collect();
        let replaced: HashSet<&str> = put.iter().map(|service| &*service.name).collect();
        draft.services.retain(|service| !gone.contains(&*service.name) && !replaced.contains(&*service.name));
        let stay = draft.services.len();
        draft.services.extend(put);
        if let Some(Common { node_addresses, local, virtual_networks }) = common {
            (draft.node_addresses, draft.local, draft.virtual_networks) =
                (node_addresses, local, virtual_networks);
        }
        *self = Self::new(draft).map_err(|conflicts| {
            let placed = |conflict: Conflict| Conflict {
                at: conflict.at.behind(stay).unwrap_or(conflict.at),
                earlier: conflict.earlier.and_then(|earlier| earlier.behind(stay)),
                ..conflict
            };
            conflicts.into_iter().map(placed).collect::<Vec<_>>()
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::model::{Place, Reason};

    fn desired(services: &[&str]) -> DesiredState {
        let list: String = services.iter().map(|service| format!("  - {{{service}, mode: nat}}\n")).collect();
        let text = format!("interfaces: [{{name: eth1}}]\nservices:\n{list}");
        config::parse("test.yaml", &text).unwrap_or_else(|faults| panic!("{faults}\n{text}")).desired
    }

    fn put(services: &[&str]) -> Vec<Service> {
        desired(services).services().to_vec()
    }

    #[test]
    fn services_are_removed_replaced_and_added() {
        let mut state = desired(&["name: a, vip: 10.0.0.1, port: 80", "name: b, vip: 10.0.0.2, port: 80"]);
        let change = Change {
            remove: vec!["b".into(), "unknown".into()],
            put: put(&["name: a, vip: 10.0.0.3, port: 80", "name: c, vip: 10.0.0.2, port: 80"]),
            common: None,
        };
        state.change(change).unwrap();
        let reached: HashSet<_> =
            state.services().iter().map(|service| (&*service.name, service.vips()[0].ip())).collect();
        let want = [("a", [10, 0, 0, 3].into()), ("c", [10, 0, 0, 2].into())];
        assert_eq!(reached, HashSet::from(want));
    }

    #[test]
    fn a_change_with_a_conflict_leaves_everything_as_it_was() {
        let mut state = desired(&["name: a, vip: 10.0.0.1, port: 80", "name: b, vip: 10.0.0.2, port: 80"]);
        let before = state.clone();
        let put = put(&["name: c, vip: 10.0.0.3, port: 80", "name: d, vip: 10.0.0.2, port: 80"]);
        let conflicts = state.change(Change { remove: vec!["a".into()], put, common: None }).unwrap_err();
        assert_eq!(state, before);
        let [Conflict { at, earlier, reason }] = &*conflicts else { panic!("{conflicts:?}") };
        assert_eq!((*at, *earlier), (Place::Vip(1, 0), None), "the second one of the change");
        assert!(matches!(reason, Reason::VipTaken { other, .. } if &**other == "b"), "{reason}");
    }
}
