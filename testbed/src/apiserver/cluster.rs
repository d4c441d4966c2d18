//! The objects, their versions and their history: what stands behind an API server and outlives it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::resource::Resource;
use super::selector::{Labels, Selector};
use super::status::Failure;

/// Lists that can still be gone on with, at most; the oldest one expires.
const PAGED_LISTS: usize = 16;
/// Changes of each resource that are remembered at most.
const HISTORY: usize = 100_000;

/// An object as it was at one version.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    pub(super) labels: Labels,
    pub(super) version: u64,
    /// Without `kind` and `apiVersion`, which items of a list have not: `{"metadata":..`.
    json: Box<str>,
}

impl Object {
    pub(super) fn is_selected(&self, namespace: Option<&str>, selector: &Selector) -> bool {
        namespace.is_none_or(|namespace| *self.namespace == *namespace)
            && selector.selects(&self.namespace, &self.name, &self.labels)
    }

    /// As an item of a list.
    pub(super) fn item(&self) -> &str {
        &self.json
    }

    /// By itself.
    pub(super) fn whole(&self, resource: Resource) -> String {
        let inside = self.json.strip_prefix('{').unwrap_or_default();
        format!(r#"{{"kind":"{}","apiVersion":"{}",{inside}"#, resource.kind(), resource.api_version())
    }

    fn value(&self) -> Value {
        serde_json::from_str(&self.json).unwrap_or_default()
    }
}

/// What happened to an object: neither is `None` for both.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) old: Option<Arc<Object>>,
    /// For a deleted object: as it last was, with the version of its end.
    pub(super) new: Arc<Object>,
    pub(super) is_deleted: bool,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Object>>,
    /// Where the next one begins.
    pub(super) next: Option<String>,
    /// How many more there are; not known of a selection.
    pub(super) remaining: Option<usize>,
}

#[derive(Debug, Default)]
struct Kind {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    history: VecDeque<Change>,
}

/// All of a resource at a version.
#[derive(Debug)]
struct Paged {
    resource: Resource,
    version: u64,
    objects: Arc<[Arc<Object>]>,
}

#[derive(Debug)]
struct State {
    version: u64,
    /// Changes up to this one are forgotten.
    compacted: u64,
    kinds: BTreeMap<Resource, Kind>,
    /// For lists in pages, the newest last.
    paged: VecDeque<Paged>,
}

/// Objects and their history.
#[derive(Debug)]
pub struct Cluster {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self::at(1000)
    }
}

