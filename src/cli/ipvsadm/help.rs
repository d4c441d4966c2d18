//! What `-h` and `-v` print, as ipvsadm 1.31 does: an interface that scripts look at.

/// The version that this command line is compatible with.
pub(super) const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";

/// What `-h` prints after the version.
pub(super) const USAGE: &str = include_str!("help.txt");

/// What stands on standard error where the line makes no sense at all.
pub(super) const TRY: &str = "Try `ipvsadm -h' or 'ipvsadm --help' for more information.";
