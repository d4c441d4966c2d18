//! Label and field selectors, as far as they are used.

use std::collections::BTreeMap;

use super::status::Failure;

/// Labels of an object.
pub(super) type Labels = BTreeMap<String, String>;

/// What is asked of an object.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    /// `metadata.name` and `metadata.namespace`, with whether they are to be equal.
    fields: Vec<(Field, bool, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Has(String),
    HasNot(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
}

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`.
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, Failure> {
        let labels = clauses(labels).into_iter().map(requirement).collect::<Option<_>>();
        let labels = labels.ok_or_else(|| Failure::bad_request("unable to parse requirement: found ''"))?;
        let fields = fields.split(',').filter(|clause| !clause.is_empty()).map(field).collect::<Option<_>>();
        let fields = fields.ok_or_else(|| Failure::bad_request("field label not supported"))?;
        Ok(Self { labels, fields })
    }

    /// Whether everything is selected.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn selects(&self, namespace: &str, name: &str, labels: &Labels) -> bool {
        self.labels.iter().all(|requirement| requirement.holds(labels))
            && self.fields.iter().all(|(field, equal, value)| {
                let own = if *field == Field::Name { name } else { namespace };
                (own == value) == *equal
            })
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::Has(key) => labels.contains_key(key),
            Self::HasNot(key) => !labels.contains_key(key),
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
        }
    }
}

/// Splits at the commas that are not in parentheses.
fn clauses(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let split = text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    split.map(str::trim).filter(|clause| !clause.is_empty()).collect()
}

fn requirement(clause: &str) -> Option<Requirement> {
    let key = |text: &str| {
        let text = text.trim();
        let is_key = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        (!text.is_empty() && text.chars().all(is_key)).then(|| text.to_owned())
    };
    let set = |text: &str| -> Option<Vec<String>> {
        let inside = text.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inside.split(',').map(|value| value.trim().to_owned()).collect())
    };
    if let Some(without) = clause.strip_prefix('!') {
        return Some(Requirement::HasNot(key(without)?));
    }
    if let Some((name, values)) = clause.split_once(" notin ") {
        return Some(Requirement::NotIn(key(name)?, set(values)?));
    }
    if let Some((name, values)) = clause.split_once(" in ") {
        return Some(Requirement::In(key(name)?, set(values)?));
    }
    if let Some((name, value)) = clause.split_once("!=") {
        return Some(Requirement::NotIn(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some((name, value)) = clause.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return Some(Requirement::In(key(name)?, vec![value.trim().to_owned()]));
    }
    Some(Requirement::Has(key(clause)?))
}

fn field(clause: &str) -> Option<(Field, bool, String)> {
    let (name, equal, value) = match clause.split_once("!=") {
        Some((name, value)) => (name, false, value),
        None => {
            let (name, value) = clause.split_once('=')?;
            (name, true, value.strip_prefix('=').unwrap_or(value))
        }
    };
    let field = match name {
        "metadata.name" => Field::Name,
        "metadata.namespace" => Field::Namespace,
        _ => return None,
    };
    Some((field, equal, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_select_by_presence_equality_and_sets() {
        let labels: Labels = [("a", "1"), ("x.io/b", "2")].map(|(k, v)| (k.into(), v.into())).into();
        for (selector, want) in [
            ("", Some(true)),
            ("a", Some(true)),
            ("!a", Some(false)),
            ("!c,x.io/b=2", Some(true)),
            ("x.io/b==2", Some(true)),
            ("a!=1", Some(false)),
            ("c!=1", Some(true)),
            ("a in (1, 3),x.io/b", Some(true)),
            ("a notin (1,3)", Some(false)),
            ("a=1,!x.io/b", Some(false)),
            ("!", None),
            ("a in 1", None),
        ] {
            let selected = Selector::parse(selector, "").ok().map(|s| s.selects("ns", "name", &labels));
            assert_eq!(selected, want, "{selector}");
        }
    }

    #[test]
    fn fields_select_by_name_and_namespace() {
        for (selector, want) in [
            ("metadata.name=name", Some(true)),
            ("metadata.name=other", Some(false)),
            ("metadata.name!=other,metadata.namespace==ns", Some(true)),
            ("spec.type=x", None),
        ] {
            let selected =
                Selector::parse("", selector).ok().map(|s| s.selects("ns", "name", &Labels::default()));
            assert_eq!(selected, want, "{selector}");
        }
    }
}