impl Cluster {
    /// An empty one whose versions begin after `version`.
    pub fn at(version: u64) -> Self {
        let state = State { version, compacted: version, kinds: BTreeMap::new(), paged: VecDeque::new() };
        Self { state: Mutex::new(state), version: watch::Sender::new(version) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    pub(super) fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Creates or replaces an object, whose `apiVersion`, `kind` and name say which. Returns its version.
    ///
    /// # Errors
    /// When it is not an object of a served resource.
    pub fn put(&self, object: Value) -> Result<u64> {
        let word = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (word("apiVersion"), word("kind"));
        let resource = Resource::of_object(api_version, kind)
            .with_context(|| format!("{api_version} {kind} is not served"))?;
        Ok(self.put_as(resource, object)?.version)
    }

    pub(super) fn put_as(&self, resource: Resource, mut object: Value) -> Result<Arc<Object>> {
        let fields = object.as_object_mut().context("not an object")?;
        fields.remove("kind");
        fields.remove("apiVersion");
        let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
        let metadata = metadata.as_object_mut().context("metadata is not an object")?;
        let word = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (namespace, name) = (word("namespace"), word("name"));
        ensure!(!name.is_empty(), "no metadata.name");
        ensure!(
            resource.is_namespaced() != namespace.is_empty(),
            "{}/{name}: a namespace where none belongs, or none",
            resource.plural()
        );
        let key: Arc<str> = key(&namespace, &name).into();
        let labels = match metadata.get("labels") {
            Some(labels) => serde_json::from_value(labels.clone()).context("metadata.labels")?,
            None => Labels::new(),
        };
        let mut state = self.state();
        let version = state.version + 1;
        let old = state.kinds.get(&resource).and_then(|kind| kind.objects.get(&key)).cloned();
        metadata.insert("resourceVersion".into(), version.to_string().into());
        let kept = old.as_ref().map(|old| old.value());
        for (field, fresh) in [("uid", uid(version)), ("creationTimestamp", "2026-01-01T00:00:00Z".into())] {
            let kept = kept.as_ref().and_then(|kept| kept.pointer(&format!("/metadata/{field}"))).cloned();
            metadata.entry(field).or_insert_with(|| kept.unwrap_or(Value::String(fresh)));
        }
        let json = object.to_string().into();
        let object =
            Arc::new(Object { namespace: namespace.into(), name: name.into(), labels, version, json });
        let kind = state.kinds.entry(resource).or_default();
        kind.objects.insert(key, Arc::clone(&object));
        let change = Change { version, old, new: Arc::clone(&object), is_deleted: false };
        state.happened(resource, change);
        drop(state);
        self.version.send_replace(version);
        Ok(object)
    }

    /// Deletes an object. Returns the version of its end, `None` where there is none.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Option<u64> {
        let mut state = self.state();
        let old = state.kinds.get_mut(&resource)?.objects.remove(&*key(namespace, name))?;
        let version = state.version + 1;
        let mut value = old.value();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), version.to_string().into());
        }
        let new = Arc::new(Object {
            namespace: old.namespace.clone(),
            name: old.name.clone(),
            labels: old.labels.clone(),
            version,
            json: value.to_string().into(),
        });
        state.happened(resource, Change { version, old: Some(old), new, is_deleted: true });
        drop(state);
        self.version.send_replace(version);
        Some(version)
    }

    /// An object, with `kind` and `apiVersion`.
    pub fn object(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let object = self.found(resource, namespace, name)?;
        serde_json::from_str(&object.whole(resource)).ok()
    }

    /// All objects of a resource, by namespace and name.
    pub fn objects(&self, resource: Resource) -> Vec<Value> {
        self.all(resource).1.iter().map(|object| object.value()).collect()
    }

    /// Forgets the history: watches and lists of before this cannot be gone on with.
    pub fn compact(&self) {
        let mut state = self.state();
        state.compacted = state.version;
        state.paged.clear();
        for kind in state.kinds.values_mut() {
            kind.history.clear();
        }
    }

    pub(super) fn found(&self, resource: Resource, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.state().kinds.get(&resource)?.objects.get(&*key(namespace, name)).cloned()
    }

    /// All of a resource now, with the version of now.
    pub(super) fn all(&self, resource: Resource) -> (u64, Vec<Arc<Object>>) {
        let state = self.state();
        let objects = state.kinds.get(&resource).map(|kind| kind.objects.values().cloned().collect());
        (state.version, objects.unwrap_or_default())
    }

    /// The changes after a version, and the version up to which these are all.
    pub(super) fn changes(&self, resource: Resource, after: u64) -> Result<(u64, Vec<Change>), Failure> {
        let state = self.state();
        if after < state.compacted {
            return Err(Failure::expired(after, state.compacted));
        }
        let changes = state.kinds.get(&resource).map(|kind| {
            let first = kind.history.partition_point(|change| change.version <= after);
            kind.history.range(first..).cloned().collect()
        });
        Ok((state.version, changes.unwrap_or_default()))
    }

    /// A page of a list, of `limit` objects at most where that is not 0, from where `token` says.
    pub(super) fn page(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        selector: &Selector,
        limit: usize,
        token: Option<&str>,
    ) -> Result<Page, Failure> {
        let mut state = self.state();
        let (version, start) = match token.map(parse_token) {
            None => (None, String::new()),
            Some(None) => {
                return Err(Failure::bad_request(
                    "continue key is not valid: illegal base64 data at input byte 0",
                ));
            }
            Some(Some((-1, start))) => (None, start),
            Some(Some((version, start))) => (u64::try_from(version).ok(), start),
        };
        let (version, objects) = match version {
            None => {
                let all = state.kinds.get(&resource).map(|kind| kind.objects.values().cloned().collect());
                (state.version, all.unwrap_or_default())
            }
            Some(version) => {
                let is_it = |paged: &&Paged| (paged.resource, paged.version) == (resource, version);
                let paged = state.paged.iter().find(is_it).map(|paged| Arc::clone(&paged.objects));
                (version, paged.ok_or_else(|| Failure::expired_list(print_token(-1, &start)))?)
            }
        };
        let is_left = |object: &&Arc<Object>| *key(&object.namespace, &object.name) >= *start;
        let is_selected = |object: &&Arc<Object>| object.is_selected(namespace, selector);
        let mut left = objects.iter().filter(is_left).filter(is_selected);
        let take = if limit == 0 { usize::MAX } else { limit };
        let items: Vec<_> = left.by_ref().take(take).cloned().collect();
        let rest = left.count();
        let next = items.last().filter(|_| rest > 0).map(|last| {
            let follows = format!("{}\0", key(&last.namespace, &last.name));
            print_token(i64::try_from(version).unwrap_or(i64::MAX), &follows)
        });
        let is_it = |paged: &Paged| (paged.resource, paged.version) == (resource, version);
        if next.is_some() && !state.paged.iter().any(is_it) {
            state.paged.push_back(Paged { resource, version, objects });
            if state.paged.len() > PAGED_LISTS {
                state.paged.pop_front();
            }
        }
        let remaining = (next.is_some() && selector.is_empty()).then_some(rest);
        Ok(Page { version, items, next, remaining })
    }
}

