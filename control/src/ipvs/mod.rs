//! Weir as `ipvsadm` sees it: the desired state under the kernel's commands, with the kernel's checks and errors.
//!
//! [`command`] is what goes over the admin socket, [`Table`] carries commands out on a draft, [`list`] is the way back,
//! [`estimator`] has the counts that `--stats` and `--rate` tell.

pub mod command;
mod convert;
pub mod estimator;
pub mod list;
mod table;

#[cfg(test)]
mod tests;

pub use table::{Room, Table};
