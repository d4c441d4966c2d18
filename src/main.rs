//! `weir`: parse arguments, call, exit code.

mod cli;
mod process;
mod run;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    if let Some(code) = cli::by_name(std::env::args_os()) {
        return code;
    }
    match cli::Cli::parse().run() {
        Ok(code) => code,
        // Whoever reads the output has seen enough of it.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir: {}", told_once(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let of_json = error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
    let kind = of_json.or_else(|| Some(error.downcast_ref::<std::io::Error>()?.kind()));
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

/// An error with its causes, without those that it already tells itself.
fn told_once(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told.push_str(": ");
            told.push_str(&cause);
        }
    }
    told
}
