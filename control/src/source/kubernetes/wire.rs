//! Lists and events as the API server writes them.

use std::borrow::Cow;
use std::sync::Arc;

use kube::Resource as _;
use kube::core::Status;
use kube::core::watch::Bookmark;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::Update;
use super::object::{Key, Reduced, Watched};
use super::trouble::Trouble;

/// The annotation of the bookmark behind the objects that were there when a watch began.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page<T> {
    /// The version that the list is of.
    pub(super) version: String,
    /// How to get the next page.
    pub(super) next: Option<String>,
    pub(super) updates: Vec<Update<T>>,
}

/// An event of a watch.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// Something happened to an object; the version is that after it.
    Update(Update<T>, Option<String>),
    /// Everything up to this version has been told.
    Bookmark {
        version: String,
        /// Whether all objects have been told that there were at the begin.
        is_initial_end: bool,
    },
    /// The watch cannot go on.
    Failed(Trouble),
}

#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    metadata: RawListMeta<'a>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawListMeta<'a> {
    #[serde(borrow)]
    resource_version: Cow<'a, str>,
    #[serde(borrow, rename = "continue")]
    next: Cow<'a, str>,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
}

/// Reads a page of a list.
pub(super) fn read_page<T: Reduced>(text: &[u8]) -> Result<Page<T>, Trouble> {
    let list: RawList<'_> = serde_json::from_slice(text)
        .map_err(|error| Trouble::malformed(format_args!("not a list: {error}")))?;
    let is_list = list.kind.strip_suffix("List") == Some(T::KIND);
    if !is_list {
        return Err(Trouble::malformed(format_args!("a {} instead of a {}List", list.kind, T::KIND)));
    }
    if list.metadata.resource_version.is_empty() {
        return Err(Trouble::malformed("a list without resourceVersion"));
    }
    let updates =
        list.items.unwrap_or_default().into_iter().map(|item| read_object(item).map(|(update, _)| update));
    Ok(Page {
        updates: updates.collect::<Result<_, _>>()?,
        version: list.metadata.resource_version.into_owned(),
        next: Some(list.metadata.next.into_owned()).filter(|next| !next.is_empty()),
    })
}

fn read_object<T: Reduced>(text: &RawValue) -> Result<(Update<T>, Option<String>), Trouble> {
    let watched = read_watched(text)?;
    let version = watched.meta().resource_version.clone();
    let update = match watched.object {
        Ok(object) => Update::Applied(object),
        Err(undecodable) => Update::Undecodable(undecodable),
    };
    Ok((update, version))
}

fn read_watched<T: Reduced>(text: &RawValue) -> Result<Watched<T>, Trouble> {
    serde_json::from_str(text.get())
        .map_err(|error| Trouble::malformed(format_args!("not a {}: {error}", T::KIND)))
}

/// Reads a line of a watch.
pub(super) fn read_event<T: Reduced>(line: &[u8]) -> Result<Event<T>, Trouble> {
    let malformed = |error| Trouble::malformed(format_args!("not an event: {error}"));
    let RawEvent { kind, object } = serde_json::from_slice(line).map_err(malformed)?;
    match &*kind {
        "ADDED" | "MODIFIED" => {
            check_kind::<T>(object)?;
            let (update, version) = read_object(object)?;
            Ok(Event::Update(update, version))
        }
        "DELETED" => {
            check_kind::<T>(object)?;
            let watched: Watched<T> = read_watched(object)?;
            let meta = watched.meta();
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let key = Key {
                namespace: Arc::from(namespace),
                name: Arc::from(meta.name.as_deref().unwrap_or_default()),
            };
            Ok(Event::Update(Update::Deleted(key), meta.resource_version.clone()))
        }
        "BOOKMARK" => {
            let bookmark: Bookmark = serde_json::from_str(object.get()).map_err(malformed)?;
            let mark = bookmark.metadata.annotations.get(INITIAL_END);
            Ok(Event::Bookmark {
                is_initial_end: mark.is_some_and(|value| value == "true"),
                version: bookmark.metadata.resource_version,
            })
        }
        "ERROR" => {
            let status: Status = serde_json::from_str(object.get()).map_err(malformed)?;
            Ok(Event::Failed(Trouble::status(&status)))
        }
        other => {
            Err(Trouble::malformed(format_args!("an event of the unknown type {}", other.escape_debug())))
        }
    }
}

