//! Every field: read, defaulted, refused, warned of; and that no text makes reading panic.

mod fields;
mod files;
