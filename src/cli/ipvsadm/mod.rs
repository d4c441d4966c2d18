//! `ipvsadm`: the commands, options, output, messages and exit statuses of ipvsadm 1.31, for a running Weir.
//!
//! ```text
//! words (popt) -> line (what is asked, checked) -> act -> admin socket
//!   options: what there is, what goes together     |-> print, connections: tables and rules
//! ```

mod act;
mod connections;
mod help;
mod line;
mod names;
mod numbers;
mod options;
mod order;
mod print;
mod sync;
mod words;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use act::Session;
pub(crate) use act::Status;

/// Names a socket for the program under its own name, which has no option for it.
const SOCKET: &str = "WEIR_SOCKET";

#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Command and options of ipvsadm; `-h` lists them. The environment variable WEIR_SOCKET names the admin socket.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

/// `weir ipvsadm ...`
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    Ok(serve(args.arguments))
}

/// Runs under one of ipvsadm's names, where that is what the program was called; `None` where not.
pub(crate) fn by_name(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let program = arguments.next()?;
    match Path::new(&program).file_name().and_then(OsStr::to_str)? {
        "ipvsadm" => Some(serve(arguments.collect())),
        "ipvsadm-save" => Some(save(arguments.collect())),
        "ipvsadm-restore" => Some(restore()),
        _ => None,
    }
}

fn serve(arguments: Vec<OsString>) -> ExitCode {
    let arguments: Vec<String> =
        arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let mut session = Session::new(socket());
    if arguments.is_empty() {
        return session.list_all().code();
    }
    session.run(&arguments).code()
}

/// The services as lines that `ipvsadm -R` takes: the wrapper of this name.
fn save(arguments: Vec<OsString>) -> ExitCode {
    let mut line = vec!["-S".to_owned()];
    for argument in arguments {
        match argument.to_string_lossy().as_ref() {
            "-n" => line = vec!["-S".to_owned(), "-n".to_owned()],
            other if other.starts_with('-') => {
                eprintln!("ipvsadm-save: Script to save the IPVS table to stdout.");
                eprintln!("   With the -n option, prints out the table in numeric format.");
                return ExitCode::FAILURE;
            }
            _ => {}
        }
    }
    Session::new(socket()).run(&line).code()
}

/// Replaces all services by those of standard input, whose comments do not count: the wrapper of this name.
fn restore() -> ExitCode {
    let mut session = Session::new(socket());
    match session.run(&["-C".to_owned()]) {
        Status(0) => session.restore(true).code(),
        failed => failed.code(),
    }
}

fn socket() -> PathBuf {
    std::env::var_os(SOCKET).map_or_else(|| super::show::SOCKET.into(), PathBuf::from)
}