/// An object of another kind would be taken for one that has nothing set.
fn check_kind<T: Reduced>(object: &RawValue) -> Result<(), Trouble> {
    let begins = object.get().strip_prefix("{\"kind\":\"").and_then(|text| text.strip_prefix(T::KIND));
    if begins.is_some_and(|rest| rest.starts_with('"')) {
        return Ok(());
    }
    let typed: Typed<'_> = serde_json::from_str(object.get())
        .map_err(|error| Trouble::malformed(format_args!("not a {}: {error}", T::KIND)))?;
    if typed.kind == T::KIND {
        return Ok(());
    }
    Err(Trouble::malformed(format_args!("a {} instead of a {}", typed.kind.escape_debug(), T::KIND)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kubernetes::object::{EndpointSlice, Service};

    fn told(line: &str) -> String {
        match read_event::<Service>(line.as_bytes()) {
            Ok(Event::Update(Update::Applied(service), version)) => {
                format!("applied {} {version:?}", service.key)
            }
            Ok(Event::Update(Update::Deleted(key), version)) => format!("deleted {key} {version:?}"),
            Ok(Event::Update(Update::Undecodable(what), _)) => what.to_string(),
            Ok(Event::Update(update, _)) => format!("{update:?}"),
            Ok(Event::Bookmark { version, is_initial_end }) => format!("bookmark {version} {is_initial_end}"),
            Ok(Event::Failed(trouble)) => format!("failed {}: {trouble}", trouble.kind.name()),
            Err(trouble) => format!("{}: {trouble}", trouble.kind.name()),
        }
    }

    #[test]
    fn events_are_read_as_the_server_writes_them() {
        for (line, want) in [
            (
                r#"{"type":"ADDED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"b","namespace":"a","resourceVersion":"7"}}}"#,
                r#"applied a/b Some("7")"#,
            ),
            (
                r#"{"object":{"metadata":{"name":"b","namespace":"a","resourceVersion":"8"},"apiVersion":"v1","kind":"Service"},"type":"MODIFIED"}"#,
                r#"applied a/b Some("8")"#,
            ),
            (
                r#"{"type":"DELETED","object":{"kind":"Service","metadata":{"name":"b","namespace":"a","resourceVersion":"9"}}}"#,
                r#"deleted a/b Some("9")"#,
            ),
            (
                r#"{"type":"BOOKMARK","object":{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"12746","creationTimestamp":null},"spec":{},"status":{"loadBalancer":{}}}}"#,
                "bookmark 12746 false",
            ),
            (
                r#"{"type":"BOOKMARK","object":{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"5","creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}},"spec":{}}}"#,
                "bookmark 5 true",
            ),
            (
                r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (2)","reason":"Expired","code":410}}"#,
                "failed gone: HTTP 410: too old resource version: 1 (2)",
            ),
            (
                r#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"b","namespace":"a"}}}"#,
                "malformed: a Pod instead of a Service",
            ),
            (
                r#"{"type":"ADDED","object":{"kind":"ServiceX","metadata":{"name":"b"}}}"#,
                "malformed: a ServiceX instead of a Service",
            ),
            (
                r#"{"type":"ADDED","object":{"kind":"Service","metadata":{"namespace":"a"}}}"#,
                "a Service without a usable metadata.name (namespace `a`)",
            ),
            (r#"{"type":"NEW","object":{}}"#, "malformed: an event of the unknown type NEW"),
        ] {
            assert_eq!(told(line), want, "{line}");
        }
        for line in ["", "<html>", "{}", r#"{"type":"ADDED"}"#, r#"{"type":"ADDED","object":[]}"#, "\u{0}"] {
            assert!(told(line).starts_with("malformed: "), "{line}: {}", told(line));
        }
    }

    #[test]
    fn pages_are_read_and_what_is_none_is_refused() {
        let page = |text: &str| match read_page::<EndpointSlice>(text.as_bytes()) {
            Ok(Page { version, next, updates }) => format!("{version} {next:?} {}", updates.len()),
            Err(trouble) => trouble.message,
        };
        for (text, want) in [
            (
                r#"{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"9","continue":"x"},"items":[{"metadata":{"name":"a","namespace":"b"}},{}]}"#,
                r#"9 Some("x") 2"#,
            ),
            (
                r#"{"kind":"EndpointSliceList","metadata":{"resourceVersion":"9","continue":""},"items":null}"#,
                "9 None 0",
            ),
            (r#"{"kind":"EndpointSliceList","metadata":{},"items":[]}"#, "a list without resourceVersion"),
            (
                r#"{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":[]}"#,
                "a PodList instead of a EndpointSliceList",
            ),
        ] {
            assert_eq!(page(text), want, "{text}");
        }
        for text in ["", "<html>", "[]", r#"{"kind":"EndpointSliceList","items":[{]}"#] {
            assert!(page(text).starts_with("not a list"), "{text}: {}", page(text));
        }
    }
}
