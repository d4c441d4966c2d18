//! More of the cores for the lab than for what else runs on the machine.
//!
//! Where the kernel groups processes by session (`sched_autogroup_enabled`, proc(5)), the nice value of a process counts only
//! within its session, and that of the session counts among all. `nice` sets the first, this the second.

use std::fs;

use anyhow::{Context, Result};
use testbed::Undo;

/// The session's priority is as it was again when this is dropped.
pub(crate) struct Raised(#[expect(dead_code, reason = "it works by being dropped")] Option<Undo>);

/// Gives this session the highest priority, if sessions have any. One that has it already, as from another lab in the same session,
/// keeps it for as long as that one lets it: who would put back what another has raised would leave it raised.
pub(crate) fn raise() -> Result<Raised> {
    const HIGHEST: i8 = -20;
    let path = format!("/proc/{}/autogroup", std::process::id());
    let Ok(text) = fs::read_to_string(&path) else { return Ok(Raised(None)) };
    let Some(before) = nice(&text).filter(|before| *before != HIGHEST) else { return Ok(Raised(None)) };
    let undo = Undo::change(&["sh", "-c", &format!("echo {before} >{path}")], &[]);
    fs::write(&path, HIGHEST.to_string()).with_context(|| path)?;
    Ok(Raised(Some(undo)))
}

/// The value in `/autogroup-12 nice 0`.
fn nice(text: &str) -> Option<i8> {
    text.trim().rsplit_once(" nice ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_a_session_is_read() {
        assert_eq!(nice("/autogroup-12 nice -5\n"), Some(-5));
        assert_eq!(nice("/autogroup-12\n"), None);
        assert_eq!(nice(""), None);
    }
}