impl State {
    fn happened(&mut self, resource: Resource, change: Change) {
        self.version = change.version;
        let history = &mut self.kinds.entry(resource).or_default().history;
        history.push_back(change);
        if history.len() > HISTORY
            && let Some(forgotten) = history.pop_front()
        {
            self.compacted = self.compacted.max(forgotten.version);
        }
    }
}

/// What objects are ordered by.
fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn uid(version: u64) -> String {
    format!("00000000-0000-4000-8000-{version:012x}")
}

fn print_token(version: i64, start: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string())
}

fn parse_token(token: &str) -> Option<(i64, String)> {
    let token: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    Some((token.get("rv")?.as_i64()?, token.get("start")?.as_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "a", "name": name}})
    }

    fn page(cluster: &Cluster, limit: usize, token: Option<&str>) -> Result<Page, Failure> {
        cluster.page(Resource::Services, None, &Selector::default(), limit, token)
    }

    fn names(page: &Page) -> Vec<&str> {
        page.items.iter().map(|object| &*object.name).collect()
    }

    #[test]
    fn pages_show_the_version_of_the_first_one() {
        let cluster = Cluster::default();
        for name in ["a", "b", "c", "d"] {
            cluster.put(service(name)).unwrap();
        }
        let first = page(&cluster, 2, None).unwrap();
        assert_eq!((names(&first), first.version, first.remaining), (vec!["a", "b"], 1004, Some(2)));
        cluster.delete(Resource::Services, "a", "c").unwrap();
        cluster.put(service("aa")).unwrap();
        let second = page(&cluster, 2, first.next.as_deref()).unwrap();
        assert_eq!((names(&second), second.version), (vec!["c", "d"], 1004));
        assert_eq!(second.next, None);
    }

    #[test]
    fn an_expired_list_says_how_to_go_on_with_another_version() {
        let cluster = Cluster::default();
        for name in ["a", "b", "c"] {
            cluster.put(service(name)).unwrap();
        }
        let first = page(&cluster, 1, None).unwrap();
        cluster.delete(Resource::Services, "a", "b").unwrap();
        cluster.compact();
        let refused = page(&cluster, 1, first.next.as_deref()).unwrap_err().status();
        assert_eq!((&refused["code"], &refused["reason"]), (&json!(410), &json!("Expired")));
        let rest = page(&cluster, 1, refused["metadata"]["continue"].as_str()).unwrap();
        assert_eq!((names(&rest), rest.version), (vec!["c"], 1004));
        assert!(page(&cluster, 1, Some("?")).is_err());
    }

    #[test]
    fn changes_are_told_until_they_are_forgotten() {
        let cluster = Cluster::default();
        let first = cluster.put(service("a")).unwrap();
        cluster.put(service("a")).unwrap();
        cluster.delete(Resource::Services, "a", "a").unwrap();
        let (upto, changes) = cluster.changes(Resource::Services, first).unwrap();
        let told: Vec<_> =
            changes.iter().map(|c| (c.version, c.old.is_some(), c.new.version, c.is_deleted)).collect();
        assert_eq!((upto, told), (1003, vec![(1002, true, 1002, false), (1003, true, 1003, true)]));
        assert!(cluster.changes(Resource::Nodes, first).unwrap().1.is_empty());
        cluster.compact();
        assert!(cluster.changes(Resource::Services, first).is_err());
        assert!(cluster.changes(Resource::Services, 1003).unwrap().1.is_empty());
    }

    #[test]
    fn an_object_keeps_what_it_was_created_with() {
        let cluster = Cluster::default();
        cluster.put(service("a")).unwrap();
        let uid = |cluster: &Cluster| cluster.objects(Resource::Services)[0]["metadata"]["uid"].clone();
        let created = uid(&cluster);
        cluster.put(service("a")).unwrap();
        assert_eq!(uid(&cluster), created);
        assert_eq!(cluster.objects(Resource::Services)[0]["metadata"]["resourceVersion"], "1002");
        assert!(cluster.put(json!({"apiVersion": "v1", "kind": "Pod"})).is_err());
        assert!(cluster.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {}})).is_err());
    }
}
