//! What each field of a KubeProxyConfiguration will do, as a table.

use std::fmt;
use std::path::Path;

use control::config::kube_proxy::{Effect, FieldEffect};
use control::config::{KubeProxy, Section};
use serde::Serialize;

/// Characters of a value that are shown.
const VALUE_MAX: usize = 40;

#[derive(Debug, Serialize)]
pub(super) struct Fields {
    file: String,
    /// The mode that kube-proxy would run in.
    mode: &'static str,
    fields: Vec<FieldEffect>,
}

impl Fields {
    /// What the fields of `proxy`, read from `file`, do beside this section of Weir's own configuration.
    pub(super) fn new(file: &Path, proxy: &KubeProxy, section: &Section) -> Self {
        Self { file: file.display().to_string(), mode: proxy.mode().name(), fields: proxy.effects(section) }
    }
}

impl fmt::Display for Fields {
    /// The fields that the file has, and those whose defaults do something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self
            .fields
            .iter()
            .filter(|field| field.given || field.effect != Effect::None)
            .map(|field| (field, value(field)))
            .collect();
        let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
        let names = width(&mut rows.iter().map(|(field, _)| field.field.len())).max("FIELD".len());
        let values = width(&mut rows.iter().map(|(_, value)| value.chars().count())).max("VALUE".len());
        writeln!(f, "{}: KubeProxyConfiguration of mode {}", self.file, self.mode)?;
        writeln!(f, "{:names$}  {:values$}  {:8}  WHAT IT DOES", "FIELD", "VALUE", "EFFECT")?;
        for (field, value) in &rows {
            let FieldEffect { field, effect, what, .. } = field;
            writeln!(f, "{field:names$}  {value:values$}  {:8}  {what}", effect.name())?;
        }
        f.write_str(
            "Values in brackets are defaults. Fields that are left out and do nothing are not shown.\n",
        )
    }
}

/// The value, short enough for a table; a default in brackets.
fn value(field: &FieldEffect) -> String {
    let text = match field.value.as_str() {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => field.value.to_string(),
    };
    let mut shown: String = text.chars().take(VALUE_MAX).collect();
    if shown.len() < text.len() {
        shown.push_str("..");
    }
    if field.given { shown } else { format!("({shown})") }
}
