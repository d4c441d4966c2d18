//! Every field: read, defaulted, refused, warned of, told about; and that no text makes reading panic.

mod effects;
mod fields;
mod files;
mod flags;

use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// A configuration with these fields.
fn read(fields: &str) -> Result<KubeProxy, Faults> {
    read_with(fields, &Flags::default())
}

fn read_with(fields: &str, flags: &Flags) -> Result<KubeProxy, Faults> {
    parse("f", &format!("{HEAD}{fields}\n"), flags)
}
